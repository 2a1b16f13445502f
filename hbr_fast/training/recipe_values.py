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


# What a field can be, where its type does not say it.
ALLOWED = {
    "epochs": "at least 1",
    "batch_size": "at least 1",
    "lr": "a finite number above 0",
    "momentum": "at least 0 and below 1",
    "weight_decay": "a finite number, at least 0",
    "milestones": "epochs above 0, each later than the one before",
    "decay": "above 0 and at most 1",
    "warmup": "at least 0 and below 1",
    "label_smoothing": "at least 0 and below 1",
    "augment": "an Augment",
    "size": f"at least 1 and below {2**15}, or 0 for the images' own",
    "el2n_epochs": "at least 1",
    "online_every": "at least 0",
    "online_alpha": "a finite number, at least 0",
    "online_max_change": "at least 0 and at most 1",
    "norm_bias_lr": "a finite number above 0",
    "clip_norm": "a finite number, at least 0",
    "accumulate": "at least 1 and at most the batch size",
    "ema": "at least 0 and below 1",
    "mixup": "a finite number, at least 0",
    "cutmix": "a finite number, at least 0",
}


def form_of(kind: Any) -> str:
    """The texts that `parsed` takes for a field of a type, in words."""
    if get_origin(kind) is UnionType:
        return f"{form_of(get_args(kind)[0])}, or none"
    if get_origin(kind) is tuple:
        return f"{'whole numbers' if get_args(kind)[0] is int else 'numbers'} with commas between them"
    if get_origin(kind) is Mapping:
        return """a JSON object, e.g. '{"width": 2}'"""
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")


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
