"""What a study is: arms (how to prune and resample) x variants (resampling seeds) x members (training seeds)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hbr_fast.allocation import Nonpositive
from hbr_fast.evaluation.statistics import MAX_VARIANTS
from hbr_fast.hardness import estimator
from hbr_fast.pruning import By, End, Level
from hbr_fast.resampling import OVERSAMPLE, UNDERSAMPLE
from hbr_fast.seeding import Stream, member_seed, spread_seed
from hbr_fast.training.recipe import Recipe

BASELINE = "baseline"


@dataclass(frozen=True)
class Pruning:
    """What is left out before an arm resamples; see `hbr_fast.pruning.prune`."""

    rate: float
    by: By = "random"
    level: Level = "class"
    drop: End = "easy"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"a pruning rate is a share in (0, 1), got {self.rate}")


@dataclass(frozen=True)
class Arm:
    """One way to prune and resample the train split; every variant of it has a seed of its own.

    Attributes
    ----------
    name : str
    alpha : float
        Degree of resampling: above 0, or 0 for an arm that only prunes.
    undersample, oversample : str
        See `hbr_fast.resampling.resample`; "none" for both where an arm only prunes.
    prune : Pruning, optional
        The samples it sets aside are the holdout.
    nonpositive, clip
        See `hbr_fast.allocation.allocate`.
    against : str
        The arm that this one is compared with.
    """

    name: str
    alpha: float = 0.0
    undersample: str = "easy"
    oversample: str = "random"
    prune: Pruning | None = None
    nonpositive: Nonpositive | None = None
    clip: bool = False
    against: str = BASELINE

    def __post_init__(self) -> None:
        for word, value, known in (
            ("undersample", self.undersample, UNDERSAMPLE),
            ("oversample", self.oversample, OVERSAMPLE),
        ):
            if value not in known:
                raise ValueError(f"arm {self.name!r}: {word} must be one of {', '.join(known)}; got {value!r}")
        only_prunes = (self.undersample, self.oversample) == ("none", "none") and self.prune is not None
        if not 0 <= self.alpha < math.inf or (self.alpha == 0 and not only_prunes):
            raise ValueError(
                f"arm {self.name!r}: alpha must be a finite number above 0, got {self.alpha} (0 is for arms that only "
                "prune)"
            )
        if self.oversample == "holdout" and self.prune is None:
            raise ValueError(f"arm {self.name!r}: the holdout is what pruning sets aside, and it does not prune")

    @property
    def resamples(self) -> bool:
        """Whether it shares samples out by hardness."""
        return self.alpha > 0


@dataclass(frozen=True)
class Choice:
    """How one arm of a study is chosen: on a share of the train split that no training sees.

    Attributes
    ----------
    validation : float
        Share of each class held out, in (0, 1).
    tolerance : float
        Accuracy that the chosen arm may lose against the baseline, in [0, 1].
    gap : str
        The recall gap that is made small; see `hbr_fast.evaluation.metrics.gaps`.
    """

    validation: float = 0.1
    tolerance: float = 0.005
    gap: str = "max_min"

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise ValueError(f"the validation split is a share in (0, 1) of each class, got {self.validation}")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"the tolerance is a share of accuracy in [0, 1], got {self.tolerance}")


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
        Resampled sets an arm, and members trained on each. The baseline has a member for every (variant, member), with
        the same seed and hence the same initial weights, order and augmentation: differences pair by design.
    hardness_members : int, optional
        The first this many baseline members give hardness; by default all.
    estimator : str
        What class hardness is measured by.
    path : int
        This many arms more, whose alphas go in equal ratios up to the largest feasible one: they are known once the
        baseline is trained.
    path_from : Arm, optional
        What the arms of the path have in common.
    choose : Choice, optional
        Choose an arm on a validation split; the test split is then looked at for that arm and the baseline only.
    stability : bool
        Also ask how many members hardness needs, and whether estimators agree.
    seed : int
        Everything random follows from it.
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
    stability: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        estimator(self.estimator)  # an unknown one is refused before hours of training
        if self.variants < 1 or self.members < 1:
            raise ValueError(f"a study needs variants >= 1 and members >= 1, got {self.variants} and {self.members}")
        if self.variants > MAX_VARIANTS:
            raise ValueError(
                f"a study has at most {MAX_VARIANTS} variants, which its exact permutation test can enumerate, "
                f"got {self.variants}"
            )
        if self.hardness_members is not None and not 1 <= self.hardness_members <= self.members_per_arm:
            raise ValueError(
                f"hardness_members must be in [1, {self.members_per_arm}], the baseline's, got {self.hardness_members}"
            )
        if self.path < 0 or (self.path > 0) != (self.path_from is not None):
            raise ValueError("a path of alphas needs a number of points and an arm to vary")
        self.training_seed(0, 0)  # a seed out of range is refused before anything is done
        names = [BASELINE, *(arm.name for arm in self.arms)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"a study's arms need names of their own, {name!r} occurs twice")
        for arm in self.arms:
            if arm.against not in names:
                raise ValueError(f"arm {arm.name!r} is compared with {arm.against!r}, which the study does not have")

    @property
    def members_per_arm(self) -> int:
        """Trainings an arm."""
        return self.variants * self.members

    @property
    def trainings(self) -> int:
        """Trainings of the whole study, those that are the same in other studies included."""
        return self.members_per_arm * (1 + len(self.arms) + self.path)

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
