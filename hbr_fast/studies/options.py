"""Checks of a study's options under the names that a user gave them, before they become arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbr_fast.arguments import did_you_mean
from hbr_fast.resampling import OVERSAMPLE


def require_possible(given: Mapping[str, Any]) -> None:
    """Refuse numbers of trainings below one, and unknown oversamplers.

    A study's function passes on what it is given: `members` of the quickstart are the variants of its study, and an
    unknown oversampler is a part of an arm's name. Errors of those would name what the user never wrote.

    Raises
    ------
    ValueError
    """
    for option in ("variants", "members"):
        if (count := given.get(option, 1)) < 1:
            raise ValueError(f"{option} must be at least 1, got {count}")
    for oversampler in given.get("oversamplers", ()):
        if oversampler not in OVERSAMPLE:
            raise ValueError(
                f"oversamplers must be among {', '.join(OVERSAMPLE)}; got {oversampler!r}"
                f"{did_you_mean(OVERSAMPLE, oversampler)}"
            )
