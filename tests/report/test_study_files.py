import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hbr_fast.report.reading import read_study
from hbr_fast.report.study_files import FILES, compare, spread

StudyWriter = Callable[..., Path]
FLAT = np.full(10, 0.9)


def with_worst(*worst: float) -> np.ndarray:
    """Recall `[members, 10]` of 0.9 except class 6, which has one value per member."""
    recall = np.tile(FLAT, (len(worst), 1))
    recall[:, 6] = worst
    return recall


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_read_study_keeps_order_of_arms_members_and_metrics(study_writer: StudyWriter) -> None:
    recall = {"hbr": with_worst(0.8, 0.7), "baseline": with_worst(0.5, 0.6, 0.4)}
    study = read_study(study_writer(recall=recall))
    assert study.arms == ("baseline", "hbr")
    assert study.treatments == ("hbr",)
    assert [study.members(arm) for arm in study.arms] == [3, 2]
    np.testing.assert_array_equal(study.class_metric("baseline", "recall"), recall["baseline"])
    np.testing.assert_allclose(study.member_metric("hbr", "recall_max_min"), [0.1, 0.2])


def test_read_study_sorts_rows_of_a_shuffled_file(study_writer: StudyWriter) -> None:
    path = study_writer()
    before = read_study(path)
    for name in ("per_class.csv", "per_member.csv"):
        head, *rows = (path / name).read_text().splitlines()
        (path / name).write_text("\n".join([head, *np.random.default_rng(1).permutation(rows)]) + "\n")
    after = read_study(path)
    for arm in before.arms:
        np.testing.assert_array_equal(after.class_metric(arm, "recall"), before.class_metric(arm, "recall"))


@pytest.mark.parametrize(("estimator", "hardest"), [("aum", 6), ("loss", 1)])
def test_trap_13_the_hard_end_follows_the_estimator(study_writer: StudyWriter, estimator: str, hardest: int) -> None:
    path = study_writer()
    edit(path / "study.json", '"estimator": "aum"', f'"estimator": "{estimator}"')
    assert read_study(path).hard_to_easy()[0] == hardest


def test_hardness_is_the_recorded_one_in_every_order_and_names_its_members(study_writer: StudyWriter) -> None:
    study = read_study(study_writer(recorded={"class_hardness": [*range(10, 0, -1)], "hardness_members": 2}))
    assert study.class_hardness().tolist() == [*range(10, 0, -1)]
    assert study.hard_to_easy().tolist() == [*range(9, -1, -1)], "not by the mean over all trainings"
    assert study.hardness_from == "the first 2 of the baseline's 3 members"
    assert (
        read_study(study_writer("all", recorded={"hardness_members": 3})).hardness_from == "3 members of the baseline"
    )
    assert read_study(study_writer("old")).hardness_from == "members of the baseline"


def test_read_study_keeps_numeric_class_names_as_text(study_writer: StudyWriter) -> None:
    study = read_study(study_writer(classes=[str(digit) for digit in range(10)]))
    assert study.classes[3] == "3"
    assert study.per_class["class_name"][3] == "3"


def test_compare_reads_row_in_percent(study_writer: StudyWriter) -> None:
    path = study_writer()
    row = pl.read_csv(path / "comparisons.csv").row(by_predicate=pl.col("quantity") == "recall_std", named=True)
    comparison = compare(read_study(path), "hbr", "recall_std")
    assert (comparison.low, comparison.high) == pytest.approx((100 * row["low"], 100 * row["high"]))
    assert comparison.difference == pytest.approx(100 * row["difference"])
    tests = ("variants", "effect_size", "p", "p_holm", "smallest_p", "paper_t", "paper_p", "direction")
    assert {name: getattr(comparison, name) for name in tests} == {name: row[name] for name in tests}
    assert comparison.no_test == ""
    assert comparison.interval == pytest.approx((100 * row["combined_low"], 100 * row["combined_high"]))
    assert comparison.distinguishable == (row["combined_low"] > 0 or row["combined_high"] < 0)


def test_compare_says_why_there_is_no_test(study_writer: StudyWriter) -> None:
    path = study_writer(variants={"hbr": [(0, 0), (0, 1), (0, 2)]})
    comparison = compare(read_study(path), "hbr", "accuracy")
    assert comparison.no_test == "one resampled variant gives no interval"
    assert np.isnan([comparison.low, comparison.high, comparison.p, comparison.p_holm]).all()
    assert not comparison.distinguishable


def test_read_study_of_baseline_needs_no_comparisons(study_writer: StudyWriter) -> None:
    path = study_writer(recall={"baseline": with_worst(0.5, 0.6)})
    assert not (path / "comparisons.csv").exists()
    study = read_study(path)
    assert study.files == (*FILES, "samples.csv")


def test_spread_is_sample_deviation_and_undefined_for_one() -> None:
    np.testing.assert_allclose(spread(np.array([[1.0, 5.0], [3.0, 5.0]])), [np.sqrt(2), 0])
    assert np.isnan(spread(np.array([[1.0, 2.0]]))).all()


@pytest.mark.parametrize("name", [*FILES, "comparisons.csv"])
def test_read_study_names_missing_file(study_writer: StudyWriter, name: str) -> None:
    path = study_writer()
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing: run the study again"):
        read_study(path)


def test_read_study_names_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        read_study(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "study.json",
            '"schema": 4',
            '"schema": 2',
            r"study.json is not a study of schema 4: run the study again \(nothing is trained again\)",
        ),
        ("study.json", '"arms"', '"legs"', "study.json: field arms is missing or not a list: run the study again"),
        ("study.json", '"estimator": "aum"', '"estimator": "luck"', "unknown estimator 'luck'"),
        ("study.json", '"name": "baseline"', '"name": "control"', "one of them 'baseline'"),
        ("study.json", '"name": "hbr"', '"name": "baseline"', "need distinct names"),
        ("study.json", '"seed": 1002}', '"seed": 1002', "study.json is not valid JSON"),
        ("per_class.csv", ",recall,", ",recoil,", "per_class.csv lacks the column 'recall': run the study"),
        ("per_class.csv", "Trouser", "Skirt", r"per_class.csv has no row for .*'Trouser'"),
        ("per_class.csv", "hbr,2,2,", "hbr,1,1,", r"per_class.csv has no row for \('hbr', 2, 2, 0,"),
        ("per_member.csv", "hbr,2,2,", "hbr,3,2,", r"per_member.csv has no row for \('hbr', 2, 2\)"),
        ("per_member.csv", "baseline,0,0,", "baseline,zero,0,", "per_member.csv cannot be read"),
        ("comparisons.csv", ",p_holm,", ",q,", "comparisons.csv lacks the column 'p_holm': run the study"),
        ("comparisons.csv", "recall_mad", "recall_mud", "comparisons.csv has no row for arm 'hbr' and recall_mad"),
        ("comparisons.csv", "hbr,baseline,accuracy", "hbr,control,accuracy", "no row for arm 'hbr' and accuracy"),
        (
            "class_intervals.csv",
            "hbr,6,recall,",
            "hbr,5,recall,",
            "class_intervals.csv has no row for .'hbr', 'recall', 6",
        ),
        ("confusion.csv", "hbr,6,6,", "hbr,6,16,", r"confusion.csv has a row for \('hbr', 6, 16,"),
        ("study.json", '"metric": "recall"', '"metric": "recoil"', "unknown metric 'recoil', known are recall, "),
        ("samples.csv", ",6,Shirt,", ",66,Shirt,", "samples.csv: sample .* has class 66 of 10"),
        ("study.json", '"seconds"', '"class_hardness": [1.5], "seconds"', "class_hardness has 1 values, .* 10 classes"),
    ],
)
def test_read_study_names_bad_file_in_one_line(
    study_writer: StudyWriter, name: str, old: str, new: str, message: str
) -> None:
    path = study_writer()
    edit(path / name, old, new)
    with pytest.raises(ValueError, match=message) as raised:
        read_study(path)
    assert "\n" not in str(raised.value)


def test_read_study_names_rows_missing_from_study_json(study_writer: StudyWriter) -> None:
    path = study_writer()
    text = (path / "per_member.csv").read_text()
    row = text.splitlines()[-1]
    (path / "per_member.csv").write_text(f"{text}{row.replace('hbr,2,2', 'hbr,3,3')}\n")
    with pytest.raises(ValueError, match=r"has a row for \('hbr', 3, 3\), which study.json does not have"):
        read_study(path)
    (path / "per_member.csv").write_text(f"{text}{row}\n")
    with pytest.raises(ValueError, match="has rows that occur twice"):
        read_study(path)


def test_read_study_names_arm_without_members(study_writer: StudyWriter) -> None:
    path = study_writer()
    meta = json.loads((path / "study.json").read_text())
    meta["arms"][1]["members"] = []
    (path / "study.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="arm 'hbr' has no members: run the study again"):
        read_study(path)
