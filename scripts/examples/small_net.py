"""A network of one's own for `hbr-fast train --model small_net:small_net` (docs/tutorial.md)."""

from __future__ import annotations

from torch import nn


def small_net(image_shape: tuple[int, int, int], num_classes: int, *, width: int = 16) -> nn.Module:
    """Two convolutions, global average pooling and a linear layer: from images [B, C, H, W] to logits [B, classes]."""
    channels, _, _ = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )
