"""Runs a compiled kernel on torch's own threads, so that nothing waits for a thread to wake up.

torch's CPU operators share a team of OpenMP threads that keep spinning between calls. Threads of our own would compete
with them for the cores, so kernels run on the same team, through the entry that code from torch's compiler uses
(`GOMP_parallel` of the OpenMP library that torch is linked with). Calling the team costs a few microseconds.

A kernel is a C function compiled by numba. It works on the items `[first, last)` and finds everything else through
`words`, integers that the caller of `run` passes: numbers, and addresses of arrays that the caller keeps alive::

    @nb.cfunc(team.KERNEL, cache=CACHE)
    def double(first, last, words):
        values = team.array_at(words[0], (words[1],), np.float32)
        for i in range(first, last):
            values[i] *= 2

    team.run(double, len(values), (values.ctypes.data, len(values)))

* Each thread has the same share of the items in every call, so that what a core wrote is still in its cache when it is
  read. It works through its share in pieces, then takes pieces of other threads' shares. Each item is done exactly
  once, but a kernel must not depend on which thread does it. Scratch memory is best allocated in the kernel, once per
  piece.
* A kernel cannot raise: an exception in it is printed and lost. It writes a code where its caller looks instead.
* The GIL is released meanwhile. Any Python thread may call `run`, also several at once.
* With one thread, `run` is a direct call. So it is without a team: with another build of torch, or in a process forked
  from one that had a team, whose threads do not survive the fork.
"""

from __future__ import annotations

import ctypes
import functools
import os
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from hbr_fast.kernels.cache import CACHE

KERNEL = types.void(types.int64, types.int64, types.CPointer(types.int64))  # first, last, words

_PIECES = 4  # per thread: others take over some of the pieces of a thread that starts late
# A task is an array of words. Its head: the number of stages and of threads, the addresses of the functions that return
# a thread's number and that wait for all threads (0 with one thread), and the address of the counters of claimed items,
# one per stage and thread. Then for each stage: items, items per piece, kernel, its words, and whether to wait before
# it.
_STAGES, _THREADS, _THREAD_NUMBER, _BARRIER, _CLAIMED, _HEAD_WORDS = range(6)
_COUNT, _PIECE, _KERNEL, _WORDS, _WAIT, _STAGE_WORDS = range(6)
_LINE = 8  # words between two counters, so that they never share a cache line


class Stage(NamedTuple):
    """One step of a task: the parameters of `run`, with `items` for `count`.

    Words in an `array("q")` are used in place, so that stages may share them and a caller may change them between runs.
    Threads wait for each other before a stage unless `wait` is false: then it must need nothing from the stage before.
    """

    kernel: Any
    items: int
    words: Sequence[int]
    piece: int | None = None
    wait: bool = True


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
        What the kernel finds in `words`. The caller keeps alive what addresses among them point to.
    threads : int, optional
        How many at most; default `torch.get_num_threads()`.
    piece : int, optional
        At most this many items per call; default a quarter of a thread's share.
    """
    if count:
        run_stages(Stage(kernel, count, words, piece), threads=threads)


def run_stages(*stages: Stage, threads: int | None = None) -> None:
    """Run stages one after another, each on all threads: cheaper than calling `run` for each. No count may be 0."""
    Task(*stages, threads=threads).run()


class Task:
    """What `run_stages` does, prepared once and run many times while the words change; one caller at a time."""

    def __init__(self, *stages: Stage, threads: int | None = None) -> None:
        threads = torch.get_num_threads() if threads is None else threads
        most = 1
        self._words = []
        described: list[int] = []
        for kernel, count, words, piece, wait in stages:
            if piece is None:
                piece = -(-count // (threads * _PIECES)) if threads > 1 else count
            most = max(most, -(-count // piece))
            self._words.append(words if type(words) is array else array("q", words))
            described += (count, piece, kernel.address, self._words[-1].buffer_info()[0], wait)
        threads = min(threads, most)
        parallel = team() if threads > 1 and not _forked else None
        self._call, number, barrier = parallel or (_call_alone, 0, 0)
        self._threads = threads if parallel else 1
        self._none_claimed = array("q", bytes(8 * _LINE * self._threads * len(stages)))
        self._claimed = self._none_claimed[:]
        self._task = array(
            "q", (len(stages), self._threads, number, barrier, self._claimed.buffer_info()[0], *described)
        )
        self._address = self._task.buffer_info()[0]

    def run(self) -> None:
        """Do it."""
        if _forked and self._threads > 1:  # made before the fork
            self._call, self._threads = _call_alone, 1
            self._task[_THREADS] = 1
        self._claimed[:] = self._none_claimed
        self._call(_work_address, self._address, self._threads, 0)


def _call_alone(work: int, task: int, threads: int, flags: int) -> None:
    _work_alone(task)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a kernel may use the tensor's address: it is on the CPU, not of a subclass, and nothing is being traced.

    Under `torch.compile` and `torch.func`, and for fake tensors, torch must see an operator instead.
    """
    return (
        type(tensor) in _PLAIN
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)


@functools.cache
def team() -> tuple[Callable[[int, int, int, int], None], int, int] | None:
    """The function that runs code on torch's OpenMP team, and the addresses of two more; None if there is no team.

    The first takes the address of a function, its argument, the number of threads, and 0. The others return a thread's
    number, and wait until all threads have called. All are looked up among the libraries that torch itself is linked
    with, because a process may have loaded several OpenMP libraries.
    """
    try:
        library = ctypes.CDLL(torch._C.__file__)
        parallel, number, barrier = library.GOMP_parallel, library.omp_get_thread_num, library.GOMP_barrier
    except (AttributeError, OSError):
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (number, barrier)]
    return parallel, addresses[0], addresses[1]


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
    """Add `size` to the int64 at an address, atomically; returns its value before."""

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


@intrinsic
def _wait(typingctx: Any, barrier: Any) -> Any:
    """Call the function without arguments at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.call(builder.inttoptr(args[0], ir.FunctionType(ir.VoidType(), []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _number(typingctx: Any, function: Any) -> Any:
    """Call the function without arguments at an address; returns its int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(builder.inttoptr(args[0], ir.FunctionType(ir.IntType(32), []).as_pointer()), [])

    return types.int32(types.int64), codegen


@nb.cfunc(types.void(types.int64), cache=CACHE)  # the address of a task
def _work(address):
    """Run by each thread of the team: takes pieces of a stage until none is left, then of the next stage."""
    head = array_at(address, (_HEAD_WORDS,), np.int64)
    threads = head[_THREADS]
    me = np.int64(0) if threads == 1 else np.int64(_number(head[_THREAD_NUMBER]))
    for s in range(head[_STAGES]):
        stage = array_at(address + 8 * (_HEAD_WORDS + s * _STAGE_WORDS), (_STAGE_WORDS,), np.int64)
        if s > 0 and threads > 1 and stage[_WAIT]:
            _wait(head[_BARRIER])
        count, piece = stage[_COUNT], stage[_PIECE]
        pieces = (count + piece - 1) // piece
        for turn in range(threads):
            owner = (me + turn) % threads
            start, end = owner * pieces // threads * piece, min((owner + 1) * pieces // threads * piece, count)
            counter = head[_CLAIMED] + 8 * _LINE * (s * threads + owner)
            while True:
                first = start + _claim(counter, piece)
                if first >= end:
                    break
                _call(stage[_KERNEL], first, min(first + piece, end), stage[_WORDS])


_work_address: Any = _work.address
_work_alone = _work.ctypes
