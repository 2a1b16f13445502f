"""Adds a batch's observations to the state of its samples: every in-loop estimator, one pass over the logits (numba).

`layout` defines the state. Its sums are float64, which is exact enough for any number of visits.

`record` runs on the threads of `team`. Every sample belongs to one owner, and each owner reads all labels and ids but
only the logits of its own rows, in their order. So threads never wait for each other, rows of one sample count in their
order, and a batch with a bad label or id is refused before anything is added. `accumulate` adds observations that were
made elsewhere.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from hbr_fast.kernels import team
from hbr_fast.kernels.cache import CACHE
from hbr_fast.kernels.hardness.cpu_rows import (
    CLASSES,
    COUNTERS,
    EL2N_EPOCHS,
    EPOCH,
    IDS,
    IDS_B,
    IDS_TYPE,
    LABELS,
    LABELS_B,
    LABELS_TYPE,
    MASK,
    NOTED,
    OBSERVED,
    OUTCOMES,
    OWNERS,
    ROWS,
    SAMPLES,
    STATUS,
    SUMS,
    integer_at,
    is_not_recorded,
    observe_rows,
    scratch_for,
)
from hbr_fast.kernels.hardness.layout import (
    CORRECT,
    COUNTER_COLUMNS,
    EL2N_OBSERVATIONS,
    FIRST_LEARNED,
    FIRST_NOT_FINITE,
    FORGOTTEN,
    IGNORED_LABEL,
    LAST_CORRECT,
    NEED_EXPONENTIALS,
    NOT_FINITE,
    OBSERVATIONS,
    RIGHT,
    ROWS_NOT_FINITE,
    STATUS_ENTRIES,
    SUM_COLUMNS,
    WRONG,
)
from hbr_fast.kernels.hardness.row_vectors import add_doubles
from hbr_fast.kernels.hardness.tile_vectors import FOUND_RIGHT, TILE
from hbr_fast.kernels.vector import prefetch

_AHEAD = 12  # rows whose state is prefetched before it is needed


@nb.njit(inline="always")
def prefetch_state(words, sample):
    prefetch(np.uint64(words[SUMS] + sample * (8 * SUM_COLUMNS)))
    prefetch(np.uint64(words[COUNTERS] + sample * (4 * COUNTER_COLUMNS)))


@nb.njit(inline="always")
def add_row(words, counters, sample, observed_row, right):
    """Add one observation, float64 [8] at an address, to the state of a sample."""
    epoch = words[EPOCH]
    add_doubles(np.uint64(words[SUMS] + sample * (8 * SUM_COLUMNS)), np.uint64(observed_row), SUM_COLUMNS)
    learned, last_correct = counters[sample, FIRST_LEARNED], counters[sample, LAST_CORRECT]
    counters[sample, OBSERVATIONS] += 1
    counters[sample, CORRECT] += right
    counters[sample, FORGOTTEN] += (last_correct == 1) & (right == WRONG)
    counters[sample, LAST_CORRECT] = right
    counters[sample, FIRST_LEARNED] = epoch if (right == RIGHT) & (learned < 0) else learned
    counters[sample, EL2N_OBSERVATIONS] += epoch < words[EL2N_EPOCHS]


@nb.njit(inline="always")
def owner_of(sample, owners):
    """The owner of a sample, by a hash that spreads any subset of ids evenly; `owners` is a power of two."""
    return np.int64((np.uint64(sample) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) & (owners - 1)


@nb.njit(inline="always")
def rows_of_owner(words, owner, rows, labels, samples):
    """Write an owner's rows with their labels and samples; returns their number, or -1 if any row of all is bad."""
    classes, num_samples = np.uint64(words[CLASSES]), np.uint64(words[SAMPLES])
    labels_at, labels_type, labels_b = words[LABELS], words[LABELS_TYPE], words[LABELS_B]
    ids_at, ids_type, ids_b = words[IDS], words[IDS_TYPE], words[IDS_B]
    owners = words[OWNERS]
    count, bad = 0, False
    for r in range(words[ROWS]):
        label, sample = integer_at(labels_at, labels_type, r * labels_b), integer_at(ids_at, ids_type, r * ids_b)
        counts = label != IGNORED_LABEL
        bad |= counts & ((np.uint64(label) >= classes) | (np.uint64(sample) >= num_samples))
        # Written always, and kept by advancing `count`: a branch would be mispredicted half of the time.
        rows[count], labels[count], samples[count] = r, label, sample
        count += counts & (owner_of(sample, owners) == owner)
    return -1 if bad else count


@nb.njit(inline="always")
def record_rows(words, owner, exponentials):
    """Record the rows of one owner."""
    all_rows = words[ROWS]
    room = all_rows + TILE
    own_rows = np.empty(3 * room, np.int64)
    rows = team.array_at(own_rows.ctypes.data, (room,), np.int64)
    samples = team.array_at(own_rows.ctypes.data + 8 * room, (room,), np.int64)
    labels = team.array_at(own_rows.ctypes.data + 16 * room, (room,), np.int32)
    count = rows_of_owner(words, owner, rows, labels, samples)
    note = team.array_at(words[NOTED], (1,), np.int64)
    if count < 0:
        note[0] = 1
        return
    scratch = scratch_for(words)
    found, observed = scratch.found, scratch.observed
    outcomes = team.array_at(words[OUTCOMES], (all_rows,), np.int64)
    counters = team.array_at(words[COUNTERS], (1, COUNTER_COLUMNS), np.int32)
    labels[count : count + TILE], samples[count : count + TILE] = 0, 0  # to fill the last tile
    for i in range(TILE):
        prefetch_state(words, samples[i])
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        for i in range(size):  # prefetches the next tile's state while this one is read
            prefetch_state(words, samples[start + TILE + i])
        of_tile = labels[start : start + TILE]
        observe_rows(words, rows[start : start + size], of_tile, scratch, observed, exponentials, False)
        for i in range(size):
            if is_not_recorded(found, i):
                outcomes[rows[start + i]] = NOT_FINITE
                note[0] = 1
            else:
                right = np.int64(found[FOUND_RIGHT, i])
                add_row(words, counters, samples[start + i], observed.ctypes.data + i * (8 * SUM_COLUMNS), right)
    own_rows[0], scratch.memory[0] = 0, 0.0  # keeps them alive: numba frees an array after the last use of its name


@nb.cfunc(team.KERNEL, cache=CACHE)
def record(first, last, words):
    """For owners [first, last): add the rows of their samples to the state, in the order of the batch.

    If any row of the batch is out of range, nothing is added and `noted` int64 [1] becomes 1. It also does if a row is
    not finite; its entry in `outcomes` int64 [rows] is then NOT_FINITE.
    """
    for owner in range(first, last):
        if words[MASK] & NEED_EXPONENTIALS != 0:
            record_rows(words, owner, True)
        else:
            record_rows(words, owner, False)


@nb.cfunc(team.KERNEL, cache=CACHE)
def accumulate(first, last, words):
    """For owners [first, last): add the observations that `observe_with_loss` wrote to the state.

    If any row of the batch was out of range (`noted`), nothing is added.
    """
    if team.array_at(words[NOTED], (1,), np.int64)[0] != 0:
        return
    all_rows, owners, room = words[ROWS], words[OWNERS], words[ROWS] + _AHEAD
    ids_at, ids_type, ids_b = words[IDS], words[IDS_TYPE], words[IDS_B]
    outcomes = team.array_at(words[OUTCOMES], (all_rows,), np.int64)
    counters = team.array_at(words[COUNTERS], (words[SAMPLES], COUNTER_COLUMNS), np.int32)
    status = team.array_at(words[STATUS], (STATUS_ENTRIES,), np.int64)
    memory = np.empty(2 * room, np.int64)
    rows = team.array_at(memory.ctypes.data, (room,), np.int64)
    samples = team.array_at(memory.ctypes.data + 8 * room, (room,), np.int64)
    for owner in range(first, last):
        count = 0
        for r in range(all_rows):
            sample, outcome = integer_at(ids_at, ids_type, r * ids_b), outcomes[r]
            # See `rows_of_owner`.
            rows[count], samples[count] = r, sample
            count += (owner_of(sample, owners) == owner) & (outcome <= RIGHT)
            if (owner == 0) & (outcome == NOT_FINITE):
                if status[ROWS_NOT_FINITE] == 0:
                    status[FIRST_NOT_FINITE] = sample
                status[ROWS_NOT_FINITE] += 1
        samples[count : count + _AHEAD] = samples[count - 1]
        for i in range(count):
            prefetch_state(words, samples[i + _AHEAD])
            r = rows[i]
            add_row(words, counters, samples[i], words[OBSERVED] + r * (8 * SUM_COLUMNS), outcomes[r])
    memory[0] = 0  # keeps it alive, as in `record_rows`
