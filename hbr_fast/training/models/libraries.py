"""Networks of torchvision and timm by name, untrained and with the dataset's number of classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hbr_fast.arguments import near_names

# Arguments by which the libraries would download weights.
_DOWNLOADS = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path")


def torchvision_model(name: str, image_shape: tuple[int, int, int], num_classes: int, **arguments: Any) -> nn.Module:
    """A classification network of torchvision, e.g. "resnet50", its batch norms fused where `fuse` can.

    Raises
    ------
    ValueError
        If there is none of that name, the images are not RGB, or the arguments ask for a download.
    """
    from torchvision import models

    from hbr_fast.training.models.fuse import fuse

    _require_known("torchvision", name, models.list_models(module=models))
    _refuse_downloads("torchvision", name, arguments)
    if image_shape[0] != 3:
        raise ValueError(
            f"model 'torchvision:{name}' takes RGB images, these have {image_shape[0]} channel"
            f"{'s' if image_shape[0] > 1 else ''}: take a timm: model or a built-in one, which take any number, or "
            "convert the images to RGB (hbr-fast convert folder --mode rgb)"
        )
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    return fuse(float32_head(model, num_classes))


def timm_model(name: str, image_shape: tuple[int, int, int], num_classes: int, **arguments: Any) -> nn.Module:
    """A network of timm, e.g. "convnext_tiny", for any number of channels.

    Raises
    ------
    ValueError
        If timm is missing or has no such network, or the arguments ask for a download.
    """
    try:
        import timm
    except ImportError:
        raise ValueError(f"model 'timm:{name}' needs timm: pip install 'hbr-fast[timm]'") from None
    if not timm.is_model(name):
        _require_known("timm", name, timm.list_models())
    _refuse_downloads("timm", name, arguments)
    model: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=image_shape[0], **arguments
    )
    return float32_head(model, num_classes)


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 also under autocast."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`, float32."""
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(x.float(), self.weight, self.bias)


def float32_head(model: nn.Module, num_classes: int) -> nn.Module:
    """The model with its last linear layer, if that gives the logits, in float32 also under autocast; in place.

    Margins are differences of logits, and bfloat16 keeps three digits.
    """
    heads = [one for one in model.modules() if type(one) is nn.Linear and one.out_features == num_classes]
    if heads:
        heads[-1].__class__ = Float32Linear
    return model


def _require_known(library: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        near = [f"{library}:{one}" for one in near_names(name, names)]
        meant = (
            f"the nearest of its {len(names)} are {', '.join(near)}"
            if near
            else (f"it has {len(names)}, such as {', '.join(sorted(names)[:3])}")
        )
        raise ValueError(f"unknown model '{library}:{name}': {meant}")


def _refuse_downloads(library: str, name: str, arguments: dict[str, Any]) -> None:
    asked = [f"{one}={arguments[one]!r}" for one in _DOWNLOADS if arguments.get(one)]
    if asked:
        raise ValueError(
            f"model '{library}:{name}': {', '.join(asked)} would download weights: save them to a file once, and "
            "give that as the recipe's weights (docs/models.md)"
        )
