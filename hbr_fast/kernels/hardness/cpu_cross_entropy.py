"""Cross-entropy, its gradient and the observations to record, from one pass over the logits of a batch (numba).

Three kernels run one after another on the threads of `team`: `weigh_labels` computes the divisor of a mean loss,
`observe_with_loss` reads the logits, and `add_losses` sums the losses; `cpu_record.accumulate` then adds the
observations to the state. Here each thread has a contiguous range of rows, not those of its own samples as in
`cpu_record.record`: with few classes, neighbouring rows of the gradient share a cache line, and two threads must not
write to one line.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from hbr_fast.kernels import team
from hbr_fast.kernels.cache import CACHE
from hbr_fast.kernels.hardness.cpu_rows import (
    CLASSES,
    GRADIENT,
    IDS,
    IDS_B,
    IDS_TYPE,
    LABELS,
    LABELS_B,
    LABELS_TYPE,
    LANES,
    LOSSES,
    NOTED,
    OBSERVED,
    OPTIONS,
    OUTCOMES,
    RESULT,
    ROWS,
    SAMPLES,
    VECTOR_MATH,
    WEIGHTS,
    integer_at,
    is_not_recorded,
    observe_rows,
    row_at,
    scratch_for,
)
from hbr_fast.kernels.hardness.layout import IGNORED, IGNORED_LABEL, NOT_FINITE, SUM_COLUMNS
from hbr_fast.kernels.hardness.narrow_vectors import NARROW, narrow_gradient
from hbr_fast.kernels.hardness.row_vectors import scale_row
from hbr_fast.kernels.hardness.tile_vectors import (
    FOUND_FINITE,
    FOUND_RIGHT,
    LOG_LOSS,
    LOSS,
    OWN_SLOPE,
    SLOPE,
    TILE,
    WEIGHT,
    losses_of_tile,
)

# Options of the loss: label smoothing, the sum of the class weights, and the divisor of loss and gradient, which
# `weigh_labels` writes if the loss is a mean.
SMOOTHING, TOTAL_WEIGHT, DIVISOR = range(3)
OPTION_ENTRIES = 3


@nb.njit(fastmath=VECTOR_MATH)
def smooth_row(gradient_c, slope, shares):
    for c in range(gradient_c.shape[0]):
        gradient_c[c] = gradient_c[c] * slope - shares[c]


@nb.njit(fastmath=VECTOR_MATH)
def weighted_sum(logits_c, weights):
    """Sum of weight times logit over the classes, in float64."""
    total = 0.0
    for c in range(logits_c.shape[0]):
        total += np.float64(logits_c[c]) * np.float64(weights[c])
    return total


@nb.njit(error_model="numpy")
def one_over(divisor):
    """1 / divisor, infinite for 0, which is the divisor of a mean over no rows."""
    return 1.0 / divisor


@nb.njit(inline="always")
def finish_losses(words, start, size, labels, scratch, shares, aside):
    """Write losses and gradients of a tile's rows, which begin at row `start`; labels are -1 for rows to leave out.

    With weights w and smoothing s over C classes the loss is (1 - s) w_y (-log p_y) + s / C sum_c w_c (-log p_c). Its
    derivative by logit c is p_c a - s / C w_c, minus (1 - s) w_y if c = y, where a = (1 - s) w_y + s / C sum_c w_c.
    Both are divided by the divisor. At c = y, p - 1 is computed as minus the sum of the other probabilities, so that
    digits are kept when p is near 1.
    """
    tile, found = scratch.tile, scratch.found
    classes = words[CLASSES]
    weights = team.array_at(words[WEIGHTS], (classes,), np.float32)
    options = team.array_at(words[OPTIONS], (OPTION_ENTRIES,), np.float64)
    smoothing, total_weight, inverse = options[SMOOTHING], options[TOTAL_WEIGHT], one_over(options[DIVISOR])
    share = smoothing / classes
    for i in range(TILE):
        tile[WEIGHT, i] = weights[max(labels[i], 0)]
    at_tile, at_labels = np.uint64(tile.ctypes.data), np.uint64(labels.ctypes.data)
    at_found = np.uint64(found.ctypes.data)
    losses_of_tile(at_tile, at_labels, at_found, smoothing, share, share * total_weight, inverse)
    if smoothing > 0.0:
        for i in range(size):
            if labels[i] >= 0:
                logits_c = team.array_at(row_at(words, start + i, scratch.row), (classes,), np.float32)
                log_sum = tile[LOG_LOSS, i] + np.float64(logits_c[labels[i]])
                tile[LOSS, i] += share * (total_weight * log_sum - weighted_sum(logits_c, weights))
    team.array_at(words[LOSSES] + 8 * start, (size,), np.float64)[:] = tile[LOSS, :size]
    gradient = team.array_at(words[GRADIENT] + 4 * start * classes, (size * classes,), np.float32)
    if classes <= NARROW:
        narrow_gradient(
            np.uint64(scratch.columns.ctypes.data),
            classes,
            at_labels,
            np.uint64(shares.ctypes.data),
            at_tile,
            np.uint64(aside.ctypes.data),
            np.uint64(gradient.ctypes.data),
            size,
        )
        return
    for i in range(size):
        gradient_c = gradient[i * classes : (i + 1) * classes]
        if labels[i] < 0 or math.isnan(found[FOUND_FINITE, i]):
            gradient_c[:] = tile[SLOPE, i]  # 0 or NaN
            continue
        if smoothing > 0.0:
            smooth_row(gradient_c, np.float32(tile[SLOPE, i]), shares)
        else:
            scale_row(np.uint64(gradient_c.ctypes.data), classes, np.float32(tile[SLOPE, i]), LANES)
        gradient_c[labels[i]] = tile[OWN_SLOPE, i]


@nb.njit(inline="always")
def write_shares(words, shares):
    """Write the share that smoothing subtracts from the gradient of each class; without smoothing, 0 stays."""
    options = team.array_at(words[OPTIONS], (OPTION_ENTRIES,), np.float64)
    if options[SMOOTHING] > 0.0:
        share = options[SMOOTHING] / words[CLASSES] * one_over(options[DIVISOR])
        weights = team.array_at(words[WEIGHTS], (words[CLASSES],), np.float32)
        for c in range(words[CLASSES]):
            shares[c] = share * weights[c]


@nb.cfunc(team.KERNEL, cache=CACHE)
def observe_with_loss(first, last, words):
    """For rows [first, last) of logits [B, C]: write observations, cross-entropy and gradient.

    Written are `observed` float64 [B, 8], `outcomes` int64 [B], `losses` float64 [B], and `gradient` float32 [B, C]
    divided by the divisor. `weights` float32 [C] and `options` float64 [3] are read. A row out of range sets `noted`.
    """
    all_rows = words[ROWS]
    observed = team.array_at(words[OBSERVED], (all_rows, SUM_COLUMNS), np.float64)
    outcomes = team.array_at(words[OUTCOMES], (all_rows,), np.int64)
    scratch = scratch_for(words)
    found, last_tile = scratch.found, scratch.observed
    memory = np.zeros(2 * TILE + ((TILE + 1) * NARROW + words[CLASSES] + 1) // 2)  # as `Scratch.memory`
    at = memory.ctypes.data
    rows, labels = team.array_at(at, (TILE,), np.int64), team.array_at(at + 8 * TILE, (TILE,), np.int32)
    aside = team.array_at(at + 16 * TILE, ((TILE + 1) * NARROW,), np.float32)
    shares = team.array_at(at + 16 * TILE + 4 * (TILE + 1) * NARROW, (words[CLASSES],), np.float32)
    write_shares(words, shares)
    classes, samples, bad = np.uint64(words[CLASSES]), np.uint64(words[SAMPLES]), False
    labels_at, labels_type, labels_b = words[LABELS], words[LABELS_TYPE], words[LABELS_B]
    ids_at, ids_type, ids_b = words[IDS], words[IDS_TYPE], words[IDS_B]
    for start in range(first, last, TILE):
        size = min(TILE, last - start)
        for i in range(size):
            r = start + i
            label, sample = integer_at(labels_at, labels_type, r * labels_b), integer_at(ids_at, ids_type, r * ids_b)
            counts = label != IGNORED_LABEL
            fits = (np.uint64(label) < classes) & (np.uint64(sample) < samples)
            bad |= counts & (not fits)
            rows[i], labels[i] = r, label if counts & fits else -1
        to = observed[start:last] if size == TILE else last_tile
        observe_rows(words, rows[:size], labels, scratch, to, True, True)
        for i in range(size):
            outcome = NOT_FINITE if is_not_recorded(found, i) else np.int64(found[FOUND_RIGHT, i])
            outcomes[start + i] = outcome if labels[i] >= 0 else IGNORED
        if size < TILE:
            observed[start:last] = last_tile[:size]
        finish_losses(words, start, size, labels, scratch, shares, aside)
    if bad:
        team.array_at(words[NOTED], (1,), np.int64)[0] = 1
    memory[0], scratch.memory[0] = 0.0, 0.0  # keeps them alive, as in `cpu_record.record_rows`


@nb.cfunc(team.KERNEL, cache=CACHE)
def weigh_labels(first, last, words):
    """Write the divisor of a mean loss to the options: the sum of the weights of the rows' classes.

    One item, not one per row, so that rows are added in the same order whatever the number of threads.
    """
    classes = words[CLASSES]
    weights = team.array_at(words[WEIGHTS], (classes,), np.float32)
    total = 0.0
    for b in range(words[ROWS]):
        label = integer_at(words[LABELS], words[LABELS_TYPE], b * words[LABELS_B])
        if 0 <= label < classes:
            total += np.float64(weights[label])
    team.array_at(words[OPTIONS], (OPTION_ENTRIES,), np.float64)[DIVISOR] = total


@nb.cfunc(team.KERNEL, cache=CACHE)
def add_losses(first, last, words):
    """Write the sum of the losses, divided by the divisor, to `result` float32 [1]. One item, as in `weigh_labels`."""
    total = team.array_at(words[LOSSES], (words[ROWS],), np.float64).sum()
    divisor = team.array_at(words[OPTIONS], (OPTION_ENTRIES,), np.float64)[DIVISOR]
    team.array_at(words[RESULT], (1,), np.float32)[0] = total / divisor if divisor != 0.0 else np.nan
