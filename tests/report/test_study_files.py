import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast.report.study_files import FILES, compare, read_study, spread

StudyWriter = Callable[..., Path]
FLAT = np.full(10, 0.9)


def with_worst(*worst: float) -> np.ndarray:
    """Recall `[members, 10]` of 0.9 but for class 6, which has one value a member."""
    recall = np.tile(FLAT, (len(worst), 1))
    recall[:, 6] = worst
    return recall


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_reads_arms_members_and_metrics_in_order(study_writer: StudyWriter) -> None:
    recall = {"hbr": with_worst(0.8, 0.7), "baseline": with_worst(0.5, 0.6, 0.4)}
    study = read_study(study_writer(recall=recall))
    assert study.arms == ("baseline", "hbr")
    assert study.treatments == ("hbr",)
    assert [study.members(arm) for arm in study.arms] == [3, 2]
    np.testing.assert_array_equal(study.class_metric("baseline", "recall"), recall["baseline"])
    np.testing.assert_allclose(study.member_metric("hbr", "recall_max_min"), [0.1, 0.2])


def test_rows_of_a_shuffled_file_find_their_places(study_writer: StudyWriter) -> None:
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


def test_class_names_that_look_like_numbers_stay_text(study_writer: StudyWriter) -> None:
    study = read_study(study_writer(classes=[str(digit) for digit in range(10)]))
    assert study.classes[3] == "3"
    assert study.per_class["class_name"][3] == "3"


def test_compares_pairs_of_the_same_seed(study_writer: StudyWriter) -> None:
    # Paired by seed, each variant gains exactly 10 points; by position the differences would scatter.
    recall = {"baseline": with_worst(0.5, 0.6, 0.7), "hbr": with_worst(0.8, 0.7, 0.6)}
    study = read_study(study_writer(recall=recall, seeds={"baseline": [1, 2, 3], "hbr": [3, 2, 1]}))
    comparison = compare(study, "hbr", "recall_max_min")
    assert comparison.variants == 3
    np.testing.assert_allclose(
        [comparison.difference, comparison.low, comparison.high, comparison.smallest_p], [-10, -10, -10, 0.25]
    )
    assert comparison.distinguishable


def test_interval_by_hand(study_writer: StudyWriter) -> None:
    recall = {"baseline": with_worst(0.5, 0.5, 0.5), "hbr": with_worst(0.51, 0.52, 0.53)}
    comparison = compare(read_study(study_writer(recall=recall)), "hbr", "recall_max_min")
    # Differences -1, -2, -3: mean -2, standard error 1 / sqrt(3), t(0.975, 2) = 4.30265.
    margin = 4.30265 / np.sqrt(3)
    np.testing.assert_allclose([comparison.low, comparison.high], [-2 - margin, -2 + margin], rtol=1e-5)
    assert not comparison.distinguishable


def test_members_of_a_variant_are_not_variants(study_writer: StudyWriter) -> None:
    recall = {"baseline": with_worst(0.5, 0.5, 0.5, 0.5), "hbr": with_worst(0.5, 0.52, 0.53, 0.55)}
    nested = [(0, 0), (0, 1), (1, 0), (1, 1)]
    study = read_study(study_writer(recall=recall, variants={"baseline": nested, "hbr": nested}))
    comparison = compare(study, "hbr", "recall_max_min")
    assert comparison.variants == 2
    # Variant means -1 and -4: t(0.975, 1) = 12.7062, standard error 1.5.
    np.testing.assert_allclose([comparison.low, comparison.high], [-2.5 - 19.0593, -2.5 + 19.0593], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"variants": {"hbr": [(0, 0), (0, 1), (0, 2)]}}, "one resampled variant"),
        ({"variants": {"hbr": [(0, 0), (0, 1), (1, 0)]}}, "differ in their number of members"),
        ({"seeds": {"hbr": [7, 8, 9]}}, "no partners"),
    ],
)
def test_no_interval_where_the_design_has_none(study_writer: StudyWriter, options: dict[str, Any], reason: str) -> None:
    comparison = compare(read_study(study_writer(**options)), "hbr", "accuracy")
    assert reason in comparison.why_no_interval
    assert np.isnan([comparison.low, comparison.high, comparison.p]).all()
    assert not comparison.distinguishable


def test_spread_is_the_sample_deviation_and_undefined_for_one() -> None:
    np.testing.assert_allclose(spread(np.array([[1.0, 5.0], [3.0, 5.0]])), [np.sqrt(2), 0])
    assert np.isnan(spread(np.array([[1.0, 2.0]]))).all()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(study_writer: StudyWriter, name: str) -> None:
    path = study_writer()
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing: run the study again"):
        read_study(path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        read_study(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("study.json", '"schema": 2', '"schema": 1', "study.json is not a study of schema 2: run the study again"),
        ("study.json", '"arms"', '"legs"', r"study.json lacks a field \('arms'\): run the study again"),
        ("study.json", '"estimator": "aum"', '"estimator": "luck"', "unknown estimator 'luck'"),
        ("study.json", '"name": "baseline"', '"name": "control"', "one of them 'baseline'"),
        ("study.json", '"name": "hbr"', '"name": "baseline"', "need distinct names"),
        ("study.json", '"seed": 1002}', '"seed": 1002', "study.json is not valid JSON"),
        ("per_class.csv", ",recall,", ",recoil,", "per_class.csv lacks the column 'recall': run the study"),
        ("per_class.csv", "Trouser", "Skirt", r"per_class.csv has no row for .*'Trouser'"),
        ("per_class.csv", "hbr,2,2,", "hbr,1,1,", r"per_class.csv has no row for \('hbr', 2, 2, 0,"),
        ("per_member.csv", "hbr,2,2,", "hbr,3,2,", r"per_member.csv has no row for \('hbr', 2, 2\)"),
        ("per_member.csv", "baseline,0,0,", "baseline,zero,0,", "per_member.csv cannot be read"),
        ("samples.csv", ",6,Shirt,", ",66,Shirt,", "samples.csv: sample .* has class 66 of 10"),
    ],
)
def test_bad_files_are_named_in_one_line(
    study_writer: StudyWriter, name: str, old: str, new: str, message: str
) -> None:
    path = study_writer()
    edit(path / name, old, new)
    with pytest.raises(ValueError, match=message) as raised:
        read_study(path)
    assert "\n" not in str(raised.value)


def test_rows_that_study_json_does_not_have_are_named(study_writer: StudyWriter) -> None:
    path = study_writer()
    text = (path / "per_member.csv").read_text()
    row = text.splitlines()[-1]
    (path / "per_member.csv").write_text(f"{text}{row.replace('hbr,2,2', 'hbr,3,3')}\n")
    with pytest.raises(ValueError, match=r"has a row for \('hbr', 3, 3\), which study.json does not have"):
        read_study(path)
    (path / "per_member.csv").write_text(f"{text}{row}\n")
    with pytest.raises(ValueError, match="has rows that occur twice"):
        read_study(path)


def test_an_arm_without_members_is_named(study_writer: StudyWriter) -> None:
    path = study_writer()
    meta = json.loads((path / "study.json").read_text())
    meta["arms"][1]["members"] = []
    (path / "study.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="arm 'hbr' has no members: run the study again"):
        read_study(path)
