"""An exponential moving average of a network's weights (Polyak averaging), beside the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn


class Averaged:
    """The moving average of a model's parameters and buffers.

    It starts as a copy. The decay rises to its value as (1 + t) / (10 + t) at update t = 1, 2, ..., so that the initial
    weights are forgotten also in short trainings; integer buffers are copied.

    Parameters
    ----------
    model : nn.Module
        Before training.
    decay : float
        In (0, 1).

    Raises
    ------
    ValueError
        If the model cannot be copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        try:
            self.model = copy.deepcopy(model).requires_grad_(False)
        except (RuntimeError, TypeError) as error:  # e.g. the old torch.nn.utils.weight_norm
            raise ValueError(
                "a moving average needs a copy of the network, which copy.deepcopy cannot make "
                f"({type(error).__name__}): train without ema, or define __deepcopy__"
            ) from error
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights after a step, counted from 0 over the whole training."""
        decay = min(self._decay, (2 + step) / (11 + step))
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        own, its = zip(*((one, new) for one, new in pairs if one.is_floating_point()), strict=True)
        torch._foreach_lerp_(list(own), list(its), 1 - decay)
        for number, new in pairs:
            if not number.is_floating_point():
                number.copy_(new)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
