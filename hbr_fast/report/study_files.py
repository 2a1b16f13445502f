"""The files that a study left, as figures, tables and the page use them; `reading.read_study` reads and checks them.

Everything the report says comes from here: `study.json`, `per_class.csv`, `per_member.csv`, `samples.csv` and
`comparisons.csv`. No test is repeated: p-values and intervals are those that the study wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hbr_fast.evaluation import measures
from hbr_fast.evaluation.measures import METRICS
from hbr_fast.hardness import ESTIMATORS
from hbr_fast.progress import counted
from hbr_fast.report.columns import REAL
from hbr_fast.studies.study_json import evaluated_on

BASELINE = "baseline"
FILES = ("study.json", "per_class.csv", "per_member.csv", "class_intervals.csv", "confusion.csv")
SAMPLES = "samples.csv"  # left wherever the hardness of samples is known
COMPARISONS = "comparisons.csv"  # left by a study with arms besides the baseline
GROUPS = "groups.csv"  # left where attributes of the test samples were given
HISTORY = "history.csv"  # not left by imported runs
ENSEMBLE_SIZE = "ensemble_size.csv"  # left only by a study of robustness
GAPS = {name: gap.words for name, gap in measures.GAPS.items()}
NOT_DEFINED = "not defined: no arm shares samples out by hardness"  # the gap between easy and hard classes
LEVELS = {name: measure.words for name, measure in measures.MEASURES.items() if not measure.is_gap}

# Defaults of an arm's settings that `study.json` leaves out.
_SETTINGS: dict[str, Any] = {
    "alpha": 0.0,
    "undersample": "none",
    "oversample": "none",
    "prune_level": "none",
    "prune_by": "none",
    "prune_rate": 0.0,
    "reweight": False,
    "other_class": False,
}


@dataclass(frozen=True)
class Comparison:
    """A row of `comparisons.csv`, in percent or percentage points.

    `low` and `high` bound the 95 % interval of the difference for this test set, `combined_low` and `combined_high` one
    that also covers the noise of the test set (NaN if unknown). `effect_size` is standardised (d_z), `p` the sign-flip
    p-value and `p_holm` the same corrected for all tests of the study; all are NaN where `no_test` says why.
    `smallest_p` is the smallest p that the design can reach. `paper_t` and `paper_p` are the paper's paired t-test over
    all members, for comparison with the paper only.
    """

    baseline: float
    treatment: float
    variants: int
    low: float
    high: float
    combined_low: float
    combined_high: float
    effect_size: float
    p: float
    p_holm: float
    smallest_p: float
    paper_t: float
    paper_p: float
    direction: str
    no_test: str

    @property
    def difference(self) -> float:
        """Treatment minus baseline."""
        return self.treatment - self.baseline

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes zero: the wider one, if the noise of the test set is known."""
        low, high = self.interval
        return low > 0 or high < 0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, with the noise of the test set if that is known."""
        if np.isfinite(self.combined_low):
            return self.combined_low, self.combined_high
        return self.low, self.high


@dataclass(frozen=True)
class StudyFiles:
    """What a study left, read and checked.

    Attributes
    ----------
    path : directory of the study
    meta : `study.json`
    per_class, per_member : data frames with their rows ordered by arm, variant, member (and class)
    samples : data frame, one row per sample of the train split; with `source` if the dataset stores it. It has no rows
        for imported runs without hardness
    classes : names as they are shown, by class index
    arms : names, the baseline first and the others in the order of `study.json`
    intervals, confusions : data frames of `class_intervals.csv` and `confusion.csv`
    comparisons : rows of `comparisons.csv`, by (arm, quantity)
    ensemble_size : data frame, or None if the study did not examine it
    groups : data frame of the accuracy of groups of test samples, or None
    history : data frame of every training's epochs; None for imported runs
    """

    path: Path
    meta: Mapping[str, Any]
    per_class: pl.DataFrame
    per_member: pl.DataFrame
    samples: pl.DataFrame
    classes: tuple[str, ...]
    arms: tuple[str, ...]
    intervals: pl.DataFrame
    confusions: pl.DataFrame
    comparisons: Mapping[tuple[str, str], Comparison]
    ensemble_size: pl.DataFrame | None = None
    history: pl.DataFrame | None = None
    groups: pl.DataFrame | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the study left."""
        left = {
            SAMPLES: bool(self.samples.height),
            HISTORY: self.history is not None,
            GROUPS: self.groups is not None,
            COMPARISONS: bool(self.treatments),
            ENSEMBLE_SIZE: self.ensemble_size is not None,
        }
        return (*FILES, *(name for name, there in left.items() if there))

    def setting(self, arm: str, name: str) -> Any:
        """What `study.json` says of an arm: one of `_SETTINGS`."""
        (entry,) = [entry for entry in self.meta["arms"] if entry["name"] == arm]
        value = entry.get(name)
        return _SETTINGS[name] if value is None else value

    def against(self, arm: str) -> str:
        """The comparison arm of an arm."""
        (entry,) = [entry for entry in self.meta["arms"] if entry["name"] == arm]
        return entry.get("against") or BASELINE

    @property
    def compared_with(self) -> str:
        """The comparison arm or arms, in words."""
        others = {self.against(arm) for arm in self.treatments} - {BASELINE}
        return "the arm compared with" if others else "the baseline"

    @property
    def metric(self) -> str:
        """The metric of a class that the study is about."""
        metric: str = self.meta.get("metric", "recall")
        return metric

    @property
    def metric_words(self) -> str:
        """Name of the metric in sentences."""
        return METRICS[self.metric].words

    @property
    def metric_title(self) -> str:
        """The same at the beginning of one."""
        return self.metric_words[0].upper() + self.metric_words[1:]

    @property
    def quantities(self) -> dict[str, str]:
        """The quantities in the tables and their words: every measure of the metric, and accuracy."""
        gaps = {f"{self.metric}_{gap}": f"{self.metric_words} gap: {words}" for gap, words in GAPS.items()}
        levels = {f"{self.metric}_{level}": f"{self.metric_words}: {words}" for level, words in LEVELS.items()}
        return {**gaps, **levels, "accuracy": "accuracy"}

    @property
    def treatments(self) -> tuple[str, ...]:
        """The arms that are not the baseline."""
        return self.arms[1:]

    @property
    def evaluated(self) -> str:
        """The samples that were evaluated, in words."""
        words = evaluated_on(self.meta)
        return words if words == "held-out training samples" else f"the {words}"

    @property
    def kind_evaluated(self) -> str:
        """What samples were evaluated, in one word."""
        words = {"the test set": "test", "the validation split": "validation"}
        return words.get(self.evaluated, "held-out")

    def members(self, arm: str) -> int:
        """Number of trained members of an arm."""
        return self.per_member.filter(pl.col("arm") == arm).height

    def class_metric(self, arm: str, metric: str) -> np.ndarray:
        """A column of `per_class.csv` as float64 `[members, classes]`."""
        column = self.per_class.filter(pl.col("arm") == arm)[metric].cast(REAL)
        return column.to_numpy().reshape(self.members(arm), len(self.classes))

    def member_metric(self, arm: str, metric: str) -> np.ndarray:
        """A column of `per_member.csv` as float64 `[members]`."""
        return self.per_member.filter(pl.col("arm") == arm)[metric].cast(REAL).to_numpy()

    def class_interval(self, arm: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval of a metric of each class, with the noise of the test set if that is known: two `[classes]`."""
        rows = self.intervals.filter((pl.col("arm") == arm) & (pl.col("metric") == metric)).sort("class_index")
        wide, narrow = (rows.select(f"{kind}low", f"{kind}high").to_numpy() for kind in ("combined_", ""))
        low, high = np.where(np.isfinite(wide), wide, narrow).T
        return low, high

    def confusion(self, arm: str) -> np.ndarray:
        """Test samples by true (row) and predicted class, mean over members: float64 `[classes, classes]`."""
        total = np.zeros((len(self.classes), len(self.classes)))
        rows = self.confusions.filter(pl.col("arm") == arm)
        total[rows["true_index"].to_numpy(), rows["predicted_index"].to_numpy()] = rows["samples"].to_numpy()
        return total / self.members(arm)

    @property
    def has_hardness(self) -> bool:
        """Whether the hardness of classes is known."""
        return self.meta["estimator"] is not None

    @property
    def has_samples(self) -> bool:
        """Whether the training samples per class are known."""
        return bool(self.per_class["samples"].is_finite().all())

    def scored(self, estimator: str) -> bool:
        """Whether samples have scores by an estimator."""
        return estimator in self.samples.columns and bool(self.samples[estimator].is_finite().any())

    @property
    def order_words(self) -> str:
        """What `hard_to_easy` orders by, in words."""
        return "the hardest class first" if self.has_hardness else f"the class of least {self.metric_words} first"

    def class_hardness(self) -> np.ndarray:
        """Hardness of each class, the one that arms were resampled by: float64 `[classes]`."""
        recorded = self.meta.get("class_hardness")
        if recorded is None:  # unknown, or only by training
            return self.class_metric(BASELINE, "hardness").mean(axis=0)
        return np.array(recorded, dtype=np.float64)

    @property
    def hardness_from(self) -> str:
        """The members whose scores hardness is the mean of, in words: not all where the baseline has many."""
        number, every = self.meta.get("hardness_members"), self.members(BASELINE)
        if number is None:  # imported scores, or a study of an earlier version
            return "members of the baseline"
        if number == every:
            return f"{counted(every, 'member')} of the baseline"
        return f"the first {number} of the baseline's {every} members"

    def hard_to_easy(self) -> np.ndarray:
        """Class indices, the hardest first (by the baseline's metric, if hardness is unknown); ties by class index."""
        if not self.has_hardness:
            mean = self.class_metric(BASELINE, self.metric).mean(axis=0)
            return np.argsort(mean if METRICS[self.metric].better == "larger" else -mean, kind="stable")
        sign = 1 if ESTIMATORS[self.meta["estimator"]].hard_is == "low" else -1
        return np.argsort(sign * self.class_hardness(), kind="stable")


def compare(study: StudyFiles, arm: str, metric: str) -> Comparison:
    """How a column of `per_member.csv` differs between an arm and its comparison arm."""
    return study.comparisons[arm, metric]


def spread(values_m: np.ndarray) -> np.ndarray:
    """Sample standard deviation over members (axis 0); NaN for a single member."""
    if values_m.shape[0] < 2:
        return np.full(values_m.shape[1:], np.nan)
    return values_m.std(axis=0, ddof=1)


def undefined_words(study: StudyFiles) -> str:
    """A sentence, after a blank, on gaps that are undefined in some arm; empty where there are none."""
    lacking = [
        words
        for gap, words in GAPS.items()
        if any(np.isnan(study.member_metric(arm, f"{study.metric}_{gap}")).any() for arm in study.arms)
    ]
    return f" No value for {', '.join(lacking)}: {NOT_DEFINED}." if lacking else ""


def arm_label(arm: str) -> str:
    """Name of an arm in legends and tables."""
    return "HBR" if arm == "hbr" else arm


def tests_of(study: StudyFiles) -> list[tuple[str, str, Comparison]]:
    """Every arm against its comparison arm, in every measure of the metric and accuracy: (arm, quantity, result)."""
    return [(arm, quantity, compare(study, arm, quantity)) for arm in study.treatments for quantity in study.quantities]


def estimator_label(study: StudyFiles) -> str:
    """Name of the study's estimator in sentences; empty without hardness."""
    name: str = study.meta["estimator"] or ""
    return name.upper() if name in ("aum", "el2n") else name.replace("_", " ")
