"""Scores or counts in, a sampler with exact quotas out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.resampling.hardness_sampler import HardnessSampler

LABELS = np.repeat([0, 1, 2], [5, 7, 8])


def test_hardness_sampler_draws_hard_classes_more() -> None:
    scores = np.array([4.0, 2.0, 1.0])[LABELS]  # low is hard: class 2 is
    sampler = HardnessSampler(LABELS, scores_n=scores, hard_is="low", base="balanced", alpha=1.0, seed=0)
    counts = np.bincount(LABELS[list(sampler)], minlength=3)
    # Ratios 1/4, 1/2, 1 of 20 samples: 2.86, 5.71, 11.43 by largest remainders.
    assert counts.tolist() == [3, 6, 11]
    high = HardnessSampler(LABELS, scores_n=scores, hard_is="high", base="balanced", seed=0)
    assert np.bincount(LABELS[list(high)], minlength=3).tolist() == [11, 6, 3]


def test_hardness_sampler_starts_from_own_sizes_of_uneven_classes() -> None:
    def counts(**options: Any) -> list[int]:
        scores = np.array([4.0, 2.0, 1.0])[LABELS]
        sampler = HardnessSampler(LABELS, scores_n=scores, hard_is="low", **options)
        return np.bincount(LABELS[list(sampler)], minlength=3).tolist()

    assert counts(alpha=0.0) == [5, 7, 8]
    # 5/4 : 7/2 : 8 of 20 samples: 1.96, 5.49, 12.55.
    assert counts() == counts(base="own") == counts(base=1.0) == [2, 5, 13]
    assert counts(alpha=0.0, base="balanced") == counts(alpha=0.0, base=0) == [6, 7, 7]
    # Square roots 2.24, 2.65, 2.83: 5.80, 6.86, 7.34.
    assert counts(alpha=0.0, base=0.5) == [6, 7, 7]
    with pytest.raises(ValueError, match=r'base must be "own", "balanced" or an exponent .* in \[0, 1\], got \'ownn\''):
        counts(base="ownn")


def test_hardness_sampler_ignores_unobserved_samples_in_class_means() -> None:
    scores = np.array([4.0, 2.0, 1.0])[LABELS]
    scores[[0, 5]] = np.nan
    assert len(HardnessSampler(LABELS, scores_n=scores, hard_is="low")) == 20
    scores[LABELS == 1] = np.nan
    with pytest.raises(ValueError, match="no sample of class 1 "):
        HardnessSampler(LABELS, scores_n=scores, hard_is="low")


def test_hardness_sampler_shifts_and_clips_on_request() -> None:
    scores = np.array([-1.0, 0.5, 4.0])[LABELS]
    with pytest.raises(ValueError, match="nonpositive="):
        HardnessSampler(LABELS, scores_n=scores, hard_is="low")
    with pytest.raises(ValueError, match="clip=True"):
        HardnessSampler(LABELS, scores_n=scores, hard_is="low", nonpositive="shift", alpha=9)
    sampler = HardnessSampler(
        LABELS, scores_n=scores, hard_is="low", nonpositive="shift", alpha=9, base="balanced", clip=True
    )
    assert np.bincount(LABELS[list(sampler)]).tolist() == [18, 1, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.astype(float), "labels must be whole numbers, one a sample, got float64"),
        (LABELS[:, None], "labels must be whole numbers, one a sample"),
        (LABELS[:0], "labels must be whole numbers, one a sample"),
        (LABELS - 1, "labels must not be negative, got -1"),
        (LABELS * 2, "no sample of class 1 "),
    ],
)
def test_hardness_sampler_refuses_invalid_labels(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardnessSampler(labels, scores_n=np.ones(len(labels)), hard_is="low")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either scores_n or counts_c"),
        ({"scores_n": np.ones(20), "counts_c": [1, 1, 1]}, "either scores_n or counts_c"),
        ({"scores_n": np.ones(19), "hard_is": "low"}, "20 labels but 19 scores"),
        ({"scores_n": np.ones(20)}, r'say which end of the scores is hard: hard_is="low" .* or hard_is="high"'),
        ({"scores_n": np.ones(20), "estimator": "lost"}, "unknown estimator 'lost': available are aum"),
        (
            {"scores_n": np.ones(20), "estimator": "loss", "hard_is": "low"},
            "contradicts estimator='loss', of which high",
        ),
        ({"counts_c": [1, 1]}, "labels go up to 2, but there are counts for 2 classes"),
    ],
)
def test_hardness_sampler_refuses_invalid_arguments(arguments: dict[str, Sequence[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardnessSampler(LABELS, **arguments)  # type: ignore[arg-type]


def recorded() -> HardnessRecorder:
    recorder = HardnessRecorder(20, 3)
    logits = torch.nn.functional.one_hot(torch.from_numpy(LABELS), 3) * torch.tensor([1.0, 2.0, 3.0])[LABELS][:, None]
    recorder.record(logits, torch.from_numpy(LABELS), torch.arange(20), epoch=0)
    return recorder


@pytest.mark.parametrize("estimator", ["aum", "loss"])
def test_hardness_sampler_accepts_recorders_and_scores_by_estimator(estimator: str) -> None:
    recorder = recorded()
    scores = recorder.scores()
    by_hand = HardnessSampler(
        LABELS, scores_n=scores.per_sample(estimator), hard_is="low" if estimator == "aum" else "high"
    )
    counts = np.bincount(LABELS[list(by_hand)], minlength=3)
    assert counts[0] > counts[1] > counts[2]
    array = scores.per_sample(estimator)
    kinds: list[Any] = [recorder, scores, array, torch.from_numpy(array)]
    for given in kinds:
        assert HardnessSampler(LABELS, scores_n=given, estimator=estimator).order.describe() == by_hand.order.describe()
    with pytest.raises(ValueError, match="say which scores to use: estimator=, one of aum"):
        HardnessSampler(LABELS, scores_n=scores)


def test_hardness_sampler_accepts_counts_by_label() -> None:
    sampler = HardnessSampler(LABELS, counts_c={2: 4, 0: 9, 1: 7})
    assert np.bincount(LABELS[list(sampler)]).tolist() == [9, 7, 4]
