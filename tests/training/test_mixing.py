"""Mixup and CutMix: pinned draws, the mixed images and the loss with both labels."""

import dataclasses

import numpy as np
import pytest
import torch

from hbr_fast.data.dataset import Dataset
from hbr_fast.training.device import Compute
from hbr_fast.training.mixing import Mixing, mixing_of
from hbr_fast.training.recipe import Recipe, changed_recipe
from hbr_fast.training.trainer import require_shareable, train_member

IMAGES = torch.arange(3 * 2 * 4 * 6, dtype=torch.float32).reshape(3, 2, 4, 6)
PARTNER = np.array([2, 0, 1])


def drawn(recipe: Recipe, *, seed: int = 7, epoch: int = 1, position: int = 50) -> Mixing:
    mixing = mixing_of(recipe, seed=seed, epoch=epoch, position=position, rows=5, size=(8, 12))
    assert mixing is not None
    return mixing


GOLDEN_MIXUP = ([3, 4, 2, 0, 1], 0.93055459, None)
GOLDEN_CUTMIX = ([3, 4, 2, 0, 1], 0.8125, (0, 3, 5, 11))


def test_mixing_of_is_pinned(recipe: Recipe) -> None:
    assert mixing_of(recipe, seed=7, epoch=1, position=50, rows=5, size=(8, 12)) is None
    mixup = drawn(dataclasses.replace(recipe, mixup=0.4))
    assert (mixup.partner.tolist(), round(mixup.share, 9), mixup.box) == GOLDEN_MIXUP
    cutmix = drawn(dataclasses.replace(recipe, cutmix=1.0))
    assert (cutmix.partner.tolist(), round(cutmix.share, 9), cutmix.box) == GOLDEN_CUTMIX


def test_mixing_of_depends_on_seed_epoch_and_position_alone(recipe: Recipe) -> None:
    both = dataclasses.replace(recipe, mixup=0.4, cutmix=1.0)
    shares = {drawn(both, seed=s, epoch=e, position=p).share for s in (1, 2) for e in (0, 1) for p in (0, 50)}
    assert len(shares) == 8
    assert drawn(both).share == drawn(both).share
    boxes = [drawn(both, position=p).box is not None for p in range(200)]
    assert 70 < sum(boxes) < 130, "either kind of mixing in about half of the batches"


def test_mixing_images_and_loss_by_definition() -> None:
    mixup = Mixing(PARTNER, 0.75, None)
    torch.testing.assert_close(mixup.images(IMAGES), 0.75 * IMAGES + 0.25 * IMAGES[[2, 0, 1]])
    cut = Mixing(PARTNER, 1 - 4 / 24, (1, 3, 2, 4)).images(IMAGES)
    expected = IMAGES.clone()
    expected[:, :, 1:3, 2:4] = IMAGES[[2, 0, 1]][:, :, 1:3, 2:4]
    assert torch.equal(cut, expected)
    labels = torch.tensor([5, 6, 7])
    assert mixup.labels(labels).tolist() == [7, 5, 6]
    mean = mixup.loss(lambda z, y: y.float().mean() * z, torch.tensor(2.0), labels, torch.tensor([1, 1, 1]))
    assert float(mean) == pytest.approx(0.75 * 12 + 0.25 * 2)


def test_cutmix_share_is_that_of_the_pixels_left(recipe: Recipe) -> None:
    for position in range(100):
        mixing = drawn(dataclasses.replace(recipe, cutmix=1.0), position=position)
        assert mixing.box is not None
        top, bottom, left, right = mixing.box
        assert 0 <= top <= bottom <= 8
        assert 0 <= left <= right <= 12
        assert mixing.share == pytest.approx(1 - (bottom - top) * (right - left) / 96)


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_train_member_mixed_records_own_labels(tiny: Dataset, recipe: Recipe, field: str) -> None:
    mixed = changed_recipe(recipe, [f"{field}=1.0"])
    member = train_member(tiny, mixed, seed=5)
    plain = train_member(tiny, recipe, seed=5)
    assert not np.array_equal(member.test_logits, plain.test_logits)
    assert (member.scores.observations == 2).all()
    assert all(0 <= record.train_accuracy <= 1 for record in member.history)


def test_require_shareable_refuses_mixing_between_processes(recipe: Recipe) -> None:
    mixed = dataclasses.replace(recipe, mixup=0.2)
    require_shareable(mixed, Compute(), processes=1)
    with pytest.raises(
        ValueError, match="mixup and cutmix mix the rows of a batch, which the processes of torchrun share"
    ):
        require_shareable(mixed, Compute(), processes=2)
    with pytest.raises(ValueError, match="a compiled network takes whole batches"):
        require_shareable(dataclasses.replace(recipe, accumulate=2), Compute("cuda", compile=True), processes=1)
