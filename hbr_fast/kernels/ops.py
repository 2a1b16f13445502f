"""Kernels as torch operators, so that they work under `torch.compile`, `FakeTensorMode` and the profiler."""

from __future__ import annotations

import torch

from hbr_fast.kernels import cpu_hardness

_library = torch.library.Library("hbr_fast", "DEF")
_library.define(
    "record(Tensor logits, Tensor labels, Tensor ids, int epoch, int el2n_epochs, "
    "Tensor(a!) sums, Tensor(b!) counters, Tensor(c!) nonfinite) -> ()"
)


@torch.library.impl(_library, "record", "CPU")
def _record_cpu(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    epoch: int,
    el2n_epochs: int,
    sums: torch.Tensor,
    counters: torch.Tensor,
    nonfinite: torch.Tensor,
) -> None:
    code, row = cpu_hardness.record(
        logits.numpy(),
        labels.numpy(),
        ids.numpy(),
        epoch,
        el2n_epochs,
        sums.numpy(),
        counters.numpy(),
        nonfinite.numpy(),
    )
    if code == cpu_hardness.BAD_LABEL:
        raise ValueError(f"row {row} has label {int(labels[row])}, outside [0, {logits.shape[1]})")
    if code == cpu_hardness.BAD_ID:
        raise ValueError(
            f"row {row} has id {int(ids[row])}, outside [0, {sums.shape[0]}): was the recorder made for this dataset?"
        )


@torch.library.register_fake("hbr_fast::record", lib=_library)
def _record_fake(*args: object) -> None:
    """Nothing to say about shapes: the state is changed in place."""


record = torch.ops.hbr_fast.record.default
