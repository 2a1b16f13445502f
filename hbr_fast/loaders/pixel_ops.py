"""torchvision's operations with a strength for each image of a batch: float32 grey levels in [0, 255], [B, C, H, W].

torchvision's take one strength a call, which would be a call for each image. Tests compare with its `transforms.v2`.
An image's result does not depend on the rest of the batch: everything is elementwise, or a sum of whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

LEVELS = 255.0
LUMA = (0.2989, 0.587, 0.114)  # of ITU-R 601-2, in torchvision's digits


def column(values_b: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """A number for each image, [B, 1, 1, 1], on the device of the images."""
    return torch.from_numpy(np.asarray(values_b, np.float32)).to(like.device, non_blocking=True)[:, None, None, None]


# --- colours ---


def gray(images: torch.Tensor) -> torch.Tensor:
    """The grey level of each pixel: [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


def _blended(images: torch.Tensor, other: torch.Tensor, factor_b: np.ndarray) -> torch.Tensor:
    """The share `factor` of the images and the rest of another, which may be negative: it takes the images further."""
    factor = column(factor_b, images)
    return (images * factor + other * (1 - factor)).clamp_(0, LEVELS)


def adjust_brightness(images: torch.Tensor, factor_b: np.ndarray) -> torch.Tensor:
    """Levels times a factor."""
    return (images * column(factor_b, images)).clamp_(0, LEVELS)


def adjust_contrast(images: torch.Tensor, factor_b: np.ndarray) -> torch.Tensor:
    """Blend with the mean of the image's grey levels."""
    count = images.shape[2] * images.shape[3]
    mean = gray(images).floor().sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64) / count
    return _blended(images, mean.float(), factor_b)


def adjust_saturation(images: torch.Tensor, factor_b: np.ndarray) -> torch.Tensor:
    """Blend with the grey image; nothing changes in a grey one."""
    return images if images.shape[1] == 1 else _blended(images, gray(images), factor_b)


def adjust_hue(images: torch.Tensor, turn_b: np.ndarray) -> torch.Tensor:
    """Turn the hue by a share of the circle; value and saturation stay. Nothing changes in a grey image."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    by = torch.where(chroma > 0, chroma, 1.0)  # without chroma, the hue does not matter
    sixths = torch.where(
        value == red,
        (green - blue) / by,
        torch.where(value == green, (blue - red) / by + 2, (red - green) / by + 4),
    )
    sixths = sixths + column(6 * np.asarray(turn_b), images)
    # Each channel falls from the value by the chroma, by its distance to the hue on the circle of six colours.
    places = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    place = (sixths + places).remainder(6)
    return value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1)


def adjust_sharpness(images: torch.Tensor, factor_b: np.ndarray) -> torch.Tensor:
    """Blend with the image smoothed by 3 x 3 pixels, of which the centre counts five; the border stays."""
    height, width = images.shape[2:]
    if min(height, width) <= 2:
        return images
    inner = 4 * images[:, :, 1:-1, 1:-1]
    for row in range(3):
        for place in range(3):
            inner = inner + images[:, :, row : height - 2 + row, place : width - 2 + place]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = inner / 13
    return _blended(images, smooth, factor_b)


def posterize(images: torch.Tensor, bits_b: np.ndarray) -> torch.Tensor:
    """Keep the highest bits of each level."""
    step = column(2.0 ** (8 - np.asarray(bits_b)), images)
    return (images / step).floor_() * step


def solarize(images: torch.Tensor, threshold_b: np.ndarray) -> torch.Tensor:
    """Invert the levels at and above a threshold."""
    return torch.where(images >= column(threshold_b, images), LEVELS - images, images)


def autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Stretch the levels of each channel to the whole range."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = low == high
    return torch.where(flat, images, (images - low) * (LEVELS / torch.where(flat, 1.0, high - low)))


def equalize(images: torch.Tensor) -> torch.Tensor:
    """Equalise the histogram of each channel's levels, which are rounded to whole ones."""
    from torchvision.transforms.v2.functional import equalize as equalized

    return equalized(images.round().to(torch.uint8)).float()


# --- neighbourhoods and places ---


def gaussian_blur(images: torch.Tensor, sigma_b: np.ndarray, *, largest: float) -> torch.Tensor:
    """Gaussian blur by `sigma` pixels, cut off at three times the largest; the image is mirrored at its edge."""
    radius = min(int(np.ceil(3 * largest)), min(images.shape[2:]) - 1)
    distance = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (distance / np.asarray(sigma_b, np.float64)[:, None]) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    for dim in (2, 3):
        size = images.shape[dim]
        around = functional.pad(images, (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0), mode="reflect")
        images = column(weights[:, 0], images) * around.narrow(dim, 0, size)
        for place in range(1, 2 * radius + 1):
            images = images + column(weights[:, place], images) * around.narrow(dim, place, size)
    return images


def affine_matrices(
    count: int,
    *,
    angle: np.ndarray | float = 0.0,
    translate: tuple[np.ndarray | float, np.ndarray | float] = (0.0, 0.0),
    scale: np.ndarray | float = 1.0,
    shear: tuple[np.ndarray | float, np.ndarray | float] = (0.0, 0.0),
    center: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """Where each pixel of the result comes from: float64 [B, 2, 3], (x, y, 1) to (x, y), pixels from the centre.

    Parameters
    ----------
    count : int
        B; the others are a number for all images or one for each.
    angle, shear : float [B]
        Degrees, clockwise; the shear along x and along y.
    translate : float [B]
        Pixels to the right and down.
    scale : float [B]
    center : (float, float)
        Of rotation and shear, from the image's centre.
    """
    turned, along, down = (np.radians(np.broadcast_to(one, count).astype(np.float64)) for one in (angle, *shear))
    a = np.cos(turned - down) / np.cos(down)
    b = -a * np.tan(along) - np.sin(turned)
    c = np.sin(turned - down) / np.cos(down)
    d = -c * np.tan(along) + np.cos(turned)
    backward = np.stack([np.stack([d, -b], 1), np.stack([-c, a], 1)], 1)
    backward = backward / np.broadcast_to(scale, count)[:, None, None]
    middle = np.array(center)
    moved = middle + np.stack([np.broadcast_to(one, count) for one in translate], 1)
    offset = middle - (backward @ moved[:, :, None])[:, :, 0]
    return np.concatenate([backward, offset[:, :, None]], axis=2)


def affine(images: torch.Tensor, matrices_b23: np.ndarray, fill_c: Sequence[float]) -> torch.Tensor:
    """Images sampled bilinearly where `affine_matrices` says; beyond the image is the fill."""
    height, width = images.shape[2:]
    device = images.device
    x = torch.arange(width, device=device, dtype=torch.float32) + (0.5 - width / 2)
    y = torch.arange(height, device=device, dtype=torch.float32)[:, None] + (0.5 - height / 2)
    # Elementwise: a product of matrices may round differently for another number of images.
    parts = [column(matrices_b23[:, row, place], images)[:, 0] for row in range(2) for place in range(3)]
    grid = torch.stack(
        [
            (parts[0] * x + parts[1] * y + parts[2]) * (2 / width),
            (parts[3] * x + parts[4] * y + parts[5]) * (2 / height),
        ],
        dim=-1,
    )
    fill = torch.tensor(fill_c, dtype=torch.float32, device=device)[:, None, None]
    filled = functional.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return filled + fill


def inside(boxes_b4: np.ndarray, images: torch.Tensor) -> torch.Tensor:
    """The pixels in a box of each image, given as top, left, height and width: bool [B, 1, H, W]."""
    height, width = images.shape[2:]
    top, left, tall, wide = (column(boxes_b4[:, place], images)[:, 0] for place in range(4))
    y = torch.arange(height, device=images.device)[:, None]
    x = torch.arange(width, device=images.device)
    return ((y >= top) & (y < top + tall) & (x >= left) & (x < left + wide))[:, None]
