"""Controls of resampling by hardness: arms that change as much, but not by hardness."""

from __future__ import annotations

import dataclasses

from hbr_fast.studies.balance import BALANCED
from hbr_fast.studies.study import Arm, Study


def with_controls(study: Study) -> Study:
    """The study with controls of its arms that resample the full set by hardness.

    For the first arm of each alpha: `other-class-ALPHA` gives every class the hardness of another, so that as much is
    resampled; `reweighted-ALPHA` keeps all samples and weighs the classes in the loss by the same ratios. Both are
    compared with that arm. `balanced`, once, gives the classes equal sizes; where they have them, it is the baseline.
    """
    first: dict[float, Arm] = {}
    for arm in study.arms:
        first.setdefault(arm.alpha, arm)
    # No hardness counts at alpha 0, so none may stop it.
    controls = [Arm(BALANCED, base="balanced", nonpositive="shift")]
    for alpha, arm in first.items():
        compared = dataclasses.replace(arm, against=arm.name)
        controls += [
            dataclasses.replace(compared, name=f"other-class-{alpha:g}", other_class=True),
            # How samples would be added does not matter to weights, and "random" needs neither pool nor neighbours.
            dataclasses.replace(compared, name=f"reweighted-{alpha:g}", oversample="random", reweight=True),
        ]
    return dataclasses.replace(study, arms=(*study.arms, *controls))
