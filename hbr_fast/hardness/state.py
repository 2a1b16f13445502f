"""A recorder's state per sample, and the estimators computed from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from hbr_fast.hardness.estimators import ESTIMATORS
from hbr_fast.kernels.hardness import layout

if TYPE_CHECKING:
    import torch

    State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

NeverLearnt = Literal["max+1", "zero", "inf"]

_BLOCK = 1 << 16  # samples


def columns_of(estimators: Sequence[str]) -> int:
    """The mask of the kernels' sums that these estimators need; counters are always kept."""
    return sum(1 << column for column in {column for name in estimators for column in ESTIMATORS[name].columns})


def empty_state(num_samples: int, device: torch.device | str) -> State:
    """Sums, counters and status before anything is recorded; see `kernels.hardness.layout`."""
    import torch

    sums = torch.zeros(num_samples, layout.SUM_COLUMNS, dtype=torch.float64, device=device)
    counters = torch.zeros(num_samples, layout.COUNTER_COLUMNS, dtype=torch.int32, device=device)
    counters[..., layout.LAST_CORRECT] = -1
    counters[..., layout.FIRST_LEARNED] = -1
    status = torch.zeros(layout.STATUS_ENTRIES, dtype=torch.int64, device=device)
    status[layout.FIRST_NOT_FINITE] = -1
    return sums, counters, status


def values_of_state(
    sums: np.ndarray,
    counters: np.ndarray,
    *,
    estimators: Sequence[str],
    num_samples: int,
    epochs: int,
    never_learnt: NeverLearnt,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Estimators, observations and never-learnt flags of a state, each [1, N].

    Parameters
    ----------
    sums : float64 [R, 8], counters : int32 [R, 8]
        Rows past the first `num_samples` are left out.
    estimators : sequence of str
        Names from `RECORDED`.
    epochs : int
        The first-learned value of samples never classified right.
    never_learnt
        See `HardnessRecorder.scores`.
    """
    count, correct = counters[:num_samples, layout.OBSERVATIONS], counters[:num_samples, layout.CORRECT]
    most = counters[:num_samples, layout.FORGOTTEN].max(where=correct > 0, initial=-1)
    forgetting = _forgetting_of_never_learnt(never_learnt, int(most))
    values = {name: np.empty((1, num_samples)) for name in estimators}
    for start in range(0, num_samples, _BLOCK):  # a block's temporaries are small: the state may fill the memory
        rows = slice(start, min(start + _BLOCK, num_samples))
        for name, scores in values.items():
            scores[0, rows] = _scores(name, sums[rows], counters[rows], epochs, forgetting)
    return values, count.astype(np.int64)[None], ((count > 0) & (correct == 0))[None]


def _scores(name: str, sums: np.ndarray, counters: np.ndarray, epochs: int, forgetting: float) -> np.ndarray:
    """Scores of one estimator, NaN where nothing was observed; the last two are of samples never classified right."""
    count, correct = counters[:, layout.OBSERVATIONS], counters[:, layout.CORRECT]

    def mean(total: np.ndarray, number: np.ndarray = count) -> np.ndarray:
        return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)

    def counted(column: int, if_never: float) -> np.ndarray:
        return np.where(count > 0, np.where(correct > 0, counters[:, column], if_never), np.nan)

    if name == "correctness":
        return mean(correct)
    if name == "forgetting":
        return counted(layout.FORGOTTEN, forgetting)
    if name == "first_learned":
        return counted(layout.FIRST_LEARNED, epochs)
    early, entry = counters[:, layout.EL2N_OBSERVATIONS], ESTIMATORS[name]
    return entry.of_means(
        *(mean(sums[:, column], early if column == layout.EL2N else count) for column in entry.columns)
    )


def _forgetting_of_never_learnt(policy: NeverLearnt, most: int) -> float:
    """`most` is the largest count of the other samples, -1 if there are none."""
    if policy == "max+1":
        return float(most + 1)
    if policy == "zero":
        return 0.0
    if policy == "inf":
        return float("inf")
    raise ValueError(f"never_learnt must be 'max+1', 'zero' or 'inf', got {policy!r}")
