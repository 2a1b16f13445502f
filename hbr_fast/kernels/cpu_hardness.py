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
    bits_of,
    float_of,
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

# What `observe` finds in its words. Strides count elements; members have stride 0 where all share a tensor.
(
    _LOGITS, _LOGITS_TYPE, _LOGITS_M, _LOGITS_B, _LOGITS_C,
    _LABELS, _LABELS_TYPE, _LABELS_M, _LABELS_B,
    _IDS, _IDS_TYPE, _IDS_M, _IDS_B,
    _ROWS, _BATCH, _CLASSES, _SAMPLES, _MASK, _OBSERVED, _OUTCOMES, _BAD,
    _GRADIENT, _LOSSES, _ROW_WEIGHTS, _WEIGHTS, _OPTIONS,
) = range(26)  # fmt: skip

# What `accumulate` finds in its words.
(
    _A_IDS, _A_IDS_TYPE, _A_IDS_M, _A_IDS_B, _A_ROWS, _A_BATCH, _A_SAMPLES, _A_OBSERVED, _A_OUTCOMES,
    _A_SUMS, _A_COUNTERS, _A_STATUS, _A_EPOCH, _A_EL2N_EPOCHS, _A_OWNERS,
) = range(15)  # fmt: skip

_LANES = 16
_BLOCK = 64  # vectors summed in float32
_TILE = 16  # rows finished together
_ROUND = 1.5 * 2.0**52
_SQRT_HALF = 0x3FE6A09E667F3BCD  # bits of sqrt(1/2)
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


@nb.njit(inline="always")
def exponential(x):
    """exp(x) for x <= 0, to 1e-14; 0 below -708. Plain arithmetic, so that a loop of it becomes vector instructions."""
    bounded = max(x, -708.0)
    shifted = bounded * 1.4426950408889634 + _ROUND  # the nearest integer, in the lowest bits of the mantissa
    power = shifted - _ROUND
    r = (bounded - power * 0.6931471805598903) - power * 5.497923018708371e-14
    e = 1.0 + r * (1 / 11)
    for k in range(10, 0, -1):
        e = 1.0 + r * e * (1.0 / k)
    return e * float_of((bits_of(shifted) + 1023) << 52) if x > -708.0 else 0.0


@nb.njit(inline="always")
def log_of_one_plus(u):
    """log(1 + u) for 0 <= u, to 1e-13 relative, in plain arithmetic as `exponential`."""
    s = 1.0 + u
    lost = (u - (s - 1.0)) / s  # what rounding took from u
    bits = bits_of(s)
    power = (bits - _SQRT_HALF) >> 52
    f = float_of(bits - (power << 52)) - 1.0  # in [sqrt(1/2), sqrt(2)] - 1
    q = f / (2.0 + f)  # log((1 + q) / (1 - q)) is 2 (q + q^3 / 3 + ...)
    z = q * q
    tail = 1 / 15 + z / 17
    tail = 1 / 13 + z * tail
    tail = 1 / 11 + z * tail
    tail = 1 / 9 + z * tail
    tail = 1 / 7 + z * tail
    tail = 1 / 5 + z * tail
    tail = 1 / 3 + z * tail
    return power * 0.6931471805599453 + (2.0 * q * (1.0 + z * tail) + lost)


# What is known of the rows of a tile, one array [_TILE] each: from the logits, and what follows for the gradient.
_OWN, _RIVAL, _SCALED, _SQUARES, _RIVAL_SHARE, _OTHERS_SHARE, _TILE_LOSS = range(7)


@nb.njit(fastmath={"contract"})
def observe_tile(size, mask, exponentials, tile, columns, observed):
    """Write what the rows of a tile say, by column of `sums`; see `reference.observation`.

    Parameters
    ----------
    size : int
        Rows in the tile.
    mask : int
        The columns asked for.
    exponentials : bool
        Whether more than logits is wanted.
    tile : float64 [7, _TILE]
        The logit of the own class, the largest other one, and sums over the other classes of `e` and of `e * e`,
        `e = exp(z - rival)`: relative to their largest, no square underflows however sure the model is, and kept apart
        from the own one, 1 - p keeps its digits when p is near 1. Written: the rival's probability, that of all others
        together, and the loss.
    columns : float64 [8, _TILE]
        Scratch.
    observed : float64 [size, 8]
    """
    for i in range(size):
        margin = tile[_OWN, i] - tile[_RIVAL, i]
        columns[AUM, i], columns[CONFIDENCE_LOGIT, i] = margin, tile[_OWN, i]
    if exponentials:
        for i in range(size):
            margin, scaled = columns[AUM, i], tile[_SCALED, i]
            ratio = exponential(-abs(margin))  # of the smaller of own and rival to the larger, which counts as 1
            own, rival = (1.0, ratio) if margin >= 0 else (ratio, 1.0)
            excess = ratio * scaled if margin >= 0 else ratio + (scaled - 1.0)  # of the sum over 1
            inverse = 1.0 / (1.0 + excess)
            confidence = own * inverse
            columns[CONFIDENCE, i] = confidence
            columns[CONFIDENCE_SQUARED, i] = confidence * confidence
            columns[AUM_SOFTMAX, i] = confidence - rival * inverse
            columns[LOSS, i] = log_of_one_plus(excess) - min(margin, 0.0)
            columns[EL2N, i] = rival * inverse * math.sqrt(scaled * scaled + tile[_SQUARES, i])
            tile[_RIVAL_SHARE, i] = rival * inverse
            tile[_OTHERS_SHARE, i] = rival * scaled * inverse
            tile[_TILE_LOSS, i] = columns[LOSS, i]
    for column in range(SUM_COLUMNS):
        if mask >> column & 1:
            for i in range(size):
                observed[i, column] = columns[column, i]
        else:
            for i in range(size):
                observed[i, column] = 0.0


@nb.njit(inline="always")
def is_right(own, rival, label, row):
    """A tie counts as right only where the own class comes first, as in argmax."""
    right = own >= rival
    if own == rival:
        for c in range(label):
            right = right and row[c] != own
    return right


@nb.njit(inline="always")
def observe_rows(first, last, words, with_loss):
    """The body of `observe` and of `observe_with_loss`."""
    rows, batch, classes, mask = words[_ROWS], words[_BATCH], words[_CLASSES], words[_MASK]
    observed = team.array_at(words[_OBSERVED], (rows, SUM_COLUMNS), np.float64)
    outcomes = team.array_at(words[_OUTCOMES], (rows,), np.int64)
    exponentials = with_loss or mask & NEED_EXPONENTIALS != 0
    row, chunks = padded_row(classes)
    address = np.uint64(row.ctypes.data)
    tile, columns = np.empty((7, _TILE)), np.empty((SUM_COLUMNS, _TILE))
    for start in range(first, last, _TILE):
        size = min(_TILE, last - start)
        for i in range(size):
            r = start + i
            m = r // batch
            b = r - m * batch
            # A row that is left out is worked on as one of two equal logits, and never added.
            tile[_OWN, i], tile[_RIVAL, i], tile[_SCALED, i], tile[_SQUARES, i] = 0.0, 0.0, 1.0, 1.0
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
            outcomes[r] = RIGHT if is_right(own, rival, label, row) else WRONG
            tile[_OWN, i], tile[_RIVAL, i] = own, rival
            if not exponentials:
                continue
            scaled, squares = 0.0, 0.0
            for chunk in range(0, chunks, _BLOCK):  # float32 within a block, float64 over them: long rows keep digits
                count = min(_BLOCK, chunks - chunk)
                block = row_exp_sums(address + np.uint64(4 * _LANES * chunk), count, rival, _LANES, with_loss)
                scaled += block[0]
                squares += block[1]
            tile[_SCALED, i], tile[_SQUARES, i] = scaled, squares
            if with_loss:
                gradient = team.array_at(words[_GRADIENT] + 4 * r * classes, (classes,), np.float32)
                gradient[:] = row[:classes]
                row[classes:] = LOWEST
        observe_tile(size, mask, exponentials, tile, columns, observed[start : start + size])
        if with_loss:
            for i in range(size):
                b = start + i
                label = integer_at(words[_LABELS], words[_LABELS_TYPE], b * words[_LABELS_B])
                finish_loss(words, b, label, tile[_RIVAL_SHARE, i], tile[_OTHERS_SHARE, i], tile[_TILE_LOSS, i])


@nb.njit(fastmath=_FASTMATH)
def scale_row(gradient, scale):
    for c in range(gradient.shape[0]):
        gradient[c] *= scale


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


@nb.njit
def finish_loss(words, b, label, rival_share, others_share, log_loss):
    """Write the loss of row b, its weight, and its gradient, whose row holds `exp(z - rival)` of the other classes.

    With weights w and smoothing s over C classes the loss is (1 - s) w_y (-log p_y) + s / C sum_c w_c (-log p_c), and
    its gradient p_c a - s / C w_c, less (1 - s) w_y where c = y, with a = (1 - s) w_y + s / C sum w.
    """
    rows, classes = words[_ROWS], words[_CLASSES]
    losses = team.array_at(words[_LOSSES], (rows,), np.float64)
    row_weights = team.array_at(words[_ROW_WEIGHTS], (rows,), np.float64)
    options = team.array_at(words[_OPTIONS], (2,), np.float64)
    smoothing, total_weight = options[0], options[1]
    outcome = team.array_at(words[_OUTCOMES], (rows,), np.int64)[b]
    gradient = team.array_at(words[_GRADIENT] + 4 * b * classes, (classes,), np.float32)
    if outcome > RIGHT:
        gradient[:] = np.nan if outcome == NOT_FINITE else 0.0
        losses[b], row_weights[b] = (np.nan, 1.0) if outcome == NOT_FINITE else (0.0, 0.0)
        return
    weights = team.array_at(words[_WEIGHTS], (classes,), np.float32)
    weight = np.float64(weights[label])
    share = smoothing / classes
    scale = (1.0 - smoothing) * weight + share * total_weight
    own = -scale * others_share + (scale - (1.0 - smoothing) * weight - share * weight)
    losses[b], row_weights[b] = (1.0 - smoothing) * weight * log_loss, weight
    if smoothing > 0.0:
        logits_c = np.empty(classes, np.float32)
        offset = b * words[_LOGITS_B]
        load_row(words[_LOGITS], words[_LOGITS_TYPE], offset, words[_LOGITS_C], classes, logits_c)
        log_sum = log_loss + np.float64(logits_c[label])
        losses[b] += share * (total_weight * log_sum - weighted_sum(logits_c, weights))
        smooth_row(gradient, np.float32(scale * rival_share), np.float32(share), weights)
    else:
        scale_row(gradient, np.float32(scale * rival_share))
    gradient[label] = own


@nb.cfunc(team.KERNEL, cache=True)
def observe(first, last, words):
    """Read rows [first, last) of the logits: write `observed` float64 [rows, 8] and `outcomes` int64 [rows].

    A row out of range sets `bad` int64 [1].
    """
    observe_rows(first, last, words, False)


@nb.cfunc(team.KERNEL, cache=True)
def observe_with_loss(first, last, words):
    """As `observe` for logits [B, C], and write the cross-entropy of each row and its gradient.

    Written are `losses` float64 [B], `row_weights` float64 [B] (the weight of the own class, 0 where the label is
    ignored) and `gradient` float32 [B, C]. Read are `weights` float32 [C] and `options` float64 [2]: label smoothing
    and the sum of the weights.
    """
    observe_rows(first, last, words, True)


@nb.cfunc(team.KERNEL, cache=True)
def accumulate(first, last, words):
    """Add what `observe` wrote to the state of the samples that the owners [first, last) own, rows in their order.

    Owner o of a power of two of them owns the samples whose ids end in o.
    """
    rows, batch, samples = words[_A_ROWS], words[_A_BATCH], words[_A_SAMPLES]
    members = rows // batch
    outcomes = team.array_at(words[_A_OUTCOMES], (rows,), np.int64)
    counters = team.array_at(words[_A_COUNTERS], (members * samples, COUNTER_COLUMNS), np.int32)
    status = team.array_at(words[_A_STATUS], (STATUS_ENTRIES,), np.int64)
    epoch, in_window = words[_A_EPOCH], words[_A_EPOCH] < words[_A_EL2N_EPOCHS]
    mine, states = np.empty(rows + _AHEAD, np.int64), np.empty(rows + _AHEAD, np.int64)
    for owner in range(first, last):
        count, r = 0, 0
        for m in range(members):
            for b in range(batch):
                sample = integer_at(words[_A_IDS], words[_A_IDS_TYPE], m * words[_A_IDS_M] + b * words[_A_IDS_B])
                # Kept by moving on, not by a branch that would be guessed wrong half of the time.
                mine[count], states[count] = r, m * samples + sample
                count += (sample & (words[_A_OWNERS] - 1) == owner) & (outcomes[r] <= RIGHT)
                if owner == 0 and outcomes[r] == NOT_FINITE:
                    if status[ROWS_NOT_FINITE] == 0:
                        status[FIRST_NOT_FINITE] = sample
                    status[ROWS_NOT_FINITE] += 1
                r += 1
        states[count : count + _AHEAD] = states[count - 1]
        for i in range(count):
            prefetch(np.uint64(words[_A_SUMS] + states[i + _AHEAD] * (8 * SUM_COLUMNS)))
            prefetch(np.uint64(words[_A_COUNTERS] + states[i + _AHEAD] * (4 * COUNTER_COLUMNS)))
            state, r = states[i], mine[i]
            sums = np.uint64(words[_A_SUMS] + state * (8 * SUM_COLUMNS))
            add_doubles(sums, np.uint64(words[_A_OBSERVED] + r * (8 * SUM_COLUMNS)), SUM_COLUMNS)
            right = outcomes[r]
            learned, last_correct = counters[state, FIRST_LEARNED], counters[state, LAST_CORRECT]
            counters[state, OBSERVATIONS] += 1
            counters[state, CORRECT] += right
            counters[state, FORGOTTEN] += (last_correct == 1) & (right == WRONG)
            counters[state, LAST_CORRECT] = right
            counters[state, FIRST_LEARNED] = epoch if (right == RIGHT) & (learned < 0) else learned
            counters[state, EL2N_OBSERVATIONS] += in_window
