"""Views: which part of a picture of any size becomes an image of a given size.

A view is a box in the picture, in pixels and fractions of pixels, and the rectangle of the image that it fills; the
rest is black. `hbr_fast.kernels.reference.box_resized` defines how the box is scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Fit = Literal["crop", "pad", "stretch"]
FITS = get_args(Fit)
_RESIZE, _CROP = 256, 224  # ImageNet's evaluation: the shortest side to 256, of which the middle 224


def checked_size(size: int | tuple[int, int], fit: str) -> tuple[int, int]:
    """Height and width of images, from one number or both.

    Raises
    ------
    ValueError
        If a side is not a whole number of at least one pixel, or the fit is unknown.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not all(0 < side < 2**15 for side in sides):
        raise ValueError(f"size must be one side in pixels, or height and width, each in [1, 32768), got {size!r}")
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    return sides[0], sides[1]


def views(
    heights_n: np.ndarray, widths_n: np.ndarray, size: tuple[int, int], fit: Fit
) -> tuple[np.ndarray, np.ndarray]:
    """The views of pictures of these sizes, without anything random.

    Parameters
    ----------
    heights_n, widths_n : int [N]
    size : (H, W)
    fit : {"crop", "pad", "stretch"}
        "crop": as torchvision's `Resize(256)`, `CenterCrop(224)` for 224: the shortest side becomes 256/224 of the
        size, rounded down, and the middle is taken. "pad": the whole picture, as large as fits, in the middle of a
        black image. "stretch": the whole picture, distorted.

    Returns
    -------
    boxes : float64 [N, 4]
        Top, left, height and width in the picture.
    places : int64 [N, 4]
        The same in the image.
    """
    tall, wide = np.asarray(heights_n, np.int64), np.asarray(widths_n, np.int64)
    height, width = size
    boxes, places = np.zeros((len(tall), 4)), np.zeros((len(tall), 4), np.int64)
    boxes[:, 2], boxes[:, 3] = tall, wide
    places[:] = 0, 0, height, width
    if fit == "crop":
        scaled = _scaled(tall, wide, height * _RESIZE // _CROP, width * _RESIZE // _CROP, cover=True)
        for side, (wanted, old, new) in enumerate(zip(size, (tall, wide), scaled, strict=True)):
            boxes[:, side] = np.rint((new - wanted) / 2) * old / new
            boxes[:, 2 + side] = wanted * old / new
    elif fit == "pad":
        scaled = _scaled(tall, wide, height, width, cover=False)
        for side, (wanted, new) in enumerate(zip(size, scaled, strict=True)):
            places[:, side], places[:, 2 + side] = (wanted - new) // 2, new
    return boxes, places


def _scaled(
    tall: np.ndarray, wide: np.ndarray, height: int, width: int, *, cover: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of pictures scaled until they just cover a rectangle, or just fit into it; rounded down, as torchvision."""
    by_height = (tall * width <= wide * height) == cover
    new_tall = np.where(by_height, height, np.maximum(1, tall * width // wide))
    new_wide = np.where(by_height, np.maximum(1, wide * height // tall), width)
    return new_tall, new_wide
