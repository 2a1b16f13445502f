"""One pass over the logits of a batch: its cross-entropy, the gradient, and what `cpu_hardness` records (numba).

Three kernels, each on the threads of `team`: `weigh_labels` finds the divisor of a mean loss, `observe_with_loss` reads
the logits, in any order of the rows, and `add_losses` makes one number of the losses. What the rows say is then added
to the state by `cpu_hardness.accumulate`: unlike there, threads share the rows out by place, because neighbours' rows
of the gradient lie in the same cache line where there are few classes.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from hbr_fast.kernels import team
from hbr_fast.kernels.cpu_hardness import (
    CLASSES,
    GRADIENT,
    IDS,
    IDS_B,
    IDS_TYPE,
    IGNORED,
    IGNORED_LABEL,
    LABELS,
    LABELS_B,
    LABELS_TYPE,
    LANES,
    LOSSES,
    NOT_FINITE,
    NOTED,
    OBSERVED,
    OPTIONS,
    OUTCOMES,
    RESULT,
    ROWS,
    SAMPLES,
    SUM_COLUMNS,
    VECTOR_MATH,
    WEIGHTS,
    integer_at,
    observe_rows,
    row_at,
    scratch_for,
)
from hbr_fast.kernels.hardness_vectors import scale_row
from hbr_fast.kernels.narrow_vectors import NARROW, narrow_gradient
from hbr_fast.kernels.tile_vectors import (
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

# What the loss is told: label smoothing, the sum of the class weights, and by what the gradient is divided, which
# `weigh_labels` writes for a mean.
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
    """Infinite over 0: the divisor of a mean over no rows."""
    return 1.0 / divisor


@nb.njit(inline="always")
def finish_losses(words, start, size, labels, scratch, shares, aside):
    """Write the losses of a tile's rows from `start` on, and their gradients; labels are -1 of rows to leave out.

    With weights w and smoothing s over C classes the loss is (1 - s) w_y (-log p_y) + s / C sum_c w_c (-log p_c). Its
    gradient is p_c a - s / C w_c, less (1 - s) w_y where c = y, with a = (1 - s) w_y + s / C sum w; all over the
    divisor. At the own class p - 1 is, as far less, what the others have: digits are kept when p is near 1.
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
                logits_c = team.array_at(row_at(words, 0, start + i, scratch.row), (classes,), np.float32)
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
    """What smoothing takes from the gradient at each class; 0 stays where there is none."""
    options = team.array_at(words[OPTIONS], (OPTION_ENTRIES,), np.float64)
    if options[SMOOTHING] > 0.0:
        share = options[SMOOTHING] / words[CLASSES] * one_over(options[DIVISOR])
        weights = team.array_at(words[WEIGHTS], (words[CLASSES],), np.float32)
        for c in range(words[CLASSES]):
            shares[c] = share * weights[c]


@nb.cfunc(team.KERNEL, cache=True)
def observe_with_loss(first, last, words):
    """Read rows [first, last) of logits [B, C]: write what they say, their cross-entropy and its gradient.

    Written are `observed` float64 [rows, 8], `outcomes` int64 [rows], `losses` float64 [B] and `gradient` float32
    [B, C], over the divisor. Read are `weights` float32 [C] and `options` float64 [3]. A row out of range sets `noted`.
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
            outcome = NOT_FINITE if math.isnan(found[FOUND_FINITE, i]) else np.int64(found[FOUND_RIGHT, i])
            outcomes[start + i] = outcome if labels[i] >= 0 else IGNORED
        if size < TILE:
            observed[start:last] = last_tile[:size]
        finish_losses(words, start, size, labels, scratch, shares, aside)
    if bad:
        team.array_at(words[NOTED], (1,), np.int64)[0] = 1
    memory[0], scratch.memory[0] = 0.0, 0.0  # Until here; see `cpu_hardness.record_rows`.


@nb.cfunc(team.KERNEL, cache=True)
def weigh_labels(first, last, words):
    """The divisor of a mean loss, from the words of `observe_with_loss`: the sum of the weights of the rows' classes.

    One item, so that the rows are added in the same order whatever the number of threads.
    """
    classes = words[CLASSES]
    weights = team.array_at(words[WEIGHTS], (classes,), np.float32)
    total = 0.0
    for b in range(words[ROWS]):
        label = integer_at(words[LABELS], words[LABELS_TYPE], b * words[LABELS_B])
        if 0 <= label < classes:
            total += np.float64(weights[label])
    team.array_at(words[OPTIONS], (OPTION_ENTRIES,), np.float64)[DIVISOR] = total


@nb.cfunc(team.KERNEL, cache=True)
def add_losses(first, last, words):
    """Write the sum of the losses over the divisor to `result` float32 [1]. One item, as for `weigh_labels`."""
    total = team.array_at(words[LOSSES], (words[ROWS],), np.float64).sum()
    divisor = team.array_at(words[OPTIONS], (OPTION_ENTRIES,), np.float64)[DIVISOR]
    team.array_at(words[RESULT], (1,), np.float32)[0] = total / divisor if divisor != 0.0 else np.nan
