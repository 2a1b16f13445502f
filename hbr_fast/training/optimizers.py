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


def muon(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    kernel_lr: float = 0.2,
    kernel_momentum: float = 0.7,
) -> torch.optim.Optimizer:
    """Muon for the kernels of convolutions, SGD with Nesterov momentum for all others (`hbr_fast.training.muon`)."""
    from hbr_fast.training.muon import Muon

    return Muon(
        parameters,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        kernel_lr=kernel_lr,
        kernel_momentum=kernel_momentum,
    )


def parameter_groups(
    model: nn.Module, no_decay: NoDecay, *, lr: float = 0.0, weight_decay: float = 0.0, norm_bias_lr: float = 1.0
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """The parameters of a model as an optimiser takes them: one list, or groups if some are treated otherwise.

    Parameters
    ----------
    model : nn.Module
    no_decay : "none" or "norm-and-bias"
        "norm-and-bias" gives parameters of at most one dimension, and those called "bias", a weight decay of 0.
    lr, weight_decay : float
        Of the others.
    norm_bias_lr : float
        Factor of the learning rate of the biases of norms, whose weight decay is divided by it.
    """
    if no_decay == "none" and norm_bias_lr == 1:
        return list(model.parameters())
    norm_biases = {id(module.bias) for module in model.modules() if _is_norm(module)} if norm_bias_lr != 1 else ()
    plain: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    faster: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if id(parameter) in norm_biases:
            faster.append(parameter)
        elif no_decay != "none" and (parameter.ndim <= 1 or name.endswith("bias")):
            spared.append(parameter)
        else:
            plain.append(parameter)
    shrinking = weight_decay / norm_bias_lr if no_decay == "none" else 0.0
    groups: list[dict[str, Any]] = [
        {"params": plain},
        {"params": spared, "weight_decay": 0.0},
        {"params": faster, "weight_decay": shrinking, "lr": lr * norm_bias_lr},
    ]
    return [group for group in groups if group["params"]]


def _is_norm(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm)
