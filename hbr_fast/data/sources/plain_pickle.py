"""Reading the pickles of CIFAR's Python archives without unpickling them.

A pickle is a program, and numpy's classes trust the state that it gives them: a forged one writes to memory. So a few
dozen lines here interpret the program without `pickle` or numpy: its references to numpy's arrays and types become
inert records, and an array is made only from bytes whose number matches the shape.
"""

from __future__ import annotations

import io
import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

# CIFAR-100's train file has about 260,000; each makes at most a small object, so this bounds memory.
MOST_OPERATIONS = 2_000_000

_ENCODE = ("_codecs", "encode")  # how Python 3 pickles bytes in protocol 2
_DTYPE = ("numpy", "dtype")
_NDARRAY = ("numpy", "ndarray")
_RECONSTRUCT = ("numpy.core.multiarray", "_reconstruct")
_ADMITTED = {_ENCODE, _DTYPE, _NDARRAY, _RECONSTRUCT}

_UINT8_STATE = (3, "|", None, None, None, -1, -1, 0)

_IGNORED = {"PROTO", "FRAME"}
# Operations that push their argument on the stack.
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MEMORISE = {"PUT", "BINPUT", "LONG_BINPUT"}
_RECALL = {"GET", "BINGET", "LONG_BINGET"}


@dataclass
class PickledType:
    """A numpy type as a pickle describes it: its name (`u1`) and state, both unchecked."""

    name: Any
    state: Any = None


@dataclass
class PickledArray:
    """A numpy array as a pickle describes it: shape, type, memory order and content, all unchecked."""

    state: Any = None

    def uint8(self) -> np.ndarray | None:
        """The array, read-only, or None unless it is a complete uint8 array of at most two dimensions."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, dtype, fortran, content = self.state
        if not isinstance(dtype, PickledType) or dtype.name not in ("u1", "|u1"):
            return None
        if dtype.state not in (None, _UINT8_STATE) or not isinstance(fortran, int):
            return None
        if isinstance(content, str):  # from Python 2, whose strings are bytes
            try:
                content = content.encode("latin1")
            except UnicodeEncodeError:
                return None
        if not isinstance(content, bytes) or not isinstance(shape, tuple):
            return None
        # NumPy takes no bool as a side.
        if len(shape) > 2 or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
            return None
        if math.prod(shape) != len(content):
            return None
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def load_plain_pickle(content: bytes, where: str) -> Any:
    """Read a pickle made of arrays, bytes, strings, numbers, tuples, lists and dicts with strings as keys.

    Nothing that the pickle names is imported or called. Memory is bounded by a small multiple of the file's size.

    Parameters
    ----------
    content : bytes
        The pickle, of any protocol.
    where : str
        Its name in error messages.

    Returns
    -------
    object
        Python's own types; an array is a `PickledArray`. Byte strings of Python 2 become str, byte by byte.

    Raises
    ------
    ValueError
        If the pickle asks for anything else (the message names `where` and what it asks for) or is damaged.

    Examples
    --------
    >>> load_plain_pickle(b"}(U\\x06labels](K\\x03K\\x01eu.", "data_batch_1")
    {'labels': [3, 1]}
    """
    try:
        return _Walk(len(content)).run(content)
    except _Forbidden as error:
        raise ValueError(f"{where} asks for {error}, which plain data never needs: refuse this file") from None
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        # The error may quote the file at any length.
        raise ValueError(f"{where} is not a readable pickle of plain data ({error!s:.120}): fetch it again") from None


class _Forbidden(Exception):
    pass


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names; it is never imported."""

    module: str
    name: str


class _Walk:
    """The state of the interpreter: a stack, the positions of its marks, and the memo."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = size  # bytes that `encode` may still make: a file's strings are encoded once each

    def run(self, content: bytes) -> Any:
        for count, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if count >= MOST_OPERATIONS:
                raise _Forbidden(f"more than {MOST_OPERATIONS:,} operations")
            if operation.name == "STOP":
                break
            self.step(operation.name, argument)
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _MEMORISE:
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _RECALL:
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("LIST", "TUPLE", "DICT"):
            items = self.since_mark()
            stack.append(items if name == "LIST" else tuple(items) if name == "TUPLE" else _filled({}, items))
        elif name in _TUPLES:
            stack.append(tuple(self.popped(_TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            items = self.popped(1) if name == "APPEND" else self.since_mark()
            _checked(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.popped(2) if name == "SETITEM" else self.since_mark()
            _filled(_checked(stack[-1], dict), items)
        elif name == "GLOBAL":
            stack.append(_name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_name(*self.popped(2)))
        elif name == "REDUCE":
            function, arguments = self.popped(2)
            stack.append(self.called(_checked(function, _Name), _checked(arguments, tuple)))
        elif name == "BUILD":
            (state,) = self.popped(1)
            if not isinstance(stack[-1], PickledArray | PickledType):
                raise _Forbidden(f"a state for a {type(stack[-1]).__name__}")
            stack[-1].state = state
        elif name not in _IGNORED:
            raise _Forbidden(f"the operation {name}")

    def popped(self, count: int) -> list[Any]:
        """Pop the last `count` values off the stack."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise ValueError("its stack runs out")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def since_mark(self) -> list[Any]:
        return self.popped(len(self.stack) - self.marks.pop())

    def called(self, function: _Name, arguments: tuple[Any, ...]) -> Any:
        """The stand-in for the result of a call."""
        called = (function.module, function.name)
        if called == _ENCODE and len(arguments) == 2 and arguments[1] == "latin1":
            text = _checked(arguments[0], str)
            self.bytes_left -= len(text)
            if self.bytes_left < 0:
                raise _Forbidden("more bytes than it holds")
            return text.encode("latin1")
        if called == _DTYPE and arguments:
            return PickledType(arguments[0])
        if called == _RECONSTRUCT and arguments and arguments[0] == _Name(*_NDARRAY):
            return PickledArray()
        raise _Forbidden(f"a call of {function.module}.{function.name} with other arguments")


def _name(module: Any, name: Any) -> _Name:
    # numpy 1 and 2 spell the module differently.
    spelt = str(module).replace("numpy._core.", "numpy.core.")
    if (spelt, name) not in _ADMITTED:
        raise _Forbidden(f"{module!s:.60}.{name!s:.60}")
    return _Name(spelt, name)


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"it has a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _filled(target: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    if len(items) % 2:
        raise ValueError("it has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Python salts the hashes of strings: a file cannot choose keys that collide.
        target[_checked(key, str)] = value
    return target
