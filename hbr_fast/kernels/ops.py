"""Kernels as torch operators, so that they work under `torch.compile`, `FakeTensorMode` and the profiler."""

from __future__ import annotations

import math
from array import array
from typing import Any

import torch

from hbr_fast.kernels import cpu_hardness as k
from hbr_fast.kernels import team

library = torch.library.Library("hbr_fast", "DEF")
library.define(
    "record(Tensor logits, Tensor labels, Tensor ids, SymInt epoch, int el2n_epochs, int estimators, "
    "Tensor(a!) sums, Tensor(b!) counters, Tensor(c!) status) -> ()"
)

FLOATS = {
    torch.float32: k.FLOAT32,
    torch.float64: k.FLOAT64,
    torch.float16: k.FLOAT16,
    torch.bfloat16: k.BFLOAT16,
}
INTEGERS = {torch.int64: k.INT64, torch.int32: k.INT32}


@torch.library.impl(library, "record", "CPU")
def _record_cpu(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    epoch: int,
    el2n_epochs: int,
    estimators: int,
    sums: torch.Tensor,
    counters: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """Add one observation a row; `hbr_fast.kernels.reference.observation` and `hardness` are the definitions.

    Parameters
    ----------
    logits : float32, float64, float16 or bfloat16 [B, C] or [M, B, C]
        Of any strides; nothing is copied but a row at a time.
    labels, ids : int64 or int32 [B] or [M, B]
        Class and sample of each row. Label -100: the row is left out. Ids may repeat: rows count in their order.
    epoch, el2n_epochs : int
        Epoch of these rows, from 0; EL2N is recorded in epochs below `el2n_epochs`.
    estimators : int
        Bit c asks for column c of `sums`; the others are not computed.
    sums : float64 [N, 8] or [M, N, 8], counters : int32, the same shape
        The state, contiguous, changed in place.
    status : int64 [4]
        See `cpu_hardness`; changed in place.

    Raises
    ------
    ValueError
        If a label or an id is out of range. Then no row was recorded.
    """
    rows = math.prod(logits.shape[:-1])
    if rows == 0:
        return
    estimators &= ~outside_window(epoch, el2n_epochs)
    scratch = torch.empty(rows * (k.SUM_COLUMNS + 1), dtype=torch.float64)  # what is observed, then the outcomes
    observed = scratch.data_ptr()
    outcomes = observed + 8 * rows * k.SUM_COLUMNS
    bad = array("q", (0,))
    threads = threads_for(logits)
    owners = owners_for(threads)
    found = (observed, outcomes, bad.buffer_info()[0])
    observe = observe_words(logits, labels, ids, sums.shape[-2], estimators, found)
    words = array("q", (*observe, *state_words(owners, epoch, el2n_epochs, sums, counters, status)))
    team.run_stages(
        team.Stage(k.observe, rows, words), team.Stage(k.accumulate, owners, words, piece=1), threads=threads
    )
    if bad[0]:
        raise bad_row(scratch[rows * k.SUM_COLUMNS :].view(torch.int64), logits, labels, ids, sums.shape[-2])


@torch.library.impl(library, "record", "CUDA")
def _record_cuda(*arguments: Any) -> None:
    from hbr_fast.kernels import triton_hardness

    triton_hardness.record(*arguments)


def outside_window(epoch: int, el2n_epochs: int) -> int:
    """The columns that are not recorded in an epoch, as a mask."""
    return 0 if epoch < el2n_epochs else 1 << k.EL2N


def threads_for(logits: torch.Tensor) -> int:
    """One where the threads would take longer to meet than the batch takes (measured: 128 rows of 10 classes do)."""
    *_, batch, classes = logits.shape
    return 1 if batch * (classes + _ROW_COST) < _SMALL else torch.get_num_threads()


# A row costs as much as this many classes more; two threads are faster from this many on.
_ROW_COST, _SMALL = 100, 40_000


def owners_for(threads: int) -> int:
    """How many owners share the samples out among themselves: a power of two, at least one a thread."""
    return 1 << (threads - 1).bit_length()


# The words of the kernels of `cpu_hardness`, in its order: `observe_words`, then `state_words`, then those of the loss.


def observe_words(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    samples: int,
    estimators: int,
    found: tuple[int, int, int],
) -> tuple[int, ...]:
    """What is read, and where to put what is found: addresses of observed, outcomes, and whether a row was bad."""
    *strides_m, stride_b, stride_c = logits.stride()
    *members, batch, classes = logits.shape
    return (
        *(logits.data_ptr(), FLOATS[logits.dtype], strides_m[0] if members else 0, stride_b, stride_c),
        *_integers(labels),
        *_integers(ids),
        *(math.prod(members) * batch, batch, classes, samples, estimators),
        *found,
    )


def observed_words(rows: int, ids: torch.Tensor, samples: int, found: tuple[int, int, int]) -> tuple[int, ...]:
    """`observe_words` of rows that were observed elsewhere: what `accumulate` needs of them."""
    logits, labels, classes, mask = (0,) * 5, (0,) * 4, 0, 0
    return *logits, *labels, *_integers(ids), rows, ids.shape[-1], classes, samples, mask, *found


def state_words(
    owners: int, epoch: int, el2n_epochs: int, sums: torch.Tensor, counters: torch.Tensor, status: torch.Tensor
) -> tuple[int, ...]:
    """The epoch, and to what `accumulate` adds; `NO_STATE` where it is not called."""
    return owners, epoch, el2n_epochs, sums.data_ptr(), counters.data_ptr(), status.data_ptr()


NO_STATE = (0,) * 6


def _integers(tensor: torch.Tensor) -> tuple[int, int, int, int]:
    """Address, type and strides of labels or ids [B] or [M, B]."""
    strides = tensor.stride()
    return tensor.data_ptr(), INTEGERS[tensor.dtype], strides[0] if len(strides) == 2 else 0, strides[-1]


def bad_row(
    outcomes: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, samples: int
) -> ValueError:
    row = int((outcomes >= k.BAD_LABEL).nonzero()[0])
    b = row % logits.shape[-2]
    where = (row // logits.shape[-2], b)
    if outcomes[row] == k.BAD_LABEL:
        label = int(labels[where] if labels.ndim == 2 else labels[b])
        return ValueError(f"row {b} has label {label}, outside [0, {logits.shape[-1]})")
    sample = int(ids[where] if ids.ndim == 2 else ids[b])
    return ValueError(f"row {b} has id {sample}, outside [0, {samples}): was the recorder made for this dataset?")


@torch.library.register_fake("hbr_fast::record", lib=library)
def _record_fake(*args: object) -> None:
    """Nothing to say about shapes: the state is changed in place."""


record = torch.ops.hbr_fast.record.default


def record_eagerly(*arguments: Any) -> None:
    """`record`; called directly where it can be: a dispatch to Python takes longer than a small batch."""
    (_record_cpu if team.is_plain(arguments[0]) else record)(*arguments)
