"""Array arguments: lists, numpy, torch, pandas. Ambiguous input is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def one_each(name: str, values: Any, *, of: str = "sample") -> np.ndarray:
    """One number per sample, or per class, as an array [N].

    Tensors may be of any type, on any device, and part of a graph. A pandas Series must be indexed by 0, 1, 2, ...

    Raises
    ------
    ValueError
        If it is a single number or a mapping, has masked entries, or a Series is indexed otherwise.
    """
    if isinstance(values, Mapping):
        raise ValueError(f"{name} must be one number a {of} in a row, got a mapping: {_of_mapping(of)}")
    if hasattr(values, "to_numpy") and hasattr(values, "index"):
        index = np.asarray(values.index)
        if not np.array_equal(index, np.arange(len(index))):
            raise ValueError(
                f"{name} is indexed by {index[:3].tolist()}... instead of 0, 1, 2, ...: give {name}.sort_index() or "
                f"reindex it by {of}, or {name}.to_numpy() if its order is by {of}"
            )
        values = values.to_numpy()
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.getmaskarray(values).any():
            first = int(np.flatnonzero(np.ma.getmaskarray(values))[0])
            raise ValueError(f"{name} is masked at position {first}: fill in a number, e.g. {name}.filled(0)")
        values = values.data
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.dtype.is_floating_point:
            values = values.double()  # numpy has no bfloat16
        values = values.numpy()
    array = np.asarray(values)
    if array.ndim == 0:
        raise ValueError(f"{name} must be one number a {of} in a row, got {values!r}")
    return array


def one_a_class(name: str, values: Any) -> np.ndarray:
    """One number per class, as an array [C]; a mapping must have the keys 0 to C - 1.

    Raises
    ------
    ValueError
        As in `one_each`, or if a mapping has other keys.
    """
    if isinstance(values, Mapping):
        if set(values) != set(range(len(values))):
            raise ValueError(
                f"{name} must have the labels 0 to {len(values) - 1} as keys, got {', '.join(map(repr, values))}: "
                f"{_of_mapping('class')}"
            )
        values = [values[c] for c in range(len(values))]
    return one_each(name, values, of="class")


def _of_mapping(of: str) -> str:
    return "by name, give [mapping[name] for name in classes]" if of == "class" else "by class, index it by the labels"
