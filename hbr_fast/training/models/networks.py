"""The networks: plain PyTorch modules, built by name for a number of channels and classes."""

from __future__ import annotations

import torch
from torch import nn

from hbr_fast.arguments import did_you_mean, near_names
from hbr_fast.training.models.layers import FusedSequential, add_and_relu
from hbr_fast.training.models.whitening import WhitenedPatches

KINDS = ("cnn", "vgg", "whitened", "whitened2")
MAX_WIDTH = 8192  # of a layer: twice as wide as any in common use


def build_model(name: str, *, channels: int, image_size: tuple[int, int], classes: int) -> nn.Module:
    """A network by name, with initial weights from torch's random state.

    Parameters
    ----------
    name : str
        "cnn-W-W-..." : one 3x3 convolution, batch norm, ReLU and max-pool for each width W, then a mean and a linear
        layer. "vgg-W-W-...": the image in 2x2 blocks as channels, then two 3x3 convolutions and a max-pool for each
        width, then a linear layer. "whitened-W-W-...": whitened 4x4 patches (`WhitenedPatches`), then a convolution, a
        max-pool and a convolution for each width, then a max and a linear layer. "whitened2-W-W-...": the same with
        2x2 patches at every pixel, norms without scale, and GELU; it is evaluated as the mean over an image and its
        mirror image, so it is for images that may be mirrored. "resnet18": for small images, with a 3x3 stride-1 stem
        and no max-pool (He et al. 2016, as in the paper).
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
    if kind in KINDS and widths and all(width.isdecimal() and int(width) > 0 for width in widths):
        halvings = len(widths) if kind in ("cnn", "whitened2") else len(widths) + 1
        least = 2**halvings + (kind == "whitened2")  # whose patches leave a pixel less
        if smallest < least:
            raise ValueError(
                f"model {name!r} halves the image {halvings} times: images of {image_size[0]}x{image_size[1]} are "
                f"too small, it needs at least {least} pixels a side"
            )
        if kind == "vgg" and (image_size[0] % 2 or image_size[1] % 2):
            raise ValueError(
                f"model {name!r} takes 2x2 blocks of pixels: it needs even sides, not {image_size[0]}x{image_size[1]}"
            )
        numbers = [int(width) for width in widths]
        if max(numbers) > MAX_WIDTH:
            raise ValueError(f"model {name!r} has a layer of width {max(numbers)}: widths are 1 to {MAX_WIDTH}")
        if kind == "whitened2":
            return Classifier(whitened2_features(channels, numbers), numbers[-1], classes, scale=1 / 8, mirrored=True)
        if kind == "whitened":
            return Classifier(whitened_features(channels, numbers), numbers[-1], classes, scale=1 / 8)
        if kind == "cnn":
            return Classifier(cnn_features(channels, numbers), numbers[-1], classes)
        final = numbers[-1] * (image_size[0] >> halvings) * (image_size[1] >> halvings)
        return Classifier(vgg_features(channels, numbers), final, classes)
    of_widths = ", ".join(f"{one}-W-W-..." for one in KINDS)
    raise ValueError(
        f"unknown model {name!r}: there are resnet18 and {of_widths} (W: a width), torchvision:NAME, timm:NAME and "
        f"package.module:function{_meant(name)}"
    )


def _meant(name: str) -> str:
    """The end of an error about an unknown network: the nearest name that is one."""
    kind, *widths = name.split("-")
    near = near_names(kind, ["resnet18", *KINDS])
    if not near or near[0] == "resnet18":
        return did_you_mean(["resnet18"], name)
    good = widths and all(width.isdecimal() and int(width) for width in widths)
    return f" (did you mean {'-'.join([near[0], *(widths if good else ('16', '32'))])!r}?)"


class Classifier(nn.Module):
    """Features under the current autocast, times `scale`, with a linear layer in float32 on top.

    With `mirrored`, the mean over each image and its mirror image, in evaluation.
    """

    def __init__(
        self, features: nn.Module, width: int, classes: int, *, scale: float = 1.0, mirrored: bool = False
    ) -> None:
        super().__init__()
        self.features, self.scale, self.mirrored = features, scale, mirrored
        self.head = nn.Linear(width, classes)

    def forward(self, images_bchw: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [B, classes]."""
        if self.mirrored and not self.training:
            return (self._logits(images_bchw) + self._logits(images_bchw.flip(-1))) / 2
        return self._logits(images_bchw)

    def _logits(self, images_bchw: torch.Tensor) -> torch.Tensor:
        features = self.features(images_bchw)
        with torch.autocast(features.device.type, enabled=False):
            logits: torch.Tensor = self.head(features.float() * self.scale)
        return logits


def cnn_features(channels: int, widths: list[int]) -> nn.Sequential:
    """One convolution per width; [B, widths[-1]]."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [_convolution(channels, width), nn.MaxPool2d(2)]
        channels = width
    return FusedSequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def vgg_features(channels: int, widths: list[int]) -> nn.Sequential:
    """Blocks of pixels as channels, then two convolutions per width; [B, widths[-1] * H' * W'].

    The first convolution sees a quarter of the positions with four times the channels: on a CPU the full-size layers
    of a small network cost the most and do the least.
    """
    layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
    channels *= 4
    for width in widths:
        layers += [_convolution(channels, width), _convolution(width, width), nn.MaxPool2d(2)]
        channels = width
    return FusedSequential(*layers, nn.Flatten())


def whitened_features(channels: int, widths: list[int]) -> nn.Sequential:
    """Whitened patches, then per width a convolution, a max-pool and a convolution; [B, widths[-1]].

    The second convolution of a width sees a quarter of the positions of the first. Convolutions begin as near to the
    identity as their widths allow, so that a training of a few epochs need not learn to pass the image on.
    """
    patches = WhitenedPatches(channels)
    layers: list[nn.Module] = [patches, nn.ReLU(inplace=True)]
    channels = patches.out_channels
    for width in widths:
        layers += [_convolution(channels, width), nn.MaxPool2d(2), _convolution(width, width)]
        channels = width
    return _begun_as_identity(FusedSequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten()))


def whitened2_features(channels: int, widths: list[int]) -> nn.Sequential:
    """Whitened patches of 2x2 pixels, then per width a convolution, a max-pool and a convolution; [B, widths[-1]].

    Norms come after the pools, have no scale to learn, which the next convolution has already, and follow the batches
    closely, as short trainings need. Convolutions begin as in `whitened_features`.
    """
    patches = WhitenedPatches(channels, side=2)
    layers: list[nn.Module] = [patches, nn.GELU()]
    channels = patches.out_channels
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(width)]
        layers += [nn.GELU(), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.GELU()]
        channels = width
    features = _begun_as_identity(FusedSequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten()))
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.requires_grad_(False)
            module.momentum = 0.4
    return features


def _begun_as_identity(features: nn.Sequential) -> nn.Sequential:
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight[: module.in_channels].data)
    return features


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
