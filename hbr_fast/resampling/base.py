"""The class sizes that resampling starts from: the classes' own, equal ones, or sizes in between.

Balancing the classes and moving samples towards hard ones are two treatments. Starting from the classes' own sizes
leaves only the second.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Base = Literal["own", "balanced"] | float
NEARLY_EQUAL = 1.1  # largest over smallest class up to which a set counts as balanced


def resolved_base(base: Base | None, sizes_c: np.ndarray) -> Base:
    """The base, with the default filled in.

    Parameters
    ----------
    base : "own", "balanced", float in [0, 1] or None
        A number q stands for sizes to the power q. None is "own" where the sizes differ by more than a tenth, else
        "balanced".
    sizes_c : integer [C]
        Samples of each class.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if base is None:
        return "own" if sizes_c.max() > NEARLY_EQUAL * sizes_c.min() else "balanced"
    if base in ("own", "balanced"):
        return base
    if isinstance(base, str) or not 0 <= base <= 1:
        raise ValueError(
            f'base must be "own", "balanced" or an exponent of the class sizes in [0, 1], got {base!r}: 0 is balanced, '
            "1 own"
        )
    return float(base)


def base_sizes(base: Base, sizes_c: np.ndarray) -> np.ndarray | None:
    """The sizes of a resolved base, float64 [C] in any unit, for `allocate`; None if they are equal."""
    if base == "balanced":
        return None
    return sizes_c.astype(np.float64) ** (1.0 if base == "own" else base)
