"""The optimiser Muon, for networks of convolutions that norms follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

# Coefficients of the odd polynomial that draws singular values in (0, 1] towards 1, in few steps and only roughly.
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_STEPS = 3


class Muon(torch.optim.Optimizer):
    """Muon for the kernels of convolutions, SGD with Nesterov momentum for all other parameters.

    A kernel [out, in, height, width] is a matrix [out, in * height * width]. Its update is the momentum with all
    singular values drawn to about 1: directions that the gradient hardly shows move as far as those that dominate it.
    Before each step it is scaled to the norm sqrt(out), which a batch norm behind it undoes: the rate is relative to
    that norm.

    A trainer that knows one learning rate multiplies those of both kinds of group by its schedule.

    Parameters
    ----------
    parameters : iterable of nn.Parameter, or of dicts
        Parameters, or groups of them, with "lr" and "weight_decay" of their own if they differ.
    lr, momentum, weight_decay : float
        Of the parameters that are not kernels of convolutions.
    kernel_lr, kernel_momentum : float
        Of the kernels, which have no weight decay.

    Raises
    ------
    ValueError
        If a rate is negative or a momentum not in [0, 1).

    Notes
    -----
    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", and its use in airbench.
    `torch.optim.Muon` takes matrices only.

    Examples
    --------
    >>> rates = {"lr": 0.4, "momentum": 0.85, "kernel_lr": 0.2, "kernel_momentum": 0.7}
    >>> optimizer = Muon(nn.Conv2d(3, 8, 3).parameters(), **rates, weight_decay=0.0)
    >>> [(group["lr"], group["kernels"]) for group in optimizer.param_groups]
    [(0.2, True), (0.4, False)]
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        kernel_lr: float,
        kernel_momentum: float,
    ) -> None:
        for name, rate in (("lr", lr), ("kernel_lr", kernel_lr), ("weight_decay", weight_decay)):
            if not rate >= 0:
                raise ValueError(f"{name} must be at least 0, got {rate}")
        for name, share in (("momentum", momentum), ("kernel_momentum", kernel_momentum)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be in [0, 1), got {share}")
        given: list[Any] = list(parameters)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        kernels = [one for group in groups for one in group["params"] if one.ndim == 4]
        split = [
            {"params": kernels, "lr": kernel_lr, "momentum": kernel_momentum, "weight_decay": 0.0, "kernels": True}
        ]
        split += [{**group, "params": [one for one in group["params"] if one.ndim != 4]} for group in groups]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "kernels": False}
        super().__init__([group for group in split if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                gradient = parameter.grad
                if group["weight_decay"]:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                moment = state["momentum"].mul_(group["momentum"]).add_(gradient)
                update = gradient.add(moment, alpha=group["momentum"])
                if group["kernels"]:
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                    update = orthogonalised(update.flatten(1)).view(update.shape)
                parameter.add_(update, alpha=-group["lr"])
        return loss


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with the same singular vectors, and singular values near 1 but for small ones, which grow much.

    A few Newton-Schulz steps: products of matrices, where a decomposition would take longer than the training step.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(_STEPS):
        square = wide @ wide.T
        wide = _LINEAR * wide + (_CUBIC * square + _QUINTIC * square @ square) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
