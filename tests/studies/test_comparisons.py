"""The statistics of a study: pairs, intervals and p-values by hand, one family, and where there is no test."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from hbr_fast.evaluation.measures import METRICS
from hbr_fast.evaluation.statistics import holm, members_t_test, paired_difference
from hbr_fast.studies.comparisons import Sides, Trained, comparison_table

TESTED = 100  # samples of each class
LABELS = np.repeat(np.arange(4), TESTED)
SIDES = Sides(np.array([40, 40, 40, 80]), np.full(4, 50))
COLUMNS = (
    *("arm", "against", "quantity", "baseline", "treatment", "variants", "members", "difference", "low", "high"),
    *(
        "combined_low",
        "combined_high",
        "bootstrap_low",
        "bootstrap_high",
        "effect_size",
        "p",
        "p_holm",
        "smallest_p",
        "paper_t",
        "paper_p",
    ),
    *("variants_needed", "direction", "no_test"),
)


def trained(*worst: float, cells: list[tuple[int, int]] | None = None) -> list[Trained]:
    """Trainings of recall 0.9 except the last class, which has one value per training; `cells` are (variant, seed)."""
    made = []
    for (variant, seed), value in zip(cells or [(n, n) for n in range(len(worst))], worst, strict=True):
        recall = np.array([0.9, 0.9, 0.9, value])
        evaluation: Any = SimpleNamespace(accuracy=recall.mean(), **dict.fromkeys(METRICS, recall))
        right = np.arange(TESTED) < np.round(TESTED * recall)[:, None]
        predicted = np.where(right, np.arange(4)[:, None], 0).ravel()
        made.append(Trained(variant, 0, seed, evaluation, predicted, SIDES.counts))
    return made


def table_of(**arms: list[Trained]) -> pl.DataFrame:
    treatments = [arm for arm in arms if arm != "baseline"]
    return comparison_table(
        arms, dict.fromkeys(treatments, "baseline"), dict.fromkeys(treatments, SIDES), labels_n=LABELS, seed=0
    )


def row_of(table: pl.DataFrame, quantity: str, arm: str = "hbr") -> dict[str, Any]:
    return table.row(by_predicate=(pl.col("quantity") == quantity) & (pl.col("arm") == arm), named=True)


def test_comparison_pairs_trainings_by_seed() -> None:
    # Paired by seed, the variants gain 10, 10 and 13 points; by place the differences would scatter.
    baseline = trained(0.5, 0.6, 0.7, cells=[(0, 1), (1, 2), (2, 3)])
    hbr = trained(0.8, 0.7, 0.63, cells=[(0, 3), (1, 2), (2, 1)])
    row = row_of(table_of(baseline=baseline, hbr=hbr), "recall_max_min")
    margin = 4.30265 * 0.01  # standard error sqrt(3) / sqrt(3)
    np.testing.assert_allclose(
        [row["difference"], row["low"], row["high"]], [-0.11, -0.11 - margin, -0.11 + margin], rtol=1e-5
    )
    assert (row["variants"], row["members"], row["smallest_p"], row["no_test"]) == (3, 1, 0.25, "")


def test_comparison_interval_by_hand() -> None:
    row = row_of(table_of(baseline=trained(0.5, 0.5, 0.5), hbr=trained(0.51, 0.52, 0.53)), "recall_max_min")
    # Differences -1, -2, -3 points: mean -2, standard error 1 / sqrt(3), t(0.975, 2) = 4.30265.
    margin = 4.30265 / np.sqrt(3)
    np.testing.assert_allclose([row["low"], row["high"]], [(-2 - margin) / 100, (-2 + margin) / 100], rtol=1e-5)


def test_comparison_treats_variants_not_members_as_independent() -> None:
    nested = [(0, 0), (0, 1), (1, 2), (1, 3)]
    baseline, hbr = trained(0.5, 0.5, 0.5, 0.5, cells=nested), trained(0.5, 0.52, 0.53, 0.55, cells=nested)
    row = row_of(table_of(baseline=baseline, hbr=hbr), "recall_max_min")
    assert (row["variants"], row["members"]) == (2, 2)
    # Variant means -1 and -4 points: t(0.975, 1) = 12.7062, standard error 1.5.
    np.testing.assert_allclose([row["low"], row["high"]], [-0.025 - 0.190593, -0.025 + 0.190593], rtol=1e-5)


def test_comparison_numbers_match_statistics() -> None:
    before, after = (0.51, 0.64, 0.55), (0.59, 0.62, 0.68)
    row = row_of(table_of(baseline=trained(*before), hbr=trained(*after)), "recall_std")
    spread = [np.array([np.std([0.9, 0.9, 0.9, value]) for value in side])[:, None] for side in (before, after)]
    paired = paired_difference(*spread)
    assert (row["effect_size"], row["p"]) == pytest.approx((paired.effect_size, paired.p_value))
    assert row["direction"] == paired.direction
    assert (row["paper_t"], row["paper_p"]) == pytest.approx(members_t_test(*spread))


def test_comparisons_of_a_study_are_one_family() -> None:
    baseline = trained(0.50, 0.61, 0.55, 0.53, 0.58, 0.52, 0.57, 0.56)
    other = trained(0.52, 0.60, 0.57, 0.50, 0.60, 0.51, 0.58, 0.55)
    better = trained(0.60, 0.72, 0.69, 0.66, 0.70, 0.65, 0.71, 0.68)
    table = table_of(baseline=baseline, better=better, other=other)
    assert tuple(table.columns) == COLUMNS
    assert table.height == 2 * (1 + 4 * 8)
    np.testing.assert_array_equal(table["p_holm"].to_numpy(), holm(table["p"].to_numpy()))
    p, corrected = (row_of(table, "recall_max_min", "better")[name] for name in ("p", "p_holm"))
    assert p == 2 / 2**8
    assert corrected == pytest.approx(58 * p), "the least of 66 without the 8 of MAD, which is 0 for all"


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([(0, 0), (0, 1), (0, 2)], "one resampled variant gives no interval"),
        ([(0, 0), (0, 1), (1, 2)], "the variants differ in their number of members, so that there is no interval"),
        ([(0, 0), (1, 1), (2, 9)], "some members have no partner in baseline, so that there is no interval"),
    ],
)
def test_comparison_without_a_test_says_why_and_keeps_means(cells: list[tuple[int, int]], reason: str) -> None:
    table = table_of(baseline=trained(0.5, 0.6, 0.7), hbr=trained(0.6, 0.6, 0.9, cells=cells))
    row = row_of(table, "recall_max_min")
    assert row["no_test"] == reason
    assert row["difference"] == pytest.approx(-0.1)
    assert row["direction"] == "smaller"
    assert np.isnan([row[name] for name in ("low", "high", "p", "p_holm", "smallest_p", "paper_p")]).all()


def test_comparison_excludes_undefined_quantity_from_tests() -> None:
    even = Sides(np.full(4, 50), np.full(4, 50))  # no class gains: easy against hard is undefined
    arms = {"baseline": trained(0.5, 0.5, 0.5), "hbr": trained(0.51, 0.52, 0.53)}
    table = comparison_table(arms, {"hbr": "baseline"}, {"hbr": even}, labels_n=LABELS, seed=0)
    row = row_of(table, "recall_easy_hard")
    assert (row["no_test"], row["direction"]) == ("it is undefined for some members", "undefined")
    assert np.isnan([row["difference"], row["p"], row["p_holm"]]).all()
    assert table.filter(pl.col("p").is_not_nan()).height == 33 - 2 * 4, "nor is there a test of MAD, which is 0 for all"


def test_comparison_of_equal_differences_gives_no_interval() -> None:
    row = row_of(table_of(baseline=trained(0.5, 0.6, 0.7), hbr=trained(0.6, 0.7, 0.8)), "recall_max_min")
    assert row["no_test"] == "all variants differ by the same amount, which gives no interval"
    assert (row["difference"], row["direction"]) == (pytest.approx(-0.1), "smaller")
    assert np.isnan([row[name] for name in ("low", "high", "combined_low", "effect_size", "p", "p_holm")]).all()


def test_comparison_judges_signed_gap_by_its_size() -> None:
    # Easy minus hard: 0.9 - 0.8 and 0.9 - 1.0, then 0.9 - 0.6.
    table = table_of(
        baseline=trained(0.80, 0.80, 0.81),
        over=trained(1.00, 1.00, 0.98),
        far=trained(0.60, 0.60, 0.61),
    )
    assert row_of(table, "recall_easy_hard", "over")["difference"] < -0.15
    assert row_of(table, "recall_easy_hard", "over")["direction"] == "smaller", "from +0.10 to -0.09"
    assert row_of(table, "recall_easy_hard", "far")["direction"] == "larger"


def test_comparison_covers_the_noise_of_the_test_set() -> None:
    row = row_of(table_of(baseline=trained(0.5, 0.5, 0.5), hbr=trained(0.52, 0.52, 0.53)), "recall_worst")
    # 2 of 100 test samples more: the trainings agree, another test set would not.
    assert row["low"] > 0
    assert row["combined_low"] < 0 < row["combined_high"]
    assert row_of(table_of(baseline=trained(0.5, 0.5), hbr=trained(0.5, 0.6)), "precision_mad")["combined_low"] != 0


def test_comparison_of_the_study_metric_is_added() -> None:
    arms = {"baseline": trained(0.5, 0.5, 0.5), "hbr": trained(0.51, 0.52, 0.53)}
    table = comparison_table(arms, {"hbr": "baseline"}, {"hbr": SIDES}, labels_n=LABELS, metric="auroc", seed=0)
    assert "auroc_max_min" in set(table["quantity"])
    assert table.height == 1 + 5 * 8


def test_comparison_of_swapped_arms_flips_the_sign() -> None:
    one, other = trained(0.5, 0.6, 0.7), trained(0.6, 0.7, 0.83)
    tables = table_of(baseline=one, hbr=other), table_of(baseline=other, hbr=one)
    for quantity in ("recall_max_min", "recall_mean", "accuracy"):
        there, back = (row_of(table, quantity) for table in tables)
        assert there["difference"] == pytest.approx(-back["difference"])
        assert (there["low"], there["high"]) == pytest.approx((-back["high"], -back["low"]))
        assert there["effect_size"] == pytest.approx(-back["effect_size"])
        assert (there["p"], there["p_holm"]) == (back["p"], back["p_holm"])
        assert there["difference"] != 0
