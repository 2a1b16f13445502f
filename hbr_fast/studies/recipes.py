"""The named studies: each function returns the grid of trainings it stands for (docs/studies.md).

Sizes follow Pukowski & Osmani, arXiv 2504.07031, and are parameters.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hbr_fast.allocation import Nonpositive
from hbr_fast.pruning import By, Level
from hbr_fast.resampling.pools import POOL
from hbr_fast.studies.study import Arm, Choice, Pruning, Study
from hbr_fast.training.recipe import Recipe, changed_recipe, named_recipe

CLASS_LEVEL_RATES = (0.33, 0.42, 0.50, 0.58, 0.66, 0.75)
HARDNESS_RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
HARDNESS_MEMBERS = 10


def quickstart(
    *,
    recipe: Recipe | None = None,
    alpha: float = 0.25,
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    estimator: str = "aum",
    members: int = 4,
    seed: int = 0,
) -> Study:
    """Does resampling close the recall gap? One arm, one resampled set a member, minutes on two cores."""
    return Study(
        name="quickstart",
        recipe=recipe or named_recipe("quickstart"),
        arms=(Arm("hbr", alpha, nonpositive=nonpositive, clip=clip),),
        variants=members,
        members=1,
        estimator=estimator,
        seed=seed,
    )


def baseline(
    *, recipe: Recipe | None = None, members: int = 16, variants: int = 1, estimator: str = "aum", seed: int = 0
) -> Study:
    """The full set, trained by many members: what everything else is compared with."""
    return Study(
        name="baseline",
        recipe=recipe or named_recipe("paper-resnet18"),
        arms=(),
        variants=variants,
        members=members,
        hardness_members=_hardness_members(variants * members),
        estimator=estimator,
        seed=seed,
    )


def case_study_1(
    *,
    recipe: Recipe | None = None,
    rates: Sequence[float] = CLASS_LEVEL_RATES,
    oversamplers: Sequence[str] = ("random", "smote", "holdout"),
    alphas: Sequence[float] = (1.0,),
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    variants: int = 4,
    members: int = 4,
    estimator: str = "aum",
    seed: int = 0,
) -> Study:
    """Every class loses a share of its samples by chance; resampling works with what is left, at its size.

    At each rate the arm without resampling is what the others are compared with. The oversampler "holdout" adds real
    images that pruning set aside: what resampling could do at best.
    """
    arms = []
    for rate in rates:
        prune, name = Pruning(rate), f"pruned-{100 * rate:g}"
        arms.append(Arm(name, undersample="none", oversample="none", prune=prune))
        arms += _resampled(
            [one for one in oversamplers if one != "none"],
            alphas,
            name=f"{name}-",
            prune=prune,
            against=name,
            nonpositive=nonpositive,
            clip=clip,
        )
    return _grid("case-study-1", recipe, arms, variants, members, estimator, seed)


def case_study_2(
    *,
    recipe: Recipe | None = None,
    oversamplers: Sequence[str] = ("random", "smote", *POOL),
    alphas: Sequence[float] | None = None,
    num_classes: int = 10,
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    variants: int = 4,
    members: int = 4,
    estimator: str = "aum",
    seed: int = 0,
) -> Study:
    """The full set: easy classes lose their easiest samples, hard ones gain some, by several oversamplers and alphas.

    By default alpha is 1, 3 and 5, or 1 and 2 above 20 classes.
    """
    if alphas is None:
        alphas = (1.0, 3.0, 5.0) if num_classes <= 20 else (1.0, 2.0)
    arms = _resampled(oversamplers, alphas, nonpositive=nonpositive, clip=clip)
    return _grid("case-study-2", recipe, arms, variants, members, estimator, seed)


def pruning(
    *,
    recipe: Recipe | None = None,
    rates: Sequence[float] = HARDNESS_RATES,
    levels: Sequence[Level] = ("dataset", "class"),
    by: Sequence[By] = ("hardness",),
    variants: int = 4,
    members: int = 4,
    estimator: str = "aum",
    seed: int = 0,
) -> Study:
    """The easiest samples go, of each class alike or of the whole set, which takes more from easy classes."""
    arms = [
        Arm(
            f"{level}-{how}-{100 * rate:g}",
            undersample="none",
            oversample="none",
            prune=Pruning(rate, by=how, level=level),
        )
        for level in levels
        for how in by
        for rate in rates
    ]
    return _grid("pruning", recipe, arms, variants, members, estimator, seed)


def robustness(
    *, recipe: Recipe | None = None, variants: int = 1, members: int = 16, estimator: str = "aum", seed: int = 0
) -> Study:
    """How many members hardness needs and whether estimators agree: a baseline ensemble, looked at closely."""
    return Study(
        name="robustness",
        recipe=recipe or named_recipe("paper-resnet18"),
        arms=(),
        variants=variants,
        members=members,
        estimator=estimator,
        stability=True,
        seed=seed,
    )


def alpha_path(
    *,
    recipe: Recipe | None = None,
    points: int = 6,
    alphas: Sequence[float] | None = None,
    oversampler: str = "random",
    nonpositive: Nonpositive | None = None,
    choose: bool = False,
    validation: float = 0.1,
    tolerance: float = 0.005,
    variants: int = 4,
    members: int = 4,
    estimator: str = "aum",
    seed: int = 0,
) -> Study:
    """The gap against accuracy along alpha, from 0 (the baseline) to the largest feasible one in equal ratios.

    With `choose`, alpha is chosen on a validation split that no training sees: the smallest gap whose accuracy is at
    most `tolerance` below the baseline's. The test split is then looked at for that alpha and the baseline only.
    """
    arm = Arm(oversampler, alpha=1.0, oversample=oversampler, nonpositive=nonpositive)
    return Study(
        name="alpha-path",
        recipe=recipe or named_recipe("paper-resnet18"),
        arms=() if alphas is None else tuple(_resampled([oversampler], alphas, nonpositive=nonpositive)),
        variants=variants,
        members=members,
        hardness_members=_hardness_members(variants * members),
        estimator=estimator,
        path=points if alphas is None else 0,
        path_from=arm if alphas is None else None,
        choose=Choice(validation, tolerance) if choose else None,
        seed=seed,
    )


STUDIES: Mapping[str, Callable[..., Study]] = {
    "quickstart": quickstart,
    "baseline": baseline,
    "case-study-1": case_study_1,
    "case-study-2": case_study_2,
    "pruning": pruning,
    "robustness": robustness,
    "alpha-path": alpha_path,
}

TINY_RECIPE = Recipe(
    name="tiny",
    model="cnn-8-16",
    epochs=6,
    batch_size=50,
    lr=0.05,
    schedule="triangular",
    flip=0.0,
    precision="float32",
)
# What makes each study seconds long on small generated images, with every kind of arm that it has. So short a training
# may leave a class with a negative margin: it is shifted.
_SHIFT: Mapping[str, Any] = {"nonpositive": "shift"}
TINY: Mapping[str, Mapping[str, Any]] = {
    "quickstart": {"members": 2, **_SHIFT},
    "baseline": {"members": 3},
    "case-study-1": {"rates": (0.5, 0.66), "alphas": (0.3,), "variants": 2, "members": 1, **_SHIFT},
    "case-study-2": {"alphas": (0.2, 0.4), "variants": 2, "members": 1, **_SHIFT},
    "pruning": {"rates": (0.3, 0.5), "variants": 2, "members": 1},
    "robustness": {"members": 4},
    "alpha-path": {"points": 3, "variants": 2, "members": 1, **_SHIFT},
}


def named_study(name: str, *, tiny: bool = False, overrides: Sequence[str] = (), **options: Any) -> Study:
    """A study by name, with options of its function changed; None stands for not given.

    Parameters
    ----------
    name : str
        One of `STUDIES`.
    tiny : bool
        The smallest grid that has every kind of arm, with a recipe of a tenth of a second.
    overrides : sequence of "field=value"
        Changes of its recipe.
    **options
        Of the study's function, and `num_classes` of the dataset.

    Raises
    ------
    ValueError
        If the study is unknown or takes no such option.
    """
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}: available are {', '.join(STUDIES)}")
    taken = inspect.signature(STUDIES[name]).parameters
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in taken and option != "num_classes":
            words = ", ".join(one.replace("_", "-") for one in taken if one != "num_classes")
            raise ValueError(f"study {name} takes no option {option.replace('_', '-')!r}: it takes {words}")
    if tiny:
        given = {**TINY[name], "recipe": TINY_RECIPE, **given}
    study = STUDIES[name](**{option: value for option, value in given.items() if option in taken})
    return dataclasses.replace(study, recipe=changed_recipe(study.recipe, overrides))


def _resampled(oversamplers: Sequence[str], alphas: Sequence[float], *, name: str = "", **common: Any) -> list[Arm]:
    """An arm for every oversampler and alpha."""
    return [
        Arm(f"{name}{oversampler}-{alpha:g}", alpha=float(alpha), oversample=oversampler, **common)
        for oversampler in oversamplers
        for alpha in alphas
    ]


def _grid(
    name: str, recipe: Recipe | None, arms: Sequence[Arm], variants: int, members: int, estimator: str, seed: int
) -> Study:
    return Study(
        name=name,
        recipe=recipe or named_recipe("paper-resnet18"),
        arms=tuple(arms),
        variants=variants,
        members=members,
        hardness_members=_hardness_members(variants * members),
        estimator=estimator,
        seed=seed,
    )


def _hardness_members(available: int) -> int:
    """The paper takes hardness from the first ten."""
    return min(HARDNESS_MEMBERS, available)
