"""A first layer that whitens patches of the image, with weights from the training images instead of training."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SIDE, STRIDE, PADDING = 4, 2, 1
_EPSILON = 5e-4  # added to the variances: directions that hardly occur are not blown up to noise


class WhitenedPatches(nn.Module):
    """Patches of 4x4 pixels at every second position, whitened, and their negatives: [B, 2 * channels * 16, H/2, W/2].

    The weights are eigenvectors of the patches' covariance over their standard deviations: a buffer, which the
    optimiser does not see, so that the backward pass ends above the largest layer. Until `fit` they are those of
    white noise. Followed by a ReLU, the negatives keep what it cuts off.

    Source: whitening as first layer, Page 2019, "How to train your ResNet"; Jordan 2024, arXiv 2404.00498.
    """

    weight: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = channels * SIDE * SIDE
        self.out_channels = 2 * size
        self.register_buffer("weight", torch.eye(size).reshape(size, channels, SIDE, SIDE))

    def fit(self, images_nchw: torch.Tensor) -> None:
        """Take the weights from normalised images, float [N, channels, H, W]."""
        size = len(self.weight)
        patches = functional.unfold(images_nchw.float(), SIDE, stride=STRIDE)  # [N, size, positions]
        rows = patches.permute(0, 2, 1).reshape(-1, size).double()
        variances, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
        scaled = directions / (variances + _EPSILON).sqrt()
        self.weight.copy_(scaled.T.flip(0).reshape(self.weight.shape).float())  # the largest variance first

    def forward(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Whitened patches of normalised images, float [B, channels, H, W]."""
        found = functional.conv2d(images_bchw, self.weight.to(images_bchw.dtype), stride=STRIDE, padding=PADDING)
        return torch.cat([found, -found], dim=1)
