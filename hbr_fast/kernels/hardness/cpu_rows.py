"""Turns rows of logits into observations, a tile of rows at a time, for `cpu_record` and `cpu_cross_entropy` (numba).

Rows of few classes are read together (`narrow_vectors`), others one by one (`row_vectors`). Then the observations are
computed (`tile_vectors`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from hbr_fast.kernels import team
from hbr_fast.kernels.hardness.layout import SUM_COLUMNS
from hbr_fast.kernels.hardness.narrow_vectors import NARROW, read_narrow_tile
from hbr_fast.kernels.hardness.row_vectors import LOWEST, NO_CLASS, row_exp_sums, row_rival
from hbr_fast.kernels.hardness.tile_vectors import (
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
from hbr_fast.kernels.vector import from_bfloat16, from_float16

# Codes of what an address points to.
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = range(4)
INT64, INT32 = range(2)

# The words that a kernel is called with (see `team`); each kernel reads those it needs. A name with _TYPE is a code,
# one with _B or _C the stride over rows or classes, in elements.
(
    LOGITS, LOGITS_TYPE, LOGITS_B, LOGITS_C,
    LABELS, LABELS_TYPE, LABELS_B,
    IDS, IDS_TYPE, IDS_B,
    ROWS, CLASSES, SAMPLES, MASK, OBSERVED, OUTCOMES, NOTED,
    OWNERS, EPOCH, EL2N_EPOCHS, SUMS, COUNTERS, STATUS,
    GRADIENT, LOSSES, WEIGHTS, OPTIONS, RESULT,
) = range(28)  # fmt: skip

LANES = 16  # of a vector of float32
_BLOCK = 1024  # exponentials that are summed in float32
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
def row_at(words, r, row):
    """Address of a row's logits as contiguous float32: their own if they are that already, else of a copy in `row`."""
    code, stride = words[LOGITS_TYPE], words[LOGITS_C]
    address = words[LOGITS] + r * words[LOGITS_B] * (8 if code == FLOAT64 else 4 if code == FLOAT32 else 2)
    if code == FLOAT32 and stride == 1:
        return address
    copy_row(address, code, stride, words[CLASSES], row)
    return np.int64(row.ctypes.data)


@nb.njit(inline="always")
def is_right(own, rival, label, logits_c):
    """Whether argmax gives the own class: in a tie, the first class of the largest logit wins."""
    right = own >= rival
    if own == rival:
        for c in range(label):
            right = right and logits_c[c] != own
    return right


@nb.njit(inline="always")
def read_rows(words, rows, labels, scratch, exponentials, with_loss):
    """Read the rows of a tile one by one, and fill in the tile."""
    tile, found = scratch.tile, scratch.found
    classes = words[CLASSES]
    for i in range(len(rows)):
        r, label = rows[i], labels[i]
        # Values for rows that are left out: what is computed from them is never used.
        tile[OWN, i], tile[RIVAL, i], tile[SCALED, i], tile[SQUARES, i] = 0.0, 0.0, 1.0, 1.0
        found[FOUND_RIGHT, i], found[FOUND_FINITE, i] = 0.0, 0.0
        if label < 0:
            continue
        address = row_at(words, r, scratch.row)
        rival, finite = row_rival(np.uint64(address), classes, label, LANES)
        logits_c = team.array_at(address, (classes,), np.float32)
        own = logits_c[label]
        finite += own * np.float32(0.0)  # NaN if the own class is masked (-inf)
        found[FOUND_FINITE, i] = finite
        if math.isnan(finite):
            continue
        found[FOUND_RIGHT, i] = is_right(own, rival, label, logits_c)
        if rival == NO_CLASS:
            found[FOUND_RIGHT, i], rival = np.nan, np.float32(LOWEST)
        tile[OWN, i], tile[RIVAL, i] = own, rival
        if exponentials:
            scaled, squares = 0.0, 0.0
            gradient = words[GRADIENT] + 4 * r * classes if with_loss else 0
            for c in range(0, classes, _BLOCK):  # float32 sums within a block, added in float64 to keep their digits
                count, at = min(_BLOCK, classes - c), np.uint64(address + 4 * c)
                block = row_exp_sums(at, count, label - c, rival, LANES, np.uint64(gradient + 4 * c), with_loss)
                scaled += block[0]
                squares += block[1]
            tile[SCALED, i], tile[SQUARES, i] = scaled, squares


@nb.njit(inline="always")
def read_narrow_rows(words, rows, labels, scratch, exponentials):
    """Read the rows of a tile together, and fill in the tile: for few classes."""
    plain = words[LOGITS_TYPE] == FLOAT32 and words[LOGITS_C] == 1
    at_logits, step = words[LOGITS], 4 * words[LOGITS_B]
    addresses, copies = scratch.addresses, scratch.copies
    addresses[:] = scratch.zeros.ctypes.data  # for rows to leave out
    for i in range(len(rows)):
        if labels[i] >= 0:
            addresses[i] = at_logits + rows[i] * step if plain else row_at(words, rows[i], copies[i])
    read_narrow_tile(
        np.uint64(addresses.ctypes.data),
        words[CLASSES],
        np.uint64(scratch.columns.ctypes.data),
        np.uint64(labels.ctypes.data),
        np.uint64(scratch.tile.ctypes.data),
        np.uint64(scratch.found.ctypes.data),
        exponentials,
    )


@nb.njit(inline="always")
def is_not_recorded(found, i):
    """Whether row i of a tile has a logit that is not finite, or no other class that is not masked."""
    return math.isnan(found[FOUND_FINITE, i] + found[FOUND_RIGHT, i])


class Scratch(NamedTuple):
    """Memory for reading tiles, allocated once per call of a kernel.

    Attributes
    ----------
    tile : float64 [TILE_ROWS, TILE]
    found : float32 [FOUND_ROWS, TILE]
    observed : float64 [TILE, 8]
    kept : int64 [8]
        For `observe_tile`: -1 for requested columns, 0 for the others.
    row : float32 [C]
        For a copy of a row.
    columns, copies, zeros, addresses : float32 [NARROW, TILE], [TILE, NARROW] and [NARROW], int64 [TILE]
        For rows of few classes: see `read_narrow_tile`.
    memory : float64 [any]
        Contains all of the above, and is freed after its last use, which must come after theirs. The others are mere
        views of addresses: numba would count references to an array by an atomic instruction wherever it is passed on,
        which took a quarter of the time.
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
    """Allocate the scratch for the logits that the words describe."""
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
    """Write the observations of at most TILE rows to `observed` float64 [TILE, 8].

    Labels are int32 [TILE], with -1 for rows to leave out. Afterwards `scratch` holds the tile and what was found.
    """
    if words[CLASSES] <= NARROW:
        read_narrow_rows(words, rows, labels, scratch, exponentials)
    else:
        read_rows(words, rows, labels, scratch, exponentials, with_loss)
    at_tile, at_kept = np.uint64(scratch.tile.ctypes.data), np.uint64(scratch.kept.ctypes.data)
    observe_tile(at_tile, at_kept, np.uint64(observed.ctypes.data), exponentials)
