"""Mixup and CutMix: the images of a batch mixed with those of a permutation of it, and the loss with their labels.

One share for the whole batch, as in the papers. Everything is keyed by (seed, epoch, position of the batch's first
row), so that a resumed training mixes the same images. Hardness is recorded against each row's own label.

Sources: Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hbr_fast.seeding import Stream, generator

if TYPE_CHECKING:
    import torch

    from hbr_fast.training.recipe import Recipe

_EPOCH_BITS = 20  # of the 64 that key a batch, above its position


@dataclass(frozen=True)
class Mixing:
    """How one batch is mixed.

    Attributes
    ----------
    partner : int64 [B]
        Row of the batch that each row is mixed with.
    share : float
        Of the row itself, in [0, 1]; the partner has the rest. For a box, the share of the pixels outside.
    box : (int, int, int, int), optional
        Top, bottom, left and right of the pixels taken from the partner; None mixes every pixel.
    """

    partner: np.ndarray
    share: float
    box: tuple[int, int, int, int] | None

    def images(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """The mixed images, in the memory format of the batch."""
        other = images_bchw[self._rows(images_bchw)]
        if self.box is None:
            return other.lerp(images_bchw, self.share)
        top, bottom, left, right = self.box
        mixed = images_bchw.clone()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        return mixed

    def labels(self, labels_b: torch.Tensor) -> torch.Tensor:
        """The partners' labels."""
        return labels_b[self._rows(labels_b)]

    def loss(
        self,
        mean: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        logits_bc: torch.Tensor,
        labels_b: torch.Tensor,
        others_b: torch.Tensor,
    ) -> torch.Tensor:
        """The losses of the rows' labels and of their partners', by their shares."""
        return self.share * mean(logits_bc, labels_b) + (1 - self.share) * mean(logits_bc, others_b)

    def _rows(self, like: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.from_numpy(self.partner).to(like.device)


def mixing_of(
    recipe: Recipe, *, seed: int, epoch: int, position: int, rows: int, size: tuple[int, int]
) -> Mixing | None:
    """How a recipe mixes a batch; None if it does not.

    Parameters
    ----------
    recipe : Recipe
    seed : int
        Of the training.
    epoch, position : int
        Of the batch's first row.
    rows : int
        In the batch.
    size : (int, int)
        Height and width of the images.

    Examples
    --------
    >>> from hbr_fast import Recipe
    >>> half = Recipe(name="mixed", model="resnet18", epochs=1, cutmix=1.0)
    >>> mixing_of(half, seed=0, epoch=0, position=0, rows=4, size=(8, 8)).partner
    array([2, 0, 3, 1])
    """
    if not recipe.mixes:
        return None
    random = generator(seed, Stream.MIXING, epoch << (64 - _EPOCH_BITS) | position)
    partner, first = random.permutation(rows), random.random()
    cuts = recipe.cutmix > 0 and (recipe.mixup == 0 or first < 0.5)
    alpha = recipe.cutmix if cuts else recipe.mixup
    share = float(random.beta(alpha, alpha))
    if not cuts:
        return Mixing(partner, share, None)
    height, width = size
    tall, wide = (round(side * (1 - share) ** 0.5) for side in size)
    row, column = (int(random.integers(side)) for side in size)
    top, left = max(0, row - tall // 2), max(0, column - wide // 2)
    bottom, right = min(height, row - tall // 2 + tall), min(width, column - wide // 2 + wide)
    return Mixing(partner, 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))
