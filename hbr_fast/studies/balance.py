"""Balance against hardness: the class sizes that a study's arms start from, and the balanced set as a control.

On classes of different sizes an arm that starts from equal ones does two things at once: it balances the classes, and
it moves samples towards the hard ones. The balanced control does only the first.
"""

from __future__ import annotations

import dataclasses

from hbr_fast.resampling.base import Base
from hbr_fast.resampling.pruning import Pruning
from hbr_fast.studies.study import BASELINE, Arm, Study

BALANCED = "balanced"


def with_base(study: Study, base: Base) -> Study:
    """The study with all arms that resample starting from this base.

    Raises
    ------
    ValueError
        If none does.
    """
    if study.path_from is None and not any(arm.resamples for arm in study.arms):
        raise ValueError(f"study {study.name} has no arm that resamples, so a base would change nothing")
    return dataclasses.replace(
        study,
        arms=tuple(dataclasses.replace(arm, base=base) if arm.resamples else arm for arm in study.arms),
        path_from=None if study.path_from is None else dataclasses.replace(study.path_from, base=base),
    )


def with_balanced_control(study: Study) -> Study:
    """The study with the balanced set as a further arm, before the arms that it is the control of.

    Arms that start from balanced classes are then compared with it instead of with the baseline: the difference is what
    hardness does. Where arms prune first, so does their control.
    """
    controls: dict[tuple[Pruning | None, str], Arm] = {
        (arm.prune, arm.against): arm for arm in study.arms if arm.alpha == 0 and arm.base == "balanced"
    }

    def control(arm: Arm) -> Arm:
        name = BALANCED if arm.against == BASELINE else f"{arm.against}-{BALANCED}"
        # No hardness counts at alpha 0, so none may stop it.
        made = Arm(name, base="balanced", nonpositive="shift", prune=arm.prune, against=arm.against)
        return controls.setdefault((arm.prune, arm.against), made)

    def compared(arm: Arm) -> Arm:
        own = control(arm)
        return dataclasses.replace(arm, against=own.name) if arm.base == "balanced" else arm

    there = {arm.name for arm in controls.values()}
    arms: list[Arm] = []
    for arm in study.arms:
        if arm.alpha > 0 and arm.against not in there:
            own = control(arm)
            if own not in arms and own not in study.arms:
                arms.append(own)
            arm = compared(arm)
        arms.append(arm)
    path_from = None if study.path_from is None else compared(study.path_from)
    if path_from is not None or not controls:
        own = control(Arm(BALANCED, base="balanced"))
        if own not in arms:
            arms.append(own)
    return dataclasses.replace(study, arms=tuple(arms), path_from=path_from)
