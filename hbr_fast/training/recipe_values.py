"""Values of recipe fields: from the text of a command line, or from JSON and TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from hbr_fast.files import canonical_json


def parsed(text: str, kind: Any) -> Any:
    """The value of a command-line text for a field of a type.

    Raises
    ------
    ValueError
        If there is none.
    """
    if kind in (int, float):
        return kind(text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    if get_origin(kind) is UnionType:
        return None if text.lower() == "none" else parsed(text, get_args(kind)[0])
    if get_origin(kind) is tuple:
        return tuple(get_args(kind)[0](part) for part in text.split(",") if part)
    if get_origin(kind) is Mapping:
        return json.loads(text)
    return text


def fitted(value: Any, kind: Any) -> Any:
    """A value of JSON or TOML as a field of a type takes it: lists as tuples, whole numbers as floats.

    Raises
    ------
    ValueError
        If it is of another type.
    """
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else fitted(value, kinds[0])
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(fitted(one, kinds[0]) for one in value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, bool):
        raise ValueError
    expected = {Literal: str, Mapping: Mapping, None: kind}.get(origin, ())
    if not isinstance(value, expected):
        raise ValueError
    return value


def is_json_object(value: Any) -> bool:
    """Whether a value is a dict that JSON can hold."""
    try:
        return isinstance(value, Mapping) and bool(canonical_json(dict(value)))
    except (TypeError, ValueError):
        return False
