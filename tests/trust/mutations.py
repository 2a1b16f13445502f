"""Random changes of a file's bytes: bits, numbers, words of text, cuts, repetitions, splices."""

from __future__ import annotations

import random
import re

_BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b'"', b"{", b"]", b",", b"-", b"9")
_NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63), 2**64 - 1)
_TOKENS = (
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"9" * 400,
    b"[" * 3000,
    b'{"a":' * 3000,
    b'"\\ud800"',
    b"\xff\xfe",
    b"18446744073709551616",
    b"\x80\x04K\x01.",
)


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to three random changes of a file; `other` is another file to splice with."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_CHANGES)(content, other, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    """A position, often near the start, where headers are."""
    most = len(content)
    return rng.randrange(min(most, 128) if rng.random() < 0.4 else most) if most else 0


def _flip(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :] if content else content


def _set(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.choice(_BYTES) + content[at + 1 :]


def _cut(content: bytes, other: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _remove(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + rng.choice((1, 2, 8, 64, 512)) :]


def _repeat(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at, size = _place(content, rng), rng.choice((1, 8, 64, 512))
    return content[:at] + content[at : at + size] * rng.choice((2, 3, 50)) + content[at + size :]


def _insert(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + (rng.choice(_TOKENS) if rng.random() < 0.5 else rng.randbytes(8)) + content[at:]


def _number(content: bytes, other: bytes, rng: random.Random) -> bytes:
    at, size = _place(content, rng), rng.choice((2, 4, 8))
    value = rng.choice(_NUMBERS) % (1 << 8 * size)
    return content[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]


def _digits(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Replace a run of digits, a word or a quoted string of text."""
    found = list(re.finditer(rb'\d+|"[^"\n]{0,40}"|[a-z_]{3,}', content[: 1 << 16]))
    if not found:
        return _number(content, other, rng)
    one = rng.choice(found)
    new = rng.choice((*_TOKENS, str(rng.choice(_NUMBERS)).encode(), rng.choice(found)[0]))
    return content[: one.start()] + new + content[one.end() :]


def _splice(content: bytes, other: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)] + other[_place(other, rng) :]


_CHANGES = (_flip, _flip, _set, _cut, _remove, _repeat, _insert, _number, _digits, _digits, _digits, _splice)
