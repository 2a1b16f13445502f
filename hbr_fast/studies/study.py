"""What a study is: arms (how to resample) x variants (resampling seeds) x members (training seeds)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hbr_fast.allocation import Nonpositive
from hbr_fast.evaluation.statistics import MAX_VARIANTS
from hbr_fast.hardness import estimator
from hbr_fast.resampling import OVERSAMPLE, UNDERSAMPLE
from hbr_fast.seeding import Stream, member_seed, spread_seed
from hbr_fast.training.recipe import Recipe

BASELINE = "baseline"


@dataclass(frozen=True)
class Arm:
    """One way to resample the train split; every variant of it has a resampling seed of its own.

    Attributes
    ----------
    name : str
    alpha : float
        Degree of resampling, > 0; the baseline is not an arm.
    undersample, oversample : str
        See `hbr_fast.resampling.resample`.
    nonpositive, clip
        See `hbr_fast.allocation.allocate`.
    """

    name: str
    alpha: float
    undersample: str = "easy"
    oversample: str = "random"
    nonpositive: Nonpositive | None = None
    clip: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"arm {self.name!r}: alpha must be a finite number above 0, got {self.alpha}")
        for word, value, known in (
            ("undersample", self.undersample, UNDERSAMPLE),
            ("oversample", self.oversample, OVERSAMPLE),
        ):
            if value not in known:
                raise ValueError(f"arm {self.name!r}: {word} must be one of {', '.join(known)}; got {value!r}")


@dataclass(frozen=True)
class Study:
    """A baseline ensemble on the full set, and resampled arms compared with it member by member.

    Attributes
    ----------
    name : str
    recipe : Recipe
    arms : tuple of Arm
        The treatments.
    variants, members : int
        Resampled sets an arm, and members trained on each. The baseline has a member for every (variant, member), with
        the same seed and hence the same initial weights, order and augmentation: differences pair by design.
    estimator : str
        What class hardness is measured by.
    seed : int
        Everything random follows from it.
    """

    name: str
    recipe: Recipe
    arms: tuple[Arm, ...]
    variants: int
    members: int
    estimator: str = "aum"
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
        self.training_seed(0, 0)  # a seed out of range is refused before anything is done
        names = [BASELINE, *(arm.name for arm in self.arms)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"a study's arms need names of their own, {name!r} occurs twice")

    @property
    def members_per_arm(self) -> int:
        """Trainings an arm."""
        return self.variants * self.members

    def cells(self) -> list[tuple[int, int]]:
        """Every (variant, member) of an arm."""
        return [(variant, member) for variant in range(self.variants) for member in range(self.members)]

    def training_seed(self, variant: int, member: int) -> int:
        """Seed of a training, the same in every arm."""
        return member_seed(self.seed, variant * self.members + member)

    def resampling_seed(self, variant: int) -> int:
        """Seed of a resampled set."""
        return spread_seed(self.seed, Stream.VARIANT, variant)
