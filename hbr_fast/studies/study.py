"""What a study is: arms (how to prune, resample or weight) x variants (resampling seeds) x members (training seeds)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hbr_fast.arguments import did_you_mean
from hbr_fast.evaluation.measures import METRICS, MINIMISED_GAPS
from hbr_fast.hardness import estimator
from hbr_fast.progress import counted
from hbr_fast.resampling import OVERSAMPLE, UNDERSAMPLE
from hbr_fast.resampling.allocation import Nonpositive
from hbr_fast.resampling.base import Base, resolved_base
from hbr_fast.resampling.pruning import Pruning
from hbr_fast.seeding import Stream, member_seed, spread_seed
from hbr_fast.training.recipe import Recipe, changed_recipe

BASELINE = "baseline"


@dataclass(frozen=True)
class Arm:
    """One way to prune and resample the train split, or to train on it; every variant has its own resampling seed.

    Attributes
    ----------
    name : str
    alpha : float
        Degree of resampling; 0 for an arm that only prunes, or that only gives the classes the sizes of `base`.
    undersample, oversample : str
        See `hbr_fast.resampling.resample`; "none" for both where an arm only prunes.
    prune : Pruning, optional
        The pruned samples are the holdout.
    base : "own", "balanced", float in [0, 1] or None
        Class sizes to start from, see `hbr_fast.resample_by_hardness`.
    nonpositive, clip
        See `hbr_fast.resampling.allocation.allocate`.
    against : str
        The comparison arm.
    reweight : bool
        Keep all samples and weigh each class in the loss, a cross-entropy, by what resampling would make of its size.
    other_class : bool
        Resample by the class hardness of other classes, see `hbr_fast.resample_by_hardness`: a control.
    changes : tuple of "field=value"
        Fields of the recipe that the arm changes, as in `hbr_fast.named_recipe`.

    Examples
    --------
    >>> Arm("twice-as-far", alpha=2.0, oversample="smote").resamples
    True
    """

    name: str
    alpha: float = 0.0
    undersample: str = "easy"
    oversample: str = "random"
    prune: Pruning | None = None
    base: Base | None = None
    nonpositive: Nonpositive | None = None
    clip: bool = False
    against: str = BASELINE
    reweight: bool = False
    other_class: bool = False
    changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for word, value, known in (
            ("undersample", self.undersample, UNDERSAMPLE),
            ("oversample", self.oversample, OVERSAMPLE),
        ):
            if value not in known:
                meant = did_you_mean(known, value)
                raise ValueError(f"arm {self.name!r}: {word} must be one of {', '.join(known)}; got {value!r}{meant}")
        if self.base is not None:
            resolved_base(self.base, np.ones(1))  # refuse an unknown one
        only_prunes = (self.undersample, self.oversample) == ("none", "none") and self.prune is not None
        changes_sizes = only_prunes or self.base not in (None, "own", 1) or bool(self.changes)
        if not 0 <= self.alpha < math.inf or (self.alpha == 0 and not changes_sizes):
            raise ValueError(
                f"arm {self.name!r}: alpha must be a finite number above 0, got {self.alpha} (0 is for arms that only "
                'prune, for a base of "balanced" or an exponent, and for another recipe)'
            )
        if self.reweight and (not self.resamples or self.prune is not None):
            raise ValueError(f"arm {self.name!r}: weights of classes follow from resampling them all, without pruning")
        if self.oversample == "holdout" and self.prune is None:
            raise ValueError(f"arm {self.name!r}: the holdout consists of pruned samples, but the arm does not prune")

    @property
    def resamples(self) -> bool:
        """Whether it gives the classes other sizes, by hardness or by its base."""
        return self.alpha > 0 or (self.undersample, self.oversample) != ("none", "none")


@dataclass(frozen=True)
class Choice:
    """How one arm of a study is chosen: on samples that no training sees.

    Attributes
    ----------
    validation : float, optional
        Share of each class of the train split held out, in (0, 1). By default the dataset's validation split, or a
        share of 0.1 where it has none.
    tolerance : float
        Accuracy that the chosen arm may lose against the baseline, in [0, 1].
    gap : str
        The gap to minimise, of the study's metric; see `hbr_fast.gaps`.
    """

    validation: float | None = None
    tolerance: float = 0.005
    gap: str = "max_min"

    def __post_init__(self) -> None:
        if self.validation is not None and not 0 < self.validation < 1:
            raise ValueError(f"the validation split is a share in (0, 1) of each class, got {self.validation}")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"the tolerance is a share of accuracy in [0, 1], got {self.tolerance}")
        if self.gap not in MINIMISED_GAPS:
            raise ValueError(f"the gap to minimise is one of {', '.join(MINIMISED_GAPS)}, got {self.gap!r}")


@dataclass(frozen=True)
class Study:
    """A baseline ensemble on the full set, and arms compared with it member by member.

    Attributes
    ----------
    name : str
    recipe : Recipe
    arms : tuple of Arm
        The treatments.
    variants, members : int
        Resampled sets per arm, and members trained on each. The baseline has a member for every (variant, member), with
        the same seed and hence the same initial weights, order and augmentation: differences pair by design.
    hardness_members : int, optional
        How many baseline members, from the first, define hardness; by default all.
    estimator : str
        The estimator of class hardness.
    path : int
        Number of further arms, whose alphas rise geometrically to the largest feasible one: they are known once the
        baseline is trained.
    path_from : Arm, optional
        The template for the arms of the path.
    choose : Choice, optional
        Choose an arm on a validation split; the test split is then evaluated for that arm and the baseline only.
    metric : str
        The metric of a class that the study is about, e.g. its recall; see `hbr_fast.Evaluation`.
    stability : bool
        Also measure how many members hardness needs, and whether estimators agree.
    seed : int
        Seeds everything random.

    Examples
    --------
    >>> from hbr_fast import named_recipe
    >>> study = Study("mine", named_recipe("small-cnn"), (Arm("some", 0.25), Arm("more", 0.5)), variants=3, members=2)
    >>> study.trainings
    18
    """

    name: str
    recipe: Recipe
    arms: tuple[Arm, ...]
    variants: int
    members: int
    hardness_members: int | None = None
    estimator: str = "aum"
    path: int = 0
    path_from: Arm | None = None
    choose: Choice | None = None
    metric: str = "recall"
    stability: bool = False
    seed: int = 0

    def __repr__(self) -> str:
        arms = counted(len(self.arms) + self.path, "arm")
        about = f"{counted(self.trainings, 'training')} by recipe {self.recipe.name}"
        return f"<Study {self.name!r}: {arms} beside the baseline, {self.variants} x {self.members} members, {about}>"

    def __post_init__(self) -> None:
        if estimator(self.estimator).origin == "second training":  # not after hours of training
            raise ValueError(
                f"{self.estimator} needs a second training, which a study does not do: choose another estimator, or "
                "see hbr_fast.second_split_forgetting"
            )
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}: a study is about one of {', '.join(METRICS)}")
        if self.variants < 1 or self.members < 1:
            raise ValueError(
                f"variants and members of a study must be at least 1, got {self.variants} and {self.members}"
            )
        if self.hardness_members is not None and not 1 <= self.hardness_members <= self.members_per_arm:
            raise ValueError(
                f"hardness_members must be in [1, {self.members_per_arm}], the baseline's, got {self.hardness_members}"
            )
        if self.path < 0 or (self.path > 0) != (self.path_from is not None):
            raise ValueError("a path of alphas needs a number of points and an arm to vary")
        self.training_seed(0, 0)  # refuse a seed out of range at once
        names = [BASELINE, *(arm.name for arm in self.arms)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"a study's arms need distinct names, {name!r} occurs twice")
        for arm in self.arms:
            self.recipe_of(arm)
            if arm.against not in names:
                raise ValueError(f"arm {arm.name!r} is compared with {arm.against!r}, which the study does not have")

    @property
    def members_per_arm(self) -> int:
        """Trainings an arm."""
        return self.variants * self.members

    @property
    def trainings(self) -> int:
        """Trainings of the whole study, including those shared with other studies."""
        return self.members_per_arm * (1 + len(self.arms) + self.path)

    def recipe_of(self, arm: Arm) -> Recipe:
        """The study's recipe with the changes of an arm.

        Raises
        ------
        ValueError
            If the changes do not fit; the message starts with the arm's name.
        """
        try:
            return changed_recipe(self.recipe, arm.changes)
        except ValueError as error:
            raise ValueError(f"arm {arm.name!r}: {error}") from None

    def cells(self) -> list[tuple[int, int]]:
        """Every (variant, member) of an arm."""
        return [(variant, member) for variant in range(self.variants) for member in range(self.members)]

    def training_seed(self, variant: int, member: int) -> int:
        """Seed of a training, the same in every arm."""
        return member_seed(self.seed, variant * self.members + member)

    def resampling_seed(self, variant: int) -> int:
        """Seed of a resampled set."""
        return spread_seed(self.seed, Stream.VARIANT, variant)

    def validation_seed(self) -> int:
        """Seed of the validation split."""
        return spread_seed(self.seed, Stream.VALIDATION, 0)
