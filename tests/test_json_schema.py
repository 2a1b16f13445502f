"""Declared schemas of JSON files: every fault is named, and a changed value is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from hbr_fast.json_schema import Natural, read_sealed_json, require_schema, write_sealed_json


class Part(TypedDict):
    size: Natural
    note: NotRequired[str]


class Whole(TypedDict):
    name: str
    parts: list[Part]
    shares: dict[str, float | None]
    kind: Literal["a", "b"]
    free: Any


GOOD: dict[str, Any] = {"name": "x", "parts": [{"size": 3}], "shares": {"a": 1, "b": None}, "kind": "a", "free": []}


def test_require_schema_accepts_what_fits_and_more() -> None:
    require_schema(GOOD, Whole, where="f", remedy="r")
    require_schema({**GOOD, "other": 1, "parts": []}, Whole, where="f", remedy="r")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"name": 3}, "field name is missing or not a str"),
        ({"parts": {}}, "field parts is missing or not a list"),
        ({"parts": [{"size": -1}]}, r"field parts\[0\]\.size is missing or not a int >= 0"),
        ({"parts": [{"size": True}]}, r"field parts\[0\]\.size"),
        ({"parts": [{"size": 2**64}]}, r"field parts\[0\]\.size"),
        ({"parts": [{"size": 1.0}]}, r"field parts\[0\]\.size"),
        ({"parts": [{"size": 1}, {"size": 1, "note": 2}]}, r"field parts\[1\]\.note is missing or not a str"),
        ({"parts": [7]}, r"field parts\[0\] is missing or not a dict"),
        ({"shares": {"a": "1"}}, "field shares.a is missing or not a float or null"),
        ({"kind": "c"}, "field kind is missing or not a 'a' or 'b'"),
        ({"name": 3, "parts": 3, "shares": 3, "kind": 3}, "name .*; field parts .*; field shares .*; and 1 more: r"),
    ],
)
def test_require_schema_names_faults(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=rf"^f: .*{fault}"):
        require_schema({**GOOD, **change}, Whole, where="f", remedy="r")


def test_require_schema_names_missing_fields() -> None:
    with pytest.raises(ValueError, match=r"^f: field free is missing or not a Any: r$"):
        require_schema({name: value for name, value in GOOD.items() if name != "free"}, Whole, where="f", remedy="r")
    with pytest.raises(ValueError, match=r"^f: it is not a dict: r$"):
        require_schema([], Whole, where="f", remedy="r")


def test_sealed_json_with_one_byte_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed_json(path, GOOD)
    content, right = path.read_bytes(), read_sealed_json(path, remedy="r")
    assert {name: value for name, value in right.items() if name != "sha256"} == GOOD
    write_sealed_json(path, right)
    assert path.read_bytes() == content
    refusals = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = read_sealed_json(path, remedy="r")
        except ValueError as error:
            refusals += str(error).startswith(str(path))
        else:
            assert {name: found.get(name) for name in GOOD} == GOOD, place
    assert refusals > len(content) / 2


def test_read_sealed_json_accepts_files_without_a_checksum(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    assert read_sealed_json(tmp_path / "a.json", remedy="r") == GOOD
