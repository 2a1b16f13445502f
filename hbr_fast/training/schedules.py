"""The built-in learning-rate schedules: the factor of the peak rate at a step, from 0 over the whole training."""

from __future__ import annotations

import math
from collections.abc import Sequence


def step_decay(step: int, steps_per_epoch: int, *, milestones: Sequence[int], decay: float) -> float:
    """Multiplied by `decay` after each of the `milestones`."""
    epoch = step // steps_per_epoch
    return float(decay ** sum(epoch >= milestone for milestone in milestones))


def triangular(step: int, steps_per_epoch: int, *, epochs: int, warmup: float) -> float:
    """Linearly up from 0 in the first `warmup` share of the steps, then linearly down to 0."""
    done = (step + 1) / (epochs * steps_per_epoch + 1)
    return done / warmup if done < warmup else (1 - done) / (1 - warmup)


def cosine(step: int, steps_per_epoch: int, *, epochs: int, warmup_epochs: float = 0.0, floor: float = 0.0) -> float:
    """Linearly up from 0 in the first `warmup_epochs`, then along half a cosine from 1 down to `floor`.

    Source: Loshchilov & Hutter, "SGDR", ICLR 2017.

    Raises
    ------
    ValueError
        If `warmup_epochs` is not in [0, epochs) or `floor` not in [0, 1].

    Examples
    --------
    >>> [round(cosine(step, 2, epochs=3, warmup_epochs=1), 3) for step in range(6)]
    [0.333, 0.667, 1.0, 0.854, 0.5, 0.146]
    """
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs must be in [0, {epochs}), the epochs of the training, got {warmup_epochs}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must be in [0, 1], a factor of the peak rate, got {floor}")
    rise = round(warmup_epochs * steps_per_epoch)
    if step < rise:
        return (step + 1) / (rise + 1)
    done = (step - rise) / (epochs * steps_per_epoch - rise)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def constant(step: int, steps_per_epoch: int) -> float:
    """The peak rate throughout."""
    return 1.0
