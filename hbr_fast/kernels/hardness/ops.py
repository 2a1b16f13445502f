"""Kernels as torch operators, so that they work under `torch.compile`, `FakeTensorMode` and the profiler."""

from __future__ import annotations

from typing import Any

import torch

from hbr_fast.kernels.hardness import passes

library = torch.library.Library("hbr_fast", "DEF")
library.define(
    "record(Tensor logits, Tensor labels, Tensor ids, SymInt epoch, int el2n_epochs, int estimators, "
    "Tensor(a!) sums, Tensor(b!) counters, Tensor(c!) status) -> ()"
)


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
    """Add one observation per row; `hbr_fast.kernels.reference.observation` and `hardness` are the definitions.

    Parameters
    ----------
    logits : float32, float64, float16 or bfloat16 [B, C]
        Of any strides; at most a tile of rows is copied at a time.
    labels, ids : int64 or int32 [B]
        Class and sample of each row. Label -100: the row is left out. Ids may repeat: rows count in their order.
    epoch, el2n_epochs : int
        Epoch of these rows, from 0; EL2N is recorded in epochs below `el2n_epochs`.
    estimators : int
        Bit c requests column c of `sums`; the others are not computed.
    sums : float64 [N, 8], counters : int32 [N, 8]
        The state, contiguous, changed in place.
    status : int64 [4]
        See `layout`; changed in place.

    Raises
    ------
    ValueError
        If a label or an id is out of range. Then no row was recorded.
    """
    form = passes.form_of(logits, labels, ids)
    passes.record(form, logits, labels, ids, epoch, el2n_epochs, estimators, sums, counters, status)


@torch.library.impl(library, "record", "CUDA")
def _record_cuda(*arguments: Any) -> None:
    from hbr_fast.kernels.hardness import triton_record

    triton_record.record(*arguments)


@torch.library.register_fake("hbr_fast::record", lib=library)
def _record_fake(*args: object) -> None:
    """Nothing to say about shapes: the state is changed in place."""


record = torch.ops.hbr_fast.record.default
