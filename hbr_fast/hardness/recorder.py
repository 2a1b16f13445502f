"""Recording: every estimator from the logits of training steps, in one pass and in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hbr_fast.hardness.scores import HardnessScores

if TYPE_CHECKING:
    import torch

NeverLearnt = Literal["max+1", "zero", "inf"]


class HardnessRecorder:
    """Accumulates every estimator from the logits of training steps, in one pass and in place.

    Record the very logits the step produced (train mode, augmented image, before the update); every visit of a sample
    is one observation.

    Parameters
    ----------
    num_samples, num_classes : int
        Size of the dataset whose sample ids are recorded.
    el2n_epochs : int
        EL2N is recorded in the first this many epochs.
    provenance : dict, optional
        What the scores should say of where they come from (dataset, recipe, seed, ...), JSON values.

    Examples
    --------
    >>> import torch
    >>> recorder = HardnessRecorder(num_samples=3, num_classes=2)
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> recorder.record(logits, torch.tensor([0, 0]), torch.tensor([0, 2]), epoch=0)
    >>> recorder.scores().per_sample("aum")
    array([ 2., nan, -1.])
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        el2n_epochs: int = 20,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        import torch

        from hbr_fast.kernels import cpu_hardness, ops

        if num_samples < 1 or num_classes < 2 or el2n_epochs < 1:
            raise ValueError(
                "a recorder needs num_samples >= 1, num_classes >= 2 and el2n_epochs >= 1, "
                f"got {num_samples}, {num_classes} and {el2n_epochs}"
            )
        self.num_classes = num_classes
        self.el2n_epochs = el2n_epochs
        self.epochs = 0
        self.provenance = dict(provenance or {})
        self.sums = torch.zeros(num_samples, cpu_hardness.SUM_COLUMNS, dtype=torch.float64)
        self.counters = torch.zeros(num_samples, cpu_hardness.COUNTER_COLUMNS, dtype=torch.int32)
        self.counters[:, cpu_hardness.LAST_CORRECT] = -1
        self.counters[:, cpu_hardness.FIRST_LEARNED] = -1
        self.nonfinite = torch.tensor([0, -1])
        self._record = ops.record

    def record(self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor, *, epoch: int) -> None:
        """Add one observation a row.

        Parameters
        ----------
        logits_bc : float [B, C]
            On the CPU; gradients are not needed and not touched. float32 is read as it is, other floats converted.
        labels_b, ids_b : int64 [B]
            Hard labels and sample ids. An id may occur more than once: its rows count in their order.
        epoch : int
            From 0.

        Raises
        ------
        ValueError
            If a shape, label or id does not fit. Then nothing of the batch is recorded. Rows with a logit that is NaN
            or infinite are left out, counted, and reported by `scores`.
        """
        if logits_bc.ndim != 2 or logits_bc.shape[1] != self.num_classes:
            raise ValueError(f"logits must be [B, {self.num_classes}], got {list(logits_bc.shape)}")
        if labels_b.shape != logits_bc.shape[:1] or ids_b.shape != logits_bc.shape[:1]:
            raise ValueError(
                f"labels and ids must be [{logits_bc.shape[0]}], got {list(labels_b.shape)} and {list(ids_b.shape)}"
            )
        if not 0 <= epoch < 2**31:
            raise ValueError(f"epochs count from 0 and stay below 2**31, got {epoch}")
        if labels_b.is_floating_point() or ids_b.is_floating_point():
            raise ValueError(f"labels and ids must be integers, got {labels_b.dtype} and {ids_b.dtype}")
        self._record(
            logits_bc.detach().float(),
            labels_b.long(),
            ids_b.long(),
            epoch,
            self.el2n_epochs,
            self.sums,
            self.counters,
            self.nonfinite,
        )
        self.epochs = max(self.epochs, epoch + 1)

    def scores(self, *, never_learnt: NeverLearnt = "max+1") -> HardnessScores:
        """What was recorded so far, as the scores of one member.

        Parameters
        ----------
        never_learnt : "max+1", "zero" or "inf"
            Forgetting of samples never classified right, which have nothing to forget: one more than the largest
            count of the others (default), 0, or infinity.

        Raises
        ------
        ValueError
            If the policy is unknown.
        """
        from hbr_fast.kernels import cpu_hardness as k

        sums, counters = self.sums.numpy(), self.counters.numpy()
        count = counters[:, k.OBSERVATIONS].astype(np.int64)
        seen = count > 0

        def mean(total_n: np.ndarray, count_n: np.ndarray = count) -> np.ndarray:
            return np.divide(total_n, count_n, out=np.full(len(count_n), np.nan), where=count_n > 0)

        confidence, square = mean(sums[:, k.CONFIDENCE]), mean(sums[:, k.CONFIDENCE_SQUARED])
        never = seen & (counters[:, k.CORRECT] == 0)
        first_learned = np.where(never, self.epochs, counters[:, k.FIRST_LEARNED]).astype(np.float64)
        forgetting = counters[:, k.FORGOTTEN].astype(np.float64)
        forgetting[never] = _forgetting_of_never_learnt(never_learnt, forgetting[seen & ~never])
        values = {
            "aum": mean(sums[:, k.AUM]),
            "aum_softmax": mean(sums[:, k.AUM_SOFTMAX]),
            "confidence": confidence,
            "confidence_logit": mean(sums[:, k.CONFIDENCE_LOGIT]),
            "variability": np.sqrt(np.maximum(square - confidence**2, 0)),
            "correctness": mean(counters[:, k.CORRECT].astype(np.float64)),
            "dataiq": np.maximum(confidence - square, 0),
            "loss": mean(sums[:, k.LOSS]),
            "el2n": mean(sums[:, k.EL2N], counters[:, k.EL2N_OBSERVATIONS]),
            "forgetting": np.where(seen, forgetting, np.nan),
            "first_learned": np.where(seen, first_learned, np.nan),
        }
        left_out, first_id = self.nonfinite.tolist()
        provenance = {
            **self.provenance,
            "epochs": self.epochs,
            "el2n_epochs": self.el2n_epochs,
            "never_learnt": never_learnt,
            "rows_not_finite": left_out,
            "first_id_not_finite": first_id,
        }
        return HardnessScores(
            values={name: value[None] for name, value in values.items()},
            observations=count[None],
            never_learnt=never[None],
            provenance=provenance,
        )


def _forgetting_of_never_learnt(policy: NeverLearnt, learnt: np.ndarray) -> float:
    if policy == "max+1":
        return float(learnt.max(initial=-1)) + 1
    if policy == "zero":
        return 0.0
    if policy == "inf":
        return float("inf")
    raise ValueError(f"never_learnt must be 'max+1', 'zero' or 'inf', got {policy!r}")
