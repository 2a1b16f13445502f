"""Run a compiled kernel on several threads: those of torch, so that nothing waits for a thread to wake up.

torch's CPU operators run on an OpenMP team that stays hot between them. A kernel that ran on threads of its own would
compete with that team for the cores; here it joins it, by the very entry that torch's compiler emits calls to
(`GOMP_parallel` of the OpenMP library that torch is linked with). Calling a team costs a few microseconds.

A kernel is a C function that numba compiled. It works on the items `[first, last)` and finds everything else through
`words`, the integers that the caller of `run` passed: numbers, and addresses of arrays that the caller keeps alive::

    @nb.cfunc(team.KERNEL, cache=True)
    def double(first, last, words):
        values = team.array_at(words[0], (words[1],), np.float32)
        for i in range(first, last):
            values[i] *= 2

    team.run(double, len(values), (values.ctypes.data, len(values)))

* Items are handed out in pieces, to whichever thread is free, each exactly once: kernels must not depend on who gets
  what. Scratch memory is best made in the kernel (once a piece).
* A kernel cannot raise: it writes a code where its caller looks. An exception in it is printed and lost.
* The GIL is released meanwhile. Any Python thread may call `run`, several at once too.
* One thread is a direct call. So is everything where there is no such team: another build of torch, and a process
  forked from one that had a team (its threads do not survive a fork).
"""

from __future__ import annotations

import ctypes
import functools
import os
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numba as nb
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

KERNEL = types.void(types.int64, types.int64, types.CPointer(types.int64))  # first, last, words

_PIECES = 4  # a thread: one that starts late takes fewer of them
_NEXT, _COUNT, _PIECE, _KERNEL, _WORDS, _TASK_WORDS = range(6)

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(kernel: Any, count: int, words: Sequence[int], *, threads: int | None = None, piece: int | None = None) -> None:
    """Call `kernel(first, last, words)` until the items 0 ... count - 1 are done, on several threads.

    Parameters
    ----------
    kernel : numba cfunc of signature `KERNEL`
    count : int
        How many items there are.
    words : sequence of int
        What the kernel finds in `words`; addresses stay valid only while the caller holds what they point to.
    threads : int, optional
        How many at most; default `torch.get_num_threads()`.
    piece : int, optional
        Items a call gets at most; default a quarter of a thread's share.
    """
    threads = torch.get_num_threads() if threads is None else threads
    if piece is None:
        piece = -(-count // (threads * _PIECES)) if threads > 1 else count
    if count == 0:
        return
    given = array("q", words)
    task = array("q", (0, count, piece, kernel.address, given.buffer_info()[0]))
    threads = min(threads, -(-count // piece))
    parallel = team() if threads > 1 and not _forked else None
    if parallel is not None:
        parallel(_work_address, task.buffer_info()[0], threads, 0)
    else:
        _work_alone(task.buffer_info()[0])


@functools.cache
def team() -> Callable[[int, int, int, int], None] | None:
    """The entry into the OpenMP team of torch: of a function, its argument, the number of threads, 0; None without one.

    It is looked up among the libraries that torch itself is linked with: a process may have loaded several.
    """
    try:
        parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


@nb.njit(inline="always")
def array_at(address, shape, dtype):
    """The C-contiguous array at an address (compiled code only)."""
    return nb.carray(_pointer(address), shape, dtype)


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


@intrinsic
def _claim(typingctx: Any, address: Any, size: Any) -> Any:
    """Add `size` to the int64 at an address (`_NEXT` of a task), atomically; returns what it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _call(typingctx: Any, kernel: Any, first: Any, last: Any, words: Any) -> Any:
    """Call the kernel at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [word, word, word.as_pointer()])
        pointer = builder.inttoptr(args[0], function.as_pointer())
        builder.call(pointer, [args[1], args[2], builder.inttoptr(args[3], word.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@nb.cfunc(types.void(types.int64), cache=True)  # the address of a task
def _work(address):
    """What each thread of the team does: pieces, until none is left."""
    task = array_at(address, (_TASK_WORDS,), np.int64)
    count, piece = task[_COUNT], task[_PIECE]
    while True:
        first = _claim(address, piece)
        if first >= count:
            return
        _call(task[_KERNEL], first, min(first + piece, count), task[_WORDS])


_work_address: Any = _work.address
_work_alone = _work.ctypes
