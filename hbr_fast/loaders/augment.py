"""Augmentation parameters. Nothing heavy is imported here: recipes hold an `Augment`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hbr_fast.arguments import whole_number
from hbr_fast.functions import is_function_name

PADDINGS = ("zero", "reflect", "edge", "mean")
KEYS = ("position", "sample")
BINS = 30  # the strongest of RandAugment's and TrivialAugment's magnitudes, counted from 0


@dataclass(frozen=True)
class Augment:
    """How a drawn image is augmented, in the order of the fields below.

    Interpolation with a plan's partner comes first. Crop, flip, cutout and normalisation are one pass over the pixels,
    defined by `hbr_fast.kernels.reference.make_batch`. What stands between them here, and erasing, are operations on
    the whole batch on its device, with random numbers of each image's own; they are torchvision's (`transforms.v2`).

    Attributes
    ----------
    flip : float
        Probability of a horizontal flip, in [0, 1]. Crop and flip come first.
    alternating_flip : bool
        Draw each sample's flip once, for epoch 0, and alternate it every epoch, so that two epochs see both sides
        (Keller Jordan's airbench, arXiv 2404.00498). Needs `flip=0.5`.
    pad : int
        Pixels of padding around the raw image before a random crop of the original size, i.e. the largest shift of the
        image; 0 is no crop.
    padding : str
        Content of the padding: "zero", "reflect" (the edge not repeated), "edge", or "mean", the channel's mean rounded
        to a grey level. "mean" is also known as translate: the normalised image is shifted and filled with about 0.
    resized_crop : (float, float), optional
        Smallest and largest share of the image's area that a random-resized crop takes and scales up to the image's
        size, bilinear; in (0, 1].
    aspect : (float, float)
        Smallest and largest aspect ratio (width over height) of that crop.
    vertical_flip : float
        Probability of a vertical flip.
    rotate : float
        Largest rotation in degrees, either way, in [0, 180].
    translate : float
        Largest shift, as a share of the height and of the width, in [0, 1); by whole pixels.
    scale : (float, float), optional
        Smallest and largest factor of the size.
    shear : float
        Largest shear along x in degrees, in [0, 89]. These four are one affine map about the centre, bilinear; what
        comes in is black, or with `padding="mean"` the channel's mean.
    trivial_augment : bool
        TrivialAugment (wide; Müller & Hutter, ICCV 2021): one of 14 operations, of any strength.
    rand_augment : (int, int), optional
        RandAugment (Cubuk et al., 2020): that many of the same operations one after another, and their strength, 0
        to 30.
    color_jitter : tuple of float, optional
        Largest change of brightness, contrast, saturation and hue, applied in this order; factors are drawn from
        1 - change to 1 + change, and the hue's angle in turns from [-change, change], at most 0.5. Missing ones are 0.
    grayscale : float
        Probability of becoming grey.
    blur : float
        Probability of a Gaussian blur.
    blur_sigma : (float, float)
        Its smallest and largest standard deviation in pixels, at most 16.
    transform : str
        A function of your own, `package.module:function`, or `torchvision:CLASS` of `torchvision.transforms.v2`, on
        images in [0, 1], see docs/models.md; "" is none.
    transform_args : dict
        Its keyword arguments, JSON values.
    cutout : int
        Side of a square, fully inside the image, set to the channel's mean rounded to a grey level; 0 is none.
    erase : float
        Probability of random erasing (Zhong et al., AAAI 2020): a rectangle becomes the channel's mean.
    erase_area, erase_aspect : (float, float)
        Its smallest and largest share of the area, in (0, 1], and aspect ratio; sides are cut to the image's.
    keyed_by : str
        What the random numbers of a drawn image depend on, beside the seed and the epoch. "position": its position in
        the epoch. "sample": its sample id, so that a sample is augmented alike wherever an order puts it and whatever
        else is in the plan. Further rows of the plan with the same sample have numbers of their own; a row that the
        order draws twice in an epoch looks the same both times.

    Raises
    ------
    ValueError
        If a value is out of range, or two exclude each other.

    Examples
    --------
    >>> Augment(flip=0.5, pad=4).features
    ('flip', 'crop with zero padding')
    """

    flip: float = 0.0
    alternating_flip: bool = False
    pad: int = 0
    padding: str = "zero"
    resized_crop: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    cutout: int = 0
    keyed_by: str = "position"
    vertical_flip: float = 0.0
    rotate: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] | None = None
    shear: float = 0.0
    trivial_augment: bool = False
    rand_augment: tuple[int, int] | None = None
    color_jitter: tuple[float, ...] | None = None
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    transform: str = ""
    transform_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_aspect: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        faults = [fault for fault in (self._fault_of(field.name) for field in dataclasses.fields(self)) if fault]
        if faults:
            raise ValueError("; ".join(faults))

    def _fault_of(self, field: str) -> str | None:
        """The error in a field, if any."""
        value = getattr(self, field)
        if field in ("pad", "cutout"):
            try:
                whole_number(field, value)
            except ValueError as error:
                return str(error)
        if field in ("flip", "vertical_flip", "grayscale", "blur", "erase") and not 0.0 <= value <= 1.0:
            return f"{field} is a probability in [0, 1], got {value}"
        if field == "alternating_flip" and value and self.flip != 0.5:
            return f"alternating_flip takes either side half of the time: set flip=0.5, got {self.flip}"
        if field == "pad" and value < 0:
            return f"pad is a number of pixels >= 0, got {value}"
        if field == "padding" and value not in PADDINGS:
            return f"padding must be one of {', '.join(PADDINGS)}, got {value!r}"
        if field == "padding" and value != "zero" and self.pad == 0 and not (value == "mean" and self.moves):
            return f"padding={value!r} without pad does nothing: set pad to a number of pixels"
        if field == "cutout" and value < 0:
            return f"cutout is the side of a square in pixels, >= 0, got {value}"
        if field == "keyed_by" and value not in KEYS:
            return f"keyed_by must be one of {', '.join(KEYS)}, got {value!r}"
        if field == "resized_crop" and value is not None:
            if not _is_pair(value) or not 0 < value[0] <= value[1] <= 1:
                return f"resized_crop is two shares of the area in (0, 1], got {value}"
            if self.pad:
                return "pad and resized_crop are both crops: give one of them"
        if field == "aspect" and self.resized_crop is not None and not _are_ratios(value):
            return f"aspect is two ratios above 0, the smaller first, got {value}"
        return self._fault_of_later(field, value)

    def _fault_of_later(self, field: str, value: Any) -> str | None:
        """The error in a field of the operations on the batch, if any."""
        if field in _ANGLES and not 0 <= value <= _ANGLES[field]:
            return f"{field} is an angle in degrees in [0, {_ANGLES[field]}], got {value}"
        if field == "translate" and not 0 <= value < 1:
            return f"translate is a share of the side in [0, 1), got {value}"
        if field == "scale" and value is not None and not _are_ratios(value):
            return f"scale is two factors above 0, the smaller first, got {value}"
        if field == "rand_augment" and value is not None:
            if not _is_pair(value) or not (1 <= value[0] <= 14 and 0 <= value[1] <= BINS):
                return f"rand_augment is a number of operations in [1, 14] and a strength in [0, {BINS}], got {value}"
            if self.trivial_augment:
                return "trivial_augment and rand_augment are two policies: give one of them"
        if field == "color_jitter" and value is not None and not _are_changes(value):
            return (
                "color_jitter is the largest change of brightness, contrast, saturation (>= 0) and hue (in [0, 0.5]), "
                f"got {value}"
            )
        if field == "blur_sigma" and not (_are_ratios(value) and value[1] <= 16):
            return f"blur_sigma is two numbers of pixels in (0, 16], the smaller first, got {value}"
        if field == "transform" and value and not is_function_name(value):
            return f"transform must be torchvision:CLASS or package.module:function, got {value!r}"
        if field == "transform_args" and value and not self.transform:
            return "transform_args without transform do nothing: name a transform"
        if field == "erase_area" and (not _are_ratios(value) or value[1] > 1):
            return f"erase_area is two shares of the area in (0, 1], the smaller first, got {value}"
        if field == "erase_aspect" and not _are_ratios(value):
            return f"erase_aspect is two ratios above 0, the smaller first, got {value}"
        return None

    @property
    def moves(self) -> bool:
        """Whether an affine map may bring in pixels from beyond the image."""
        return bool(
            self.rotate or self.translate or self.scale or self.shear or self.trivial_augment or self.rand_augment
        )

    @property
    def on_batch(self) -> tuple[str, ...]:
        """The features among `features` that are operations on the whole batch."""
        return (
            *(("vertical flip",) if self.vertical_flip else ()),
            *(("rotation and affine",) if self.rotate or self.translate or self.scale or self.shear else ()),
            *(("TrivialAugment",) if self.trivial_augment else ()),
            *(("RandAugment",) if self.rand_augment else ()),
            *(("color jitter",) if self.color_jitter is not None and any(self.color_jitter) else ()),
            *(("grayscale",) if self.grayscale else ()),
            *(("Gaussian blur",) if self.blur else ()),
            *(("transform of torchvision or the user",) if self.transform else ()),
            *(("random erasing",) if self.erase else ()),
        )

    @property
    def features(self) -> tuple[str, ...]:
        """The features it uses, by their names in `hbr_fast.loaders.backends`."""
        return (
            *(("flip",) if self.flip else ()),
            *(("alternating flip",) if self.alternating_flip else ()),
            *((f"crop with {self.padding} padding",) if self.pad else ()),
            *(("random-resized crop",) if self.resized_crop else ()),
            *(("cutout",) if self.cutout else ()),
            *(("augmentation keyed by sample",) if self.keyed_by == "sample" else ()),
            *self.on_batch,
        )

    def check_fits(self, channels: int, height: int, width: int) -> None:
        """Raise a ValueError if images of this size are too small, or have no colours to change."""
        if channels not in (1, 3) and (needing := [one for one in self.on_batch if one in _COLORS]):
            raise ValueError(
                f"{', '.join(needing)}: for images of 1 channel (grey) or 3 (RGB), these have {channels}: leave it out"
            )
        if self.padding == "reflect" and self.pad >= min(height, width):
            raise ValueError(
                f"a reflection reaches {min(height, width) - 1} pixels beyond an image of {height} x {width}, "
                f"got pad={self.pad}"
            )
        if self.cutout > min(height, width):
            raise ValueError(f"a square of cutout={self.cutout} pixels does not fit images of {height} x {width}")


_ANGLES = {"rotate": 180, "shear": 89}
_COLORS = ("TrivialAugment", "RandAugment", "color jitter", "grayscale")


def _are_changes(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and 1 <= len(value) <= 4
        and all(one >= 0 for one in value)
        and (len(value) < 4 or value[3] <= 0.5)
    )


def _are_ratios(value: Any) -> bool:
    return _is_pair(value) and bool(0 < value[0] <= value[1] < math.inf)


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2
