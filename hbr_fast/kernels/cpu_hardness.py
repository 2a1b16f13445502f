"""One pass over the logits of a batch: every in-loop hardness estimator, added to the state of its sample (numba).

The state of one sample is two short rows, side by side in memory, because a batch touches samples at random: one
cache line of sums and half a line of counters a sample, instead of a line for each of a dozen arrays. Sums are float64:
exact enough for any number of visits, without a second word of compensation each.

`record` does it on the threads of `team`. Each sample belongs to one of them, which reads all labels and ids, and then
the logits of its own rows, in their order: threads never wait for each other, rows of one sample count in their order,
and a batch with a bad label or id is refused before anything is added. `accumulate` adds what was observed elsewhere.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from hbr_fast.kernels import team
from hbr_fast.kernels.hardness_vectors import add_doubles, row_exp_sums, row_rival
from hbr_fast.kernels.narrow_vectors import NARROW, read_narrow_tile
from hbr_fast.kernels.tile_vectors import (
    FOUND_FINITE,
    FOUND_RIGHT,
    FOUND_ROWS,
    OWN,
    RIVAL,
    SCALED,
    SQUARES,
    TILE,
    TILE_ROWS,
    observe_tile,
)
from hbr_fast.kernels.vector import from_bfloat16, from_float16, prefetch

# Columns of `sums` (float64); bit c of an estimator mask asks for column c. What is not asked for stays 0.
AUM, AUM_SOFTMAX, CONFIDENCE, CONFIDENCE_SQUARED, CONFIDENCE_LOGIT, LOSS, EL2N = range(7)
SUM_COLUMNS = 8  # 64 bytes: one cache line
ALL_COLUMNS = (1 << 7) - 1
NEED_EXPONENTIALS = ALL_COLUMNS & ~(1 << AUM | 1 << CONFIDENCE_LOGIT)
# Columns of `counters` (int32): always counted.
OBSERVATIONS, CORRECT, FORGOTTEN, LAST_CORRECT, FIRST_LEARNED, EL2N_OBSERVATIONS = range(6)
COUNTER_COLUMNS = 8
# Entries of `status` (int64): rows left out because a logit was NaN or infinite, the first such id or -1, and, where an
# error cannot be raised (on a GPU), rows left out for a label or an id out of range.
ROWS_NOT_FINITE, FIRST_NOT_FINITE, ROWS_BAD_LABEL, ROWS_BAD_ID = range(4)
STATUS_ENTRIES = 4

IGNORED_LABEL = -100  # torch's: the row is left out

# What a row is found to be.
WRONG, RIGHT, IGNORED, NOT_FINITE, BAD_LABEL, BAD_ID = range(6)

# Codes of what an address points to.
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = range(4)
INT64, INT32 = range(2)

# What the kernels find in their words, each what it needs. Strides count elements; members have stride 0 where all
# share a tensor.
(
    LOGITS, LOGITS_TYPE, LOGITS_M, LOGITS_B, LOGITS_C,
    LABELS, LABELS_TYPE, LABELS_M, LABELS_B,
    IDS, IDS_TYPE, IDS_M, IDS_B,
    ROWS, BATCH, CLASSES, SAMPLES, MASK, OBSERVED, OUTCOMES, NOTED,
    OWNERS, EPOCH, EL2N_EPOCHS, SUMS, COUNTERS, STATUS,
    GRADIENT, LOSSES, WEIGHTS, OPTIONS, RESULT,
) = range(32)  # fmt: skip

LANES = 16
_BLOCK = 1024  # exponentials summed in float32
_AHEAD = 12  # rows whose state is asked of memory before it is needed
VECTOR_MATH = {"reassoc", "contract", "nsz", "arcp", "afn"}


@nb.njit(inline="always")
def integer_at(address, code, index):
    """Element `index` of the int64 or int32 array at an address."""
    if code == INT64:
        return team.array_at(address, (index + 1,), np.int64)[index]
    return np.int64(team.array_at(address, (index + 1,), np.int32)[index])


@nb.njit(inline="always", fastmath=VECTOR_MATH)
def _copy(source, stride, classes, convert, row):
    if stride == 1:  # a loop of its own: it becomes vector instructions
        for c in range(classes):
            row[c] = convert(source[c])
    else:
        for c in range(classes):
            row[c] = convert(source[c * stride])


@nb.njit(inline="always")
def _as_float32(value):
    return np.float32(value)


@nb.njit(fastmath=VECTOR_MATH)
def copy_row(address, code, stride, classes, row):
    """Copy logits of any type and stride to float32 `row`."""
    extent = (classes - 1) * stride + 1
    if code == FLOAT32:
        _copy(team.array_at(address, (extent,), np.float32), stride, classes, _as_float32, row)
    elif code == BFLOAT16:
        _copy(team.array_at(address, (extent,), np.uint16), stride, classes, from_bfloat16, row)
    elif code == FLOAT16:
        _copy(team.array_at(address, (extent,), np.uint16), stride, classes, from_float16, row)
    else:
        _copy(team.array_at(address, (extent,), np.float64), stride, classes, _as_float32, row)


@nb.njit(inline="always")
def row_at(words, m, b, row):
    """Address of the logits of one row as contiguous float32: where they are, if that is what they are, or in `row`."""
    code, stride = words[LOGITS_TYPE], words[LOGITS_C]
    offset = m * words[LOGITS_M] + b * words[LOGITS_B]
    address = words[LOGITS] + offset * (8 if code == FLOAT64 else 4 if code == FLOAT32 else 2)
    if code == FLOAT32 and stride == 1:
        return address
    copy_row(address, code, stride, words[CLASSES], row)
    return np.int64(row.ctypes.data)


@nb.njit(inline="always")
def is_right(own, rival, label, logits_c):
    """A tie counts as right only where the own class comes first, as in argmax."""
    right = own >= rival
    if own == rival:
        for c in range(label):
            right = right and logits_c[c] != own
    return right


@nb.njit(inline="always")
def member_and_place(words, r):
    """Of row r of all members'."""
    batch = words[BATCH]
    return (0, r) if r < batch else (r // batch, r % batch)


@nb.njit(inline="always")
def prefetch_state(words, state):
    prefetch(np.uint64(words[SUMS] + state * (8 * SUM_COLUMNS)))
    prefetch(np.uint64(words[COUNTERS] + state * (4 * COUNTER_COLUMNS)))


@nb.njit(inline="always")
def read_rows(words, rows, labels, scratch, exponentials, with_loss):
    """Read a tile's rows one by one."""
    tile, found = scratch.tile, scratch.found
    classes = words[CLASSES]
    for i in range(len(rows)):
        r, label = rows[i], labels[i]
        # A row that is left out is worked on as one of two equal logits, and never added.
        tile[OWN, i], tile[RIVAL, i], tile[SCALED, i], tile[SQUARES, i] = 0.0, 0.0, 1.0, 1.0
        found[FOUND_RIGHT, i], found[FOUND_FINITE, i] = 0.0, 0.0
        if label < 0:
            continue
        m, b = member_and_place(words, r)
        address = row_at(words, m, b, scratch.row)
        rival, finite = row_rival(np.uint64(address), classes, label, LANES)
        found[FOUND_FINITE, i] = finite
        if math.isnan(finite):
            continue
        logits_c = team.array_at(address, (classes,), np.float32)
        own = logits_c[label]
        found[FOUND_RIGHT, i] = is_right(own, rival, label, logits_c)
        tile[OWN, i], tile[RIVAL, i] = own, rival
        if exponentials:
            scaled, squares = 0.0, 0.0
            gradient = words[GRADIENT] + 4 * r * classes if with_loss else 0
            for c in range(0, classes, _BLOCK):  # float32 within a block, float64 over them: digits are kept
                count, at = min(_BLOCK, classes - c), np.uint64(address + 4 * c)
                block = row_exp_sums(at, count, label - c, rival, LANES, np.uint64(gradient + 4 * c), with_loss)
                scaled += block[0]
                squares += block[1]
            tile[SCALED, i], tile[SQUARES, i] = scaled, squares


@nb.njit(inline="always")
def read_narrow_rows(words, rows, labels, scratch, exponentials):
    """Read a tile's rows of few classes together."""
    plain = words[LOGITS_TYPE] == FLOAT32 and words[LOGITS_C] == 1
    at_logits, step_m, step_b = words[LOGITS], 4 * words[LOGITS_M], 4 * words[LOGITS_B]
    addresses, copies = scratch.addresses, scratch.copies
    addresses[:] = scratch.zeros.ctypes.data  # of rows to leave out
    for i in range(len(rows)):
        if labels[i] >= 0:
            m, b = member_and_place(words, rows[i])
            addresses[i] = at_logits + m * step_m + b * step_b if plain else row_at(words, m, b, copies[i])
    read_narrow_tile(
        np.uint64(addresses.ctypes.data),
        words[CLASSES],
        np.uint64(scratch.columns.ctypes.data),
        np.uint64(labels.ctypes.data),
        np.uint64(scratch.tile.ctypes.data),
        np.uint64(scratch.found.ctypes.data),
        exponentials,
    )


class Scratch(NamedTuple):
    """What reading tiles takes, for one call of a kernel.

    Attributes
    ----------
    tile : float64 [TILE_ROWS, TILE]
    found : float32 [FOUND_ROWS, TILE]
    observed : float64 [TILE, 8]
    kept : int64 [8]
        For `observe_tile`: -1 for the columns that are asked for, 0 for those to be 0.
    row : float32 [C]
        A copy of a row, if need be.
    columns, copies, zeros, addresses : float32 [NARROW, TILE], [TILE, NARROW] and [NARROW], int64 [TILE]
        Of rows of few classes: see `read_narrow_tile`.
    memory : float64 [any]
        What all that lies in; the caller uses it last of all. The others do not own any, because numba counts who
        refers to memory by an atomic instruction, wherever an array is passed on: that took a quarter of the time.
    """

    tile: Any
    found: Any
    observed: Any
    kept: Any
    row: Any
    columns: Any
    copies: Any
    zeros: Any
    addresses: Any
    memory: Any


@nb.njit(inline="always")
def scratch_for(words):
    """Scratch for logits of this form."""
    classes = words[CLASSES]
    doubles = TILE * (TILE_ROWS + SUM_COLUMNS + 1) + SUM_COLUMNS
    floats = TILE * (FOUND_ROWS + 2 * NARROW) + NARROW + classes
    memory = np.zeros(doubles + (floats + 1) // 2)
    at = memory.ctypes.data
    tile = team.array_at(at, (TILE_ROWS, TILE), np.float64)
    at += 8 * TILE_ROWS * TILE
    observed = team.array_at(at, (TILE, SUM_COLUMNS), np.float64)
    at += 8 * TILE * SUM_COLUMNS
    addresses = team.array_at(at, (TILE,), np.int64)
    at += 8 * TILE
    kept = team.array_at(at, (SUM_COLUMNS,), np.int64)
    for column in range(SUM_COLUMNS):
        kept[column] = -(words[MASK] >> column & 1)
    at += 8 * SUM_COLUMNS
    found = team.array_at(at, (FOUND_ROWS, TILE), np.float32)
    at += 4 * FOUND_ROWS * TILE
    columns = team.array_at(at, (NARROW, TILE), np.float32)
    at += 4 * NARROW * TILE
    copies = team.array_at(at, (TILE, NARROW), np.float32)
    at += 4 * TILE * NARROW
    zeros = team.array_at(at, (NARROW,), np.float32)
    row = team.array_at(at + 4 * NARROW, (classes,), np.float32)
    return Scratch(tile, found, observed, kept, row, columns, copies, zeros, addresses, memory)


@nb.njit(inline="always")
def observe_rows(words, rows, labels, scratch, observed, exponentials, with_loss):
    """Write what at most TILE rows say to `observed` float64 [TILE, 8].

    Labels are int32 [TILE], -1 of rows to leave out. `scratch` then holds the tile and what was found.
    """
    if words[CLASSES] <= NARROW:
        read_narrow_rows(words, rows, labels, scratch, exponentials)
    else:
        read_rows(words, rows, labels, scratch, exponentials, with_loss)
    at_tile, at_kept = np.uint64(scratch.tile.ctypes.data), np.uint64(scratch.kept.ctypes.data)
    observe_tile(at_tile, at_kept, np.uint64(observed.ctypes.data), exponentials)


@nb.njit(inline="always")
def add_row(words, counters, state, observed_row, right):
    """Add one observation, whose numbers are at an address, to a state."""
    epoch = words[EPOCH]
    add_doubles(np.uint64(words[SUMS] + state * (8 * SUM_COLUMNS)), np.uint64(observed_row), SUM_COLUMNS)
    learned, last_correct = counters[state, FIRST_LEARNED], counters[state, LAST_CORRECT]
    counters[state, OBSERVATIONS] += 1
    counters[state, CORRECT] += right
    counters[state, FORGOTTEN] += (last_correct == 1) & (right == WRONG)
    counters[state, LAST_CORRECT] = right
    counters[state, FIRST_LEARNED] = epoch if (right == RIGHT) & (learned < 0) else learned
    counters[state, EL2N_OBSERVATIONS] += epoch < words[EL2N_EPOCHS]


@nb.njit(inline="always")
def owner_of(sample, owners):
    """Which of a power of two of them owns a sample: scattered, so that even ids alone have as many owners as all."""
    return np.int64((np.uint64(sample) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) & (owners - 1)


@nb.njit(inline="always")
def rows_of_owner(words, owner, rows, labels, states):
    """Write the rows whose samples an owner owns, their labels and states; how many, or -1 if any row of all is bad."""
    classes, samples, batch = np.uint64(words[CLASSES]), np.uint64(words[SAMPLES]), words[BATCH]
    labels_at, labels_type, labels_m, labels_b = words[LABELS], words[LABELS_TYPE], words[LABELS_M], words[LABELS_B]
    ids_at, ids_type, ids_m, ids_b = words[IDS], words[IDS_TYPE], words[IDS_M], words[IDS_B]
    owners = words[OWNERS]
    count, r, bad = 0, 0, False
    for m in range(words[ROWS] // batch):
        for b in range(batch):
            label = integer_at(labels_at, labels_type, m * labels_m + b * labels_b)
            sample = integer_at(ids_at, ids_type, m * ids_m + b * ids_b)
            counts = label != IGNORED_LABEL
            bad |= counts & ((np.uint64(label) >= classes) | (np.uint64(sample) >= samples))
            # Kept by moving on, not by a branch that would be guessed wrong half of the time.
            rows[count], labels[count], states[count] = r, label, m * np.int64(samples) + sample
            count += counts & (owner_of(sample, owners) == owner)
            r += 1
    return -1 if bad else count


@nb.njit(inline="always")
def record_rows(words, owner, exponentials):
    """The body of `record`, for one owner."""
    all_rows = words[ROWS]
    room = all_rows + TILE
    own_rows = np.empty(3 * room, np.int64)
    rows = team.array_at(own_rows.ctypes.data, (room,), np.int64)
    states = team.array_at(own_rows.ctypes.data + 8 * room, (room,), np.int64)
    labels = team.array_at(own_rows.ctypes.data + 16 * room, (room,), np.int32)
    count = rows_of_owner(words, owner, rows, labels, states)
    note = team.array_at(words[NOTED], (1,), np.int64)
    if count < 0:
        note[0] = 1
        return
    scratch = scratch_for(words)
    found, observed = scratch.found, scratch.observed
    outcomes = team.array_at(words[OUTCOMES], (all_rows,), np.int64)
    counters = team.array_at(words[COUNTERS], (1, COUNTER_COLUMNS), np.int32)
    labels[count : count + TILE], states[count : count + TILE] = 0, 0  # behind the last
    for i in range(TILE):
        prefetch_state(words, states[i])
    for start in range(0, count, TILE):
        size = min(TILE, count - start)
        for i in range(size):  # what the next tile adds to is on its way while this one is read
            prefetch_state(words, states[start + TILE + i])
        of_tile = labels[start : start + TILE]
        observe_rows(words, rows[start : start + size], of_tile, scratch, observed, exponentials, False)
        for i in range(size):
            if math.isnan(found[FOUND_FINITE, i]):
                outcomes[rows[start + i]] = NOT_FINITE
                note[0] = 1
            else:
                right = np.int64(found[FOUND_RIGHT, i])
                add_row(words, counters, states[start + i], observed.ctypes.data + i * (8 * SUM_COLUMNS), right)
    own_rows[0], scratch.memory[0] = 0, 0.0  # Until here: numba frees an array after the last use of its name.


@nb.cfunc(team.KERNEL, cache=True)
def record(first, last, words):
    """Add rows of the logits to the state of the samples that the owners [first, last) own, in their order.

    If any row is out of range, nothing is added and `noted` int64 [1] becomes 1. It does too where a row is not finite:
    its entry in `outcomes` int64 [rows] then says so.
    """
    for owner in range(first, last):
        if words[MASK] & NEED_EXPONENTIALS != 0:
            record_rows(words, owner, True)
        else:
            record_rows(words, owner, False)


@nb.cfunc(team.KERNEL, cache=True)
def accumulate(first, last, words):
    """Add what `observe_with_loss` wrote to the state of samples; owners as for `record`.

    If a row was out of range, nothing is added.
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
    states = team.array_at(memory.ctypes.data + 8 * room, (room,), np.int64)
    for owner in range(first, last):
        count = 0
        for r in range(all_rows):
            sample, outcome = integer_at(ids_at, ids_type, r * ids_b), outcomes[r]
            # Kept by moving on, not by a branch that would be guessed wrong half of the time.
            rows[count], states[count] = r, sample
            count += (owner_of(sample, owners) == owner) & (outcome <= RIGHT)
            if (owner == 0) & (outcome == NOT_FINITE):
                if status[ROWS_NOT_FINITE] == 0:
                    status[FIRST_NOT_FINITE] = sample
                status[ROWS_NOT_FINITE] += 1
        states[count : count + _AHEAD] = states[count - 1]
        for i in range(count):
            prefetch_state(words, states[i + _AHEAD])
            r = rows[i]
            add_row(words, counters, states[i], words[OBSERVED] + r * (8 * SUM_COLUMNS), outcomes[r])
    memory[0] = 0  # Until here; see `record_rows`.
