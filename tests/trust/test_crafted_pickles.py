"""Pickles made to corrupt or exhaust memory through CIFAR's Python archives: each is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from .attempts import attempt

# Building blocks of an array's pickle, with parts that an attacker chooses.
PRELUDE = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR"


def dtype(name: bytes, state: bytes) -> bytes:
    return b"cnumpy\ndtype\n(U" + bytes([len(name)]) + name + b"K\0K\x01tR" + state


def array(dtype: bytes, content: bytes, sides: bytes = b"(K\x01t") -> bytes:
    return PRELUDE + b"(K\x01" + sides + dtype + b"\x89U" + bytes([len(content)]) + content + b"tb"


MINUS_1 = b"J\xff\xff\xff\xff"
PLAIN_STATE = b"(K\x03U\x01|NNN" + MINUS_1 + MINUS_1 + b"K\0tb"
OBJECT_AS_PLAIN = dtype(b"O8", PLAIN_STATE)
OBJECT_FIELD = b"}U\x01f(" + dtype(b"O8", b"") + b"K\0ts"
VOID_WITH_OBJECT = dtype(b"V8", b"(K\x03U\x01|N(U\x01ft" + OBJECT_FIELD + b"K\x08K\x01K\0tb")
FAR_FIELD = b"}U\x01f(" + dtype(b"u1", b"") + b"\x8a\x06\0\0\0\0\0\x01ts"
VOID_WITH_FAR_FIELD = dtype(b"V8", b"(K\x03U\x01|N(U\x01ft" + FAR_FIELD + b"K\x08K\x01K\0tb")
UINT8 = dtype(b"u1", PLAIN_STATE)

EMPTY = array(UINT8, b"", b"(K\0M\0\x0ct")
# Python's hash of a whole number is its remainder by 2^61 - 1.
COLLIDING = b"".join(b"\x8a\x0b" + (key * (2**61 - 1)).to_bytes(11, "little") + b"N" for key in range(1, 50_000))

ATTACKS = {
    "object dtype flagged as plain, item set": array(OBJECT_AS_PLAIN, b"A" * 8) + b"K\0K\x05s.",
    "object field of a plain dtype, item set": array(VOID_WITH_OBJECT, b"A" * 8) + b"K\0(K\x05ts.",
    "field far out of its item": array(VOID_WITH_FAR_FIELD, b"A" * 8) + b"K\0(K\x05ts.",
    "scalar of an object": b"cnumpy.core.multiarray\nscalar\n(" + OBJECT_AS_PLAIN + b"U\x08" + b"A" * 8 + b"tR.",
    "array of objects": b"}(U\x04data" + array(OBJECT_AS_PLAIN, b"A" * 8) + b"u.",
    "shape larger than the content": b"}(U\x04data" + array(UINT8, b"A" * 8, b"(J\xff\xff\xff\x7ft") + b"u.",
    "negative side": b"}(U\x04data" + array(UINT8, b"", b"(K\0" + MINUS_1 + b"t") + b"u.",
    "side that is no number": b"}(U\x06labels](K\x01eU\x04data" + array(UINT8, b"", b"(\x89M\0\x0ct") + b"u.",
    "content that is no bytes": b"}(U\x06labels](K\x01eU\x04data" + PRELUDE + b"(K\x01(K\x01M\0\x0ct" + UINT8
    + b"\x89X\0\x18\0\0" + "\u0100".encode() * 3072 + b"tbu.",
    "memo index": b"Nr\xff\xff\xff\x07.",
    "string longer than the file": b"T\xff\xff\xff\x7fabc.",
    "eight-byte length": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "millions of lists": b"]" * 5_000_000 + b".",
    "nested tuples": b")" + b"\x85" * 1_000_000 + b".",
    "one string encoded a thousand times": b"X\0\0\x10\0" + b"a" * (1 << 20) + b"q\0" + b"0"
    b"](" + b"c_codecs\nencode\n(h\0X\x06\0\0\0latin1tR" * 4000 + b"e.",
    "colliding keys": b"}(" + COLLIDING + b"u.",
    "number of a million digits": b"}(U\x06labels](L" + b"9" * 1_000_000 + b"\neu.",
    "label that is no number": b"}(U\x06labels](\x88eU\x04data" + PRELUDE + b"(K\x01(K\x01M\0\x0ct" + UINT8
    + b"\x89T\0\x0c\0\0" + b"A" * 3072 + b"tbu.",
    "number beyond 64 bits": b"}(U\x04data" + EMPTY + b"U\x06labels](\x8a\x09" + b"\xff" * 8 + b"\x7feu.",
    "own state": b"]}b.",
    "class of its own": b"cbuiltins\nobject\n)\x81.",
    "extension": b"\x82\x01.",
    "persistent": b"Pname\n.",
}  # fmt: skip

IMPORTS = """
from hbr_fast.data.sources.cifar import _pickled_dict, _python_part
"""


@pytest.mark.parametrize("attack", ATTACKS)
def test_load_plain_pickle_crafted(tmp_path: Path, attack: str) -> None:
    (tmp_path / "batch").write_bytes(ATTACKS[attack])
    outcome = attempt(
        'content = open("batch", "rb").read(); _python_part("labels")(content, "the-batch")',
        imports=IMPORTS,
        cwd=tmp_path,
    )
    assert outcome.kind == "ValueError", outcome
    assert outcome.message.startswith("the-batch"), outcome
    assert outcome.lines == 1
    assert len(outcome.message) < 300
