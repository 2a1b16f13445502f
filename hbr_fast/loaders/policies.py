"""RandAugment and TrivialAugment on a batch: each image has its own operation and strength.

Operations and strengths are torchvision's (`RandAugment`, `TrivialAugmentWide`); what moves pixels is bilinear here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hbr_fast.loaders import pixel_ops
from hbr_fast.loaders.augment import BINS

OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
    "Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
MOVES = range(1, 6)  # those that move pixels, together one affine map


@dataclass(frozen=True)
class Strengths:
    """What the operations do at their strongest.

    Attributes
    ----------
    shear : float
        Pixels per pixel.
    translate : (float, float)
        Pixels to the right and down.
    rotate : float
        Degrees.
    enhance : float
        Change of brightness, colour, contrast and sharpness.
    bits : int
        Dropped by posterisation.
    """

    shear: float
    translate: tuple[float, float]
    rotate: float
    enhance: float
    bits: int


def trivial_strengths() -> Strengths:
    """Of TrivialAugment's wide space."""
    return Strengths(shear=0.99, translate=(32.0, 32.0), rotate=135.0, enhance=0.99, bits=6)


def rand_strengths(height: int, width: int) -> Strengths:
    """Of RandAugment, for images of a size."""
    moved = (150 / 331 * width, 150 / 331 * height)
    return Strengths(shear=0.3, translate=moved, rotate=30.0, enhance=0.9, bits=4)


def apply(
    images: torch.Tensor,
    operation_b: np.ndarray,
    bin_b: np.ndarray,
    sign_b: np.ndarray,
    strengths: Strengths,
    fill_c: Sequence[float],
) -> torch.Tensor:
    """Each image after its operation.

    Parameters
    ----------
    images : float32 [B, C, H, W]
        Grey levels in [0, 255]; overwritten.
    operation_b : int [B]
        Numbers of `OPERATIONS`.
    bin_b : int [B]
        Strength, 0 to `BINS`.
    sign_b : int [B]
        1 or -1: the direction of operations that have two.
    strengths : Strengths
    fill_c : sequence of float
        What comes in from beyond the image.
    """
    share_b = bin_b / BINS
    groups = [np.flatnonzero(np.isin(operation_b, MOVES))]
    groups += [np.flatnonzero(operation_b == number) for number in range(MOVES.stop, len(OPERATIONS))]
    for rows in groups:
        if not len(rows):
            continue
        chosen = torch.from_numpy(rows).to(images.device)
        own = images[chosen]
        signed = sign_b[rows] * share_b[rows]
        number = int(operation_b[rows[0]])
        if number in MOVES:
            own = pixel_ops.affine(own, _moved(operation_b[rows], signed, strengths, images), fill_c)
        else:
            own = _colored(OPERATIONS[number], own, share_b[rows], 1 + strengths.enhance * signed, strengths)
        images[chosen] = own
    return images


def _moved(operation_b: np.ndarray, signed_b: np.ndarray, strengths: Strengths, images: torch.Tensor) -> np.ndarray:
    """The affine maps of images whose operation is one of `MOVES`."""

    def of(name: str, strongest: float) -> np.ndarray:
        return np.where(operation_b == OPERATIONS.index(name), strongest * signed_b, 0.0)

    height, width = images.shape[2:]
    sheared = [np.degrees(np.arctan(of(name, strengths.shear))) for name in ("ShearX", "ShearY")]
    moved = [np.trunc(of(*pair)) for pair in zip(("TranslateX", "TranslateY"), strengths.translate, strict=True)]
    turned = -of("Rotate", strengths.rotate)  # counter-clockwise, as torchvision's
    count = len(operation_b)
    about_corner = pixel_ops.affine_matrices(count, shear=(sheared[0], sheared[1]), center=(-width / 2, -height / 2))
    about_center = pixel_ops.affine_matrices(count, angle=turned, translate=(moved[0], moved[1]))
    is_shear = (sheared[0] != 0) | (sheared[1] != 0)
    return np.where(is_shear[:, None, None], about_corner, about_center)


def _colored(
    name: str, images: torch.Tensor, share_b: np.ndarray, factor_b: np.ndarray, strengths: Strengths
) -> torch.Tensor:
    match name:
        case "Brightness":
            return pixel_ops.adjust_brightness(images, factor_b)
        case "Color":
            return pixel_ops.adjust_saturation(images, factor_b)
        case "Contrast":
            return pixel_ops.adjust_contrast(images, factor_b)
        case "Sharpness":
            return pixel_ops.adjust_sharpness(images, factor_b)
        case "Posterize":
            return pixel_ops.posterize(images, 8 - np.rint(strengths.bits * share_b))
        case "Solarize":
            return pixel_ops.solarize(images, pixel_ops.LEVELS * (1 - share_b))
        case "AutoContrast":
            return pixel_ops.autocontrast(images)
    assert name == "Equalize", name
    return pixel_ops.equalize(images)
