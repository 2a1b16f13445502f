"""Batch norms of third-party networks computed by our fused operation, as those of our own networks are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from hbr_fast.kernels.norm import cpu_norm as k
from hbr_fast.training.models.layers import FusedSequential, add_and_relu, can_fuse, norm


def fuse(model: nn.Module) -> nn.Module:
    """Fuse the batch norms of a network with the ReLU, max-pool or residual sum after them, in place.

    It rewrites torchvision's ResNets (blocks and stem) and every plain `nn.Sequential` with a `BatchNorm2d`, such as
    torchvision's VGGs. Parameters, buffers and their names stay; outputs and gradients are the same up to rounding.
    What is not rewritten, and every tensor that the fused operation does not take (see `models.layers`: another device
    than a CPU, evaluation, channels that are not a multiple of 16), runs as before. Hooks of fused modules are not
    called.

    Parameters
    ----------
    model : nn.Module
        For pictures in channels-last memory format: in another one nothing is fused.

    Returns
    -------
    nn.Module
        The same model.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> type(fuse(resnet18()).layer1[0]).__name__
    'FusedBasicBlock'
    """
    for module in model.modules():
        own = [type(one) for one in module.children()]
        if type(module) is nn.Sequential and nn.BatchNorm2d in own:
            module.__class__ = FusedSequential
        elif type(module) in _FUSED and all(type(norm) is nn.BatchNorm2d for norm in _norms(module)):
            module.__class__ = _FUSED[type(module)]
    return model


class FusedBasicBlock(BasicBlock):
    """torchvision's block of two convolutions, its batch norms fused."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in `BasicBlock`."""
        out = _norm_and_relu(self.bn1, self.conv1(x))
        shortcut = x if self.downsample is None else self.downsample(x)
        return add_and_relu(self.bn2, self.conv2(out), shortcut)


class FusedBottleneck(Bottleneck):
    """torchvision's block of three convolutions, its batch norms fused."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in `Bottleneck`."""
        out = _norm_and_relu(self.bn1, self.conv1(x))
        out = _norm_and_relu(self.bn2, self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return add_and_relu(self.bn3, self.conv3(out), shortcut)


class FusedResNet(ResNet):
    """torchvision's ResNet, the batch norm of its stem fused."""

    def _forward_impl(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(_norm_and_relu(self.bn1, self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BasicBlock: FusedBasicBlock,
    Bottleneck: FusedBottleneck,
    ResNet: FusedResNet,
}


def _norms(module: nn.Module) -> list[nn.Module]:
    return [one for name, one in module.named_children() if name.startswith("bn")]


def _norm_and_relu(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    assert isinstance(layer, nn.BatchNorm2d)
    return norm(layer, x, k.RELU) if can_fuse(layer, x) else functional.relu(layer(x), inplace=True)
