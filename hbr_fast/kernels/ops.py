"""Kernels as torch operators, so that they work under `torch.compile`, `FakeTensorMode` and the profiler."""

from __future__ import annotations

import torch

from hbr_fast.kernels import cpu_hardness as k
from hbr_fast.kernels import team

_library = torch.library.Library("hbr_fast", "DEF")
_library.define(
    "record(Tensor logits, Tensor labels, Tensor ids, int epoch, int el2n_epochs, int estimators, "
    "Tensor(a!) sums, Tensor(b!) counters, Tensor(c!) status) -> ()"
)

FLOATS = {
    torch.float32: k.FLOAT32,
    torch.float64: k.FLOAT64,
    torch.float16: k.FLOAT16,
    torch.bfloat16: k.BFLOAT16,
}
INTEGERS = {torch.int64: k.INT64, torch.int32: k.INT32}


@torch.library.impl(_library, "record", "CPU")
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
    *members, batch, classes = logits.shape
    rows = (members[0] if members else 1) * batch
    if rows == 0:
        return
    stride_m, (stride_b, stride_c) = (logits.stride(0) if members else 0), logits.stride()[-2:]
    if epoch >= el2n_epochs:
        estimators &= ~(1 << k.EL2N)
    observed = torch.empty(rows, k.SUM_COLUMNS, dtype=torch.float64)
    outcomes = torch.zeros(rows + 1, dtype=torch.int64)  # the last one tells of bad rows
    threads = torch.get_num_threads()
    owners = 1 << (threads - 1).bit_length()
    words = (
        *(logits.data_ptr(), FLOATS[logits.dtype], stride_m, stride_b, stride_c),
        *integers(labels),
        *integers(ids),
        *(rows, batch, classes, sums.shape[-2], estimators),
        *(observed.data_ptr(), outcomes.data_ptr(), outcomes.data_ptr() + 8 * rows),
        *(sums.data_ptr(), counters.data_ptr(), status.data_ptr(), epoch, el2n_epochs, owners),
    )
    team.run(k.observe, rows, words, threads=threads)
    if outcomes[rows]:
        raise _bad_row(outcomes[:rows], logits, labels, ids, sums)
    team.run(k.accumulate, owners, words, threads=threads, piece=1)


def integers(tensor: torch.Tensor) -> tuple[int, int, int, int]:
    """Address, type and strides of labels or ids [B] or [M, B]."""
    stride_m = tensor.stride(0) if tensor.ndim == 2 else 0
    return tensor.data_ptr(), INTEGERS[tensor.dtype], stride_m, tensor.stride(-1)


def _bad_row(
    outcomes: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, sums: torch.Tensor
) -> ValueError:
    row = int((outcomes >= k.BAD_LABEL).nonzero()[0])
    b = row % logits.shape[-2]
    where = (row // logits.shape[-2], b)
    if outcomes[row] == k.BAD_LABEL:
        label = int(labels[where] if labels.ndim == 2 else labels[b])
        return ValueError(f"row {b} has label {label}, outside [0, {logits.shape[-1]})")
    sample = int(ids[where] if ids.ndim == 2 else ids[b])
    return ValueError(
        f"row {b} has id {sample}, outside [0, {sums.shape[-2]}): was the recorder made for this dataset?"
    )


@torch.library.register_fake("hbr_fast::record", lib=_library)
def _record_fake(*args: object) -> None:
    """Nothing to say about shapes: the state is changed in place."""


record = torch.ops.hbr_fast.record.default
