"""What every backend takes and gives: the augmentation asked for, the batch returned, the job between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hbr_fast.arguments import whole_number
from hbr_fast.kernels import reference

if TYPE_CHECKING:
    from hbr_fast.data.dataset import Split
    from hbr_fast.plan import Plan
    from hbr_fast.sampler import Sampler

DTYPES = (torch.float32, torch.bfloat16)  # on any device; GPUs make float16 too
PADDINGS = ("zero", "reflect", "edge", "mean")


class Batch(NamedTuple):
    """One batch. It stays valid as long as any of its tensors, or a view of one, is referenced.

    Attributes
    ----------
    images : float32, bfloat16 or float16 [B, C, H, W]
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
    """What happens to an image that is drawn, in this order: crop, flip, cut out, normalise.

    Interpolation with a plan's partner comes first. `hbr_fast.kernels.reference.make_batch` is the definition.

    Attributes
    ----------
    flip : float
        Probability of a horizontal flip, in [0, 1].
    alternating_flip : bool
        Draw the flip of a sample once, for epoch 0, and the other side every next epoch, so that two epochs see both
        (Keller Jordan's airbench, arXiv 2404.00498). Needs `flip=0.5`.
    pad : int
        Pixels put round the raw image before a random crop of its own size, that is the furthest the image moves; 0 is
        no crop.
    padding : str
        What they are: "zero", "reflect" (the edge not repeated), "edge", or "mean", the channel's mean as a whole grey
        level. "mean" is what others call translate: the normalised image moves and about 0 comes in.
    resized_crop : (float, float), optional
        Smallest and largest share of the image's area that a random-resized crop takes and scales up to the image's
        size, bilinear; in (0, 1].
    aspect : (float, float)
        Smallest and largest width over height of that crop.
    cutout : int
        Side of a square, whole inside the image, that becomes the channel's mean as a whole grey level; 0 is none.

    Raises
    ------
    ValueError
        If a value is out of range, or two exclude each other.
    """

    flip: float = 0.0
    alternating_flip: bool = False
    pad: int = 0
    padding: str = "zero"
    resized_crop: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    cutout: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip is a probability in [0, 1], got {self.flip}")
        if self.alternating_flip and self.flip != 0.5:
            raise ValueError(f"alternating_flip takes either side half of the time: set flip=0.5, got {self.flip}")
        if whole_number("pad", self.pad) < 0:
            raise ValueError(f"pad is a number of pixels >= 0, got {self.pad}")
        if self.padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {self.padding!r}")
        if self.padding != "zero" and self.pad == 0:
            raise ValueError(f"padding={self.padding!r} without pad does nothing: set pad to a number of pixels")
        if whole_number("cutout", self.cutout) < 0:
            raise ValueError(f"cutout is the side of a square in pixels, >= 0, got {self.cutout}")
        if self.resized_crop is not None:
            if self.pad:
                raise ValueError("pad and resized_crop are both crops: give one of them")
            if not _is_pair(self.resized_crop) or not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
                raise ValueError(f"resized_crop is two shares of the area in (0, 1], got {self.resized_crop}")
            if not _is_pair(self.aspect) or not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
                raise ValueError(f"aspect is two ratios above 0, the smaller first, got {self.aspect}")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what it does, as `hbr_fast.loaders.backends` lists them."""
        return (
            *(("flip",) if self.flip else ()),
            *(("alternating flip",) if self.alternating_flip else ()),
            *((f"crop with {self.padding} padding",) if self.pad else ()),
            *(("random-resized crop",) if self.resized_crop else ()),
            *(("cutout",) if self.cutout else ()),
        )

    def check_fits(self, height: int, width: int) -> None:
        """Raise a ValueError if images of this size are too small."""
        if self.padding == "reflect" and self.pad >= min(height, width):
            raise ValueError(
                f"a reflection reaches {min(height, width) - 1} pixels beyond an image of {height} x {width}, "
                f"got pad={self.pad}"
            )
        if self.cutout > min(height, width):
            raise ValueError(f"a square of cutout={self.cutout} pixels does not fit images of {height} x {width}")


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2


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
    device: torch.device
    threads: int
    prefetch: int

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.order), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def scale_c(self) -> np.ndarray:
        """`pixel * scale_c + bias_c` normalises a byte: float32 [C]."""
        return (1 / (255 * np.asarray(self.split.std, np.float64))).astype(np.float32)

    @property
    def bias_c(self) -> np.ndarray:
        """See `scale_c`."""
        return (-np.asarray(self.split.mean, np.float64) / self.split.std).astype(np.float32)

    @property
    def padding_c(self) -> np.ndarray:
        """Grey level of each channel round an image with zero or mean padding: uint8 [C]."""
        return self.cutout_c if self.augment.padding == "mean" else np.zeros_like(self.cutout_c)

    @property
    def cutout_c(self) -> np.ndarray:
        """Grey level of each channel inside a cutout: uint8 [C]."""
        return reference.mean_level(self.split.mean).astype(np.uint8)

    @property
    def flip_below(self) -> int:
        """Flip where a uniform 32-bit number is below this."""
        return round(self.augment.flip * 2**32)
