"""Scores of every sample by every member of an ensemble, with their provenance; saved without pickle."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hbr_fast.files import atomic_write
from hbr_fast.hardness.class_means import class_means
from hbr_fast.hardness.estimators import ESTIMATORS, Hard, estimator
from hbr_fast.progress import counted
from hbr_fast.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    import polars as pl

SCHEMA = 1
FORMS = {"observations": "int64 [M, N]", "never_learnt": "bool [M, N]"}  # in a file; any other tensor is an estimator's


@dataclass(frozen=True)
class HardnessScores:
    """Scores of every sample by every member of an ensemble, with their provenance.

    Attributes
    ----------
    values : dict of str to float64 [M, N]
        Estimator name to scores of M members for N samples; NaN where a member never observed a sample.
    observations : int64 [M, N]
        Number of visits behind each score.
    never_learnt : bool [M, N]
        Samples a member observed and never classified right.
    provenance : dict
        Dataset, recipe, seeds, epochs, options: JSON values.
    hard_is : dict of str to "low" or "high"
        The hard end of user-defined estimators, which `ESTIMATORS` does not list.

    Examples
    --------
    >>> own = {"entropy": np.array([[0.2, 0.9, 0.4]])}
    >>> seen, never = np.ones((1, 3), np.int64), np.zeros((1, 3), bool)
    >>> HardnessScores(own, seen, never, hard_is={"entropy": "high"}).top("entropy", 1)
    array([1])
    """

    values: Mapping[str, np.ndarray]
    observations: np.ndarray
    never_learnt: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)
    hard_is: Mapping[str, Hard] = field(default_factory=dict)

    def __repr__(self) -> str:
        estimators = ", ".join(self.values)
        return f"<HardnessScores: {counted(len(self), 'sample')} by {counted(self.members, 'member')}: {estimators}>"

    def hard_end(self, name: str) -> Hard:
        """Which end of an estimator's scale is hard.

        Raises
        ------
        ValueError
            If it is not known.
        """
        if name in self.hard_is:
            return self.hard_is[name]
        if name not in ESTIMATORS and name in self.values:
            raise ValueError(f"which end of {name!r} is hard? Say so: HardnessScores(..., hard_is={{{name!r}: 'low'}})")
        return estimator(name).hard_is

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
            If the name is unknown; the message lists the available ones.
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

    def class_means(self, name: str, labels_n: ArrayLike, num_classes: int) -> np.ndarray:
        """Class hardness H_c (method, section 3): mean score of the class's observed samples, float64 [C].

        Raises
        ------
        ValueError
            If the labels do not fit the scores or a class has no observed sample.
        """
        return class_means(self.per_sample(name), _labels_of(labels_n, len(self)), num_classes)

    def hardest_low(self, scores: np.ndarray, name: str) -> np.ndarray:
        """Scores of an estimator, negated if needed so that the hardest is the lowest."""
        return scores if self.hard_end(name) == "low" else -scores

    def ranks(self, name: str) -> np.ndarray:
        """Rank of each sample by its mean over members, float64 [N]: 1 is the hardest.

        Equal scores share the mean of their ranks; a sample that no member observed has NaN.
        """
        from scipy import stats

        return stats.rankdata(self.hardest_low(self.per_sample(name), name), nan_policy="omit")

    def correlations(self, names: Sequence[str] | None = None) -> pl.DataFrame:
        """Spearman correlation of the estimators' ranks: how far they agree on what is hard.

        Returns
        -------
        polars.DataFrame
            Column `estimator`, then one column per name, by default all. Over the samples that both of a pair
            observed; NaN if an estimator gives all of them the same score.
        """
        import polars as pl
        from scipy import stats

        chosen = list(self.values) if names is None else list(names)
        oriented = [self.hardest_low(self.per_sample(name), name) for name in chosen]
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
        labels_n: ArrayLike | None = None,
    ) -> np.ndarray:
        """Ids of the k hardest (or easiest) observed samples by one estimator, int64 [k], the most extreme first.

        Parameters
        ----------
        name : str
        k : int
            At least 1. Ties go to the smaller id.
        hardest : bool
            False: the easiest.
        class_ : int, optional
            Only samples of this class; needs `labels_n`, int64 [N].

        Raises
        ------
        ValueError
            If there are fewer than k observed samples, or the class or the labels do not fit.
        """
        scores = self.hardest_low(self.per_sample(name), name)
        candidates = ~np.isnan(scores)
        if class_ is not None:
            if labels_n is None:
                raise ValueError(f"the samples of a class need the labels of all {len(self)} samples, got none")
            candidates &= _labels_of(labels_n, len(self)) == class_
        ids = np.flatnonzero(candidates)
        if not 1 <= k <= len(ids):
            where = "" if class_ is None else f" of class {class_}"
            raise ValueError(f"cannot give {counted(k, 'sample')}{where}: {len(ids)} were observed")
        return ids[np.argsort(scores[ids] if hardest else -scores[ids], kind="stable")[:k]]

    def to_frame(self, labels_n: ArrayLike | None = None, classes: Sequence[str] | None = None) -> pl.DataFrame:
        """One row per sample, as a polars table.

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
            `observations` summed over members, and `never_learnt`: how many members never classified it right.
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
        if own is None:
            raise ValueError(
                "these scores do not say which dataset they were recorded on: make the recorder with "
                "provenance={'dataset': dataset.fingerprint}"
            )
        if own != fingerprint:
            raise ValueError(
                f"these scores were recorded on dataset {str(own)[:12]}, not on {fingerprint[:12]}: record them again"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one safetensors file, atomically.

        Raises
        ------
        ValueError
            If an estimator's name is reserved for something else in the file.
        """
        if taken := set(FORMS) & set(self.values):
            raise ValueError(f"an estimator cannot be called {', '.join(sorted(taken))}: give it another name")
        wrong = [name for name, values in self.values.items() if values.shape != self.observations.shape]
        if wrong:
            raise ValueError(
                f"the scores of {', '.join(wrong)} must be {list(self.observations.shape)}, as observations"
            )
        arrays = {name: np.asarray(values, np.float64) for name, values in self.values.items()}
        arrays["observations"] = np.asarray(self.observations, np.int64)
        arrays["never_learnt"] = np.asarray(self.never_learnt, bool)
        own = {"hard_is": dict(self.hard_is)} if self.hard_is else {}
        write_tensors(path, arrays, {"schema": SCHEMA, "provenance": self.provenance, **own})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HardnessScores:
        """Read scores that `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file does not hold scores of this schema.
        """
        remedy = "record them again"
        arrays, about = read_tensors(
            path,
            {**FORMS, "*": "float64 [M, N]"},
            what="hardness scores",
            remedy=remedy,
            about={"schema": SCHEMA, "provenance": dict},
        )
        observations, never_learnt = arrays.pop("observations"), arrays.pop("never_learnt")
        hard_is = about.get("hard_is", {})
        faults = []
        if (observations < 0).any():
            faults.append("there are fewer than 0 observations of a sample")
        if not isinstance(hard_is, dict) or any(end not in ("low", "high") for end in hard_is.values()):
            faults.append(f"hard_is is {hard_is!r:.60}")
        if faults:
            raise ValueError(f"{path} does not hold hardness scores ({'; '.join(faults)}): {remedy}")
        return cls(
            observations=observations,
            never_learnt=never_learnt,
            # Known estimators in the table's order, then others by name: a file keeps no order.
            values={
                name: arrays[name] for name in (*ESTIMATORS, *sorted(set(arrays) - set(ESTIMATORS))) if name in arrays
            },
            provenance=about["provenance"],
            hard_is=hard_is,
        )


def _labels_of(labels_n: Any, samples: int) -> np.ndarray:
    """Labels of all samples as an array.

    Raises
    ------
    ValueError
        If their number is wrong, or they are not whole numbers.
    """
    labels = np.asarray(labels_n)
    if labels.shape != (samples,):
        given = len(labels) if labels.ndim == 1 else f"an array {list(labels.shape)} of"
        raise ValueError(f"{given} labels for scores of {samples} samples: another dataset's scores?")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    return labels


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of two vectors; Spearman's if they are ranks. NaN if one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / norm if norm > 0 else math.nan


def stack_scores(members: Sequence[HardnessScores]) -> HardnessScores:
    """Combine scores of several members into those of one ensemble, in the given order.

    Raises
    ------
    ValueError
        If the list is empty, or they differ in the number of samples, the estimators or the dataset.
    """
    if not members:
        raise ValueError("no scores to stack")
    first = members[0]
    for scores in members[1:]:
        for what, own, other in (
            ("samples", len(first), len(scores)),
            ("estimators", sorted(first.values), sorted(scores.values)),
            ("hard ends", dict(first.hard_is), dict(scores.hard_is)),
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
        hard_is=first.hard_is,
    )
