"""Cross-entropy that records, on a GPU: loss, gradient and observations from one launch (Triton).

The logits are read as in `triton_record`. A row that fits into a block stays in registers for its gradient, so that
each logit is read once; a longer row is read a second time. Nothing is read back to the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hbr_fast.kernels.hardness.triton_record import (
    IGNORED_LABEL,
    LOWEST,
    RIGHT,
    SUM_COLUMNS,
    exps_of,
    log_loss,
    outcome_of,
    read_block,
    write_observation,
)
from hbr_fast.kernels.launch import HARDNESS_WARPS, LABEL_BLOCK, hardness_tile

DIVISOR, TOTAL_WEIGHT = tl.constexpr(0), tl.constexpr(1)  # entries of `weighed`


@triton.jit
def weigh_kernel(
    labels, labels_b, weights, weighed, rows, classes,
    WEIGHTED: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the divisor of the loss (for a mean, the sum of the rows' weights) and the sum of the class weights.

    One program, so that rows are always added in the same order.
    """
    place = tl.arange(0, BLOCK)
    divisor = tl.zeros([BLOCK], tl.float64)
    if MEAN:
        for first in range(0, rows, BLOCK):
            r = (first + place).to(tl.int64)
            label = tl.load(labels + r * labels_b, mask=r < rows, other=IGNORED_LABEL).to(tl.int64)
            known = (label >= 0) & (label < classes)
            if WEIGHTED:
                divisor += tl.load(weights + label, mask=known, other=0.0).to(tl.float64)
            else:
                divisor += known.to(tl.float64)
    tl.store(weighed + DIVISOR, tl.sum(divisor, axis=0) if MEAN else 1.0)
    total = tl.zeros([BLOCK], tl.float64)
    if WEIGHTED:
        for first in range(0, classes, BLOCK):
            c = first + place
            total += tl.load(weights + c, mask=c < classes, other=0.0).to(tl.float64)
    tl.store(weighed + TOTAL_WEIGHT, tl.sum(total, axis=0) if WEIGHTED else classes.to(tl.float64))


@triton.jit
def write_gradient(
    gradient, first, z, rival, other, has_label, classes, row_scale, class_scale, weights, weighted_logits,
    SMOOTHED: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient by the logits `z` of the other classes, 0 in rows without a label.

    Returns `weighted_logits` plus the sum of weight times logit.
    """
    c = first + tl.arange(0, BLOCK)
    slope = tl.exp(z - rival[:, None]) * row_scale[:, None]
    if SMOOTHED:
        weight = tl.full([BLOCK], 1.0, tl.float32)
        if WEIGHTED:
            weight = tl.load(weights + c, mask=c < classes, other=0.0)
        slope -= class_scale[:, None] * weight[None, :]
        weighted = tl.where(other, z * weight[None, :], 0.0)
        weighted_logits += tl.sum(weighted.to(tl.float64), axis=1)
    tl.store(gradient[:, None] + c[None, :], tl.where(has_label[:, None], slope, 0.0), mask=other)
    return weighted_logits


@triton.jit
def observe_with_loss_kernel(
    logits, logits_b, logits_c, labels, labels_b, ids, ids_b, weights, weighed,
    observed, outcomes, losses, gradient, rows, classes, samples, smoothing,
    MASK: tl.constexpr, SMOOTHED: tl.constexpr, WEIGHTED: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write what `observe_kernel` writes, and `losses` float64 [B] and `gradient` float32 [B, C].

    `WHOLE`: a row fits into one block. The formulas are those of `cpu_cross_entropy.finish_losses`.
    """
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = r < rows
    label = tl.load(labels + r * labels_b, mask=inside, other=IGNORED_LABEL).to(tl.int64)
    sample = tl.load(ids + r * ids_b, mask=inside, other=0).to(tl.int64)
    has_label = (label >= 0) & (label < classes)
    row = logits + r * logits_b
    own = tl.load(row + label * logits_c, mask=has_label, other=0.0).to(tl.float32)

    rival = tl.full([ROWS], -float("inf"), tl.float32)
    total, squares = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    broken, beaten = (own == -float("inf")).to(tl.int32), tl.zeros([ROWS], tl.int32)
    if WHOLE:
        z, rival, total, squares, broken, beaten = read_block(
            row, logits_c, 0, label, has_label, own, classes, rival, total, squares, broken, beaten, True, BLOCK
        )
    else:
        for first in range(0, classes, BLOCK):
            _, rival, total, squares, broken, beaten = read_block(
                row, logits_c, first, label, has_label, own, classes, rival, total, squares, broken, beaten,
                True, BLOCK,
            )  # fmt: skip

    outcome = outcome_of(own, rival, broken, beaten, label, has_label, sample, samples)
    rival = tl.maximum(rival, LOWEST)  # of a row without other classes the loss is 0, not inf - inf
    tl.store(outcomes + r, outcome, mask=inside)
    write_observation(observed + r * SUM_COLUMNS, own, rival, total, squares, inside & (outcome <= RIGHT), MASK, True)

    divisor, total_weight = tl.load(weighed + DIVISOR), tl.load(weighed + TOTAL_WEIGHT)
    weight = tl.full([ROWS], 1.0, tl.float64)
    if WEIGHTED:
        weight = tl.load(weights + label, mask=has_label, other=0.0).to(tl.float64)
    kept = (1.0 - smoothing) * weight
    share = (smoothing / classes).to(tl.float64)
    scale = kept + share * total_weight
    margin = own.to(tl.float64) - rival.to(tl.float64)
    _, rival_e, excess = exps_of(margin, total)
    rival_share = rival_e / (1.0 + excess)
    row_scale = (scale * rival_share / divisor).to(tl.float32)
    class_scale = (share / divisor).to(tl.float32) + tl.zeros([ROWS], tl.float32)
    # Loss and gradient are NaN in rows with a logit of NaN or +inf, or whose own class is masked.
    lost = broken > 0
    row_scale = tl.where(lost, float("nan"), row_scale)
    weighted_logits = weight * own.to(tl.float64)
    slopes = gradient + r * classes
    for first in range(0, classes, BLOCK):
        c = first + tl.arange(0, BLOCK)
        other = (c[None, :] < classes) & inside[:, None] & (c[None, :] != label[:, None])
        if not WHOLE:
            z = tl.load(row[:, None] + c[None, :].to(tl.int64) * logits_c, mask=other, other=0.0).to(tl.float32)
        weighted_logits = write_gradient(
            slopes, first, z, rival, other, has_label, classes, row_scale, class_scale, weights, weighted_logits,
            SMOOTHED, WEIGHTED, BLOCK,
        )  # fmt: skip
    own_slope = (scale - kept - share * weight - scale * rival_share * total) / divisor
    tl.store(slopes + label, tl.where(lost, float("nan"), own_slope), mask=inside & has_label)

    surprise = log_loss(margin, excess)
    loss = kept * surprise
    if SMOOTHED:
        loss += share * (total_weight * (surprise + own.to(tl.float64)) - weighted_logits)
    loss = tl.where(lost, float("nan"), tl.where(has_label, loss, 0.0))
    tl.store(losses + r, loss, mask=inside)


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    weight: torch.Tensor | None,
    label_smoothing: float,
    reduction: str,
    samples: int,
    estimators: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Like `ops_cross_entropy` on the CPU, but rows with a bad label or id are marked in the outcomes, not refused.

    A bad label makes no loss, a bad id leaves the loss as it is. Loss and gradient are float32, float64 logits'
    included.
    """
    rows, classes = logits.shape
    device = logits.device
    observed = torch.zeros(rows, SUM_COLUMNS.value, dtype=torch.float64, device=device)
    outcomes = torch.empty(rows, dtype=torch.int64, device=device)
    losses = torch.zeros(rows, dtype=torch.float64, device=device)
    gradient = torch.empty(rows, classes, device=device)
    weighed = torch.empty(2, dtype=torch.float64, device=device)
    weights = losses if weight is None else weight.float().contiguous()  # without weights, none is looked at
    options = {"WEIGHTED": weight is not None, "num_warps": HARDNESS_WARPS}
    weigh_kernel[(1,)](
        *(labels, labels.stride(0), weights, weighed, rows, classes),
        MEAN=reduction == "mean",
        BLOCK=LABEL_BLOCK,
        **options,
    )
    tile_rows, block = hardness_tile(classes)
    if rows:
        observe_with_loss_kernel[(-(-rows // tile_rows),)](
            *(logits, *logits.stride(), labels, labels.stride(0), ids, ids.stride(0), weights, weighed),
            *(observed, outcomes, losses, gradient, rows, classes, samples, label_smoothing),
            MASK=estimators,
            SMOOTHED=label_smoothing > 0,
            WHOLE=classes <= block,
            ROWS=tile_rows,
            BLOCK=block,
            **options,
        )
    if reduction == "none":
        return losses.float(), gradient, observed, outcomes
    return (losses.sum() / weighed[0]).float(), gradient, observed, outcomes
