"""One pass over the logits of a batch: every in-loop hardness estimator, added to the state of its sample (numba).

The state of one sample is two short rows, side by side in memory, because a batch touches samples at random: one
cache line of sums and half a line of counters a sample, instead of a line for each of a dozen arrays. Sums are float64:
exact enough for any number of visits, without a second word of compensation each.

Two kernels, each on the threads of `team`: `observe` reads the logits and writes what each row says, in any order;
`accumulate` adds that to the state, where each sample belongs to one thread, so that rows of one sample count in their
order. Between the two the state is untouched: a batch with a bad label or id is refused as a whole.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from hbr_fast.kernels import team
from hbr_fast.kernels.vector import (
    LOWEST,
    add_doubles,
    from_bfloat16,
    from_float16,
    prefetch,
    row_exp_sums,
    row_max,
)

# Columns of `sums` (float64); bit c of an estimator mask asks for column c. What is not asked for stays 0.
AUM, AUM_SOFTMAX, CONFIDENCE, CONFIDENCE_SQUARED, CONFIDENCE_LOGIT, LOSS, EL2N = range(7)
SUM_COLUMNS = 8  # 64 bytes: one cache line
ALL_COLUMNS = (1 << 7) - 1
_NEED_EXPONENTIALS = ALL_COLUMNS & ~(1 << AUM | 1 << CONFIDENCE_LOGIT)
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

# What `observe` finds in its words. Strides count elements; members have stride 0 where all share a tensor.
(
    _LOGITS, _LOGITS_TYPE, _LOGITS_M, _LOGITS_B, _LOGITS_C,
    _LABELS, _LABELS_TYPE, _LABELS_M, _LABELS_B,
    _IDS, _IDS_TYPE, _IDS_M, _IDS_B,
    _ROWS, _BATCH, _CLASSES, _SAMPLES, _MASK, _OBSERVED, _OUTCOMES, _BAD,
    _SUMS, _COUNTERS, _STATUS, _EPOCH, _EL2N_EPOCHS, _OWNERS,
) = range(27)  # fmt: skip

_LANES = 16
_BLOCK = 64  # vectors
_AHEAD = 12  # rows whose state is asked of memory before it is needed
_FASTMATH = {"reassoc", "contract", "nsz", "arcp", "afn"}


@nb.njit(inline="always")
def integer_at(address, code, index):
    """Element `index` of the int64 or int32 array at an address."""
    if code == INT64:
        return team.array_at(address, (index + 1,), np.int64)[index]
    return np.int64(team.array_at(address, (index + 1,), np.int32)[index])


@nb.njit(inline="always", fastmath=_FASTMATH)
def _copy(source, stride, classes, convert, row):
    finite = np.float32(0.0)
    if stride == 1:  # a loop of its own: it becomes vector instructions
        for c in range(classes):
            value = convert(source[c])
            row[c] = value
            finite += value * np.float32(0.0)  # NaN and infinity stay, every number goes
    else:
        for c in range(classes):
            value = convert(source[c * stride])
            row[c] = value
            finite += value * np.float32(0.0)
    return finite


@nb.njit(inline="always")
def _as_float32(value):
    return np.float32(value)


@nb.njit(fastmath=_FASTMATH)
def load_row(address, code, offset, stride, classes, row):
    """Copy logits of any type and stride to float32 `row`; returns whether all are finite."""
    extent = (classes - 1) * stride + 1
    if code == FLOAT32:
        source = team.array_at(address + 4 * offset, (extent,), np.float32)
        return not math.isnan(_copy(source, stride, classes, _as_float32, row))
    if code == BFLOAT16:
        bits = team.array_at(address + 2 * offset, (extent,), np.uint16)
        return not math.isnan(_copy(bits, stride, classes, from_bfloat16, row))
    if code == FLOAT16:
        bits = team.array_at(address + 2 * offset, (extent,), np.uint16)
        return not math.isnan(_copy(bits, stride, classes, from_float16, row))
    wide = team.array_at(address + 8 * offset, (extent,), np.float64)
    return not math.isnan(_copy(wide, stride, classes, _as_float32, row))


@nb.njit(inline="always")
def padded_row(classes):
    """Scratch for one row of logits in whole vectors, and how many: what lies behind the classes never counts."""
    chunks = (classes + _LANES - 1) // _LANES
    row = np.empty(chunks * _LANES, np.float32)
    row[classes:] = LOWEST
    return row, chunks


@nb.njit(inline="always", fastmath=_FASTMATH)
def observe_row(own, rival, scaled, scaled_squares, mask, observed):
    """Write what one row says, by column of `sums`; see `reference.observation`.

    Parameters
    ----------
    own, rival : float32
        The logit of the own class and the largest other one.
    scaled, scaled_squares : float64
        Sums over the other classes of `e` and of `e * e`, `e = exp(z - rival)`: relative to their largest, no square
        underflows however sure the model is, and kept apart from the own one, 1 - p keeps its digits when p is near 1.
    mask : int
    observed : float64 [8]
    """
    margin = np.float64(own) - np.float64(rival)
    observed[:] = 0.0
    if mask & (1 << AUM):
        observed[AUM] = margin
    if mask & (1 << CONFIDENCE_LOGIT):
        observed[CONFIDENCE_LOGIT] = own
    if not mask & _NEED_EXPONENTIALS:
        return
    ratio = math.exp(-abs(margin))  # of the smaller of the two exponentials to the larger
    own_exp, rival_exp = (1.0, ratio) if margin >= 0 else (ratio, 1.0)
    others = scaled * rival_exp
    inverse = 1.0 / (own_exp + others)
    confidence = own_exp * inverse
    if mask & (1 << CONFIDENCE):
        observed[CONFIDENCE] = confidence
    if mask & (1 << CONFIDENCE_SQUARED):
        observed[CONFIDENCE_SQUARED] = confidence * confidence
    if mask & (1 << AUM_SOFTMAX):
        observed[AUM_SOFTMAX] = confidence - rival_exp * inverse
    if mask & (1 << LOSS):
        observed[LOSS] = math.log1p(others) if margin >= 0 else math.log(own_exp + others) - margin
    if mask & (1 << EL2N):
        observed[EL2N] = rival_exp * inverse * math.sqrt(scaled * scaled + scaled_squares)


@nb.njit(inline="always")
def is_right(own, rival, label, row):
    """A tie counts as right only where the own class comes first, as in argmax."""
    right = own >= rival
    if own == rival:
        for c in range(label):
            right = right and row[c] != own
    return right


@nb.cfunc(team.KERNEL, cache=True)
def observe(first, last, words):
    """Read rows [first, last) of the logits: write `observed` float64 [rows, 8] and `outcomes` int64 [rows].

    A row out of range sets `bad` int64 [1].
    """
    rows, batch, classes, mask = words[_ROWS], words[_BATCH], words[_CLASSES], words[_MASK]
    observed = team.array_at(words[_OBSERVED], (rows, SUM_COLUMNS), np.float64)
    outcomes = team.array_at(words[_OUTCOMES], (rows,), np.int64)
    row, chunks = padded_row(classes)
    address = np.uint64(row.ctypes.data)
    for r in range(first, last):
        m = r // batch
        b = r - m * batch
        label = integer_at(words[_LABELS], words[_LABELS_TYPE], m * words[_LABELS_M] + b * words[_LABELS_B])
        sample = integer_at(words[_IDS], words[_IDS_TYPE], m * words[_IDS_M] + b * words[_IDS_B])
        if label == IGNORED_LABEL:
            outcomes[r] = IGNORED
            continue
        if not (0 <= label < classes and 0 <= sample < words[_SAMPLES]):
            outcomes[r] = BAD_ID if 0 <= label < classes else BAD_LABEL
            team.array_at(words[_BAD], (1,), np.int64)[0] = 1
            continue
        offset = m * words[_LOGITS_M] + b * words[_LOGITS_B]
        if not load_row(words[_LOGITS], words[_LOGITS_TYPE], offset, words[_LOGITS_C], classes, row):
            outcomes[r] = NOT_FINITE
            continue
        own = row[label]
        row[label] = LOWEST
        rival = row_max(address, chunks, _LANES)
        scaled, scaled_squares = 0.0, 0.0
        if mask & _NEED_EXPONENTIALS:
            for chunk in range(0, chunks, _BLOCK):  # float32 within a block, float64 over them: long rows keep digits
                size = min(_BLOCK, chunks - chunk)
                block = row_exp_sums(address + np.uint64(4 * _LANES * chunk), size, rival, _LANES)
                scaled += block[0]
                scaled_squares += block[1]
        observe_row(own, rival, scaled, scaled_squares, mask, observed[r])
        outcomes[r] = RIGHT if is_right(own, rival, label, row) else WRONG


@nb.cfunc(team.KERNEL, cache=True)
def accumulate(first, last, words):
    """Add what `observe` wrote to the state of the samples that the owners [first, last) own, rows in their order.

    Owner o of a power of two of them owns the samples whose ids end in o.
    """
    rows, batch, samples = words[_ROWS], words[_BATCH], words[_SAMPLES]
    members = rows // batch
    outcomes = team.array_at(words[_OUTCOMES], (rows,), np.int64)
    counters = team.array_at(words[_COUNTERS], (members * samples, COUNTER_COLUMNS), np.int32)
    status = team.array_at(words[_STATUS], (STATUS_ENTRIES,), np.int64)
    epoch, in_window = words[_EPOCH], words[_EPOCH] < words[_EL2N_EPOCHS]
    mine, states = np.empty(rows + _AHEAD, np.int64), np.empty(rows + _AHEAD, np.int64)
    for owner in range(first, last):
        count, r = 0, 0
        for m in range(members):
            for b in range(batch):
                sample = integer_at(words[_IDS], words[_IDS_TYPE], m * words[_IDS_M] + b * words[_IDS_B])
                # Kept by moving on, not by a branch that would be guessed wrong half of the time.
                mine[count], states[count] = r, m * samples + sample
                count += (sample & (words[_OWNERS] - 1) == owner) & (outcomes[r] <= RIGHT)
                if owner == 0 and outcomes[r] == NOT_FINITE:
                    if status[ROWS_NOT_FINITE] == 0:
                        status[FIRST_NOT_FINITE] = sample
                    status[ROWS_NOT_FINITE] += 1
                r += 1
        states[count : count + _AHEAD] = states[count - 1]
        for i in range(count):
            prefetch(np.uint64(words[_SUMS] + states[i + _AHEAD] * (8 * SUM_COLUMNS)))
            prefetch(np.uint64(words[_COUNTERS] + states[i + _AHEAD] * (4 * COUNTER_COLUMNS)))
            state, r = states[i], mine[i]
            sums = np.uint64(words[_SUMS] + state * (8 * SUM_COLUMNS))
            add_doubles(sums, np.uint64(words[_OBSERVED] + r * (8 * SUM_COLUMNS)), SUM_COLUMNS)
            right = outcomes[r]
            learned, last_correct = counters[state, FIRST_LEARNED], counters[state, LAST_CORRECT]
            counters[state, OBSERVATIONS] += 1
            counters[state, CORRECT] += right
            counters[state, FORGOTTEN] += (last_correct == 1) & (right == WRONG)
            counters[state, LAST_CORRECT] = right
            counters[state, FIRST_LEARNED] = epoch if (right == RIGHT) & (learned < 0) else learned
            counters[state, EL2N_OBSERVATIONS] += in_window
