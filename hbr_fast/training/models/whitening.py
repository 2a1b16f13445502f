"""A first layer that whitens patches of the image, with weights from the training images instead of training."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_EPSILON = 5e-4  # added to the variances: directions that hardly occur are not blown up to noise


class WhitenedPatches(nn.Module):
    """Patches of pixels, whitened, and their negatives.

    Patches of 4x4 pixels at every second position give [B, 2 * channels * 16, H/2, W/2], those of 2x2 pixels at every
    position [B, 2 * channels * 4, H - 1, W - 1].

    The weights are eigenvectors of the patches' covariance over their standard deviations: a buffer, which the
    optimiser does not see, so that the backward pass ends above the largest layer. Until `fit` they are those of
    white noise. Followed by a ReLU or GELU, the negatives keep what it cuts off.

    Source: whitening as first layer, Page 2019, "How to train your ResNet"; Jordan 2024, arXiv 2404.00498.
    """

    weight: torch.Tensor

    def __init__(self, channels: int, *, side: int = 4) -> None:
        super().__init__()
        size = channels * side * side
        self.out_channels, self.side = 2 * size, side
        self.stride, self.padding = (2, 1) if side == 4 else (1, 0)
        self.register_buffer("weight", torch.eye(size).reshape(size, channels, side, side))

    def fit(self, images_nchw: torch.Tensor) -> None:
        """Take the weights from normalised images, float [N, channels, H, W]."""
        size = len(self.weight)
        patches = functional.unfold(images_nchw.float(), self.side, stride=self.stride)  # [N, size, positions]
        rows = patches.permute(0, 2, 1).reshape(-1, size).double()
        variances, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
        scaled = directions / (variances + _EPSILON).sqrt()
        self.weight.copy_(scaled.T.flip(0).reshape(self.weight.shape).float())  # the largest variance first

    def forward(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Whitened patches of normalised images, float [B, channels, H, W]."""
        weight = self.weight.to(images_bchw.dtype)
        found = functional.conv2d(images_bchw, weight, stride=self.stride, padding=self.padding)
        return torch.cat([found, -found], dim=1)
