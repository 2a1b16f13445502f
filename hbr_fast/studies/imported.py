"""Trainings from elsewhere: their outputs on a test set, with the statistics and the files of a study."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hbr_fast.evaluation.measures import METRICS
from hbr_fast.evaluation.metrics import Evaluation, evaluate, evaluate_predictions
from hbr_fast.files import locked, make_directory
from hbr_fast.hardness import estimator as estimator_named
from hbr_fast.machine import versions
from hbr_fast.progress import counted
from hbr_fast.studies.comparisons import Sides, Trained
from hbr_fast.studies.evaluated import evaluated_tables
from hbr_fast.studies.groups import read_groups
from hbr_fast.studies.results import write_study
from hbr_fast.studies.study import BASELINE
from hbr_fast.studies.study_json import SCHEMA

MOST_NAMED = 5  # samples
MOST_CLASSES = 100_000  # beyond the number of samples
MOST_NUMBER = 2**31  # of variants and members


@dataclass(frozen=True)
class ImportedRun:
    """One training and what it says of the test samples.

    Attributes
    ----------
    arm : str
        "baseline" is what the other arms are compared with.
    outputs : float [N, C] or integer [N]
        Logits (or log probabilities) of the test samples, or their predicted classes.
    variant, member : int
        The training set of its arm that it saw (e.g. one resampling seed each), and its number among those that did.
        Trainings of two arms with the same variant and member are a pair: they should share initial weights.
    ids : [N], optional
        Ids of the test samples, if their order is not that of the labels.

    Examples
    --------
    >>> ImportedRun("mine", np.array([0, 1, 1]), variant=1).name
    'mine, variant 1, member 0'
    """

    arm: str
    outputs: np.ndarray
    variant: int = 0
    member: int = 0
    ids: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"<ImportedRun {self.name}: outputs {list(np.shape(self.outputs))}>"

    def __post_init__(self) -> None:
        for name in ("outputs", "ids"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _array(f"{name} of {self.name}", getattr(self, name)))

    @property
    def name(self) -> str:
        """The run in error messages."""
        return f"{self.arm}, variant {self.variant}, member {self.member}"


def import_runs(
    runs: Sequence[ImportedRun],
    labels_n: np.ndarray,
    *,
    out: str | os.PathLike[str],
    ids: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    against: Mapping[str, str] | None = None,
    samples: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    scores: pl.DataFrame | None = None,
    estimator: str = "aum",
    metric: str = "recall",
    name: str = "imported",
    groups: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Path:
    """Compare trainings of your own: write the results files of a study from their outputs.

    `write_report(out)` makes tables, pictures and the page of them.

    Parameters
    ----------
    runs : sequence of ImportedRun
        At least one of the arm "baseline".
    labels_n : integer [N]
        True class of each test sample, in [0, C).
    out : path
        A directory to write to.
    ids : [N], optional
        Ids of the test samples, in the order of `labels_n`; needed if a run has ids.
    classes : sequence of str, optional
        Names of the C classes; by default their numbers.
    against : mapping of str to str, optional
        Arm -> the arm it is compared with, where that is not the baseline.
    samples : mapping of str to integer [C], optional
        Arm -> training samples of each class, of every arm or of none. Classes with a larger share than in the baseline
        are the hard ones of the easy - hard gap.
    scores : polars.DataFrame, optional
        Hardness of the training samples, as `hbr-fast hardness --csv` writes it: `sample_id`, `class_index`,
        `class_name`, and columns of estimators.
    estimator : str
        Which of the scores is the hardness of the classes.
    metric : str
        The metric of a class that tables, pictures and page are about.
    name : str
        Of the study.
    groups : path, optional
        A table of attributes of the test samples by `sample_id`, which is in `ids` or their place in `labels_n`: the
        accuracy of each group goes to `groups.csv`.
    seed : int
        Of bootstraps.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        With all faults of the runs at once: other samples, lengths or numbers of classes than the labels, logits that
        are NaN, runs that occur twice, arms that are compared with none.
    FileExistsError
        If `out` holds a study of trainings.

    Examples
    --------
    >>> import tempfile
    >>> labels = np.array([0, 0, 1, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     runs = [
    ...         ImportedRun("baseline", np.array([0, 0, 1, 0])),
    ...         ImportedRun("mine", np.array([0, 0, 1, 1])),
    ...     ]
    ...     out = import_runs(runs, labels, out=folder)
    ...     pl.read_csv(out / "comparisons.csv").filter(quantity="recall_max_min")["treatment"].item()
    0.0
    """
    labels = _array("labels", labels_n)
    ids = None if ids is None else _array("ids of the labels", ids)
    require_labels(labels, where="labels")
    num_classes = len(classes) if classes is not None else max([int(labels.max()) + 1, *map(_columns, runs)])
    named = tuple(classes) if classes is not None else tuple(map(str, range(num_classes)))
    pairs = {arm: BASELINE for arm in dict.fromkeys(run.arm for run in runs) if arm != BASELINE} | dict(against or {})
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: known are {', '.join(METRICS)}")
    faults = [
        *_faults_of_design(runs, pairs, samples, num_classes),
        *_faults_of_scores(scores, estimator, named),
        *(fault for run in runs for fault in _faults_of(run, labels, ids, num_classes)),
    ]
    if ids is not None and ids.shape != labels.shape:
        faults.insert(0, f"the labels are {len(labels)}, their ids {list(ids.shape)}")
    elif ids is not None and len(np.unique(ids)) != len(ids):
        faults.insert(0, "the labels have sample ids that occur twice")
    if labels.max() >= num_classes:
        faults.insert(0, f"label {labels.max()} is outside the {num_classes} classes")
    if faults:
        raise ValueError("; ".join(faults))

    grouped = None
    if groups is not None:
        grouped = read_groups(Path(groups), sample_id=np.arange(len(labels)) if ids is None else ids)
    hardness = None if scores is None else _class_hardness(scores, estimator, num_classes)
    counts = {arm: np.asarray(of_arm) for arm, of_arm in (samples or {}).items()}
    arms: dict[str, list[Trained]] = {}
    width = 1 + max(run.member for run in runs)
    for arm in (BASELINE, *pairs):
        own = sorted((run for run in runs if run.arm == arm), key=lambda run: (run.variant, run.member))
        arms[arm] = [_trained(run, labels, ids, named, width, counts.get(arm), hardness) for run in own]
    directory = Path(out)
    if (directory / "members").exists():
        raise FileExistsError(
            f"{directory} holds the trainings of a study, whose results this would replace: import "
            "into another directory"
        )
    make_directory(directory)
    with locked(directory):
        tables = evaluated_tables(
            arms,
            against=pairs,
            sides=_sides(arms, counts, num_classes),
            labels_n=labels,
            classes=named,
            metric=metric,
            seed=seed,
            groups=grouped,
        )
        if scores is not None:
            tables["samples.csv"] = scores
        about: dict[str, Any] = {
            "schema": SCHEMA,
            "study": name,
            "dataset": {"name": name, "fingerprint": "", "classes": list(named)},
            "recipe": {},
            "seed": seed,
            "estimator": None if scores is None else estimator,
            "metric": metric,
            "evaluated_on": "test",
            "evaluated_samples": np.bincount(labels, minlength=num_classes).tolist(),
            "class_hardness": None if hardness is None else hardness.tolist(),
            "seconds": 0.0,
            "versions": versions(),
            "arms": [_arm_entry(arm, trainings, pairs, counts) for arm, trainings in arms.items()],
            "failed": [],
        }
        write_study(directory, tables, about=about)
    return directory


def require_labels(labels: np.ndarray, *, where: str) -> None:
    """Raise unless an array can be the true classes of test samples.

    Raises
    ------
    ValueError
        Begins with `where`.
    """
    if labels.ndim != 1 or len(labels) == 0 or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(f"{where} must be whole numbers >= 0, one a test sample, got {labels.dtype} {labels.shape}")
    if labels.max() >= len(labels) + MOST_CLASSES:  # classes are named up to it
        raise ValueError(
            f"{where} has class {labels.max()}, far beyond the {len(labels)} samples: number the classes 0, 1, 2, ..."
        )


def _is_numbered(run: ImportedRun) -> bool:
    return 0 <= run.variant < MOST_NUMBER and 0 <= run.member < MOST_NUMBER


def _array(what: str, value: Any) -> np.ndarray:
    """A value as an array; torch's tensors are taken where numpy can."""
    try:
        return np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{what} must be an array ({str(error).partition(chr(10))[0]})") from None


def _columns(run: ImportedRun) -> int:
    return run.outputs.shape[1] if run.outputs.ndim == 2 else 0


def _faults_of_design(
    runs: Sequence[ImportedRun], pairs: Mapping[str, str], samples: Mapping[str, Any] | None, num_classes: int
) -> list[str]:
    arms = {run.arm for run in runs}
    faults = [] if BASELINE in arms else [f"no run is of the arm {BASELINE!r}, which the others are compared with"]
    faults += [f"{run.name}: variant and member must be in [0, {MOST_NUMBER})" for run in runs if not _is_numbered(run)]
    twice = [run for run, times in Counter((run.arm, run.variant, run.member) for run in runs).items() if times > 1]
    faults += [f"{arm}, variant {variant}, member {member} occurs twice" for arm, variant, member in twice]
    faults += [
        f"{arm!r} is compared with {other!r}, but there are no runs of {missing!r}"
        for arm, other in pairs.items()
        for missing in (arm, other)
        if missing not in arms and missing != BASELINE
    ]
    if samples is not None:
        lacking = sorted(arms - set(samples))
        if lacking:
            faults.append(f"no samples per class of {', '.join(lacking)}: give those of every arm or of none")
        faults += [
            f"samples of {arm!r} must be {num_classes} whole numbers >= 0, one a class, got {np.asarray(of_arm)}"
            for arm, of_arm in samples.items()
            if np.shape(of_arm) != (num_classes,) or np.asarray(of_arm).dtype.kind not in "iu" or np.min(of_arm) < 0
        ]
    return faults


def faults_of_hardness(scores: pl.DataFrame, estimator: str) -> list[str]:
    """What is wrong with the columns of a table of hardness scores."""
    estimator_named(estimator)
    wanted = ("sample_id", "class_index", "class_name", estimator)
    lacking = [column for column in wanted if column not in scores.columns]
    if lacking:
        return [f"the hardness scores lack {', '.join(map(repr, lacking))}"]
    if not scores["class_index"].dtype.is_integer() or scores["class_index"].null_count():
        return ["class_index of the hardness scores must be a whole number in every row"]
    return [] if scores[estimator].dtype.is_numeric() else [f"{estimator} of the hardness scores must be numbers"]


def _faults_of_scores(scores: pl.DataFrame | None, estimator: str, classes: Sequence[str]) -> list[str]:
    if scores is None:
        return []
    if faults := faults_of_hardness(scores, estimator):
        return faults
    found = scores.filter(pl.col(estimator).is_finite())["class_index"].unique().to_list()
    bare = [name for c, name in enumerate(classes) if c not in found]
    faults = [f"no hardness scores of class {', '.join(map(repr, bare[:MOST_NAMED]))}"] if bare else []
    outside = [c for c in found if not 0 <= c < len(classes)]
    return faults + ([f"hardness scores of class {outside[0]}, of {len(classes)} classes"] if outside else [])


def _faults_of(run: ImportedRun, labels: np.ndarray, ids: np.ndarray | None, num_classes: int) -> list[str]:
    """What is wrong with the outputs of one run."""
    outputs, faults = run.outputs, []
    if outputs.ndim == 2 and outputs.dtype.kind == "f":
        if outputs.shape[1] != num_classes:
            faults.append(f"{run.name} has logits of {outputs.shape[1]} classes, not {num_classes}")
        bad = int(np.isnan(outputs).any(axis=1).sum())
        if bad:
            faults.append(f"{run.name} has NaN logits of {counted(bad, 'sample')}: did it diverge?")
    elif outputs.ndim == 1 and outputs.dtype.kind in "iu":
        outside = outputs[(outputs < 0) | (outputs >= num_classes)]
        if len(outside):
            faults.append(f"{run.name} predicts class {outside[0]}, of {num_classes} classes")
    else:
        faults.append(
            f"{run.name} must be logits [N, C] (floating point) or predicted classes [N] (whole numbers), got "
            f"{outputs.dtype} {outputs.shape}"
        )
    if len(outputs) != len(labels):
        faults.append(f"{run.name} has {len(outputs)} samples, the labels {len(labels)}")
    if run.ids is None:
        return faults
    if ids is None:
        return [*faults, f"{run.name} has sample ids, the labels have none"]
    if len(run.ids) != len(outputs):
        return [*faults, f"{run.name} has {len(outputs)} outputs and {len(run.ids)} sample ids"]
    if len(np.unique(run.ids)) != len(run.ids):
        faults.append(f"{run.name} has sample ids that occur twice")
    for these, those, what in ((run.ids, ids, "samples without a label"), (ids, run.ids, "no output for")):
        only = np.setdiff1d(these, those)
        if len(only):
            more = f" and {len(only) - MOST_NAMED} more" if len(only) > MOST_NAMED else ""
            faults.append(f"{run.name} has {what}: {', '.join(map(str, only[:MOST_NAMED]))}{more}")
    return faults


def _trained(
    run: ImportedRun,
    labels: np.ndarray,
    ids: np.ndarray | None,
    classes: Sequence[str],
    width: int,
    samples: np.ndarray | None,
    hardness: np.ndarray | None,
) -> Trained:
    outputs = run.outputs
    if run.ids is not None and ids is not None:
        order = np.argsort(run.ids, kind="stable")
        outputs = outputs[order[np.searchsorted(run.ids, ids, sorter=order)]]
    if outputs.ndim == 2:
        evaluation: Evaluation = evaluate(outputs, labels, classes=classes)
        predicted = outputs.argmax(axis=1)
    else:
        evaluation = evaluate_predictions(outputs, labels, num_classes=len(classes), classes=classes)
        predicted = outputs
    return Trained(
        variant=run.variant,
        member=run.member,
        seed=run.variant * width + run.member,  # pairs are runs of the same variant and member
        evaluation=evaluation,
        predicted=predicted.astype(np.int32),
        samples=samples,
        hardness=hardness,
    )


def _sides(
    arms: Mapping[str, Sequence[Trained]], counts: Mapping[str, np.ndarray], num_classes: int
) -> dict[str, Sides]:
    """An arm's own samples against the baseline's; where these are the same, those of the first arm that differs."""
    base = counts.get(BASELINE, np.ones(num_classes))
    own = {arm: Sides(counts.get(arm, base), base) for arm in arms}
    first = next((sides for sides in own.values() if sides.hard.any()), own[BASELINE])
    return {arm: sides if sides.hard.any() else first for arm, sides in own.items()}


def _class_hardness(scores: pl.DataFrame, estimator: str, num_classes: int) -> np.ndarray:
    means = scores.filter(pl.col(estimator).is_finite()).group_by("class_index").agg(pl.col(estimator).mean())
    by_class = dict(means.rows())
    return np.array([by_class[c] for c in range(num_classes)], dtype=np.float64)


def _arm_entry(
    arm: str, trainings: Sequence[Trained], pairs: Mapping[str, str], counts: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    members = [{"variant": one.variant, "member": one.member, "seed": one.seed} for one in trainings]
    entry: dict[str, Any] = {"name": arm, "members": members}
    if arm in pairs:
        entry["against"] = pairs[arm]
    if arm in counts:
        entry["counts"] = counts[arm].tolist()
    return entry
