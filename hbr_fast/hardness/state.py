"""What a recorder keeps of every sample, and the estimators that are read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

    State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

NeverLearnt = Literal["max+1", "zero", "inf"]


def columns_of(estimators: Sequence[str]) -> int:
    """The mask of the kernels' sums that these estimators are made of; counters are always kept."""
    from hbr_fast.kernels import cpu_hardness as k

    made_of = {
        "aum": [k.AUM],
        "aum_softmax": [k.AUM_SOFTMAX],
        "confidence": [k.CONFIDENCE],
        "confidence_logit": [k.CONFIDENCE_LOGIT],
        "variability": [k.CONFIDENCE, k.CONFIDENCE_SQUARED],
        "dataiq": [k.CONFIDENCE, k.CONFIDENCE_SQUARED],
        "loss": [k.LOSS],
        "el2n": [k.EL2N],
    }
    return sum(1 << column for column in {column for name in estimators for column in made_of.get(name, [])})


def empty_state(num_samples: int, device: torch.device | str, members: int | None = None) -> State:
    """Sums float64 [N, 8], counters int32 [N, 8] and status int64 [4] (see `cpu_hardness`), nothing recorded.

    Of members: [M, N, 8].
    """
    import torch

    from hbr_fast.kernels import cpu_hardness as k

    rows = (num_samples,) if members is None else (members, num_samples)
    sums = torch.zeros(*rows, k.SUM_COLUMNS, dtype=torch.float64, device=device)
    counters = torch.zeros(*rows, k.COUNTER_COLUMNS, dtype=torch.int32, device=device)
    counters[..., k.LAST_CORRECT] = -1
    counters[..., k.FIRST_LEARNED] = -1
    return sums, counters, torch.tensor([0, -1, 0, 0], device=device)


def values_of_state(
    sums: np.ndarray, counters: np.ndarray, *, num_samples: int, epochs: int, never_learnt: NeverLearnt
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Every in-loop estimator, observations and never-learnt flags, each [M, N], of a state.

    Parameters
    ----------
    sums : float64 [..., R, 8], counters : int32 [..., R, 8]
        One member or M; rows past the first `num_samples` are left out.
    epochs : int
        The first-learned value of samples never classified right.
    never_learnt
        See `HardnessRecorder.scores`.
    """
    from hbr_fast.kernels import cpu_hardness as k

    sums = sums.reshape(-1, *sums.shape[-2:])[:, :num_samples]
    counters = counters.reshape(-1, *counters.shape[-2:])[:, :num_samples]
    count = counters[..., k.OBSERVATIONS].astype(np.int64)
    seen = count > 0

    def mean(total: np.ndarray, number: np.ndarray = count) -> np.ndarray:
        return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)

    confidence, square = mean(sums[..., k.CONFIDENCE]), mean(sums[..., k.CONFIDENCE_SQUARED])
    never = seen & (counters[..., k.CORRECT] == 0)
    first_learned = np.where(never, epochs, counters[..., k.FIRST_LEARNED]).astype(np.float64)
    forgetting = counters[..., k.FORGOTTEN].astype(np.float64)
    for own, never_n, seen_n in zip(forgetting, never, seen, strict=True):
        own[never_n] = _forgetting_of_never_learnt(never_learnt, own[seen_n & ~never_n])
    values = {
        "aum": mean(sums[..., k.AUM]),
        "aum_softmax": mean(sums[..., k.AUM_SOFTMAX]),
        "confidence": confidence,
        "confidence_logit": mean(sums[..., k.CONFIDENCE_LOGIT]),
        "variability": np.sqrt(np.maximum(square - confidence**2, 0)),
        "correctness": mean(counters[..., k.CORRECT].astype(np.float64)),
        "dataiq": np.maximum(confidence - square, 0),
        "loss": mean(sums[..., k.LOSS]),
        "el2n": mean(sums[..., k.EL2N], counters[..., k.EL2N_OBSERVATIONS]),
        "forgetting": np.where(seen, forgetting, np.nan),
        "first_learned": np.where(seen, first_learned, np.nan),
    }
    return values, count, never


def _forgetting_of_never_learnt(policy: NeverLearnt, learnt: np.ndarray) -> float:
    if policy == "max+1":
        return float(learnt.max(initial=-1)) + 1
    if policy == "zero":
        return 0.0
    if policy == "inf":
        return float("inf")
    raise ValueError(f"never_learnt must be 'max+1', 'zero' or 'inf', got {policy!r}")
