"""Kernels as torch operators, so that they work under `torch.compile`, `FakeTensorMode` and the profiler."""

from __future__ import annotations

import math
from typing import Any

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
    rows = math.prod(logits.shape[:-1])
    if rows == 0:
        return
    estimators &= ~outside_window(epoch, el2n_epochs)
    observed = torch.empty(rows, k.SUM_COLUMNS, dtype=torch.float64)
    outcomes = torch.zeros(rows + 1, dtype=torch.int64)  # the last one tells of bad rows
    team.run(k.observe, rows, _observe_words(logits, labels, ids, sums.shape[-2], estimators, observed, outcomes))
    if outcomes[rows]:
        raise _bad_row(outcomes[:rows], logits, labels, ids, sums.shape[-2])
    _accumulate_cpu(observed, outcomes, ids, epoch, el2n_epochs, sums, counters, status)


@torch.library.impl(_library, "record", "CUDA")
def _record_cuda(*arguments: Any) -> None:
    from hbr_fast.kernels import triton_hardness

    triton_hardness.record(*arguments)


def outside_window(epoch: int, el2n_epochs: int) -> int:
    """The columns that are not recorded in an epoch, as a mask."""
    return 0 if epoch < el2n_epochs else 1 << k.EL2N


def _accumulate_cpu(
    observed: torch.Tensor,
    outcomes: torch.Tensor,
    ids: torch.Tensor,
    epoch: int,
    el2n_epochs: int,
    sums: torch.Tensor,
    counters: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """Add what was observed of the rows to the state, rows of one sample in their order."""
    rows, batch, threads = len(observed), ids.shape[-1], torch.get_num_threads()
    owners = 1 << (threads - 1).bit_length()
    words = (
        *_integers(ids),
        *(rows, batch, sums.shape[-2], observed.data_ptr(), outcomes.data_ptr()),
        *(sums.data_ptr(), counters.data_ptr(), status.data_ptr(), epoch, el2n_epochs, owners),
    )
    team.run(k.accumulate, owners, words, threads=threads, piece=1)


def _observe_words(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    samples: int,
    estimators: int,
    observed: torch.Tensor,
    outcomes: torch.Tensor,
) -> tuple[int, ...]:
    stride_m = logits.stride(0) if logits.ndim == 3 else 0
    *_, batch, classes = logits.shape
    rows = len(observed)
    return (
        *(logits.data_ptr(), FLOATS[logits.dtype], stride_m, logits.stride(-2), logits.stride(-1)),
        *_integers(labels),
        *_integers(ids),
        *(rows, batch, classes, samples, estimators),
        *(observed.data_ptr(), outcomes.data_ptr(), outcomes.data_ptr() + 8 * rows),
    )


def _integers(tensor: torch.Tensor) -> tuple[int, int, int, int]:
    """Address, type and strides of labels or ids [B] or [M, B]."""
    stride_m = tensor.stride(0) if tensor.ndim == 2 else 0
    return tensor.data_ptr(), INTEGERS[tensor.dtype], stride_m, tensor.stride(-1)


def _bad_row(
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


@torch.library.register_fake("hbr_fast::record", lib=_library)
def _record_fake(*args: object) -> None:
    """Nothing to say about shapes: the state is changed in place."""


_library.define(
    "cross_entropy(Tensor logits, Tensor labels, Tensor ids, Tensor? weight, float label_smoothing, str reduction, "
    "int samples, int estimators) "
    "-> (Tensor loss, Tensor total_weight, Tensor gradient, Tensor observed, Tensor outcomes)"
)
_library.define(
    "accumulate(Tensor observed, Tensor outcomes, Tensor ids, int epoch, int el2n_epochs, "
    "Tensor(a!) sums, Tensor(b!) counters, Tensor(c!) status) -> ()"
)
_library.impl("accumulate", _accumulate_cpu, "CPU")


@torch.library.impl(_library, "cross_entropy", "CPU")
def _cross_entropy_cpu(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor | None,
    label_smoothing: float,
    reduction: str,
    samples: int,
    estimators: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy, its gradient, and what recording adds to the state, from one pass over the logits.

    Parameters
    ----------
    logits : float32, float64, float16 or bfloat16 [B, C]
    labels, ids : int64 or int32 [B]
    weight : float32 or float64 [C], optional
        Of the classes.
    label_smoothing : float
    reduction : "mean", "sum" or "none"
    samples, estimators : int
        As for `record`: ids are below `samples`, and bit c asks for column c.

    Returns
    -------
    loss : float32 [] or [B]
        float64 for float64 logits. 0 in rows whose label is ignored.
    total_weight : float64 []
        What the sum of the rows' losses is divided by: for "mean" the weights of their classes, else 1.
    gradient : float32 [B, C]
        Of each row's loss by the logits, not divided; float64 for float64 logits.
    observed : float64 [B, 8], outcomes : int64 [B + 1]
        For `accumulate`.

    Raises
    ------
    ValueError
        If a label or an id is out of range.
    """
    rows, classes = logits.shape
    losses, row_weights = torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.float64)
    gradient = torch.empty(rows, classes)
    observed = torch.empty(rows, k.SUM_COLUMNS, dtype=torch.float64)
    outcomes = torch.zeros(rows + 1, dtype=torch.int64)
    weights = torch.ones(classes) if weight is None else weight.float().contiguous()
    options = torch.tensor([label_smoothing, float(weights.sum(dtype=torch.float64))], dtype=torch.float64)
    words = (
        *_observe_words(logits, labels, ids, samples, estimators, observed, outcomes),
        *(gradient.data_ptr(), losses.data_ptr(), row_weights.data_ptr()),
        *(weights.data_ptr(), options.data_ptr()),
    )
    team.run(k.observe_with_loss, rows, words)
    if outcomes[rows]:
        raise _bad_row(outcomes[:rows], logits, labels, ids, samples)
    if logits.dtype == torch.float64:  # the kernel works in float32: torch has the precision asked for
        exact = weights.double() if weight is None else weight.double()
        losses, gradient = _cross_entropy_double(logits, labels, exact, label_smoothing)
    total_weight = row_weights.sum() if reduction == "mean" else torch.ones((), dtype=torch.float64)
    loss = losses if reduction == "none" else losses.sum() / total_weight
    return loss.to(gradient.dtype), total_weight, gradient, observed, outcomes


def _cross_entropy_double(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    share = label_smoothing / logits.shape[1]
    kept = (labels != k.IGNORED_LABEL).double()[:, None]
    own = torch.nn.functional.one_hot(labels.long().clamp(min=0), logits.shape[1]).double()
    # What each class is to have: the loss is - sum_c target_c log p_c.
    targets = kept * ((1 - label_smoothing) * own + share) * weights.double()
    log_probabilities = logits.log_softmax(1)
    gradient = log_probabilities.exp() * targets.sum(1, keepdim=True) - targets
    return -(targets * log_probabilities).sum(1), gradient


@torch.library.register_fake("hbr_fast::cross_entropy", lib=_library)
def _cross_entropy_fake(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor | None,
    label_smoothing: float,
    reduction: str,
    samples: int,
    estimators: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, classes = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (
        logits.new_empty((rows,) if reduction == "none" else (), dtype=dtype),
        logits.new_empty((), dtype=torch.float64),
        logits.new_empty(rows, classes, dtype=dtype),
        logits.new_empty(rows, k.SUM_COLUMNS, dtype=torch.float64),
        logits.new_empty(rows + 1, dtype=torch.int64),
    )


@torch.library.register_fake("hbr_fast::accumulate", lib=_library)
def _accumulate_fake(*args: object) -> None:
    """Nothing to say about shapes: the state is changed in place."""


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, total_weight, gradient, observed, outcomes = output
    ctx.save_for_backward(gradient, total_weight)
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(total_weight, gradient, observed, outcomes)
    ctx.set_materialize_grads(False)


def _scale_gradient(ctx: Any, by_loss: torch.Tensor | None, *rest: object) -> tuple[torch.Tensor | None, ...]:
    if by_loss is None:
        return (None,) * 8
    gradient, total_weight = ctx.saved_tensors
    factor = (by_loss / total_weight).to(gradient.dtype)
    scaled = gradient * (factor[:, None] if factor.ndim else factor)
    return (scaled.to(ctx.dtype), *(None,) * 7)


torch.library.register_autograd("hbr_fast::cross_entropy", _scale_gradient, setup_context=_keep_gradient, lib=_library)

record = torch.ops.hbr_fast.record.default
cross_entropy = torch.ops.hbr_fast.cross_entropy.default
accumulate = torch.ops.hbr_fast.accumulate.default
