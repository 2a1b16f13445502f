"""Choose an arm on samples that no training saw, and report the test split for that choice once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.verify import require_unchanged
from hbr_fast.evaluation.measures import gaps
from hbr_fast.evaluation.metrics import Evaluation
from hbr_fast.members.scoring.final_model import trained_model
from hbr_fast.members.store import StoredMember
from hbr_fast.studies.study import BASELINE, Choice
from hbr_fast.training.predict import predict


@dataclass(frozen=True)
class Chosen:
    """The chosen arm and the results of every arm on the validation split; gaps and accuracies in percent.

    `share` of each class was held out of the train split; None if the validation split is the dataset's own.
    """

    choice: Choice
    share: float | None
    arm: str
    alpha: float
    validation: tuple[dict[str, Any], ...]
    metric: str

    def to_json(self, test: Mapping[str, Sequence[Evaluation]]) -> dict[str, Any]:
        """Add the test results of the chosen arm and the baseline."""
        gap, accuracy = _figures(test[self.arm], self.choice.gap, self.metric)
        gap_baseline, accuracy_baseline = _figures(test[BASELINE], self.choice.gap, self.metric)
        return {
            "arm": self.arm,
            "alpha": self.alpha,
            "metric": self.metric,
            "gap_metric": self.choice.gap,
            "tolerance": 100 * self.choice.tolerance,
            "validation_share": self.share,
            "validation": list(self.validation),
            "test": {
                "arm": self.arm,
                "gap": gap,
                "accuracy": accuracy,
                "gap_baseline": gap_baseline,
                "accuracy_baseline": accuracy_baseline,
            },
        }


def choose(
    choice: Choice,
    evaluations: Mapping[str, Sequence[Evaluation]],
    alphas: Mapping[str, float],
    *,
    metric: str = "recall",
    share: float | None = None,
) -> Chosen:
    """The arm with the smallest mean gap within the tolerated loss of accuracy; ties go to the smaller alpha.

    The baseline takes part, at alpha 0: if no arm narrows the gap within the tolerance, it is chosen.
    """
    rows: list[dict[str, Any]] = []
    for arm in sorted(evaluations, key=lambda name: alphas[name]):
        gap, accuracy = _figures(evaluations[arm], choice.gap, metric)
        rows.append({"arm": arm, "alpha": alphas[arm], "gap": gap, "accuracy": accuracy})
    least = next(row["accuracy"] for row in rows if row["arm"] == BASELINE) - 100 * choice.tolerance
    best = min((row for row in rows if row["accuracy"] >= least - 1e-9), key=lambda row: row["gap"])
    return Chosen(choice, share, best["arm"], best["alpha"], tuple(rows), metric)


def logits_of(member: StoredMember, dataset: Dataset, ids: np.ndarray, *, split: str = "train") -> np.ndarray:
    """Logits of some samples of a split, eval mode, no augmentation: float32 [K, C]."""
    require_unchanged(dataset)
    return predict(trained_model(member, dataset.train), dataset.splits[split], dtype=member.dtype, rows=ids)


def _figures(evaluations: Sequence[Evaluation], gap: str, metric: str) -> tuple[float, float]:
    """Mean gap and accuracy over members, in percent."""
    values = [gaps(getattr(one, metric))[gap] for one in evaluations]
    return 100 * float(np.mean(values)), 100 * float(np.mean([one.accuracy for one in evaluations]))
