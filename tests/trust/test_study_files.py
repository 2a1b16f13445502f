"""The results of one study: whatever was left by another, or changed since, is removed or named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hbr_fast.files import read_json
from hbr_fast.report.reading import read_study
from hbr_fast.studies.results import _remove_other_results
from hbr_fast.studies.study_json import read_study_json

from .targets.results import write_study_files


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_study_files(tmp_path, sealed=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("per_member.csv", ",0.9,", ",0.8,"),
        ("per_class.csv", ",1.5,", ",1e300,"),
        ("samples.csv", "0,0,a", "0,1,a"),
        ("comparisons.csv", ",0.5,", ",0.05,"),
    ],
)
def test_read_study_names_changed_files(study: Path, name: str, old: str, new: str) -> None:
    text = (study / name).read_text()
    assert old in text
    (study / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"{name} changed after study\.json was written: run the study again"):
        read_study(study)


def test_read_study_names_all_files_of_another_study(study: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As after a kill between files."""
    for name in ("per_member.csv", "samples.csv"):
        (study / name).write_text((study / name).read_text() + "\n")
    with pytest.raises(ValueError, match=r"per_member\.csv, .*samples\.csv changed after study\.json"):
        read_study(study)
    (study / "samples.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"samples\.csv is missing: run the study again"):
        read_study_json(study)


def test_read_study_json_names_an_edited_one(study: Path) -> None:
    text = (study / "study.json").read_text()
    (study / "study.json").write_text(text.replace('"estimator": "aum"', '"estimator": "loss"'))
    with pytest.raises(ValueError, match=r"study\.json was changed after it was written \(another checksum\)"):
        read_study(study)


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        (
            "per_class.csv",
            ",3,1.5,",
            ",4611686018427387904,1.5,",
            r"column 'samples' has 4\.611686018427388e\+18, which is too",
        ),
        ("per_class.csv", ",1.5,", ",1e300,", r"column 'hardness' has 1e\+300, which is too large"),
        ("per_class.csv", ",1.5,", ",inf,", "column 'hardness' has inf, which is too large"),
        ("samples.csv", "2,0,a", ",0,a", "column 'sample_id' has an empty cell"),
    ],
)
def test_read_study_without_checksums_names_damaged_cells(
    tmp_path: Path, name: str, old: str, new: str, fault: str
) -> None:
    write_study_files(tmp_path, sealed=False)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"{name}: {fault}"):
        read_study(tmp_path)


def test_remove_other_results_keeps_what_no_study_wrote(study: Path) -> None:
    for name in ("ensemble_size.csv", "estimators.csv", "notes.csv"):
        (study / name).touch()
    (study / "plans").mkdir()
    for name in ("old-variant-0.safetensors", "hbr-variant-0.safetensors", "mine.safetensors"):
        (study / "plans" / name).touch()
    own = {"per_class.csv", "per_member.csv", "samples.csv", "comparisons.csv", "plans/hbr-variant-0.safetensors"}
    _remove_other_results(study, own)
    assert sorted(path.name for path in study.glob("*.csv")) == sorted(
        ["comparisons.csv", "notes.csv", "per_class.csv", "per_member.csv", "samples.csv"]
    )
    assert sorted(path.name for path in (study / "plans").iterdir()) == [
        "hbr-variant-0.safetensors",
        "mine.safetensors",
    ]
    assert read_json(study / "study.json")["study"] == "fuzz"
