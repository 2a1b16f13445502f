"""Checks of arguments that functions of every layer take."""

from __future__ import annotations

import contextlib
import operator
from typing import Any


def whole_number(name: str, value: Any) -> int:
    """An argument as an int, where it is a whole number of Python's, numpy's or torch's.

    Raises
    ------
    ValueError
        If it is anything else: a float would be cut off somewhere, and a bool stands for no number.
    """
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise ValueError(f"{name} must be a whole number, got {value!r}")
