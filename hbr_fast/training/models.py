"""The networks: plain PyTorch modules, built by name for a number of channels and classes."""

from __future__ import annotations

import torch
from torch import nn

from hbr_fast.training.layers import FusedSequential, add_and_relu

MAX_WIDTH = 8192  # of a layer: twice as wide as any in common use


def build_model(name: str, *, channels: int, image_size: tuple[int, int], classes: int) -> nn.Module:
    """A network by name, with the initial weights that torch's random state gives it.

    Parameters
    ----------
    name : str
        "cnn-W-W-..." : one 3x3 convolution, batch norm, ReLU and max-pool for each width W, then a mean and a linear
        layer. "vgg-W-W-...": the image in 2x2 blocks as channels, then two 3x3 convolutions and a max-pool for each
        width, then a linear layer. "resnet18": for small images, with a 3x3 stride-1 stem and no max-pool (He et
        al. 2016, as in the paper).
    channels, image_size, classes : int, (int, int), int
        Shape of the images, (height, width), and number of classes.

    Returns
    -------
    nn.Module
        Images [B, channels, H, W] to float32 logits [B, classes]. The last layer computes in float32 also under
        autocast: margins are differences of logits, and bfloat16 keeps three digits.

    Raises
    ------
    ValueError
        If there is no such network, a layer is too wide, or the images are too small for it.
    """
    kind, *widths = name.split("-")
    smallest = min(image_size)
    if name == "resnet18":
        return Classifier(resnet18_features(channels), 512, classes)
    if kind in ("cnn", "vgg") and widths and all(width.isdecimal() and int(width) > 0 for width in widths):
        halvings = len(widths) if kind == "cnn" else len(widths) + 1
        if smallest < 2**halvings:
            raise ValueError(
                f"model {name!r} halves the image {halvings} times: images of {image_size[0]}x{image_size[1]} are "
                f"too small, it needs at least {2**halvings} pixels a side"
            )
        if kind == "vgg" and (image_size[0] % 2 or image_size[1] % 2):
            raise ValueError(
                f"model {name!r} takes 2x2 blocks of pixels: it needs even sides, not {image_size[0]}x{image_size[1]}"
            )
        numbers = [int(width) for width in widths]
        if max(numbers) > MAX_WIDTH:
            raise ValueError(
                f"model {name!r} has a layer of width {max(numbers)}: there are widths of 1 to {MAX_WIDTH}"
            )
        if kind == "cnn":
            return Classifier(cnn_features(channels, numbers), numbers[-1], classes)
        final = numbers[-1] * (image_size[0] >> halvings) * (image_size[1] >> halvings)
        return Classifier(vgg_features(channels, numbers), final, classes)
    raise ValueError(f"unknown model {name!r}: there are resnet18, cnn-W-W-... and vgg-W-W-... (W: a width)")


class Classifier(nn.Module):
    """Features under whatever autocast is on, a linear layer in float32 on top."""

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def forward(self, images_bchw: torch.Tensor) -> torch.Tensor:
        features = self.features(images_bchw)
        with torch.autocast(features.device.type, enabled=False):
            logits: torch.Tensor = self.head(features.float())
        return logits


def cnn_features(channels: int, widths: list[int]) -> nn.Sequential:
    """One convolution a width; [B, widths[-1]]."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [_convolution(channels, width), nn.MaxPool2d(2)]
        channels = width
    return FusedSequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def vgg_features(channels: int, widths: list[int]) -> nn.Sequential:
    """Blocks of pixels as channels, then two convolutions a width; [B, widths[-1] * H' * W'].

    The first convolution sees a quarter of the positions with four times the channels: on a CPU the full-size layers
    of a small network cost the most and do the least.
    """
    layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
    channels *= 4
    for width in widths:
        layers += [_convolution(channels, width), _convolution(width, width), nn.MaxPool2d(2)]
        channels = width
    return FusedSequential(*layers, nn.Flatten())


def resnet18_features(channels: int) -> nn.Sequential:
    """ResNet-18 without its last layer, for small images; [B, 512]."""
    layers: list[nn.Module] = [_convolution(channels, 64)]
    width = 64
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(width, out, stride), BasicBlock(out, out, 1)]
        width = out
    return FusedSequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels, out, stride)
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = FusedSequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convolution, norm = self.second
        return add_and_relu(norm, convolution(self.first(x)), self.shortcut(x))


def _convolution(channels: int, out: int, stride: int = 1) -> FusedSequential:
    return FusedSequential(
        nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )
