"""Argument checks shared by all layers."""

from __future__ import annotations

import contextlib
import difflib
import operator
import re
from collections.abc import Iterable
from typing import Any


def whole_number(name: str, value: Any) -> int:
    """Convert an integer argument (an int, or a 0-d integer of numpy or torch) to Python's int.

    Every public integer argument is checked here. Integers of numpy and torch would overflow in the random number
    code, be different cache keys, and not serialize to JSON.

    Raises
    ------
    ValueError
        If it is anything else: a float would be truncated somewhere, and a bool is a mistake.

    Examples
    --------
    >>> import numpy as np
    >>> whole_number("epoch", np.int64(3))
    3
    """
    if type(value) is int:
        return value
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    if not is_bool and getattr(value, "ndim", 0) == 0:
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise ValueError(f"{name} must be a whole number, got {value!r}")


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Known names that it may be a misspelling of, the nearest first."""
    folded: dict[str, str] = {}
    for one in known:
        folded.setdefault(one.casefold(), one)
    return [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3)]


def did_you_mean(known: Iterable[str], *names: str) -> str:
    """The end of an error about unknown names: the known ones that are nearest, or nothing.

    Examples
    --------
    >>> did_you_mean(["step", "cosine"], "cosin")
    " (did you mean 'cosine'?)"
    >>> did_you_mean(["step", "cosine"], "linear")
    ''
    """
    nearest = [near[0] for name in names if (near := near_names(name, known))]
    return f" (did you mean {', '.join(map(repr, nearest))}?)" if nearest else ""


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def checked_bytes(name: str, value: Any) -> int:
    """A number of bytes, given as such or as text with a unit: kB, MB, GB, KiB, MiB or GiB.

    Raises
    ------
    ValueError
        If it is anything else, or negative.

    Examples
    --------
    >>> checked_bytes("cache", "256 MB")
    256000000
    """
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
        if found is None or found[2].lower() not in _UNITS:
            raise ValueError(f"{name} must be bytes or e.g. '256 MB' (kB, MB, GB, KiB, MiB, GiB), got {value!r}")
        return int(float(found[1]) * _UNITS[found[2].lower()])
    count = whole_number(name, value)
    if count < 0:
        raise ValueError(f"{name} cannot be negative, got {count}")
    return count
