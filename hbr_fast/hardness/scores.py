"""Scores of every sample by every member of an ensemble, with where they come from; saved without pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hbr_fast.files import atomic_write, canonical_json
from hbr_fast.hardness.estimators import ESTIMATORS, estimator

if TYPE_CHECKING:
    import polars as pl

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

    def member_values(self, name: str) -> np.ndarray:
        """Scores of each member: float64 [M, N], NaN where a member never observed a sample.

        Raises
        ------
        ValueError
            If there are none of that name; the message lists those there are.
        """
        if name not in self.values:
            raise ValueError(f"no scores of estimator {name!r}: these hold {', '.join(self.values)}")
        return self.values[name]

    def per_sample(self, name: str) -> np.ndarray:
        """Mean over members: float64 [N], NaN for a sample that no member observed."""
        values = self.member_values(name)
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
        labels_n = _labels_of(labels_n, len(self))
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

    def ranks(self, name: str) -> np.ndarray:
        """Rank of each sample by its mean over members, float64 [N]: 1 is the hardest.

        Equal scores share the mean of their ranks; a sample that no member observed has NaN.
        """
        from scipy import stats

        return stats.rankdata(hardest_low(self.per_sample(name), name), nan_policy="omit")

    def correlations(self, names: Sequence[str] | None = None) -> pl.DataFrame:
        """Spearman correlation of the estimators' ranks from the hardest: how far they agree on what is hard.

        Returns
        -------
        polars.DataFrame
            Column `estimator`, then one column a name, by default all there are. Over the samples that both of a pair
            observed; NaN where an estimator gives all of them the same score.
        """
        import polars as pl
        from scipy import stats

        chosen = list(self.values) if names is None else list(names)
        oriented = [hardest_low(self.per_sample(name), name) for name in chosen]
        table = np.ones((len(chosen), len(chosen)))
        for i, one in enumerate(oriented):
            for j, other in enumerate(oriented[: i + 1]):
                both = ~(np.isnan(one) | np.isnan(other))
                ranks = [stats.rankdata(values[both]) for values in (one, other)]
                table[i, j] = table[j, i] = pearson(*ranks)
        return pl.DataFrame({"estimator": chosen, **{name: table[:, j] for j, name in enumerate(chosen)}})

    def top(
        self,
        name: str,
        k: int,
        *,
        hardest: bool = True,
        class_: int | None = None,
        labels_n: np.ndarray | None = None,
    ) -> np.ndarray:
        """Ids of the k hardest (or easiest) observed samples by one estimator, int64 [k], the most extreme first.

        Parameters
        ----------
        name : str
        k : int
            At least 1. Equal scores go by the smaller id.
        hardest : bool
            False: the easiest.
        class_ : int, optional
            Only samples of this class; needs `labels_n`, int64 [N].

        Raises
        ------
        ValueError
            If there are fewer than k observed samples, or the class or the labels do not fit.
        """
        scores = hardest_low(self.per_sample(name), name)
        candidates = ~np.isnan(scores)
        if class_ is not None:
            if labels_n is None:
                raise ValueError(f"the samples of a class need the labels of all {len(self)} samples, got none")
            candidates &= _labels_of(labels_n, len(self)) == class_
        ids = np.flatnonzero(candidates)
        if not 1 <= k <= len(ids):
            where = "" if class_ is None else f" of class {class_}"
            raise ValueError(f"cannot give {k} samples{where}: {len(ids)} were observed")
        return ids[np.argsort(scores[ids] if hardest else -scores[ids], kind="stable")[:k]]

    def to_frame(self, labels_n: np.ndarray | None = None, classes: Sequence[str] | None = None) -> pl.DataFrame:
        """One row a sample, as a polars table.

        Parameters
        ----------
        labels_n : int64 [N], optional
            Adds the column `class_index`.
        classes : sequence of str, optional
            Adds, with labels, the column `class_name`.

        Returns
        -------
        polars.DataFrame
            `sample_id`, the class, every estimator's mean over members (NaN: no member observed the sample),
            `observations` summed over members, and `never_learnt`: the members that never classified it right.
        """
        import polars as pl

        columns: dict[str, Any] = {"sample_id": np.arange(len(self))}
        if labels_n is not None:
            columns["class_index"] = labels_n = _labels_of(labels_n, len(self))
            if classes is not None:
                if not 0 <= labels_n.min() <= labels_n.max() < len(classes):
                    raise ValueError(f"{len(classes)} class names for labels {labels_n.min()} to {labels_n.max()}")
                columns["class_name"] = np.array(classes)[labels_n]
        columns |= {name: self.per_sample(name) for name in self.values}
        columns["observations"] = self.observations.sum(axis=0)
        columns["never_learnt"] = self.never_learnt.sum(axis=0)
        return pl.DataFrame(columns)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of `to_frame` as a CSV file, atomically."""
        with atomic_write(path) as file:
            self.to_frame().write_csv(file)

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


def _labels_of(labels_n: Any, samples: int) -> np.ndarray:
    """Labels of all samples as an array.

    Raises
    ------
    ValueError
        If there are more or fewer, or they are not whole numbers.
    """
    labels = np.asarray(labels_n)
    if labels.shape != (samples,):
        given = len(labels) if labels.ndim == 1 else f"an array {list(labels.shape)} of"
        raise ValueError(f"{given} labels for scores of {samples} samples: another dataset's scores?")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    return labels


def hardest_low(scores: np.ndarray, name: str) -> np.ndarray:
    """Scores turned so that the hardest is the lowest, by the estimator's hard end."""
    return scores if estimator(name).hard_is == "low" else -scores


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of two vectors; of ranks it is Spearman's. NaN where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / norm if norm > 0 else math.nan


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
