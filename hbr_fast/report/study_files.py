"""Reads and checks the files that a study left, for figures, tables and the page.

Everything the report says comes from here: `study.json`, `per_class.csv`, `per_member.csv`, `samples.csv`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hbr_fast.evaluation.statistics import members_t_test, paired_difference
from hbr_fast.files import read_json
from hbr_fast.hardness import ESTIMATORS

SCHEMA = 2
BASELINE = "baseline"
FILES = ("study.json", "per_class.csv", "per_member.csv", "samples.csv")
ENSEMBLE_SIZE = "ensemble_size.csv"  # left by a study of robustness only
GAPS = {
    "max_min": "max - min",
    "quantile": "quantile",
    "easy_hard": "easy - hard",
    "std": "std",
    "mad": "MAD",
}

_TEXT = pl.String
_WHOLE = pl.Int64
_REAL = pl.Float64
_MEMBER_KEY = {"arm": _TEXT, "variant": _WHOLE, "member": _WHOLE, "seed": pl.UInt64}
_PER_CLASS = {
    **_MEMBER_KEY,
    "class_index": _WHOLE,
    "class_name": _TEXT,
    "samples": _WHOLE,
    "hardness": _REAL,
    "recall": _REAL,
    "never_predicted": _TEXT,
}
_PER_MEMBER = {
    **_MEMBER_KEY,
    "accuracy": _REAL,
    "train_seconds": _REAL,
    "recall_mean": _REAL,
    **{f"recall_{gap}": _REAL for gap in GAPS},
}
_ENSEMBLE_SIZE = {
    "estimator": _TEXT,
    "measure": _TEXT,
    "size": _WHOLE,
    "mean": _REAL,
    "low": _REAL,
    "high": _REAL,
}
# What an arm does where `study.json` does not say.
_SETTINGS: dict[str, Any] = {
    "alpha": 0.0,
    "undersample": "none",
    "oversample": "none",
    "prune_level": "none",
    "prune_by": "none",
    "prune_rate": 0.0,
}
_SAMPLES = {"sample_id": _WHOLE, "class_index": _WHOLE, "class_name": _TEXT, "aum": _REAL}


@dataclass(frozen=True)
class StudyFiles:
    """What a study left, read and checked.

    Attributes
    ----------
    path : directory of the study
    meta : `study.json`
    per_class, per_member : data frames with their rows ordered by arm, variant, member (and class)
    samples : data frame, one row a sample of the train split
    classes : names, by class index
    arms : names, the baseline first and the others in the order of `study.json`
    ensemble_size : data frame, or None where the study did not look at it
    """

    path: Path
    meta: Mapping[str, Any]
    per_class: pl.DataFrame
    per_member: pl.DataFrame
    samples: pl.DataFrame
    classes: tuple[str, ...]
    arms: tuple[str, ...]
    ensemble_size: pl.DataFrame | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the study left."""
        return FILES if self.ensemble_size is None else (*FILES, ENSEMBLE_SIZE)

    def setting(self, arm: str, name: str) -> Any:
        """What `study.json` says of an arm: alpha, undersample, oversample, prune_level, prune_by or prune_rate."""
        (entry,) = [entry for entry in self.meta["arms"] if entry["name"] == arm]
        value = entry.get(name)
        return _SETTINGS[name] if value is None else value

    def against(self, arm: str) -> str:
        """The arm that an arm is compared with."""
        (entry,) = [entry for entry in self.meta["arms"] if entry["name"] == arm]
        return entry.get("against") or BASELINE

    @property
    def compared_with(self) -> str:
        """What arms are compared with, in words."""
        others = {self.against(arm) for arm in self.treatments} - {BASELINE}
        return "the arm compared with" if others else "the baseline"

    @property
    def treatments(self) -> tuple[str, ...]:
        """The arms that are not the baseline."""
        return self.arms[1:]

    @property
    def evaluated(self) -> str:
        """The samples that all figures are of, in words."""
        return "the test set" if self.meta.get("evaluated_on", "test") == "test" else "held-out training samples"

    def members(self, arm: str) -> int:
        """Number of trained members of an arm."""
        return self.per_member.filter(pl.col("arm") == arm).height

    def class_metric(self, arm: str, metric: str) -> np.ndarray:
        """A column of `per_class.csv` as float64 `[members, classes]`."""
        column = self.per_class.filter(pl.col("arm") == arm)[metric].cast(_REAL)
        return column.to_numpy().reshape(self.members(arm), len(self.classes))

    def member_metric(self, arm: str, metric: str) -> np.ndarray:
        """A column of `per_member.csv` as float64 `[members]`."""
        return self.per_member.filter(pl.col("arm") == arm)[metric].cast(_REAL).to_numpy()

    def class_hardness(self) -> np.ndarray:
        """Hardness of each class, mean over baseline members: float64 `[classes]`."""
        return self.class_metric(BASELINE, "hardness").mean(axis=0)

    def hard_to_easy(self) -> np.ndarray:
        """Class indices, the hardest first; ties by class index."""
        sign = 1 if ESTIMATORS[self.meta["estimator"]].hard_is == "low" else -1
        return np.argsort(sign * self.class_hardness(), kind="stable")


def read_study(study_dir: str | os.PathLike[str]) -> StudyFiles:
    """Read a study's files and check that they belong together.

    Raises
    ------
    FileNotFoundError
        If the directory or one of `FILES` is missing.
    ValueError
        If a file does not parse, lacks a field or column, or has rows that do not fit `study.json`.
        The message is one line and names the file.
    """
    path = Path(study_dir)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a directory: name one that `hbr-fast study` wrote")
    for name in FILES:
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name} is missing: run the study again")
    meta = _read_meta(path / "study.json")
    classes = tuple(meta["dataset"]["classes"])
    names = [arm["name"] for arm in meta["arms"]]
    arms = (BASELINE, *(name for name in names if name != BASELINE))
    per_class = _read_csv(path / "per_class.csv", _PER_CLASS)
    per_member = _read_csv(path / "per_member.csv", _PER_MEMBER)
    samples = _read_csv(path / "samples.csv", _SAMPLES)

    key = ["arm", "variant", "member"]
    per_member = per_member.sort(key)
    per_class = per_class.sort([*key, "class_index"])
    wanted = sorted((arm["name"], m["variant"], m["member"]) for arm in meta["arms"] for m in arm["members"])
    _check_rows(path / "per_member.csv", wanted, per_member.select(key).rows())
    wanted_classes = [(*row, c, name) for row in wanted for c, name in enumerate(classes)]
    found_classes = per_class.select([*key, "class_index", "class_name"]).rows()
    _check_rows(path / "per_class.csv", wanted_classes, found_classes)
    strangers = samples.filter((pl.col("class_index") < 0) | (pl.col("class_index") >= len(classes)))
    if strangers.height:
        sample, index = strangers.row(0)[0], strangers["class_index"][0]
        raise ValueError(
            f"{path / 'samples.csv'}: sample {sample} has class {index} of {len(classes)}: run the study again"
        )
    size = path / ENSEMBLE_SIZE
    ensemble_size = _read_csv(size, _ENSEMBLE_SIZE) if size.is_file() else None
    return StudyFiles(path, meta, per_class, per_member, samples, classes, arms, ensemble_size)


@dataclass(frozen=True)
class Comparison:
    """A quantity of an arm and of the one it is compared with, in percent or percentage points.

    `low` and `high` bound the 95 % interval of the difference, `effect_size` is standardised (d_z) and `p` the
    sign-flip p-value; all are NaN where `why_no_interval` says so. `smallest_p` is the least p that the design can
    reach. `paper_t` and `paper_p` are the paper's paired t-test over all members, for comparison with the paper only.
    """

    baseline: float
    treatment: float
    variants: int
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    smallest_p: float = float("nan")
    effect_size: float = float("nan")
    paper_t: float = float("nan")
    paper_p: float = float("nan")
    why_no_interval: str = ""

    @property
    def difference(self) -> float:
        """Treatment minus baseline."""
        return self.treatment - self.baseline

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def compare(study: StudyFiles, arm: str, metric: str) -> Comparison:
    """Compare a column of `per_member.csv` (a fraction) between an arm and the one it is compared with, times 100.

    A member of the arm is paired with the other's member of the same seed, which has the same initial weights. Where
    seeds are not shared, the pairs are those of equal variant and member number. The means are over all members of an
    arm, or over the paired ones where there is an interval.
    """
    treatment = study.per_member.filter(pl.col("arm") == arm)
    baseline = study.per_member.filter(pl.col("arm") == study.against(arm))
    variants = treatment["variant"].n_unique()
    means = 100 * _mean(baseline[metric]), 100 * _mean(treatment[metric])

    def without(reason: str) -> Comparison:
        return Comparison(*means, variants, why_no_interval=reason)

    if variants < 2:
        return without("one resampled variant gives no interval")
    on = ["seed"] if set(treatment["seed"]) <= set(baseline["seed"]) else ["variant", "member"]
    pairs = treatment.join(baseline, on=on, how="inner", suffix="_baseline", maintain_order="left")
    if pairs.height != treatment.height:
        return without(f"the members have no partners in {arm_label(study.against(arm))}, so that there is no interval")
    if treatment["variant"].value_counts()["count"].n_unique() != 1:
        return without("the variants differ in their number of members, so that there is no interval")
    before_vm = 100 * pairs[f"{metric}_baseline"].to_numpy().reshape(variants, -1)
    after_vm = 100 * pairs[metric].to_numpy().reshape(variants, -1)
    if not (np.isfinite(before_vm).all() and np.isfinite(after_vm).all()):
        return without("it is undefined for some members")
    paired = paired_difference(before_vm, after_vm)
    paper_t, paper_p = members_t_test(before_vm, after_vm)
    return Comparison(
        float(before_vm.mean()),
        float(after_vm.mean()),
        variants,
        low=paired.low,
        high=paired.high,
        p=paired.p_value,
        smallest_p=paired.smallest_p,
        effect_size=paired.effect_size,
        paper_t=paper_t,
        paper_p=paper_p,
    )


def spread(values_m: np.ndarray) -> np.ndarray:
    """Sample standard deviation over members (axis 0); NaN for a single member."""
    if values_m.shape[0] < 2:
        return np.full(values_m.shape[1:], np.nan)
    return values_m.std(axis=0, ddof=1)


def arm_label(arm: str) -> str:
    """How an arm is called in legends and tables."""
    return "HBR" if arm == "hbr" else arm


def tests_of(study: StudyFiles) -> list[tuple[str, str, Comparison]]:
    """Every arm against the one it is compared with in every gap of recall, mean recall and accuracy: (arm, metric,
    result)."""
    metrics = [*(f"recall_{gap}" for gap in GAPS), "recall_mean", "accuracy"]
    return [(arm, metric, compare(study, arm, metric)) for arm in study.treatments for metric in metrics]


def estimator_label(study: StudyFiles) -> str:
    """How the study's estimator is called in sentences."""
    name: str = study.meta["estimator"]
    return name.upper() if name in ("aum", "el2n") else name.replace("_", " ")


def _mean(column: pl.Series) -> float:
    return float(column.to_numpy().mean())


def _read_meta(path: Path) -> dict[str, Any]:
    meta = read_json(path)
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a study of schema {SCHEMA}: run the study again with this version")
    try:
        for field in ("study", "recipe", "seconds", "versions"):
            meta[field]
        for field in ("name", "fingerprint", "classes"):
            meta["dataset"][field]
        names = [arm["name"] for arm in meta["arms"]]
        for arm in meta["arms"]:
            for member in arm["members"]:
                member["variant"], member["member"], member["seed"]
            if not arm["members"]:
                raise ValueError(f"{path}: arm {arm['name']!r} has no members: run the study again")
        estimator = meta["estimator"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks a field ({error}): run the study again") from None
    if BASELINE not in names or len(set(names)) != len(names):
        raise ValueError(f"{path}: arms {names} need distinct names, one of them 'baseline': run the study again")
    if estimator not in ESTIMATORS:
        raise ValueError(f"{path}: unknown estimator {estimator!r}, known are {', '.join(sorted(ESTIMATORS))}")
    return meta


def _read_csv(path: Path, columns: Mapping[str, Any]) -> pl.DataFrame:
    try:
        header = pl.read_csv(path, n_rows=0).columns
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(f"{path} lacks the column {missing[0]!r}: run the study again")
        frame = pl.read_csv(path, schema_overrides=dict(columns))
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read ({reason}): run the study again") from None
    # An empty number is an undefined one; everything else has to be there.
    frame = frame.with_columns(pl.col(_REAL).fill_null(float("nan")))
    for name in columns:
        if frame[name].null_count():
            raise ValueError(f"{path}: column {name!r} has an empty cell: run the study again")
    return frame


def _check_rows(path: Path, wanted: list[tuple], found: list[tuple]) -> None:
    if wanted == found:
        return
    missing, extra = set(wanted) - set(found), set(found) - set(wanted)
    if missing:
        problem = f"no row for {min(missing)}"
    elif extra:
        problem = f"a row for {min(extra)}, which study.json does not have"
    else:
        problem = "rows that occur twice"
    raise ValueError(f"{path} has {problem}: run the study again")
