from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbr_fast.data.plan import Plan
from hbr_fast.resampling import UNDERSAMPLE, resample
from hbr_fast.resampling.allocation import allocate

# Two classes, interleaved: their ids are below.
LABELS = np.array([0, 1, 0, 1, 0, 1, 0, 0])
IDS = {0: [0, 2, 4, 6, 7], 1: [1, 3, 5]}


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    num_classes = draw(st.integers(1, 4))
    had = draw(st.lists(st.integers(1, 6), min_size=num_classes, max_size=num_classes))
    labels = draw(st.permutations([c for c, n in enumerate(had) for _ in range(n)]))
    return {
        "labels_n": np.array(labels),
        "counts_c": draw(st.lists(st.integers(0, 15), min_size=num_classes, max_size=num_classes)),
        "scores_n": np.array(draw(st.lists(st.integers(-3, 3), min_size=len(labels), max_size=len(labels))), float),
        "hard_is": draw(st.sampled_from(["low", "high"])),
        "undersample": draw(st.sampled_from(UNDERSAMPLE)),
        "oversample": draw(st.sampled_from(["random", "none"])),
        "seed": draw(st.integers(0, 2**63 - 1)),
    }


@given(problems())
def test_plan_meets_requested_counts(problem: dict[str, Any]) -> None:
    labels, wanted = problem["labels_n"], np.array(problem["counts_c"])
    plan = resample(**problem)
    copies = np.bincount(plan.index, minlength=len(labels))
    had = np.bincount(labels, minlength=len(wanted))
    assert (np.diff(plan.index) >= 0).all()
    for c in range(len(wanted)):
        mine = copies[labels == c]
        more, fewer = wanted[c] > had[c], wanted[c] < had[c]
        if (more and problem["oversample"] == "none") or (fewer and problem["undersample"] == "none"):
            assert (mine == 1).all()
        else:
            assert mine.sum() == wanted[c]
            # Balanced: floor or ceil of wanted / had copies of each, which is 0 or 1 where some are dropped.
            assert set(mine) <= {wanted[c] // had[c], -(-wanted[c] // had[c])}
    assert plan.provenance["counts_had"] == had.tolist()
    assert plan.provenance["counts_wanted"] == wanted.tolist()
    assert plan.provenance["counts"] == np.bincount(labels[plan.index], minlength=len(wanted)).tolist()
    assert plan.provenance["total"] == len(plan)
    assert plan.provenance["constant_size"] == (len(plan) == len(labels))
    again = resample(**problem)
    assert (again.index == plan.index).all()


@given(problems())
def test_plan_keeps_samples_by_rank(problem: dict[str, Any]) -> None:
    # The obvious way, for the strategies that rank: sort (score, id) from hard to easy, cut, count.
    labels, scores = problem["labels_n"], problem["scores_n"]
    sign = 1 if problem["hard_is"] == "low" else -1
    for strategy in ("easy", "hard", "extreme"):
        plan = resample(**{**problem, "undersample": strategy})
        for c, wanted in enumerate(problem["counts_c"]):
            ranked = sorted(np.flatnonzero(labels == c).tolist(), key=lambda n: (sign * scores[n], n))
            drop = len(ranked) - wanted
            if drop > 0:
                front = {"easy": 0, "hard": drop, "extreme": drop // 2}[strategy]
                kept = plan.index[labels[plan.index] == c].tolist()
                assert kept == sorted(ranked[front : len(ranked) - (drop - front)])


def test_plan_breaks_score_ties_by_id() -> None:
    easy = resample(LABELS, [2, 3], scores_n=np.zeros(8), hard_is="low", seed=0)
    assert easy.index.tolist() == [0, 1, 2, 3, 5]
    hard = resample(LABELS, [2, 3], scores_n=np.zeros(8), hard_is="low", undersample="hard", seed=0)
    assert hard.index.tolist() == [1, 3, 5, 6, 7]
    extreme = resample(LABELS, [2, 3], scores_n=np.zeros(8), hard_is="high", undersample="extreme", seed=0)
    assert extreme.index.tolist() == [1, 2, 3, 4, 5]


def test_plan_random_choices_are_nested_and_independent_by_class() -> None:
    labels = np.random.default_rng(1).integers(0, 3, 300)
    had = np.bincount(labels)

    def rows(counts: list[int], seed: int = 5) -> np.ndarray:
        return resample(labels, counts, undersample="random", seed=seed).index

    def of_class(index: np.ndarray, c: int) -> list[int]:
        return index[labels[index] == c].tolist()

    few, more = rows([20, had[1] + 7, had[2]]), rows([40, had[1] + 9, 3])
    assert set(of_class(few, 0)) < set(of_class(more, 0))
    assert of_class(few, 0) == of_class(rows([20, 1, 2]), 0)  # other classes' counts do not matter
    extra = [np.bincount(index, minlength=300)[labels == 1] == 2 for index in (few, more)]
    assert (extra[0].sum(), extra[1].sum()) == (7, 9)
    assert (extra[0] <= extra[1]).all()
    assert of_class(few, 0) != of_class(rows([20, had[1] + 7, had[2]], seed=6), 0)
    # Not the first of the class, nor the same places in every class.
    assert of_class(few, 0) != np.flatnonzero(labels == 0)[:20].tolist()


def test_plan_random_choice_does_not_depend_on_scores() -> None:
    scores = np.random.default_rng(2).normal(size=8)
    one = resample(LABELS, [3, 5], scores_n=scores, hard_is="low", undersample="easy", seed=3)
    other = resample(LABELS, [3, 5], scores_n=-scores, hard_is="low", undersample="easy", seed=3)
    assert one.index[LABELS[one.index] == 1].tolist() == other.index[LABELS[other.index] == 1].tolist()


def test_plan_random_extras_are_uniform() -> None:
    extra = np.zeros(3)
    for seed in range(600):
        extra[np.bincount(resample(LABELS, [5, 4], undersample="none", seed=seed).index)[[1, 3, 5]] == 2] += 1
    assert extra.sum() == 600
    assert (np.abs(extra - 200) < 50).all()  # 4.3 standard deviations


def test_plan_random_choice_is_pinned() -> None:
    # Stored plans are found by their seed: these may change only with a new schema.
    plan = resample(np.repeat([0, 1], [10, 4]), [4, 6], undersample="random", seed=7)
    assert plan.index.tolist() == [1, 2, 3, 9, 10, 10, 11, 12, 12, 13]


def test_plan_provenance_and_round_trip(tmp_path: Path) -> None:
    plan = resample(
        LABELS,
        np.array([3, 5]),
        undersample="random",
        seed=np.int64(4),  # type: ignore[arg-type]  # as users do in practice
        provenance={"alpha": 0.25, "seed": 9},
    )
    assert plan.provenance == {
        "alpha": 0.25,
        "undersample": "random",
        "oversample": "random",
        "hard_is": None,
        "seed": 4,
        "counts_had": [5, 3],
        "counts_wanted": [3, 5],
        "counts": [3, 5],
        "total": 8,
        "constant_size": True,
    }
    plan.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert loaded.provenance == plan.provenance
    assert loaded.content_hash() == plan.content_hash()


def test_plan_of_many_samples_and_classes() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, 200_000)
    counts = allocate(rng.uniform(1, 2, 1000), hard_is="low", total=len(labels)).counts
    plan = resample(labels, counts, scores_n=rng.normal(size=len(labels)), hard_is="low", seed=0)
    assert (np.bincount(labels[plan.index]) == counts).all()
    assert plan.provenance["constant_size"]


def test_trap_02_zero_and_negative_counts() -> None:
    for strategy in ("easy", "hard", "extreme", "random"):
        plan = resample(LABELS, [0, 3], scores_n=np.arange(8.0), hard_is="low", undersample=strategy, seed=0)
        assert plan.index.tolist() == IDS[1]
    with pytest.raises(ValueError, match="counts_c must not be negative, got -2 for class 1"):
        resample(LABELS, [3, -2], undersample="random", seed=0)


def test_trap_05_none_leaves_classes_as_they_are() -> None:
    whole = resample(LABELS, [2, 5], undersample="none", seed=0)
    assert [row for row in whole.index if LABELS[row] == 0] == IDS[0]
    assert whole.provenance["counts"] == [5, 5]
    assert not whole.provenance["constant_size"]
    not_more = resample(LABELS, [2, 5], undersample="random", oversample="none", seed=0)
    assert [row for row in not_more.index if LABELS[row] == 1] == IDS[1]
    assert not_more.provenance["counts"] == [2, 3]
    assert not not_more.provenance["constant_size"]
    neither = resample(LABELS, [2, 5], undersample="none", oversample="none", seed=0)
    assert neither.index.tolist() == list(range(8))
    assert neither.provenance["constant_size"]


def test_trap_14_the_plan_holds_rows_of_the_raw_split() -> None:
    plan = resample(LABELS, [3, 8], undersample="random", seed=0)
    arrays = (plan.store, plan.index, plan.partner, plan.weight)
    assert sum(array.nbytes for array in arrays) == 22 * len(plan)
    assert (plan.store == 0).all()
    assert (plan.partner == -1).all()
    assert (plan.weight == 1).all()


@pytest.mark.parametrize(("hard_is", "kept"), [("low", [0, 2]), ("high", [6, 7])])
def test_trap_15_easy_drops_the_easy_end(hard_is: str, kept: list[int]) -> None:
    # Scores grow with the id: the low ids are hard where low is hard, the high ids where high is.
    plan = resample(LABELS, [2, 3], scores_n=np.arange(8.0), hard_is=hard_is, undersample="easy", seed=0)
    assert plan.index[LABELS[plan.index] == 0].tolist() == kept


SCORED = {"scores_n": np.arange(8.0), "hard_is": "low"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, 'undersample="easy" ranks samples: give scores_n and hard_is'),
        ({"scores_n": np.arange(8.0)}, 'hard_is must be "low" or "high" to rank scores, got None'),
        ({**SCORED, "scores_n": np.arange(7.0)}, r"one score for each of 8 labels, got \(7,\)"),
        (
            {**SCORED, "scores_n": np.array([0, 1, np.nan, 3, np.nan, 5, 6, 7])},
            '2 of 8 scores are NaN, the first is sample 2: .*undersample="random"',
        ),
        (
            {**SCORED, "undersample": "smote"},
            "undersample must be one of easy, hard, extreme, random, none; got 'smote'",
        ),
        (
            {**SCORED, "oversample": "smotes"},
            "oversample must be one of random, weighted-easy, weighted-hard, smote, holdout, pool-random, "
            "pool-average, pool-hard, none; got 'smotes'",
        ),
        ({**SCORED, "oversample": "smote"}, 'oversample="smote" interpolates between neighbours: give neighbours_nk'),
        ({**SCORED, "oversample": "holdout"}, 'oversample="holdout" adds samples that were set aside: give holdout'),
        ({**SCORED, "oversample": "pool-hard"}, 'oversample="pool-hard" takes images from a pool: give pool'),
        (
            {"undersample": "random", "oversample": "weighted-hard"},
            'oversample="weighted-hard" ranks samples: give scores_n and hard_is',
        ),
        ({**SCORED, "ids": np.array([0, 1, 8])}, r"ids must be samples in \[0, 8\), got some from 0 to 8"),
        ({**SCORED, "ids": np.array([0, 1, 1])}, "ids holds sample 1 more than once"),
        (
            {**SCORED, "ids": np.array([0, 1, 2, 3]), "holdout": np.array([3, 4]), "oversample": "holdout"},
            "sample 3 is in the holdout and among the ids",
        ),
        ({**SCORED, "counts_c": [8]}, "label 1 is outside the 1 classes of counts_c"),
        ({**SCORED, "labels_n": LABELS - 1}, "label -1 is outside the 2 classes"),
        (
            {**SCORED, "labels_n": LABELS.astype(float)},
            "labels_n must be a row of whole numbers, got float64",
        ),
        ({**SCORED, "counts_c": [4.0, 4.0]}, "counts_c must be a row of whole numbers, got float64"),
        ({**SCORED, "counts_c": [[4, 4]]}, r"counts_c must be a row of whole numbers, got int64 \(1, 2\)"),
        ({**SCORED, "counts_c": [4, 3, 1]}, "class 2 has no samples but 1 are wanted"),
        ({**SCORED, "counts_c": [4, 3, 1], "classes": ["a", "b", "c"]}, "class 'c' has no samples but 1 are"),
    ],
)
def test_plan_refuses_invalid_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resample(**{"labels_n": LABELS, "counts_c": [4, 4], "seed": 0, **arguments})


def test_plan_ignores_nan_scores_without_ranking() -> None:
    plan = resample(LABELS, [4, 4], scores_n=np.full(8, np.nan), hard_is="low", undersample="random", seed=0)
    assert len(plan) == 8


def test_plan_may_leave_out_empty_class() -> None:
    assert len(resample(LABELS, [4, 4, 0], undersample="random", seed=0)) == 8
