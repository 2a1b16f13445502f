"""The built-in optimisers, and the parameter groups that any optimiser is given.

An optimiser is a function of (parameters) that returns a `torch.optim.Optimizer` (`hbr_fast.training.components`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

NoDecay = Literal["none", "norm-and-bias"]


def sgd(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, one fused kernel for all parameters."""
    import torch

    return torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay, fused=True
    )


def adamw(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), one fused kernel for all parameters; a usual `lr` is 0.001."""
    import torch

    first, second = betas
    return torch.optim.AdamW(parameters, lr=lr, betas=(first, second), eps=eps, weight_decay=weight_decay, fused=True)


def parameter_groups(model: nn.Module, no_decay: NoDecay) -> list[nn.Parameter] | list[dict[str, Any]]:
    """The parameters of a model as an optimiser takes them: one list, or two groups if some are not to decay.

    Parameters
    ----------
    model : nn.Module
    no_decay : "none" or "norm-and-bias"
        "norm-and-bias" gives parameters of at most one dimension, and those called "bias", a group of weight decay 0.
    """
    if no_decay == "none":
        return list(model.parameters())
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim <= 1 or name.endswith("bias") else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
