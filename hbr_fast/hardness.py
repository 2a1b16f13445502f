"""Hardness: how hard each sample is, recorded from the logits that training produces anyway."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hbr_fast.allocation import Hard
from hbr_fast.files import atomic_write, canonical_json

if TYPE_CHECKING:
    import torch

SCHEMA = 1

NeverLearnt = Literal["max+1", "zero", "inf"]


@dataclass(frozen=True)
class Estimator:
    """One way to say how hard a sample is.

    Attributes
    ----------
    name : str
    hard_is : "low" or "high"
        Which end of the scale is hard.
    meaning : str
        What one observation is; the score is its mean unless this says otherwise.
    """

    name: str
    hard_is: Hard
    meaning: str


# Every estimator and its hard end (method, section 2). The two spaces of AUM and of confidence are two names, so that
# no score can be taken for the other.
ESTIMATORS: Mapping[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator("aum", "low", "margin: own logit minus the largest other logit (Pleiss et al. 2020)"),
        Estimator("aum_softmax", "low", "the same margin between probabilities"),
        Estimator("confidence", "low", "probability of the own class (Swayamdipta et al. 2020)"),
        Estimator("confidence_logit", "low", "logit of the own class"),
        Estimator("variability", "high", "standard deviation of the own class's probability over observations"),
        Estimator("correctness", "low", "1 where the own class has the largest logit, else 0"),
        Estimator("dataiq", "high", "p (1 - p), p the own class's probability (Seedat et al. 2022)"),
        Estimator("loss", "high", "cross-entropy, in nats"),
        Estimator("el2n", "high", "L2 norm of probabilities minus one-hot label, early epochs (Paul et al. 2021)"),
        Estimator("forgetting", "high", "number of times right became wrong (Toneva et al. 2019)"),
        Estimator("first_learned", "high", "first epoch classified right, from 0; never: the number of epochs"),
    )
}


def estimator(name: str) -> Estimator:
    """Look an estimator up.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists them.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}: available are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


@dataclass(frozen=True)
class HardnessScores:
    """Scores of every sample by every member of an ensemble, and where they come from.

    Attributes
    ----------
    values : dict of str to float64 [M, N]
        Estimator name to scores of M members for N samples; NaN where a member never observed a sample.
    observations : int64 [M, N]
        Visits a score rests on.
    never_learnt : bool [M, N]
        Samples a member observed and never classified right.
    provenance : dict
        Dataset, recipe, seeds, epochs, options: JSON values.
    """

    values: Mapping[str, np.ndarray]
    observations: np.ndarray
    never_learnt: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def members(self) -> int:
        """Number of members."""
        return self.observations.shape[0]

    def __len__(self) -> int:
        """Number of samples."""
        return self.observations.shape[1]

    def per_sample(self, name: str) -> np.ndarray:
        """Mean over members: float64 [N], NaN for a sample that no member observed."""
        values = self._values(name)
        seen = ~np.isnan(values)
        total = np.where(seen, values, 0.0).sum(axis=0)
        return np.divide(total, seen.sum(axis=0), out=np.full(len(self), np.nan), where=seen.any(axis=0))

    def class_means(self, name: str, labels_n: np.ndarray, num_classes: int) -> np.ndarray:
        """Class hardness H_c (method, section 3): mean score of the class's observed samples, float64 [C].

        Raises
        ------
        ValueError
            If the labels do not fit the scores or a class has no observed sample.
        """
        if len(labels_n) != len(self):
            raise ValueError(f"{len(labels_n)} labels for scores of {len(self)} samples: another dataset's scores?")
        if not 0 <= labels_n.min() <= labels_n.max() < num_classes:
            raise ValueError(
                f"labels must be classes in [0, {num_classes}), got some from {labels_n.min()} to {labels_n.max()}"
            )
        scores = self.per_sample(name)
        seen = ~np.isnan(scores)
        counts = np.bincount(labels_n[seen], minlength=num_classes)
        if not counts.all():
            raise ValueError(f"class {int(np.argmin(counts))} has no observed sample, so it has no {name} hardness")
        return np.bincount(labels_n[seen], weights=scores[seen], minlength=num_classes) / counts

    def require_dataset(self, fingerprint: str) -> None:
        """Refuse scores that were recorded on another dataset.

        Raises
        ------
        ValueError
            If the provenance names another dataset.
        """
        own = self.provenance.get("dataset")
        if own != fingerprint:
            raise ValueError(
                f"these scores were recorded on dataset {str(own)[:12]}, not on {fingerprint[:12]}: record them again"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one safetensors file, atomically."""
        from safetensors.numpy import save

        arrays = {**self.values, "observations": self.observations, "never_learnt": self.never_learnt}
        # One key: the order of several would differ from write to write, and equal scores are equal bytes.
        metadata = {"hbr_fast": canonical_json({"schema": SCHEMA, "provenance": self.provenance})}
        with atomic_write(path) as file:
            file.write(save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HardnessScores:
        """Read scores that `save` wrote.

        Raises
        ------
        ValueError
            If the file does not hold scores of this schema.
        """
        from safetensors import SafetensorError, safe_open

        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no file of hardness scores {path}: record them first")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = json.loads((file.metadata() or {}).get("hbr_fast", "{}"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a file of hardness scores ({error}): record them again") from None
        if metadata.get("schema") != SCHEMA or not {"observations", "never_learnt"} <= set(arrays):
            raise ValueError(f"{path} does not hold hardness scores of schema {SCHEMA}: record them again")
        return cls(
            observations=arrays.pop("observations"),
            never_learnt=arrays.pop("never_learnt"),
            values={name: arrays[name] for name in ESTIMATORS if name in arrays},
            provenance=metadata["provenance"],
        )

    def _values(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise ValueError(f"no scores of estimator {name!r}: these hold {', '.join(self.values)}")
        return self.values[name]


def stack_scores(members: Sequence[HardnessScores]) -> HardnessScores:
    """Scores of several members as those of one ensemble, members in the order given.

    Raises
    ------
    ValueError
        If there is none, or they disagree in the number of samples, the estimators or the dataset.
    """
    if not members:
        raise ValueError("no scores to stack")
    first = members[0]
    for scores in members[1:]:
        for what, own, other in (
            ("samples", len(first), len(scores)),
            ("estimators", sorted(first.values), sorted(scores.values)),
            ("dataset", first.provenance.get("dataset"), scores.provenance.get("dataset")),
        ):
            if own != other:
                raise ValueError(f"these scores cannot be stacked: their {what} differ ({own} and {other})")
    return HardnessScores(
        values={name: np.concatenate([scores.values[name] for scores in members]) for name in first.values},
        observations=np.concatenate([scores.observations for scores in members]),
        never_learnt=np.concatenate([scores.never_learnt for scores in members]),
        provenance={
            "dataset": first.provenance.get("dataset"),
            "members": [dict(scores.provenance) for scores in members],
        },
    )


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
