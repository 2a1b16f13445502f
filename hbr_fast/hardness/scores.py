"""Scores of every sample by every member of an ensemble, with where they come from; saved without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hbr_fast.files import atomic_write, canonical_json
from hbr_fast.hardness.estimators import ESTIMATORS

SCHEMA = 1


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
