"""What every backend takes and gives: the augmentation asked for, the batch returned, the job between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from hbr_fast.data.dataset import Split
    from hbr_fast.plan import Plan
    from hbr_fast.sampler import Sampler

DTYPES = (torch.float32, torch.bfloat16)


class Batch(NamedTuple):
    """One batch. It stays valid as long as any of its tensors, or a view of one, is referenced.

    Attributes
    ----------
    images : float32 or bfloat16 [B, C, H, W]
        Normalised; contiguous or channels-last, as the loader was asked.
    labels : int64 [B]
    ids : int64 [B]
        Sample ids: rows of the split, which index hardness; from `len(split)` on, images of the other stores in turn.
    rows : int64 [B]
        Rows of the plan.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True)
class Augment:
    """What happens to an image that is drawn: pad and crop the raw pixels, flip, normalise.

    Attributes
    ----------
    flip : float
        Probability of a horizontal flip, in [0, 1].
    pad : int
        Zeros put round the raw image before a random crop of its own size, in pixels; 0 is no crop.
    """

    flip: float = 0.0
    pad: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip is a probability in [0, 1], got {self.flip}")
        if self.pad < 0:
            raise ValueError(f"pad is a number of pixels >= 0, got {self.pad}")


@dataclass(frozen=True)
class Job:
    """A loader's arguments, checked: what a backend works from."""

    split: Split
    stores: tuple[Split, ...]
    plan: Plan
    order: Sampler
    augment: Augment
    batch_size: int
    seed: int
    dtype: torch.dtype
    channels_last: bool
    drop_last: bool
    threads: int
    prefetch: int

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.order), self.batch_size)
        return full + (rest > 0 and not self.drop_last)
