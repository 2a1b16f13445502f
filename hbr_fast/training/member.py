"""A member: what a finished training leaves, and the error of one that diverged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from hbr_fast.hardness import HardnessScores
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.state import EpochRecord, TrainingState


class Diverged(FloatingPointError):
    """A training whose loss is no longer finite.

    Attributes
    ----------
    epoch, step : int
        Where it was first seen, both from 0, the step within the epoch; step -1 means in the test logits, after the
        last update.
    loss : float
        Its value there.
    lr : float
        The recipe's learning rate.
    """

    def __init__(self, epoch: int, step: int, loss: float, lr: float) -> None:
        super().__init__(epoch, step, loss, lr)  # so that it crosses processes
        self.epoch, self.step, self.loss, self.lr = epoch, step, loss, lr

    @property
    def where(self) -> str:
        """The place, in words."""
        if self.step < 0:
            return f"in its last updates (epoch {self.epoch}): test logits are not finite"
        return f"at epoch {self.epoch}, step {self.step}: the loss is {self.loss}"

    def __str__(self) -> str:
        return f"training diverged {self.where}; lower the learning rate ({self.lr})"


@dataclass(frozen=True)
class Member:
    """One trained model and the results of its training.

    Attributes
    ----------
    weights : dict of str to tensor
        The model's `state_dict`.
    scores : HardnessScores
        Of this one member.
    test_logits : float32 [N_test, C]
    history : tuple of EpochRecord
    ema_weights : dict of str to tensor, optional
        Their moving average, if the recipe has one.
    ema_test_logits : float32 [N_test, C], optional
        Of the moving average.
    """

    weights: Mapping[str, torch.Tensor]
    scores: HardnessScores
    test_logits: np.ndarray
    history: tuple[EpochRecord, ...]
    ema_weights: Mapping[str, torch.Tensor] | None = None
    ema_test_logits: np.ndarray | None = None


def finished_member(
    state: TrainingState, logits: np.ndarray, recipe: Recipe, *, ema_logits: np.ndarray | None = None
) -> Member:
    """The results of a finished training, with the logits of the test split by the model and by its moving average.

    Raises
    ------
    Diverged
        If one of them is not finite.
    """
    if not np.isfinite(logits).all():
        raise Diverged(recipe.epochs - 1, -1, float("nan"), recipe.lr)
    return Member(
        weights=_on_processor(state.model),
        scores=state.recorder.scores(),
        test_logits=logits,
        history=tuple(state.history),
        ema_weights=None if state.averaged is None else _on_processor(state.averaged.model),
        ema_test_logits=ema_logits,
    )


def _on_processor(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
