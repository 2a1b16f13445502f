"""Trainings from elsewhere: the same comparisons as a study's, every file format, and all faults at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from hbr_fast import cli
from hbr_fast.data.dataset import Dataset
from hbr_fast.files import read_json
from hbr_fast.report.reading import read_study
from hbr_fast.studies.imported import ImportedRun, import_runs
from hbr_fast.studies.run_files import read_labels, read_outputs, read_runs, read_samples

from .conftest import STUDY

LABELS = np.repeat([0, 1, 2], 10)


def outputs(seed: int, *, shape: tuple[int, ...] = (30, 3)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape) + (LABELS[:, None] == np.arange(3)) * (len(shape) == 2)


def two_arms(**changed: Any) -> list[ImportedRun]:
    """Two trainings each of the baseline and of an arm; `changed` replaces the outputs or ids of the last."""
    runs = [ImportedRun(arm, outputs(10 * a + v), v) for a, arm in enumerate(("baseline", "mine")) for v in (0, 1)]
    last = {"outputs": runs[-1].outputs, "variant": 1, **changed}
    return [*runs[:-1], ImportedRun("mine", **last)]


def test_import_of_a_study_gives_its_comparisons(finished: Path, data: Dataset, tmp_path: Path) -> None:
    about = read_json(finished / "study.json")
    rows = [
        {"arm": arm["name"], "file": f"{(finished / m['path']).resolve()}/logits.npy", "variant": m["variant"]}
        for arm in about["arms"]
        for m in arm["members"]
    ]
    pl.DataFrame(rows).write_csv(tmp_path / "runs.csv")
    counts = [
        {"arm": arm["name"], "class_index": c, "samples": n}
        for arm in about["arms"]
        for c, n in enumerate(arm["counts"])
    ]
    pl.DataFrame(counts).write_csv(tmp_path / "samples.csv")
    runs, against = read_runs(tmp_path / "runs.csv")
    import_runs(
        runs,
        data.test.labels,
        out=tmp_path / "out",
        against=against,
        classes=data.classes,
        samples=read_samples(tmp_path / "samples.csv", 3),
        scores=pl.read_csv(finished / "samples.csv"),
        seed=STUDY.seed,
    )
    for name in ("comparisons.csv", "confusion.csv", "class_intervals.csv", "samples.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes(), name
    same = ["arm", "variant", "member", "class_index", "samples", "recall", "auroc"]
    ours, theirs = (pl.read_csv(folder / "per_class.csv").select(same) for folder in (tmp_path / "out", finished))
    assert ours.equals(theirs)
    assert read_json(tmp_path / "out" / "study.json")["class_hardness"] == pytest.approx(about["class_hardness"])
    assert read_study(tmp_path / "out").has_hardness


def test_import_leaves_a_study_alone(finished: Path) -> None:
    before = (finished / "study.json").read_bytes()
    with pytest.raises(FileExistsError, match="holds the trainings of a study, whose results this would replace"):
        import_runs(two_arms(), LABELS, out=finished)
    assert (finished / "study.json").read_bytes() == before


def test_import_of_predictions_alone_makes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arm, seed in (("baseline", 0), ("mine", 1)):
        np.save(tmp_path / f"{arm}.npy", outputs(seed).argmax(axis=1))
    (tmp_path / "runs.csv").write_text("arm,file\nbaseline,baseline.npy\nmine,mine.npy\n")
    np.save(tmp_path / "labels.npy", LABELS)
    cli.main(["import", str(tmp_path / "runs.csv"), str(tmp_path / "out"), "--labels", str(tmp_path / "labels.npy")])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    page = Path(last["report"]).read_text(encoding="utf-8")
    assert "the hardness of the training samples is not known" in page
    study = read_study(tmp_path / "out")
    assert (study.has_hardness, study.has_samples, study.classes) == (False, False, ("0", "1", "2"))
    accuracy = (outputs(0).argmax(axis=1) == LABELS).mean()
    assert study.member_metric("baseline", "accuracy")[0] == pytest.approx(accuracy)
    assert np.isnan(study.class_metric("mine", "auroc")).all()
    least = study.class_metric("baseline", "recall")[0]
    assert list(study.hard_to_easy()) == list(np.argsort(least, kind="stable"))


def test_import_aligns_runs_by_sample_id(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(30)
    names = np.array([f"photo-{i}.jpg" for i in range(30)])
    mixed = two_arms(outputs=outputs(11)[order], ids=names[order])
    import_runs(mixed, LABELS, ids=names, out=tmp_path / "mixed")
    import_runs(two_arms(), LABELS, out=tmp_path / "plain")
    one, other = ((tmp_path / folder / "comparisons.csv").read_bytes() for folder in ("mixed", "plain"))
    assert one == other


def test_import_names_all_faults_at_once(tmp_path: Path) -> None:
    names = np.arange(30)
    nan = outputs(2)
    nan[3] = np.nan
    runs = [
        ImportedRun("baseline", outputs(0)[:29]),
        ImportedRun("baseline", outputs(0)[:, :2], member=1),
        ImportedRun("mine", nan),
        ImportedRun("mine", nan.astype(bool), member=1),
        ImportedRun("mine", np.where(names == 4, 7, LABELS), member=2, ids=names + 2),
        ImportedRun("mine", outputs(0), member=2),
    ]
    with pytest.raises(ValueError, match="baseline, variant 0, member 0 has 29 samples, the labels 30") as raised:
        import_runs(
            runs, LABELS, ids=names, out=tmp_path / "out", classes="abc", against={"mine": "theirs"},
            samples={"mine": [1, 2]},
        )  # fmt: skip
    assert "\n" not in str(raised.value)
    for fault in (
        "mine, variant 0, member 2 occurs twice",
        "'mine' is compared with 'theirs', but there are no runs of 'theirs'",
        "no samples per class of baseline: give those of every arm or of none",
        "samples of 'mine' must be 3 whole numbers >= 0, one a class, got [1 2]",
        "baseline, variant 0, member 1 has logits of 2 classes, not 3",
        "mine, variant 0, member 0 has NaN logits of 1 sample: did it diverge?",
        "mine, variant 0, member 1 must be logits [N, C] (floating point) or predicted classes [N]",
        "mine, variant 0, member 2 predicts class 7, of 3 classes",
        "mine, variant 0, member 2 has samples without a label: 30, 31",
        "mine, variant 0, member 2 has no output for: 0, 1",
    ):
        assert fault in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (two_arms()[2:], {}, "no run is of the arm 'baseline'"),
        (two_arms(ids=np.arange(30)), {}, "mine, variant 1, member 0 has sample ids, the labels have none"),
        (two_arms(ids=np.zeros(30, int)), {"ids": np.arange(30)}, "sample ids that occur twice"),
        (
            two_arms(),
            {"classes": "ab"},
            "label 2 is outside the 2 classes; baseline, variant 0, member 0 has logits of 3",
        ),
        (two_arms(ids=np.arange(30)), {"ids": np.arange(29)}, r"the labels are 30, their ids \[29\]"),
        (two_arms(ids=np.arange(30)), {"ids": np.arange(30) // 2}, "the labels have sample ids that occur twice"),
        (two_arms(), {"metric": "luck"}, "unknown metric 'luck': known are recall, "),
        (two_arms(), {"scores": pl.DataFrame({"sample_id": [0]})}, "scores lack 'class_index', 'class_name', 'aum'"),
        (
            two_arms(),
            {"scores": pl.DataFrame({"sample_id": [0], "class_index": [3], "class_name": ["x"], "aum": [0.5]})},
            "no hardness scores of class '0', '1', '2'; hardness scores of class 3, of 3 classes",
        ),
    ],
)
def test_import_refuses_bad_input(
    runs: list[ImportedRun], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        import_runs(runs, LABELS, out=tmp_path / "out", **options)


def test_import_takes_lists_and_tensors_and_refuses_graphs(tmp_path: Path) -> None:
    kinds: dict[str, Callable[[Any], Any]] = {
        "tensor": torch.from_numpy,
        "list": np.ndarray.tolist,
        "array": np.asarray,
    }
    for name, kind in kinds.items():
        runs = [ImportedRun(arm, kind(outputs(seed))) for seed, arm in enumerate(("baseline", "mine"))]
        import_runs(runs, kind(LABELS), out=tmp_path / name)
    first, *others = ((tmp_path / name / "comparisons.csv").read_bytes() for name in kinds)
    assert others == [first, first]
    with pytest.raises(ValueError, match=r"outputs of mine, variant 0, member 0 must be an array \(Can't call numpy"):
        ImportedRun("mine", torch.zeros(3, 2, requires_grad=True))  # type: ignore[arg-type]


def test_outputs_and_labels_are_the_same_from_every_format(tmp_path: Path) -> None:
    logits, ids = outputs(0), np.arange(30)[::-1]
    np.save(tmp_path / "a.npy", logits)
    np.savez(tmp_path / "a.npz", logits=logits, ids=ids)
    frame = pl.DataFrame({"id": ids, **{f"logit_{c}": logits[:, c] for c in (2, 0, 1)}})
    frame.write_csv(tmp_path / "a.csv")
    frame.write_parquet(tmp_path / "a.parquet")
    for suffix in (".npy", ".npz", ".csv", ".parquet"):
        values, read = read_outputs(tmp_path / f"a{suffix}")
        np.testing.assert_allclose(values, logits, rtol=1e-12)
        assert (read is None) == (suffix == ".npy")
        assert read is None or (read == ids).all()
    np.save(tmp_path / "l.npy", LABELS)
    np.savez(tmp_path / "l.npz", labels=LABELS)
    table = pl.DataFrame({"label": LABELS})
    table.write_csv(tmp_path / "l.csv")
    table.write_parquet(tmp_path / "l.parquet")
    for suffix in (".npy", ".npz", ".csv", ".parquet"):
        np.testing.assert_array_equal(read_labels(tmp_path / f"l{suffix}")[0], LABELS)
    pl.DataFrame({"prediction": LABELS}).write_csv(tmp_path / "p.csv")
    assert read_outputs(tmp_path / "p.csv")[0].dtype.kind == "i"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("arm,path\nbaseline,a.npy\n", "lacks the column 'file': a table of runs has arm and file"),
        ("arm,file,variant\nbaseline,a.npy,x\n", "variant must be a whole number in every row"),
        ("arm,file\nbaseline,gone.npy\nmine,lost.npy\n", "files that are not there: gone.npy, lost.npy"),
        (
            "arm,file\nbaseline,bad.npz\nmine,bad.txt\n",
            r"must hold one of logits, predictions; it holds x; .*must end in",
        ),
        ("arm,file\nbaseline,bad.npy\n", "bad.npy is not a readable .npy file"),
        ("arm,file\nbaseline,bad.csv\n", "logits must be in columns logit_0 to logit_1, got logit_0, logit_2"),
        ("arm,file,against\nm,a.npy,baseline\nm,a.npy,b\n", "'m' is compared with both 'baseline' and 'b'"),
    ],
)
def test_table_of_runs_names_what_is_wrong(table: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(table)
    np.save(tmp_path / "a.npy", outputs(0))
    np.savez(tmp_path / "bad.npz", x=LABELS)
    (tmp_path / "bad.txt").write_text("")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "bad.csv").write_text("logit_0,logit_2\n1,2\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_runs(tmp_path / "runs.csv")
