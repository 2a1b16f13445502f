"""The named studies: each function returns its grid of trainings (docs/studies.md).

Sizes follow Pukowski & Osmani, arXiv 2504.07031, and are parameters.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hbr_fast.arguments import did_you_mean
from hbr_fast.loaders.augment import Augment
from hbr_fast.resampling.allocation import Nonpositive
from hbr_fast.resampling.base import Base
from hbr_fast.resampling.pools import POOL
from hbr_fast.resampling.pruning import By, Level
from hbr_fast.studies.balance import with_balanced_control, with_base
from hbr_fast.studies.controls import with_controls
from hbr_fast.studies.options import require_possible
from hbr_fast.studies.study import BASELINE, Arm, Choice, Pruning, Study
from hbr_fast.training.recipe import Recipe, changed_recipe
from hbr_fast.training.recipes import named_recipe

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
    """Does resampling close the recall gap? One arm, one resampled set per member, minutes on two cores."""
    return Study(
        name="quickstart",
        recipe=recipe or named_recipe("quickstart"),
        arms=(Arm("hbr", alpha, nonpositive=nonpositive, clip=clip),),
        variants=members,
        members=1,
        estimator=estimator,
        seed=seed,
    )


def balance(
    *,
    recipe: Recipe | None = None,
    alpha: float = 0.25,
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    estimator: str = "aum",
    members: int = 4,
    seed: int = 0,
) -> Study:
    """Balance against hardness on classes of different sizes.

    Three arms: the balanced set, hardness from the classes' own sizes, and hardness from equal ones, which is compared
    with the balanced set.
    """
    arm = Arm("hardness", alpha, base="own", nonpositive=nonpositive, clip=clip)
    both = dataclasses.replace(arm, name="balanced-hardness", base="balanced")
    study = Study(
        name="balance",
        recipe=recipe or named_recipe("quickstart"),
        arms=(both, arm),
        variants=members,
        members=1,
        estimator=estimator,
        seed=seed,
    )
    return with_balanced_control(study)


def remedies(
    *,
    recipe: Recipe | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    tau: float = 0.5,
    against: str = BASELINE,
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    estimator: str = "aum",
    variants: int = 4,
    members: int = 1,
    seed: int = 0,
) -> Study:
    """Is resampling better than another loss? Each remedy at the cost of the baseline: as many epochs of as many rows.

    By hardness: `resampled`, and `reweighted`, which keeps every sample and weighs its class in the loss by what
    resampling would make of its size. As much, but not by hardness: `other-class`, which gives every class the hardness
    of another. By class sizes: `balanced`, resampled to equal classes; `class-weighted`; `balanced-softmax`;
    `logit-adjusted` with `tau`. Neither: `focal` with `gamma`. On classes of equal sizes those by sizes are the
    baseline. `against` is the arm that the others are compared with, "baseline" or one of them.
    """

    def other_loss(name: str, **arguments: Any) -> Arm:
        loss = "cross-entropy" if name == "class-weighted" else name
        changes = (f"loss={loss}", f"loss_args={json.dumps(arguments)}")
        return Arm(name, undersample="none", oversample="none", changes=changes)

    resampled = Arm("resampled", alpha, nonpositive=nonpositive, clip=clip)
    arms = (
        resampled,
        dataclasses.replace(resampled, name="reweighted", reweight=True),
        dataclasses.replace(resampled, name="other-class", other_class=True),
        Arm("balanced", base="balanced", nonpositive="shift"),  # no hardness counts at alpha 0, so none may stop it
        other_loss("class-weighted", class_weight="balanced"),
        other_loss("balanced-softmax"),
        other_loss("logit-adjusted", tau=tau),
        other_loss("focal", gamma=gamma),
    )
    return Study(
        name="remedies",
        recipe=recipe or named_recipe("paper-resnet18"),
        arms=tuple(arm if arm.name == against else dataclasses.replace(arm, against=against) for arm in arms),
        variants=variants,
        members=members,
        hardness_members=_hardness_members(variants * members),
        estimator=estimator,
        seed=seed,
    )


def baseline(
    *, recipe: Recipe | None = None, members: int = 16, variants: int = 1, estimator: str = "aum", seed: int = 0
) -> Study:
    """Many members trained on the full set: the reference for everything else."""
    return _grid("baseline", recipe, (), variants, members, estimator, seed)


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
    """Every class loses a random share of its samples; resampling works with the rest, at its size.

    At each rate the others are compared with the arm without resampling. The oversampler "holdout" adds real
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
    controls: bool = False,
    num_classes: int = 10,
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    variants: int = 4,
    members: int = 4,
    estimator: str = "aum",
    seed: int = 0,
) -> Study:
    """The full set: easy classes lose their easiest samples, hard ones gain some, for several oversamplers and alphas.

    By default alpha is 1, 3 and 5, or 1 and 2 above 20 classes. `controls` adds arms that the paper does not have
    (`hbr_fast.studies.controls.with_controls`).
    """
    if alphas is None:
        alphas = (1.0, 3.0, 5.0) if num_classes <= 20 else (1.0, 2.0)
    arms = _resampled(oversamplers, alphas, nonpositive=nonpositive, clip=clip)
    study = _grid("case-study-2", recipe, arms, variants, members, estimator, seed)
    return with_controls(study) if controls else study


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
    """Drop the easiest samples, of each class alike or of the whole set, which takes more from easy classes."""
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
    """How many members hardness needs and whether estimators agree: a baseline ensemble, examined closely."""
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
    validation: float | None = None,
    tolerance: float = 0.005,
    variants: int = 4,
    members: int = 4,
    estimator: str = "aum",
    seed: int = 0,
) -> Study:
    """The gap against accuracy along alpha, from 0 (the baseline) to the largest feasible one in geometric steps.

    With `choose`, alpha is chosen on samples that no training sees, the dataset's validation split or a share
    `validation` of the train split (see `Choice`): the smallest gap whose accuracy is at most `tolerance` below the
    baseline's. The test split is then evaluated for that alpha and the baseline only.
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
    "balance": balance,
    "remedies": remedies,
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
    augment=Augment(),
    precision="float32",
)
# Each study in about a minute on small generated images, with every kind of arm that it has. Such a short training may
# leave a class with a negative margin: it is shifted.
_SHIFT: Mapping[str, Any] = {"nonpositive": "shift"}
TINY: Mapping[str, Mapping[str, Any]] = {
    "quickstart": {"members": 2, **_SHIFT},
    "balance": {"members": 2, **_SHIFT},
    "remedies": {"variants": 2, **_SHIFT},
    "baseline": {"members": 3},
    "case-study-1": {"rates": (0.5, 0.66), "alphas": (0.3,), "variants": 2, "members": 1, **_SHIFT},
    "case-study-2": {"alphas": (0.2, 0.4), "variants": 2, "members": 1, **_SHIFT},
    "pruning": {"rates": (0.3, 0.5), "variants": 2, "members": 1},
    "robustness": {"members": 4},
    "alpha-path": {"points": 3, "variants": 2, "members": 1, **_SHIFT},
}


def named_study(
    name: str,
    *,
    tiny: bool = False,
    overrides: Sequence[str] = (),
    base: Base | None = None,
    balanced_control: bool = False,
    metric: str | None = None,
    **options: Any,
) -> Study:
    """A study by name, with options of its function changed; None leaves the default.

    Parameters
    ----------
    name : str
        One of `STUDIES`.
    tiny : bool
        The smallest grid that has every kind of arm, with a recipe that trains in a tenth of a second.
    overrides : sequence of "field=value"
        Changes to its recipe.
    base : "own", "balanced" or float in [0, 1], optional
        Class sizes that its arms start from, see `hbr_fast.resample_by_hardness`.
    balanced_control : bool
        Add the balanced set, see `hbr_fast.studies.balance.with_balanced_control`.
    metric : str, optional
        The metric of a class that the study is about, one of `METRICS`; by default recall.
    **options
        Of the study's function, and `num_classes` of the dataset.

    Raises
    ------
    ValueError
        If the study is unknown or has no such option, or no arm for which the base counts.
    """
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}: available are {', '.join(STUDIES)}{did_you_mean(STUDIES, name)}")
    taken = inspect.signature(STUDIES[name]).parameters
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if isinstance(value, tuple | list) and not value:
            raise ValueError(f"{option.replace('_', '-')} has no value: give it at least one, or leave it out")
        if option not in taken and option != "num_classes":
            words = ", ".join(one.replace("_", "-") for one in taken if one != "num_classes")
            raise ValueError(f"study {name} takes no option {option.replace('_', '-')!r}: it takes {words}")
    require_possible(given)
    if tiny:
        given = {**TINY[name], "recipe": TINY_RECIPE, **given}
    study = STUDIES[name](**{option: value for option, value in given.items() if option in taken})
    if base is not None:
        study = with_base(study, base)
    if balanced_control:
        study = with_balanced_control(study)
    if metric is not None:
        study = dataclasses.replace(study, metric=metric)
    return dataclasses.replace(study, recipe=changed_recipe(study.recipe, overrides))


def _resampled(oversamplers: Sequence[str], alphas: Sequence[float], *, name: str = "", **common: Any) -> list[Arm]:
    """One arm per oversampler and alpha."""
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
