"""The losses by their definitions, and class counts that reach them."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.hardness import HardnessRecorder
from hbr_fast.training import losses
from hbr_fast.training.build import make_loss
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.trainer import class_counts_of, train_member

COUNTS = np.array([30, 60, 10])
LOGITS = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0], [-2.0, 1.0, 0.0], [0.1, 0.2, 0.3]])
LABELS = torch.tensor([0, 2, 1, 2])


def loss_of(recipe: Recipe, name: str, **arguments: Any) -> float:
    loss = make_loss(dataclasses.replace(recipe, loss=name, loss_args=arguments), class_counts=COUNTS)
    assert loss.recording is None or not arguments
    return float(loss.mean(LOGITS, LABELS))


def by_hand(term: Any) -> float:
    """The mean over rows of a term of (probabilities, label)."""
    rows = []
    for z, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        total = sum(math.exp(one) for one in z)
        rows.append(term([math.exp(one) / total for one in z], y))
    return sum(rows) / len(rows)


def test_focal_is_cross_entropy_times_power_of_error(recipe: Recipe) -> None:
    expected = by_hand(lambda p, y: -((1 - p[y]) ** 1.5) * math.log(p[y]))
    assert loss_of(recipe, "focal", gamma=1.5) == pytest.approx(expected, rel=1e-6)
    assert loss_of(recipe, "focal", gamma=0) == pytest.approx(loss_of(recipe, "cross-entropy"), rel=1e-6)


def test_focal_gradient_is_finite_for_certain_rows(recipe: Recipe) -> None:
    loss = make_loss(dataclasses.replace(recipe, loss="focal", loss_args={"gamma": 0.5}), class_counts=COUNTS)
    logits = torch.tensor([[200.0, 0, 0], [-200.0, 0, 0]], requires_grad=True)
    loss.mean(logits, torch.zeros(2, dtype=torch.int64)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_logit_adjusted_adds_log_shares_to_the_logits(recipe: Recipe) -> None:
    share = torch.tensor([0.3, 0.6, 0.1])
    for tau in (0.5, 1.0):
        expected = functional.cross_entropy(LOGITS + tau * share.log(), LABELS)
        assert loss_of(recipe, "logit-adjusted", tau=tau) == pytest.approx(float(expected), rel=1e-6)
    assert loss_of(recipe, "balanced-softmax") == loss_of(recipe, "logit-adjusted", tau=1.0)


def test_cross_entropy_class_weights_have_mean_one_over_training_samples(recipe: Recipe) -> None:
    def weighted(w: list[float]) -> float:
        return by_hand(lambda p, y: -w[y] * math.log(p[y]))

    balanced = [100 / (3 * n) for n in COUNTS]
    assert loss_of(recipe, "cross-entropy", class_weight="balanced") == pytest.approx(weighted(balanced), rel=1e-6)
    scale = 100 / (30 * 1 + 60 * 2 + 10 * 5)
    given = [scale * one for one in (1, 2, 5)]
    assert loss_of(recipe, "cross-entropy", class_weight=[1, 2, 5]) == pytest.approx(weighted(given), rel=1e-6)
    assert loss_of(recipe, "cross-entropy", class_weight=[2, 4, 10]) == pytest.approx(weighted(given), rel=1e-6)
    focal = by_hand(lambda p, y: -balanced[y] * (1 - p[y]) ** 2 * math.log(p[y]))
    assert loss_of(recipe, "focal", class_weight="balanced") == pytest.approx(focal, rel=1e-6)


def test_class_weights_refuses_zero_for_every_training_sample() -> None:
    with pytest.raises(ValueError, match="weighs every training sample 0"):
        losses.class_weights([0, 0, 1], torch.tensor([5.0, 5.0, 0.0]))


def test_class_counts_of_plan_rows(tiny: Dataset) -> None:
    np.testing.assert_array_equal(class_counts_of(tiny.train, None), [40, 40, 40])
    rows = np.flatnonzero(tiny.train.labels == 2)[[0, 0, 1]]
    np.testing.assert_array_equal(class_counts_of(tiny.train, Plan.of_rows(rows)), [0, 0, 3])


def test_only_plain_cross_entropy_records_in_one_pass(recipe: Recipe) -> None:
    forms: dict[str, dict[str, Any]] = {
        "plain": {},
        "smoothed": {"label_smoothing": 0.1},
        "weighted": {"loss_args": {"class_weight": "balanced"}},
        "focal": {"loss": "focal"},
        "mixed": {"mixup": 0.2},
    }
    made = {name: dataclasses.replace(recipe, **changes) for name, changes in forms.items()}
    has = [name for name, one in made.items() if make_loss(one, class_counts=COUNTS).recording is not None]
    assert has == ["plain", "smoothed"]
    assert [name for name, one in made.items() if losses.is_one_pass(one, classes=1000)] == has


@pytest.mark.parametrize("loss", ["focal", "balanced-softmax", "logit-adjusted", "weighted"])
def test_train_member_with_any_loss_records_plain_logits(
    tiny: Dataset, recipe: Recipe, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits that are recorded in the first step are those of the network, whatever the loss adds to them."""
    seen: list[np.ndarray] = []
    real = HardnessRecorder.record

    def spy(self: HardnessRecorder, logits: torch.Tensor, *args: Any, **options: Any) -> None:
        seen.append(logits.detach().numpy().copy())
        real(self, logits, *args, **options)

    monkeypatch.setattr(HardnessRecorder, "record", spy)
    changes: dict[str, Any] = {"loss_args": {"class_weight": [1, 2, 3]}} if loss == "weighted" else {"loss": loss}
    short = dataclasses.replace(recipe, epochs=1)
    train_member(tiny, short, seed=1)
    trained = train_member(tiny, dataclasses.replace(short, **changes), seed=1)
    np.testing.assert_array_equal(seen[0], seen[3])
    if loss == "focal" or loss == "weighted":  # on equal classes the others are cross-entropy
        assert not np.array_equal(seen[1], seen[4])
    assert (trained.scores.observations == 1).all()
