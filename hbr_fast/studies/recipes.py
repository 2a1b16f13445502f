"""The named studies: each function returns the grid of trainings it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hbr_fast.allocation import Nonpositive
from hbr_fast.studies.study import Arm, Study
from hbr_fast.training.recipe import named_recipe


def quickstart(
    *,
    alpha: float = 0.25,
    nonpositive: Nonpositive | None = None,
    clip: bool = False,
    members: int = 4,
    seed: int = 0,
) -> Study:
    """Does resampling close the recall gap? One arm, one resampled set a member, minutes on two cores."""
    return Study(
        name="quickstart",
        recipe=named_recipe("quickstart"),
        arms=(Arm("hbr", alpha, nonpositive=nonpositive, clip=clip),),
        variants=members,
        members=1,
        seed=seed,
    )


STUDIES: Mapping[str, Callable[..., Study]] = {"quickstart": quickstart}
