"""The fields of a dataset's `meta.json`, and their check."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict

from hbr_fast.data.shards import STORE
from hbr_fast.json_schema import Natural, require_schema

SCHEMA, SCHEMA_ENCODED = 2, 3
_SCHEMAS = (1, SCHEMA, SCHEMA_ENCODED)  # schema 1 has no sample sources; schema 3 has encoded pictures
META = "meta.json"

REMEDY = "convert it again with --force"


class _File(TypedDict):
    sha256: str
    bytes: Natural


class _Parts(TypedDict):
    images: str
    labels: str


class _Split(TypedDict):
    samples: Natural
    shape: list[Natural]
    files: _Parts


class _EncodedParts(TypedDict):
    index: str
    shard00000: str
    labels: str


class _EncodedSplit(TypedDict):
    samples: Natural
    store: Literal["encoded"]
    channels: Natural
    files: _EncodedParts


class _Splits(TypedDict):
    train: dict
    test: dict


class _WithPixels(TypedDict):
    splits: dict[str, _Split]


class _WithPictures(TypedDict):
    splits: dict[str, _EncodedSplit]


class _Meta(TypedDict):
    """`meta.json`, beside its schema."""

    name: str
    source: dict
    classes: list[str]
    mean: list[float]
    std: list[float]
    splits: _Splits
    files: dict[str, _File]


def checked_meta(meta: Any, path: Path) -> dict[str, Any]:
    """Read `meta.json`, checking that every field that opening relies on is present and of the right type."""
    if not isinstance(meta, dict) or "schema" not in meta:
        raise ValueError(f"{path} is not a dataset's description (it has no schema): {REMEDY}")
    if meta["schema"] not in _SCHEMAS:
        raise ValueError(
            f"{path} has schema {meta['schema']!r} but this version of hbr-fast reads {SCHEMA_ENCODED} and older: "
            f"{REMEDY} or use the version that wrote it"
        )
    require_schema(meta, _Meta, where=str(path), remedy=REMEDY)
    for name in meta["files"]:
        if Path(name).name != name:
            raise ValueError(f"{path}: {name!r} in files is not a plain file name: {REMEDY}")
    for name, entry in meta["splits"].items():
        schema = _WithPictures if isinstance(entry, dict) and entry.get("store") == STORE else _WithPixels
        require_schema({"splits": {name[:80]: entry}}, schema, where=str(path), remedy=REMEDY)
        for file in entry["files"].values():
            if not isinstance(file, str) or file not in meta["files"]:
                raise ValueError(f"{path}: split {name!r} has a file {file!r} that is not under files: {REMEDY}")
    if not all(0 <= one <= 1 for one in meta["mean"]) or not all(0 < one <= 1 for one in meta["std"]):
        raise ValueError(f"{path}: mean {meta['mean']} or std {meta['std']} cannot be those of pixels: {REMEDY}")
    return meta
