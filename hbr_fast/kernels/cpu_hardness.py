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
from hbr_fast.kernels.hardness_vectors import add_doubles, row_exp_sums, row_rival, scale_row
from hbr_fast.kernels.tile_vectors import (
    LOG_LOSS,
    OTHERS_SHARE,
    OWN,
    RIVAL,
    RIVAL_SHARE,
    SCALED,
    SQUARES,
    TILE,
    TILE_ROWS,
    observe_tile,
    read_narrow_tile,
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
    LOGITS, _LOGITS_TYPE, _LOGITS_M, _LOGITS_B, _LOGITS_C,
    LABELS, _LABELS_TYPE, _LABELS_M, _LABELS_B,
    IDS, _IDS_TYPE, _IDS_M, _IDS_B,
    _ROWS, _BATCH, _CLASSES, SAMPLES, _MASK, _OBSERVED, _OUTCOMES, _BAD,
    _OWNERS, EPOCH, EL2N_EPOCHS, SUMS, COUNTERS, STATUS,
    GRADIENT, _LOSSES, WEIGHTS, _OPTIONS,
) = range(31)  # fmt: skip

# What the loss is told (label smoothing, the sum of the class weights, by what the gradient is divided) and tells.
SMOOTHING, TOTAL_WEIGHT, DIVISOR, LOSS_SUM = range(4)
OPTIONS = 4

_LANES = 16
_BLOCK = 1024  # exponentials summed in float32
_NARROW = 16  # up to so many classes rows are read TILE at a time
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
    if stride == 1:  # a loop of its own: it becomes vector instructions
        for c in range(classes):
            row[c] = convert(source[c])
    else:
        for c in range(classes):
            row[c] = convert(source[c * stride])


@nb.njit(inline="always")
def _as_float32(value):
    return np.float32(value)


@nb.njit(fastmath=_FASTMATH)
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
    code, stride = words[_LOGITS_TYPE], words[_LOGITS_C]
    offset = m * words[_LOGITS_M] + b * words[_LOGITS_B]
    address = words[LOGITS] + offset * (8 if code == FLOAT64 else 4 if code == FLOAT32 else 2)
    if code == FLOAT32 and stride == 1:
        return address
    copy_row(address, code, stride, words[_CLASSES], row)
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
def label_of_row(words, m, b, r, outcomes):
    """The label of a row that counts, -1 of one that is left out; its outcome says so, and else is yet WRONG."""
    label = integer_at(words[LABELS], words[_LABELS_TYPE], m * words[_LABELS_M] + b * words[_LABELS_B])
    sample = integer_at(words[IDS], words[_IDS_TYPE], m * words[_IDS_M] + b * words[_IDS_B])
    known = 0 <= label < words[_CLASSES]
    if known and 0 <= sample < words[SAMPLES]:
        outcomes[r] = WRONG
        # What `accumulate` adds to is on its way while logits are read. Any address will do, where there is no state.
        state = m * words[SAMPLES] + sample
        prefetch(np.uint64(words[SUMS] + state * (8 * SUM_COLUMNS)))
        prefetch(np.uint64(words[COUNTERS] + state * (4 * COUNTER_COLUMNS)))
        return label
    outcomes[r] = IGNORED if label == IGNORED_LABEL else BAD_ID if known else BAD_LABEL
    if label != IGNORED_LABEL:
        team.array_at(words[_BAD], (1,), np.int64)[0] = 1
    return -1


@nb.njit(inline="always")
def read_rows(words, start, size, m, b, outcomes, tile, row, exponentials, with_loss):
    """Read a tile's rows one by one."""
    classes = words[_CLASSES]
    for i in range(size):
        r = start + i
        # A row that is left out is worked on as one of two equal logits, and never added.
        tile[OWN, i], tile[RIVAL, i], tile[SCALED, i], tile[SQUARES, i] = 0.0, 0.0, 1.0, 1.0
        label = label_of_row(words, m, b, r, outcomes)
        if label >= 0:
            address = row_at(words, m, b, row)
            rival, finite = row_rival(np.uint64(address), classes, label, _LANES)
            if math.isnan(finite):
                outcomes[r] = NOT_FINITE
            else:
                logits_c = team.array_at(address, (classes,), np.float32)
                own = logits_c[label]
                outcomes[r] = RIGHT if is_right(own, rival, label, logits_c) else WRONG
                tile[OWN, i], tile[RIVAL, i] = own, rival
                if exponentials:
                    scaled, squares = 0.0, 0.0
                    gradient = words[GRADIENT] + 4 * r * classes if with_loss else 0
                    for c in range(0, classes, _BLOCK):  # float32 within a block, float64 over them: digits are kept
                        count, at = min(_BLOCK, classes - c), np.uint64(address + 4 * c)
                        to = np.uint64(gradient + 4 * c)
                        block = row_exp_sums(at, count, label - c, rival, _LANES, to, with_loss)
                        scaled += block[0]
                        squares += block[1]
                    tile[SCALED, i], tile[SQUARES, i] = scaled, squares
        b += 1
        if b == words[_BATCH]:
            m, b = m + 1, 0


@nb.njit(inline="always")
def read_narrow_rows(words, start, size, m, b, outcomes, tile, row, logits, labels, found, exponentials, with_loss):
    """Read a tile's rows of few classes together."""
    classes = words[_CLASSES]
    plain = words[_LOGITS_TYPE] == FLOAT32 and words[_LOGITS_C] == 1
    at_logits, step_m, step_b = words[LOGITS], 4 * words[_LOGITS_M], 4 * words[_LOGITS_B]
    for i in range(size):
        label = label_of_row(words, m, b, start + i, outcomes)
        labels[i] = max(label, 0)
        if label >= 0:
            address = at_logits + m * step_m + b * step_b if plain else row_at(words, m, b, row)
            logits_c = team.array_at(address, (classes,), np.float32)
            for c in range(classes):
                logits[c, i] = logits_c[c]
        else:
            logits[:, i] = 0.0
        b += 1
        if b == words[_BATCH]:
            m, b = m + 1, 0
    addresses = np.uint64(labels.ctypes.data), np.uint64(tile.ctypes.data), np.uint64(found.ctypes.data)
    read_narrow_tile(np.uint64(logits.ctypes.data), classes, addresses[0], addresses[1], addresses[2], exponentials)
    for i in range(size):
        r = start + i
        if outcomes[r] == WRONG:
            outcomes[r] = NOT_FINITE if math.isnan(found[1, i]) else RIGHT if found[0, i] != 0 else WRONG
        if with_loss:
            gradient = team.array_at(words[GRADIENT] + 4 * r * classes, (classes,), np.float32)
            for c in range(classes):
                gradient[c] = logits[c, i]


@nb.njit(inline="always")
def observe_rows(first, last, words, exponentials, with_loss):
    """The body of `observe` and of `observe_with_loss`."""
    rows, batch, classes = words[_ROWS], words[_BATCH], words[_CLASSES]
    observed = team.array_at(words[_OBSERVED], (rows, SUM_COLUMNS), np.float64)
    outcomes = team.array_at(words[_OUTCOMES], (rows,), np.int64)
    row = np.empty(classes, np.float32)
    tile, last_tile = np.zeros((TILE_ROWS, TILE)), np.empty((TILE, SUM_COLUMNS))
    narrow = classes <= _NARROW
    logits = np.zeros((classes if narrow else 1, TILE), np.float32)
    labels, found = np.zeros(TILE, np.int32), np.zeros((2, TILE), np.float32)
    kept = np.zeros(SUM_COLUMNS, np.int64)
    for column in range(SUM_COLUMNS):
        kept[column] = -(words[_MASK] >> column & 1)
    for start in range(first, last, TILE):
        size = min(TILE, last - start)
        m, b = start // batch, start % batch
        if narrow:
            read_narrow_rows(
                words, start, size, m, b, outcomes, tile, row, logits, labels, found, exponentials, with_loss
            )
        else:
            read_rows(words, start, size, m, b, outcomes, tile, row, exponentials, with_loss)
        to = observed[start:last] if size == TILE else last_tile
        addresses = np.uint64(tile.ctypes.data), np.uint64(kept.ctypes.data), np.uint64(to.ctypes.data)
        observe_tile(addresses[0], addresses[1], addresses[2], exponentials)
        if size < TILE:
            observed[start:last] = last_tile[:size]
        if with_loss:
            finish_losses(words, start, size, tile, row)
    # Keep them: numba frees an array after the last use of its name, and these are used by their addresses.
    kept[0], labels[0] = 0, 0


@nb.njit(fastmath=_FASTMATH)
def smooth_row(gradient, scale, share, weights):
    for c in range(gradient.shape[0]):
        gradient[c] = gradient[c] * scale - share * weights[c]


@nb.njit(fastmath=_FASTMATH)
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
    classes = words[_CLASSES]
    losses = team.array_at(words[_LOSSES] + 8 * start, (size,), np.float64)
    outcomes = team.array_at(words[_OUTCOMES] + 8 * start, (size,), np.int64)
    weights = team.array_at(words[WEIGHTS], (classes,), np.float32)
    options = team.array_at(words[_OPTIONS], (OPTIONS,), np.float64)
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
        label = integer_at(words[LABELS], words[_LABELS_TYPE], (start + i) * words[_LABELS_B])
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
            scale_row(np.uint64(address), classes, factor, _LANES)
        losses[i] = loss
        # p - 1 of the own class, as far less as the others have: digits are kept when p is near 1.
        gradient[label] = (total_share - share * weight - scale * tile[OTHERS_SHARE, i]) * inverse


@nb.cfunc(team.KERNEL, cache=True)
def observe(first, last, words):
    """Read rows [first, last) of the logits: write `observed` float64 [rows, 8] and `outcomes` int64 [rows].

    A row out of range sets `bad` int64 [1].
    """
    if words[_MASK] & NEED_EXPONENTIALS != 0:
        observe_rows(first, last, words, True, False)
    else:
        observe_rows(first, last, words, False, False)


@nb.cfunc(team.KERNEL, cache=True)
def observe_with_loss(first, last, words):
    """As `observe` for logits [B, C], and write the cross-entropy of each row and its gradient.

    Written are `losses` float64 [B] and `gradient` float32 [B, C], of which the latter is over the divisor. Read are
    `weights` float32 [C] and `options` float64 [4].
    """
    observe_rows(first, last, words, True, True)


@nb.cfunc(team.KERNEL, cache=True)
def accumulate(first, last, words):
    """Add what `observe` wrote to the state of the samples that the owners [first, last) own, rows in their order.

    Owner o of a power of two of them owns the samples whose ids end in o. If a row was bad, nothing is added.
    """
    if team.array_at(words[_BAD], (1,), np.int64)[0] != 0:
        return
    rows, batch, samples = words[_ROWS], words[_BATCH], words[SAMPLES]
    members = rows // batch
    outcomes = team.array_at(words[_OUTCOMES], (rows,), np.int64)
    counters = team.array_at(words[COUNTERS], (members * samples, COUNTER_COLUMNS), np.int32)
    status = team.array_at(words[STATUS], (STATUS_ENTRIES,), np.int64)
    epoch, in_window = words[EPOCH], words[EPOCH] < words[EL2N_EPOCHS]
    mine, states = np.empty(rows + _AHEAD, np.int64), np.empty(rows + _AHEAD, np.int64)
    for owner in range(first, last):
        count, r = 0, 0
        for m in range(members):
            for b in range(batch):
                sample = integer_at(words[IDS], words[_IDS_TYPE], m * words[_IDS_M] + b * words[_IDS_B])
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
            prefetch(np.uint64(words[SUMS] + states[i + _AHEAD] * (8 * SUM_COLUMNS)))
            prefetch(np.uint64(words[COUNTERS] + states[i + _AHEAD] * (4 * COUNTER_COLUMNS)))
            state, r = states[i], mine[i]
            sums = np.uint64(words[SUMS] + state * (8 * SUM_COLUMNS))
            add_doubles(sums, np.uint64(words[_OBSERVED] + r * (8 * SUM_COLUMNS)), SUM_COLUMNS)
            right = outcomes[r]
            learned, last_correct = counters[state, FIRST_LEARNED], counters[state, LAST_CORRECT]
            counters[state, OBSERVATIONS] += 1
            counters[state, CORRECT] += right
            counters[state, FORGOTTEN] += (last_correct == 1) & (right == WRONG)
            counters[state, LAST_CORRECT] = right
            counters[state, FIRST_LEARNED] = epoch if (right == RIGHT) & (learned < 0) else learned
            counters[state, EL2N_OBSERVATIONS] += in_window


@nb.cfunc(team.KERNEL, cache=True)
def weigh_labels(first, last, words):
    """The divisor of a mean loss, from the words of `observe_with_loss`: the sum of the weights of the rows' classes.

    One item, so that the rows are added in the same order whatever the number of threads.
    """
    classes = words[_CLASSES]
    weights = team.array_at(words[WEIGHTS], (classes,), np.float32)
    total = 0.0
    for b in range(words[_ROWS]):
        label = integer_at(words[LABELS], words[_LABELS_TYPE], b * words[_LABELS_B])
        if 0 <= label < classes:
            total += np.float64(weights[label])
    team.array_at(words[_OPTIONS], (OPTIONS,), np.float64)[DIVISOR] = total


@nb.cfunc(team.KERNEL, cache=True)
def add_losses(first, last, words):
    """The sum of the losses, from the words of `observe_with_loss`. One item, as for `weigh_labels`."""
    losses = team.array_at(words[_LOSSES], (words[_ROWS],), np.float64)
    team.array_at(words[_OPTIONS], (OPTIONS,), np.float64)[LOSS_SUM] = losses.sum()
