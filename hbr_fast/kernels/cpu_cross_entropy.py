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
    RIGHT,
    ROWS,
    SUM_COLUMNS,
    VECTOR_MATH,
    WEIGHTS,
    WRONG,
    integer_at,
    kept_columns,
    observe_rows,
    outcome_of,
    prefetch_state,
    row_at,
    scratch_for,
)
from hbr_fast.kernels.hardness_vectors import scale_row
from hbr_fast.kernels.tile_vectors import FOUND_FINITE, FOUND_RIGHT, LOG_LOSS, OTHERS_SHARE, RIVAL_SHARE, TILE

# What the loss is told: label smoothing, the sum of the class weights, and by what the gradient is divided, which
# `weigh_labels` writes for a mean.
SMOOTHING, TOTAL_WEIGHT, DIVISOR = range(3)
OPTION_ENTRIES = 3


@nb.njit(fastmath=VECTOR_MATH)
def smooth_row(gradient, scale, share, weights):
    for c in range(gradient.shape[0]):
        gradient[c] = gradient[c] * scale - share * weights[c]


@nb.njit(fastmath=VECTOR_MATH)
def weighted_sum(logits_c, weights):
    """Sum of weight times logit over the classes, in float64."""
    total = 0.0
    for c in range(logits_c.shape[0]):
        total += np.float64(logits_c[c]) * np.float64(weights[c])
    return total


@nb.njit(error_model="numpy")
def finish_losses(words, start, size, tile, row):
    """Write the losses of a tile's rows, and their gradients, whose rows hold `exp(z - rival)` of the other classes.

    With weights w and smoothing s over C classes the loss is (1 - s) w_y (-log p_y) + s / C sum_c w_c (-log p_c). Its
    gradient is p_c a - s / C w_c, less (1 - s) w_y where c = y, with a = (1 - s) w_y + s / C sum w; all over the
    divisor.
    """
    classes = words[CLASSES]
    losses = team.array_at(words[LOSSES] + 8 * start, (size,), np.float64)
    outcomes = team.array_at(words[OUTCOMES] + 8 * start, (size,), np.int64)
    weights = team.array_at(words[WEIGHTS], (classes,), np.float32)
    options = team.array_at(words[OPTIONS], (OPTION_ENTRIES,), np.float64)
    smoothing, inverse = options[SMOOTHING], 1.0 / options[DIVISOR]
    share = smoothing / classes
    total_share = share * options[TOTAL_WEIGHT]
    for i in range(size):
        address = words[GRADIENT] + 4 * (start + i) * classes
        gradient = team.array_at(address, (classes,), np.float32)
        if outcomes[i] > RIGHT:
            gradient[:] = np.nan if outcomes[i] == NOT_FINITE else 0.0
            losses[i] = np.nan if outcomes[i] == NOT_FINITE else 0.0
            continue
        label = integer_at(words[LABELS], words[LABELS_TYPE], (start + i) * words[LABELS_B])
        weight = np.float64(weights[label])
        own_scale = (1.0 - smoothing) * weight
        scale = own_scale + total_share
        loss = own_scale * tile[LOG_LOSS, i]
        factor = np.float32(scale * tile[RIVAL_SHARE, i] * inverse)
        if smoothing > 0.0:
            logits_c = team.array_at(row_at(words, 0, start + i, row), (classes,), np.float32)
            log_sum = tile[LOG_LOSS, i] + np.float64(logits_c[label])
            loss += share * (options[TOTAL_WEIGHT] * log_sum - weighted_sum(logits_c, weights))
            smooth_row(gradient, factor, np.float32(share * inverse), weights)
        else:
            scale_row(np.uint64(address), classes, factor, LANES)
        losses[i] = loss
        # p - 1 of the own class, as far less as the others have: digits are kept when p is near 1.
        gradient[label] = (total_share - share * weight - scale * tile[OTHERS_SHARE, i]) * inverse


@nb.cfunc(team.KERNEL, cache=True)
def observe_with_loss(first, last, words):
    """Read rows [first, last) of logits [B, C]: write what they say, their cross-entropy and its gradient.

    Written are `observed` float64 [rows, 8], `outcomes` int64 [rows], `losses` float64 [B] and `gradient` float32
    [B, C], over the divisor. Read are `weights` float32 [C] and `options` float64 [3]. A row out of range sets `noted`.
    """
    all_rows = words[ROWS]
    observed = team.array_at(words[OBSERVED], (all_rows, SUM_COLUMNS), np.float64)
    outcomes = team.array_at(words[OUTCOMES], (all_rows,), np.int64)
    scratch, kept, last_tile = scratch_for(words), kept_columns(words), np.empty((TILE, SUM_COLUMNS))
    found = scratch[1]
    rows, labels = np.empty(TILE, np.int64), np.zeros(TILE, np.int32)
    for start in range(first, last, TILE):
        size = min(TILE, last - start)
        for i in range(size):
            r = start + i
            label = integer_at(words[LABELS], words[LABELS_TYPE], r * words[LABELS_B])
            sample = integer_at(words[IDS], words[IDS_TYPE], r * words[IDS_B])
            outcomes[r] = outcome_of(words, label, sample)
            rows[i], labels[i] = r, label if outcomes[r] == WRONG else -1
            if outcomes[r] == WRONG:  # what `accumulate` adds to is on its way while logits are read
                prefetch_state(words, sample)
            elif outcomes[r] != IGNORED:
                team.array_at(words[NOTED], (1,), np.int64)[0] = 1
        to = observed[start:last] if size == TILE else last_tile
        observe_rows(words, rows[:size], labels, scratch, kept, to, True, True)
        for i in range(size):
            if labels[i] >= 0:
                outcomes[start + i] = NOT_FINITE if math.isnan(found[FOUND_FINITE, i]) else found[FOUND_RIGHT, i]
        if size < TILE:
            observed[start:last] = last_tile[:size]
        finish_losses(words, start, size, scratch[0], scratch[2])
    # Keep them: numba frees an array after the last use of its name, and these are used by their addresses.
    kept[0], labels[0] = 0, 0


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
