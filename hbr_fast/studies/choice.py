"""Choosing an arm on samples that no training saw, and reporting the test split for that choice once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hbr_fast.data.dataset import Dataset
from hbr_fast.evaluation.metrics import Evaluation, gaps
from hbr_fast.loaders.loader import Loader
from hbr_fast.plan import Plan
from hbr_fast.sampler import sequential_order
from hbr_fast.studies.study import BASELINE, Choice
from hbr_fast.training.final import trained_model
from hbr_fast.training.inference import EVALUATION_BATCH
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.store import StoredMember
from hbr_fast.training.trainer import compute_dtype


@dataclass(frozen=True)
class Chosen:
    """The arm chosen and what every arm did on the validation split; gaps and accuracies in percent."""

    choice: Choice
    arm: str
    alpha: float
    validation: tuple[dict[str, Any], ...]

    def to_json(self, test: Mapping[str, Sequence[Evaluation]]) -> dict[str, Any]:
        """With the test split's figures of the chosen arm and the baseline."""
        gap, accuracy = _figures(test[self.arm], self.choice.gap)
        gap_baseline, accuracy_baseline = _figures(test[BASELINE], self.choice.gap)
        return {
            "arm": self.arm,
            "alpha": self.alpha,
            "gap_metric": self.choice.gap,
            "tolerance": 100 * self.choice.tolerance,
            "validation_share": self.choice.validation,
            "validation": list(self.validation),
            "test": {
                "arm": self.arm,
                "gap": gap,
                "accuracy": accuracy,
                "gap_baseline": gap_baseline,
                "accuracy_baseline": accuracy_baseline,
            },
        }


def choose(choice: Choice, evaluations: Mapping[str, Sequence[Evaluation]], alphas: Mapping[str, float]) -> Chosen:
    """The arm of the smallest mean gap among those whose loss of accuracy is tolerated; ties to the smaller alpha.

    The baseline is one of them, at alpha 0: where nothing narrows the gap within the tolerance, it is the choice.
    """
    rows: list[dict[str, Any]] = []
    for arm in sorted(evaluations, key=lambda name: alphas[name]):
        gap, accuracy = _figures(evaluations[arm], choice.gap)
        rows.append({"arm": arm, "alpha": alphas[arm], "gap": gap, "accuracy": accuracy})
    least = next(row["accuracy"] for row in rows if row["arm"] == BASELINE) - 100 * choice.tolerance
    best = min((row for row in rows if row["accuracy"] >= least - 1e-9), key=lambda row: row["gap"])
    return Chosen(choice, best["arm"], best["alpha"], tuple(rows))


def validation_logits(member: StoredMember, dataset: Dataset, recipe: Recipe, ids: np.ndarray) -> np.ndarray:
    """Logits of some samples of the train split, eval mode, no augmentation: float32 [K, C]."""
    dtype = compute_dtype(recipe)
    model = trained_model(member, dataset.train).eval()
    loader = Loader(
        dataset.train,
        plan=Plan.of_rows(ids),
        order=sequential_order(len(ids)),
        batch_size=min(EVALUATION_BATCH, len(ids)),
        dtype=dtype,
        channels_last=True,
        prefetch=0,
    )
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return torch.cat([model(batch.images) for batch in loader.epoch(0)]).numpy()


def _figures(evaluations: Sequence[Evaluation], gap: str) -> tuple[float, float]:
    """Mean recall gap and accuracy over members, in percent."""
    values = [gaps(one.recall)[gap] for one in evaluations]
    return 100 * float(np.mean(values)), 100 * float(np.mean([one.accuracy for one in evaluations]))
