"""Recording on a GPU: does what `cpu_record` does, with the same state (Triton).

`observe_kernel` reads each logit once and keeps running maxima and rescaled sums, so that a row may be longer than a
block. `accumulate_kernel` works on rows sorted by sample: the program that has the first row of a sample adds all of
them in their order and writes the state once, so that repeated samples count as on the CPU, without atomic operations.
Nothing is read back to the host: rows that cannot be recorded are counted in `status`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hbr_fast.kernels.hardness import layout
from hbr_fast.kernels.hardness.row_vectors import LOWEST as _LOWEST
from hbr_fast.kernels.launch import ACCUMULATE_BLOCK, HARDNESS_WARPS, hardness_tile

LOWEST = tl.constexpr(_LOWEST)
# Triton takes globals only as `tl.constexpr`.
IGNORED_LABEL = tl.constexpr(layout.IGNORED_LABEL)
WRONG = tl.constexpr(layout.WRONG)
RIGHT = tl.constexpr(layout.RIGHT)
IGNORED = tl.constexpr(layout.IGNORED)
NOT_FINITE = tl.constexpr(layout.NOT_FINITE)
BAD_LABEL = tl.constexpr(layout.BAD_LABEL)
BAD_ID = tl.constexpr(layout.BAD_ID)
AUM = tl.constexpr(layout.AUM)
AUM_SOFTMAX = tl.constexpr(layout.AUM_SOFTMAX)
CONFIDENCE = tl.constexpr(layout.CONFIDENCE)
CONFIDENCE_SQUARED = tl.constexpr(layout.CONFIDENCE_SQUARED)
CONFIDENCE_LOGIT = tl.constexpr(layout.CONFIDENCE_LOGIT)
LOSS = tl.constexpr(layout.LOSS)
EL2N = tl.constexpr(layout.EL2N)
SUM_COLUMNS = tl.constexpr(layout.SUM_COLUMNS)
# Bits of a mask of estimators.
WANT_AUM = tl.constexpr(1 << layout.AUM)
WANT_AUM_SOFTMAX = tl.constexpr(1 << layout.AUM_SOFTMAX)
WANT_CONFIDENCE = tl.constexpr(1 << layout.CONFIDENCE)
WANT_CONFIDENCE_SQUARED = tl.constexpr(1 << layout.CONFIDENCE_SQUARED)
WANT_CONFIDENCE_LOGIT = tl.constexpr(1 << layout.CONFIDENCE_LOGIT)
WANT_LOSS = tl.constexpr(1 << layout.LOSS)
WANT_EL2N = tl.constexpr(1 << layout.EL2N)
OBSERVATIONS = tl.constexpr(layout.OBSERVATIONS)
CORRECT = tl.constexpr(layout.CORRECT)
FORGOTTEN = tl.constexpr(layout.FORGOTTEN)
LAST_CORRECT = tl.constexpr(layout.LAST_CORRECT)
FIRST_LEARNED = tl.constexpr(layout.FIRST_LEARNED)
EL2N_OBSERVATIONS = tl.constexpr(layout.EL2N_OBSERVATIONS)
COUNTER_COLUMNS = tl.constexpr(layout.COUNTER_COLUMNS)
ROWS_NOT_FINITE = tl.constexpr(layout.ROWS_NOT_FINITE)
FIRST_NOT_FINITE = tl.constexpr(layout.FIRST_NOT_FINITE)
ROWS_BAD_LABEL = tl.constexpr(layout.ROWS_BAD_LABEL)
ROWS_BAD_ID = tl.constexpr(layout.ROWS_BAD_ID)


@triton.jit
def read_block(
    row, logits_c, first, label, has_label, own, classes, rival, total, squares, broken, beaten,
    EXPONENTIALS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Read one block of the rows' logits, and update what is known of the rows; returns the block and all of that.

    `rival` is the largest logit of another class so far, -inf if all are; `total` and `squares` are the sums of
    `exp(z - rival)` and of its square over the other classes; `broken` is 1 if a logit is NaN or +inf, `beaten` 1 if an
    equal logit comes before the own one. The returned block is -inf where there is no other class.
    """
    c = first + tl.arange(0, BLOCK)
    valid = (c[None, :] < classes) & has_label[:, None]
    z = tl.load(row[:, None] + c[None, :].to(tl.int64) * logits_c, mask=valid, other=0.0).to(tl.float32)
    broken = tl.maximum(broken, tl.max((valid & ~(z < float("inf"))).to(tl.int32), axis=1))
    other = valid & (c[None, :] != label[:, None])
    equal = other & (z == own[:, None]) & (c[None, :] < label[:, None])
    beaten = tl.maximum(beaten, tl.max(equal.to(tl.int32), axis=1))
    z = tl.where(other, z, -float("inf"))
    top = tl.maximum(rival, tl.max(z, axis=1))
    if EXPONENTIALS:
        peak = tl.maximum(top, LOWEST)
        e = tl.where(other, tl.exp(z - peak[:, None]), 0.0)
        shrink = tl.exp(tl.maximum(rival, LOWEST) - peak).to(tl.float64)
        total = total * shrink + tl.sum(e, axis=1).to(tl.float64)
        squares = squares * (shrink * shrink) + tl.sum(e * e, axis=1).to(tl.float64)
    return z, top, total, squares, broken, beaten


@triton.jit
def outcome_of(own, rival, broken, beaten, label, has_label, sample, samples):
    """The outcomes of the rows. If all other classes are masked (-inf) there is no margin to record."""
    outcome = tl.where((own > rival) | ((own == rival) & (beaten == 0)), RIGHT, WRONG)
    outcome = tl.where((broken > 0) | (rival == -float("inf")), NOT_FINITE, outcome)
    outcome = tl.where((sample >= 0) & (sample < samples), outcome, BAD_ID)
    outcome = tl.where(has_label, outcome, BAD_LABEL)
    return tl.where(label == IGNORED_LABEL, IGNORED, outcome)


@triton.jit
def exps_of(margin, total):
    """exp of the own logit and of the rival's, and the sum over all classes minus 1, relative to the larger of both.

    As on the CPU, so that 1 - p keeps its digits when p is near 1.
    """
    ratio = tl.exp(-tl.abs(margin))
    ahead = margin >= 0
    excess = tl.where(ahead, ratio * total, ratio + (total - 1.0))
    return tl.where(ahead, 1.0, ratio), tl.where(ahead, ratio, 1.0), excess


@triton.jit
def log_loss(margin, excess):
    """-log of the own probability."""
    whole = 1.0 + excess
    return tl.log(whole) + (excess - (whole - 1.0)) / whole - tl.minimum(margin, 0.0)


@triton.jit
def write_observation(out, own, rival, total, squares, write, MASK: tl.constexpr, EXPONENTIALS: tl.constexpr):
    """Write the requested columns to the rows at `out`."""
    wide = own.to(tl.float64)
    margin = wide - rival.to(tl.float64)
    if WANT_AUM & MASK:
        tl.store(out + AUM, margin, mask=write)
    if WANT_CONFIDENCE_LOGIT & MASK:
        tl.store(out + CONFIDENCE_LOGIT, wide, mask=write)
    if EXPONENTIALS:
        own_e, rival_e, excess = exps_of(margin, total)
        whole = 1.0 + excess
        confidence = own_e / whole
        if WANT_CONFIDENCE & MASK:
            tl.store(out + CONFIDENCE, confidence, mask=write)
        if WANT_CONFIDENCE_SQUARED & MASK:
            tl.store(out + CONFIDENCE_SQUARED, confidence * confidence, mask=write)
        if WANT_AUM_SOFTMAX & MASK:
            tl.store(out + AUM_SOFTMAX, confidence - rival_e / whole, mask=write)
        if WANT_LOSS & MASK:
            tl.store(out + LOSS, log_loss(margin, excess), mask=write)
        if WANT_EL2N & MASK:
            tl.store(out + EL2N, rival_e / whole * tl.sqrt(total * total + squares), mask=write)


@triton.jit
def observe_kernel(
    logits, logits_b, logits_c, labels, labels_b, ids, ids_b, observed, outcomes, states, rows, classes, samples,
    MASK: tl.constexpr, EXPONENTIALS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write each row's observation (`observed` float64 [rows, 8]), outcome, and sample, or -1 if not recorded."""
    # 64 bits before multiplying: a batch of logits may pass 2**31 elements.
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
    for first in range(0, classes, BLOCK):
        _, rival, total, squares, broken, beaten = read_block(
            row, logits_c, first, label, has_label, own, classes, rival, total, squares, broken, beaten,
            EXPONENTIALS, BLOCK,
        )  # fmt: skip

    outcome = outcome_of(own, rival, broken, beaten, label, has_label, sample, samples)
    recorded = outcome <= RIGHT
    tl.store(outcomes + r, outcome, mask=inside)
    tl.store(states + r, tl.where(recorded, sample, -1), mask=inside)
    write_observation(observed + r * SUM_COLUMNS, own, rival, total, squares, inside & recorded, MASK, EXPONENTIALS)


@triton.jit
def accumulate_kernel(
    sorted_states, order, observed, outcomes, ids, ids_b, sums, counters, status, rows, epoch, in_window,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the rows to the state; `order` sorts them by sample, rows of one sample in their order."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    state = tl.load(sorted_states + i, mask=i < rows, other=-1)
    before = tl.load(sorted_states + i - 1, mask=(i > 0) & (i < rows), other=-1)
    first = (state >= 0) & (state != before)
    column = tl.arange(0, SUM_COLUMNS)
    cells = sums + state[:, None] * SUM_COLUMNS + column[None, :]
    acc = tl.load(cells, mask=first[:, None], other=0.0)
    count = counters + state * COUNTER_COLUMNS
    observations = tl.load(count + OBSERVATIONS, mask=first, other=0)
    correct = tl.load(count + CORRECT, mask=first, other=0)
    forgotten = tl.load(count + FORGOTTEN, mask=first, other=0)
    last = tl.load(count + LAST_CORRECT, mask=first, other=0)
    learned = tl.load(count + FIRST_LEARNED, mask=first, other=0)
    early = tl.load(count + EL2N_OBSERVATIONS, mask=first, other=0)
    active = first
    at = i
    while tl.max(active.to(tl.int32), axis=0) > 0:
        row = tl.load(order + at, mask=active, other=0)
        acc += tl.load(observed + row[:, None] * SUM_COLUMNS + column[None, :], mask=active[:, None], other=0.0)
        right = tl.load(outcomes + row, mask=active, other=0).to(tl.int32)
        one = active.to(tl.int32)
        observations += one
        correct += one * right
        forgotten += tl.where(active & (last == 1) & (right == 0), 1, 0)
        learned = tl.where(active & (right == 1) & (learned < 0), epoch, learned)
        last = tl.where(active, right, last)
        early += one * in_window
        at += 1
        following = tl.load(sorted_states + at, mask=active & (at < rows), other=-1)
        active = active & (following == state)
    tl.store(cells, acc, mask=first[:, None])
    tl.store(count + OBSERVATIONS, observations, mask=first)
    tl.store(count + CORRECT, correct, mask=first)
    tl.store(count + FORGOTTEN, forgotten, mask=first)
    tl.store(count + LAST_CORRECT, last, mask=first)
    tl.store(count + FIRST_LEARNED, learned, mask=first)
    tl.store(count + EL2N_OBSERVATIONS, early, mask=first)

    if tl.program_id(0) == 0:
        bad_labels, bad_ids, not_finite = 0, 0, 0
        earliest = rows
        for start in range(0, rows, BLOCK):
            r = start + tl.arange(0, BLOCK)
            outcome = tl.load(outcomes + r, mask=r < rows, other=IGNORED)
            bad_labels += tl.sum((outcome == BAD_LABEL).to(tl.int32), axis=0)
            bad_ids += tl.sum((outcome == BAD_ID).to(tl.int32), axis=0)
            not_finite += tl.sum((outcome == NOT_FINITE).to(tl.int32), axis=0)
            earliest = tl.minimum(earliest, tl.min(tl.where(outcome == NOT_FINITE, r, rows), axis=0))
        so_far = tl.load(status + ROWS_NOT_FINITE)
        is_first = (so_far == 0) & (not_finite > 0)
        sample = tl.load(ids + earliest.to(tl.int64) * ids_b, mask=is_first, other=0)
        tl.store(status + FIRST_NOT_FINITE, sample.to(tl.int64), mask=is_first)
        tl.store(status + ROWS_NOT_FINITE, so_far + not_finite)
        tl.store(status + ROWS_BAD_LABEL, tl.load(status + ROWS_BAD_LABEL) + bad_labels)
        tl.store(status + ROWS_BAD_ID, tl.load(status + ROWS_BAD_ID) + bad_ids)


def record(
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
    """Like `ops.record` on the CPU, but rows with a label or id out of range are left out and counted, not refused."""
    rows, classes = logits.shape
    if rows == 0:
        return
    if epoch >= el2n_epochs:
        estimators &= ~(1 << layout.EL2N)
    device = logits.device
    observed = torch.zeros(rows, layout.SUM_COLUMNS, dtype=torch.float64, device=device)
    outcomes = torch.empty(rows, dtype=torch.int64, device=device)
    states = torch.empty(rows, dtype=torch.int64, device=device)
    tile_rows, block = hardness_tile(classes)
    observe_kernel[(-(-rows // tile_rows),)](
        *(logits, *logits.stride(), labels, labels.stride(0), ids, ids.stride(0)),
        *(observed, outcomes, states, rows, classes, len(sums)),
        MASK=estimators,
        EXPONENTIALS=bool(estimators & layout.NEED_EXPONENTIALS),
        ROWS=tile_rows,
        BLOCK=block,
        num_warps=HARDNESS_WARPS,
    )
    accumulate(observed, outcomes, states, ids, epoch, el2n_epochs, sums, counters, status)


def accumulate(
    observed: torch.Tensor,
    outcomes: torch.Tensor,
    states: torch.Tensor,
    ids: torch.Tensor,
    epoch: int,
    el2n_epochs: int,
    sums: torch.Tensor,
    counters: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """Add the observations of the rows to the state, rows of one sample in their order; sample -1 is left out."""
    rows = len(outcomes)
    sorted_states, order = torch.sort(states, stable=True)
    accumulate_kernel[(-(-rows // ACCUMULATE_BLOCK),)](
        *(sorted_states, order, observed, outcomes, ids, ids.stride(0)),
        *(sums, counters, status, rows, epoch, int(epoch < el2n_epochs)),
        BLOCK=ACCUMULATE_BLOCK,
        num_warps=HARDNESS_WARPS,
    )
