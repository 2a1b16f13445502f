"""Groups of test samples: accuracy by hand, matched by id or source, and tables that name the wrong samples."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hbr_fast.data.dataset import Dataset
from hbr_fast.report.reading import read_study
from hbr_fast.report.tables import group_table, tables_of
from hbr_fast.studies.groups import UNLISTED, read_groups
from hbr_fast.studies.imported import ImportedRun, import_runs
from hbr_fast.studies.run_files import read_outputs
from hbr_fast.studies.runner import run_study

from .conftest import STUDY

LABELS = np.repeat([0, 1], 50)


def test_groups_of_imported_runs_by_hand(tmp_path: Path) -> None:
    wrong = {"baseline": (20, 10), "mine": (4, 10)}  # of the first and of the second class, by arm
    runs = []
    for arm, (first, second) in wrong.items():
        for variant in (0, 1):
            predicted = LABELS.copy()
            predicted[: first + variant] = 1
            predicted[50 : 50 + second] = 0
            runs.append(ImportedRun(arm, predicted, variant))
    table = pl.DataFrame({"sample_id": range(90), "light": ["day"] * 50 + ["night"] * 40})
    table.write_csv(tmp_path / "groups.csv")
    out = import_runs(runs, LABELS, out=tmp_path / "out", groups=tmp_path / "groups.csv")
    rows = {(r["arm"], r["group"]): r for r in pl.read_csv(out / "groups.csv").iter_rows(named=True)}
    assert {group for _, group in rows} == {"day", "night", UNLISTED}
    day = rows["baseline", "day"]
    assert (day["samples"], day["accuracy"]) == (50, pytest.approx((30 + 29) / 2 / 50))
    assert day["low"] < day["accuracy"] < day["high"]
    assert rows["mine", "night"]["accuracy"] == pytest.approx(30 / 40)
    assert rows["mine", UNLISTED]["samples"] == 10
    study = read_study(out)
    shown = group_table(study)
    assert shown.columns[:4] == ("attribute", "group", "samples", "baseline (%)")
    assert [row[:2] for row in shown.rows] == [("light", "day"), ("light", "night"), ("light", UNLISTED)]
    assert shown.name in {one.name for one in tables_of(study)}
    assert "groups.csv" in study.files
    import_runs(runs, LABELS, out=tmp_path / "out")
    assert not (out / "groups.csv").exists()


def test_study_groups_by_source_and_refuses_before_training(finished: Path, data: Dataset, tmp_path: Path) -> None:
    sources = data.test.sources
    assert sources is not None
    table = pl.DataFrame({"source": [sources[row] for row in range(60)], "odd": [row % 2 for row in range(60)]})
    table.write_csv(tmp_path / "groups.csv")
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    run_study(STUDY, data, out=copy, groups=tmp_path / "groups.csv")
    rows = pl.read_csv(copy / "groups.csv").filter(arm="baseline")
    right = [read_outputs(path / "logits.npy")[0].argmax(1) == data.test.labels for path in _members(copy)]
    assert rows.filter(group=1)["accuracy"].item() == pytest.approx(np.mean([one[1::2].mean() for one in right]))
    with pytest.raises(FileNotFoundError, match=r"gone\.csv is not a file"):
        run_study(STUDY, data, out=tmp_path / "new", groups=tmp_path / "gone.csv")
    assert not (tmp_path / "new").exists()


def _members(finished: Path) -> list[Path]:
    baseline = read_study(finished).meta["arms"][0]
    return [finished / member["path"] for member in baseline["members"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,light\n0,day\n", "must have a column 'sample_id' and one for each attribute, got name, light"),
        ("sample_id\n0\n", "must have a column 'sample_id' and one for each attribute, got sample_id"),
        (
            "sample_id,light\n0,day\n0,day\n7,day\n8,day\n",
            "has samples that are not in the test set: 7, 8; samples twice: 0",
        ),
    ],
)
def test_groups_name_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_groups(tmp_path / "groups.csv", sample_id=np.arange(4), source=None)
