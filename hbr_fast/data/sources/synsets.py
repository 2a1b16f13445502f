"""ImageNet's `meta.mat`: the WordNet ids of its numbered classes, by as much of MATLAB's format as that takes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_MATRIX, _COMPRESSED = 14, 15
_CHAR, _STRUCT = 4, 2
# struct's codes of the element types that hold numbers or letters
_CODES = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q", 16: "B"}
_HEADER_BYTES, _MOST_BYTES = 128, 64 << 20  # the original has 67 kB, 2 MB when decompressed
_MOST_SYNSETS = 100_000


def read_synsets(content: bytes, where: str) -> dict[int, str]:
    """Class numbers and WordNet ids of the synsets without children, which are the classes.

    Parameters
    ----------
    content : bytes
        A MATLAB file of version 5 with the structure `synsets`: fields `ILSVRC2012_ID`, `WNID` and, for the full tree,
        `num_children`.
    where : str
        The file's path, for messages.

    Raises
    ------
    ValueError
        If it is something else, or damaged.
    """
    try:
        if content[126:128] != b"IM":
            raise ValueError("it is not a little-endian MATLAB file of version 5")
        for kind, body in _elements(content[_HEADER_BYTES:]):
            if kind == _COMPRESSED:
                inflater = zlib.decompressobj()
                inflated = inflater.decompress(body, _MOST_BYTES)
                if inflater.unconsumed_tail:
                    raise ValueError("it unpacks to far more than the original")
                kind, body = next(_elements(inflated))
            if kind == _MATRIX and (array := _array(body)).name == "synsets" and array.kind == _STRUCT:
                return _names(array)
        raise ValueError("it has no structure synsets")
    except (ValueError, LookupError, StopIteration, struct.error, zlib.error, OverflowError) as error:
        raise ValueError(f"{where} is not ImageNet's meta.mat ({error}): take it from the development kit") from None


@dataclass(frozen=True)
class _Array:
    """An array's class and name, its number of elements, and the elements after its name."""

    kind: int
    name: str
    count: int
    parts: Iterator[tuple[int, bytes]]


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each element."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, at)
        if kind >> 16:  # up to four bytes are packed into the tag
            kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            after = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(content):
            raise ValueError("it is truncated")
        yield kind, content[start : start + size]
        at = after


def _array(body: bytes) -> _Array:
    parts = _elements(body)
    flags, shape, name = next(parts), next(parts), next(parts)
    count = 1
    for length in _numbers(*shape):
        count *= int(length)
    return _Array(flags[1][0], name[1].decode("latin-1"), count, parts)


def _numbers(kind: int, body: bytes) -> tuple[float, ...]:
    code = _CODES[kind]
    return struct.unpack(f"<{len(body) // struct.calcsize('<' + code)}{code}", body)


def _names(synsets: _Array) -> dict[int, str]:
    if not 0 < synsets.count <= _MOST_SYNSETS:
        raise ValueError(f"it has {synsets.count} synsets")
    width = int(_numbers(*next(synsets.parts))[0])
    joined = next(synsets.parts)[1]
    fields = [
        joined[at : at + width].rstrip(b"\0").decode("latin-1") for at in range(0, len(joined), width) if width > 0
    ]
    found: dict[int, str] = {}
    for _ in range(synsets.count):
        values = {}
        for field in fields:
            value = _array(next(synsets.parts)[1])
            if field in ("ILSVRC2012_ID", "WNID", "num_children"):
                letters_or_number = _numbers(*next(value.parts))
                is_text = value.kind == _CHAR
                values[field] = "".join(map(chr, map(int, letters_or_number))) if is_text else int(letters_or_number[0])
        if not values.get("num_children", 0):
            found[int(values["ILSVRC2012_ID"])] = str(values["WNID"])
    return found
