"""Schemas of the JSON files that the package writes and reads back: declared as types, checked by one parser."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NotRequired, TypeVar, Union

from hbr_fast.files import content_hash, read_json, write_json

T = TypeVar("T")

Natural = Annotated[int, "not negative"]
CHECKSUM = "sha256"  # the field of a sealed file that holds the hash of the others
_MOST_SHOWN = 3  # faults in one message
_LARGEST = 2**64  # seeds are 64-bit numbers
_MISSING = object()


def write_sealed_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write a JSON object with a checksum of its fields, atomically."""
    fields = {name: one for name, one in value.items() if name != CHECKSUM}
    write_json(path, {**fields, CHECKSUM: content_hash(fields)})


def read_sealed_json(path: str | os.PathLike[str], *, remedy: str) -> Any:
    """Read a JSON file whose checksum, if it has one, must be that of its fields.

    Files that earlier versions wrote have none.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not JSON, or was changed; the message names it.
    """
    value = read_json(path)
    if isinstance(value, dict) and CHECKSUM in value:
        fields = {name: one for name, one in value.items() if name != CHECKSUM}
        if value[CHECKSUM] != content_hash(fields):
            raise ValueError(f"{path} was changed after it was written (another checksum): {remedy}")
    return value


def require_schema(value: Any, schema: Any, *, where: str, remedy: str) -> None:
    """Raise unless a JSON value has the declared type.

    Parameters
    ----------
    value
        The result of a JSON parser.
    schema : type
        `bool`, `int` (64 bits), `float` (also whole numbers), `str`, `None`, `Any`, `dict`, `list`, a `Literal`,
        `Natural`, `list[...]`, `dict[str, ...]`, a union of these, or a `TypedDict`; keys that it does not declare
        are allowed.
    where, remedy : str
        Start and end of the message.

    Raises
    ------
    ValueError
        Names the fields that are missing or of another type.
    """
    faults = list(_faults(value, schema, ""))
    if faults:
        more = f"; and {len(faults) - _MOST_SHOWN} more" if len(faults) > _MOST_SHOWN else ""
        raise ValueError(f"{where}: {'; '.join(faults[:_MOST_SHOWN])}{more}: {remedy}")


def _faults(value: Any, schema: Any, field: str) -> Iterator[str]:
    """A phrase for every part of a value that does not fit."""
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if origin in (Union, types.UnionType):
        if all(next(_faults(value, kind, field), None) for kind in arguments):
            yield _fault(field, schema)
    elif not _is(value, dict if typing.is_typeddict(schema) else origin if origin in (dict, list) else schema):
        yield _fault(field, schema)
    elif typing.is_typeddict(schema):
        for name, kind in typing.get_type_hints(schema, include_extras=True).items():
            optional = typing.get_origin(kind) is NotRequired
            if name in value or not optional:
                kind = typing.get_args(kind)[0] if optional else kind
                yield from _faults(value.get(name, _MISSING), kind, f"{field}.{name}" if field else name)
    elif origin is list:
        for index, one in enumerate(value):
            yield from _faults(one, arguments[0], f"{field}[{index}]")
    elif origin is dict:
        for name, one in value.items():
            yield from _faults(one, arguments[1], f"{field}.{name:.80}" if field else f"{name:.80}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a simple type."""
    if kind is Any:
        return value is not _MISSING
    if typing.get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in typing.get_args(kind))
    if kind == Natural:
        return _is(value, int) and value >= 0
    if kind is int:
        return type(value) is int and abs(value) < _LARGEST
    if kind is float:
        return type(value) is float or _is(value, int)
    return type(value) is (types.NoneType if kind is None else kind)


def _fault(field: str, schema: Any) -> str:
    return f"field {field} is missing or not a {_name(schema)}" if field else f"it is not a {_name(schema)}"


def _name(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(one) for one in typing.get_args(kind))
    if origin is Literal:
        return " or ".join(repr(one) for one in typing.get_args(kind))
    if kind == Natural:
        return "int >= 0"
    if typing.is_typeddict(kind):
        return "dict"
    return "null" if kind in (None, types.NoneType) else str(getattr(origin or kind, "__name__", kind))
