"""Cross-entropy that records: as torch operators, and as an autograd function for plain tensors on the CPU."""

from __future__ import annotations

import functools
from typing import Any

import torch

from hbr_fast.kernels.hardness import cpu_cross_entropy, layout, passes
from hbr_fast.kernels.hardness.ops import library

library.define(
    "cross_entropy(Tensor logits, Tensor labels, Tensor ids, Tensor? weight, float label_smoothing, str reduction, "
    "int samples, int estimators) -> (Tensor loss, Tensor gradient, Tensor observed, Tensor outcomes)"
)
library.define(
    "accumulate(Tensor observed, Tensor outcomes, Tensor ids, SymInt epoch, int el2n_epochs, "
    "Tensor(a!) sums, Tensor(b!) counters, Tensor(c!) status) -> ()"
)


def cross_entropy(
    form: passes.Form | None,
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor | None,
    label_smoothing: float,
    reduction: str,
    epoch: int,
    el2n_epochs: int,
    estimators: int,
    *state: torch.Tensor,
) -> torch.Tensor:
    """The loss; also adds the observations of the rows to the state (sums, counters, status).

    The form is that of `passes.plain_form_of`; the other parameters are those of the operators here and of
    `ops.record`.

    Raises
    ------
    ValueError
        If a label or an id is out of range. Then no row was recorded. On a GPU such rows are left out and counted.
    """
    columns = estimators & ~passes.outside_window(epoch, el2n_epochs)
    loss_of = (labels, ids, weight, label_smoothing, reduction, state[0].shape[0], columns)
    if form is None or logits.dtype == torch.float64:
        loss, _, observed, outcomes = cross_entropy_operator(logits, *loss_of)
        accumulate_operator(observed, outcomes, ids, epoch, el2n_epochs, *state)
        return loss
    return _apply_loss(logits, form, loss_of, (epoch, el2n_epochs, *state))


def _in_one_pass(
    form: passes.Form,
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor | None,
    label_smoothing: float,
    reduction: str,
    samples: int,
    estimators: int,
    *,
    recording: tuple[Any, ...] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, gradient, observed and outcomes, as the operator returns them.

    With `recording`, which is that of `HardnessPass.run`, the observations are added to the state in the same pass, and
    observed and outcomes are empty.
    """
    rows, classes = logits.shape
    # `torch.empty` with a type and a device takes twice as long.
    loss, gradient = torch.empty_like(_SCALAR), torch.empty_like(logits)
    if gradient.dtype != torch.float32 or not gradient.is_contiguous():
        gradient = torch.empty_like(logits, dtype=torch.float32, memory_format=torch.contiguous_format)
    observed, outcomes = _NONE_OBSERVED
    if rows:
        kernels = passes.loss_kernels(mean=reduction == "mean", record=recording is not None)
        kept, one = passes.take(kernels, form, logits, labels, ids, samples, estimators)
        weights = _ones(classes) if weight is None else weight.float().contiguous()
        options = one.options
        options[cpu_cross_entropy.SMOOTHING], options[cpu_cross_entropy.DIVISOR] = label_smoothing, 1.0
        options[cpu_cross_entropy.TOTAL_WEIGHT] = classes if weight is None else float(weights.sum(dtype=torch.float64))
        one.point_to(loss, gradient, weights)
        one.run(logits, labels, ids, recording)
        if reduction == "none":
            loss = one.losses.float()
        if recording is None:  # copies: the pass writes there again
            observed, outcomes = one.observed.clone(), one.outcomes.clone()
        kept.append(one)
    else:
        loss = loss.new_zeros(0) if reduction == "none" else loss.fill_(float("nan") if reduction == "mean" else 0.0)
    if logits.dtype == torch.float64:
        return *_cross_entropy_double(logits, labels, weight, label_smoothing, reduction), observed, outcomes
    return loss, gradient, observed, outcomes


# With explicit types and devices, whatever the defaults: a kernel writes to tensors made like these.
_SCALAR = torch.empty((), dtype=torch.float32, device="cpu")
_NONE_OBSERVED = (
    torch.empty(0, layout.SUM_COLUMNS, dtype=torch.float64, device="cpu"),
    torch.empty(0, dtype=torch.int64, device="cpu"),
)


@functools.lru_cache(maxsize=8)
def _ones(classes: int) -> torch.Tensor:
    return torch.ones(classes, dtype=torch.float32, device="cpu")


def _cross_entropy_double(
    logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, label_smoothing: float, reduction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of float64 logits by torch's operators: the kernels work in float32."""
    classes = logits.shape[1]
    weights = logits.new_ones(classes) if weight is None else weight
    kept = ((labels >= 0) & (labels < classes))[:, None]
    own = kept * torch.nn.functional.one_hot(labels.long().clamp(0, classes - 1), classes).double()
    # Target of each class: the loss is - sum_c target_c log p_c.
    targets = ((1 - label_smoothing) * own + kept.double() * (label_smoothing / classes)) * weights.double()
    log_probabilities = logits.log_softmax(1)
    losses = -(targets * log_probabilities.where(targets != 0, 0.0)).sum(1)  # a masked class is not 0 times infinity
    gradient = log_probabilities.exp() * targets.sum(1, keepdim=True) - targets
    if reduction == "none":
        return losses, gradient
    divisor = (own * weights.double()).sum() if reduction == "mean" else torch.ones_like(losses.sum())
    return losses.sum() / divisor, (gradient / divisor).where(kept, 0.0)


class _Loss(torch.autograd.Function):
    # Without `setup_context`, which makes torch bind the arguments to the signature at every call: that takes longer
    # than a small batch.
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        form: passes.Form,
        loss_of: tuple[Any, ...],
        recording: tuple[Any, ...],
    ) -> torch.Tensor:
        loss, gradient, _, _ = _in_one_pass(form, logits, *loss_of, recording=recording)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, by_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Everything is written out here, because each further call takes a microsecond. The engine converts the
        # gradient to the type of the logits.
        if torch.is_grad_enabled():
            _refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        if by_loss.ndim:
            gradient = gradient * by_loss[:, None]
        elif (factor := by_loss.item()) != 1.0:
            gradient = gradient * factor
        return gradient, None, None, None


# `_Loss.apply` without its check for transforms of torch.func, which `team.is_plain` made already.
_apply_loss = super(torch.autograd.Function, _Loss).apply


def _refuse_second_derivative() -> None:
    """Called if autograd is on in a backward pass, i.e. its result is to be differentiated: that would give 0."""
    raise RuntimeError("hardness_cross_entropy has no second derivative: use cross_entropy, and record beside it")


@torch.library.impl(library, "cross_entropy", "CPU")
def _cross_entropy_cpu(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor | None,
    label_smoothing: float,
    reduction: str,
    samples: int,
    estimators: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy, its gradient, and the observations to record, from one pass over the logits.

    Parameters
    ----------
    logits : float32, float64, float16 or bfloat16 [B, C]
    labels, ids : int64 or int32 [B]
    weight : float32 or float64 [C], optional
        Class weights.
    label_smoothing : float
    reduction : "mean", "sum" or "none"
    samples, estimators : int
        As for `ops.record`: ids are below `samples`, and bit c requests column c.

    Returns
    -------
    loss : float32 [] or [B]
        float64 for float64 logits. 0 in rows whose label is ignored.
    gradient : float32 [B, C]
        Of the loss by the logits, with "none" of each row's loss; float64 for float64 logits.
    observed : float64 [B, 8], outcomes : int64 [B]
        For `accumulate`.

    Raises
    ------
    ValueError
        If a label or an id is out of range.
    """
    form = passes.form_of(logits, labels, ids)
    return _in_one_pass(form, logits, labels, ids, weight, label_smoothing, reduction, samples, estimators)


@torch.library.impl(library, "cross_entropy", "CUDA")
def _cross_entropy_cuda(
    logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor | None, *options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from hbr_fast.kernels.hardness import triton_cross_entropy

    results = triton_cross_entropy.cross_entropy(logits, labels, ids, weight, *options)
    if logits.dtype == torch.float64:
        label_smoothing, reduction, *_ = options
        return *_cross_entropy_double(logits, labels, weight, label_smoothing, reduction), *results[2:]
    return results


@torch.library.register_fake("hbr_fast::cross_entropy", lib=library)
def _cross_entropy_fake(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor | None,
    label_smoothing: float,
    reduction: str,
    samples: int,
    estimators: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, classes = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (
        logits.new_empty((rows,) if reduction == "none" else (), dtype=dtype),
        logits.new_empty(rows, classes, dtype=dtype),
        logits.new_empty(rows, layout.SUM_COLUMNS, dtype=torch.float64),
        logits.new_empty(rows, dtype=torch.int64),
    )


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, gradient, observed, outcomes = output
    ctx.save_for_backward(gradient)
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(gradient, observed, outcomes)
    ctx.set_materialize_grads(False)


def _scale_gradient(ctx: Any, by_loss: torch.Tensor | None, *rest: object) -> tuple[torch.Tensor | None, ...]:
    if by_loss is None:
        return (None,) * 8
    if torch.is_grad_enabled():
        _refuse_second_derivative()
    (gradient,) = ctx.saved_tensors
    return (gradient * (by_loss[:, None] if by_loss.ndim else by_loss)).to(ctx.dtype), *(None,) * 7


torch.library.register_autograd("hbr_fast::cross_entropy", _scale_gradient, setup_context=_keep_gradient, lib=library)


@torch.library.impl(library, "accumulate", "CPU")
def _accumulate_cpu(
    observed: torch.Tensor,
    outcomes: torch.Tensor,
    ids: torch.Tensor,
    epoch: int,
    el2n_epochs: int,
    *state: torch.Tensor,
) -> None:
    """Add the observations of the rows, none of them bad, to the state, rows of one sample in order."""
    if len(observed):
        passes.add_observed(observed, outcomes, ids, epoch, el2n_epochs, *state)


@torch.library.impl(library, "accumulate", "CUDA")
def _accumulate_cuda(observed: torch.Tensor, outcomes: torch.Tensor, ids: torch.Tensor, *into: Any) -> None:
    if len(observed):
        from hbr_fast.kernels.hardness import triton_record

        states = torch.where(outcomes <= layout.RIGHT, ids.long(), -1)
        triton_record.accumulate(observed, outcomes, states, ids, *into)


@torch.library.register_fake("hbr_fast::accumulate", lib=library)
def _accumulate_fake(*args: object) -> None:
    """Nothing to say about shapes: the state is changed in place."""


cross_entropy_operator = torch.ops.hbr_fast.cross_entropy.default
accumulate_operator = torch.ops.hbr_fast.accumulate.default
