"""Input and output of every backend: a checked job, and batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hbr_fast.kernels import reference
from hbr_fast.loaders.augment import Augment

if TYPE_CHECKING:
    from hbr_fast.data.dataset import Split
    from hbr_fast.data.plan import Plan
    from hbr_fast.loaders.pictures import Pictures
    from hbr_fast.orders import Sampler

DTYPES = (torch.float32, torch.bfloat16)  # on any device; on GPUs also float16


class Batch(NamedTuple):
    """One batch. It stays valid as long as any of its tensors, or a view of one, is referenced.

    Attributes
    ----------
    images : float32, bfloat16 or float16 [B, C, H, W]
        Normalised; contiguous or channels-last, as configured in the loader.
    labels : int64 [B]
    ids : int64 [B]
        Sample ids: rows of the split, which index hardness; from `len(split)` on, images of the other stores in order.
    rows : int64 [B]
        Rows of the plan.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import Loader, convert
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> images, labels, ids, rows = next(iter(Loader(data.train, batch_size=8)))
    >>> (tuple(images.shape), sorted(ids.tolist()))
    ((8, 1, 8, 8), [0, 1, 2, 3, 4, 5, 6, 7])
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    rows: torch.Tensor

    def __repr__(self) -> str:
        form = "x".join(map(str, self.images.shape[1:]))
        dtype, device = str(self.images.dtype).removeprefix("torch."), self.images.device
        return f"<Batch: {len(self.images):,} images of {form}, {dtype} on {device}>"


@dataclass(frozen=True)
class Job:
    """A loader's checked arguments, from which a backend is constructed."""

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
    device: torch.device
    threads: int
    prefetch: int
    cache: int = 0  # bytes for decoded pictures
    most_batches: int | None = None  # for a rank's part: those of the whole loader
    pictures: Pictures | None = None  # the first stage, where pictures are encoded
    levels: bool = False  # grey levels in [0, 255] instead of normalised pixels, for operations on the batch

    @property
    def batches(self) -> int:
        """Non-empty batches in an epoch."""
        full, rest = divmod(len(self.order), self.batch_size)
        batches = full + (rest > 0 and not self.drop_last)
        return batches if self.most_batches is None else min(batches, self.most_batches)

    @cached_property
    def first_ids(self) -> np.ndarray:
        """Id of the first image of each store, the split's first: int64 [stores]."""
        return np.cumsum([0, *(len(split) for split in (self.split, *self.stores)[:-1])])

    @cached_property
    def draw_keys(self) -> np.ndarray | None:
        """What keys the random numbers of each plan row: int64 [R], or None if its position in the epoch does."""
        if self.augment.keyed_by == "position":
            return None
        ids = self.first_ids[self.plan.store] + self.plan.index
        return reference.draw_key(ids, _earlier_equal(ids))

    @property
    def scale_c(self) -> np.ndarray:
        """`pixel * scale_c + bias_c` normalises a byte: float32 [C]."""
        if self.levels:
            return np.ones(len(self.split.std), np.float32)
        return (1 / (255 * np.asarray(self.split.std, np.float64))).astype(np.float32)

    @property
    def bias_c(self) -> np.ndarray:
        """See `scale_c`."""
        if self.levels:
            return np.zeros(len(self.split.std), np.float32)
        return (-np.asarray(self.split.mean, np.float64) / self.split.std).astype(np.float32)

    @property
    def padding_c(self) -> np.ndarray:
        """Grey level of each channel around an image with zero or mean padding: uint8 [C]."""
        return self.cutout_c if self.augment.padding == "mean" else np.zeros_like(self.cutout_c)

    @property
    def cutout_c(self) -> np.ndarray:
        """Grey level of each channel inside a cutout: uint8 [C]."""
        return reference.mean_level(self.split.mean).astype(np.uint8)

    @property
    def flip_below(self) -> int:
        """Flip where a uniform 32-bit number is below this."""
        return round(self.augment.flip * 2**32)


def _earlier_equal(values_r: np.ndarray) -> np.ndarray:
    """How often each value occurs before its place: int64 [R]."""
    order = np.argsort(values_r, kind="stable")
    ordered = values_r[order]
    starts_run = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    place = np.arange(len(order))
    count = np.empty(len(order), np.int64)
    count[order] = place - np.maximum.accumulate(np.where(starts_run, place, 0))
    return count
