"""One pass over the logits of a batch: every in-loop hardness estimator, added to the state of its sample (numba).

The state of one sample is two short rows, side by side in memory, because a batch touches samples at random: one
cache line of sums and half a line of counters a sample, instead of a line for each of a dozen arrays.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from hbr_fast.kernels.vector import LOWEST, row_exp_sums, row_max

# Columns of `sums` (float64).
AUM, AUM_SOFTMAX, CONFIDENCE, CONFIDENCE_SQUARED, CONFIDENCE_LOGIT, LOSS, EL2N = range(7)
SUM_COLUMNS = 8  # 64 bytes: one cache line
# Columns of `counters` (int32).
OBSERVATIONS, CORRECT, FORGOTTEN, LAST_CORRECT, FIRST_LEARNED, EL2N_OBSERVATIONS = range(6)
COUNTER_COLUMNS = 8

# What the kernel returns.
OK, BAD_LABEL, BAD_ID = 0, 1, 2

_LANES = 16
_FASTMATH = {"reassoc", "contract", "nsz", "arcp", "afn"}


@nb.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def record(logits_bc, labels_b, ids_b, epoch, el2n_epochs, sums, counters, nonfinite):
    """Add one observation a row; `hbr_fast.kernels.reference.record` is the definition.

    Parameters
    ----------
    logits_bc : float32 [B, C]
    labels_b, ids_b : int64 [B]
        Class and sample of each row. Ids may repeat: rows count in their order.
    epoch, el2n_epochs : int
        Epoch of these rows, from 0; EL2N is recorded in epochs below `el2n_epochs`.
    sums : float64 [N, 8], counters : int32 [N, 8]
        The state, changed in place.
    nonfinite : int64 [2]
        Rows left out because a logit was NaN or infinite, and the first such id (or -1); changed in place.

    Returns
    -------
    code : int
        OK, or BAD_LABEL or BAD_ID: then no row was recorded.
    row : int
        The offending row, or -1.
    """
    rows, classes = logits_bc.shape
    samples = sums.shape[0]
    for b in range(rows):
        if not 0 <= labels_b[b] < classes:
            return BAD_LABEL, b
        if not 0 <= ids_b[b] < samples:
            return BAD_ID, b
    chunks = (classes + _LANES - 1) // _LANES
    others = np.empty(chunks * _LANES, np.float32)  # the row without its own class, padded to whole vectors
    others[classes:] = LOWEST
    address = np.uint64(others.ctypes.data)
    for b in range(rows):
        label, sample = labels_b[b], ids_b[b]
        finite = np.float32(0.0)
        for c in range(classes):
            value = logits_bc[b, c]
            others[c] = value
            finite += value * np.float32(0.0)  # NaN and infinity stay, every number goes
        if math.isnan(finite):
            if nonfinite[0] == 0:
                nonfinite[1] = sample
            nonfinite[0] += 1
            continue
        own = others[label]
        others[label] = LOWEST
        rival = row_max(address, chunks, _LANES)
        top = max(own, rival)
        # Sums over the others, relative to their largest: no square underflows however sure the model is. They are
        # kept apart from the own exponential, so that 1 - p keeps its digits when p is nearly 1.
        scaled, scaled_squares = row_exp_sums(address, chunks, rival, _LANES)
        rival_exp = math.exp(np.float64(rival) - top)
        own_exp = math.exp(np.float64(own) - top)
        total = own_exp + scaled * rival_exp
        confidence = own_exp / total
        loss = math.log1p(scaled * rival_exp) if own >= rival else math.log(total) + (np.float64(rival) - own)
        correct = own > rival
        if own == rival:  # a tie counts as right only where the own class comes first, as in argmax
            correct = True
            for c in range(label):
                correct = correct and others[c] != own

        state, count = sums[sample], counters[sample]
        state[AUM] += np.float64(own) - rival
        state[AUM_SOFTMAX] += confidence - rival_exp / total
        state[CONFIDENCE] += confidence
        state[CONFIDENCE_SQUARED] += confidence * confidence
        state[CONFIDENCE_LOGIT] += own
        state[LOSS] += loss
        if epoch < el2n_epochs:
            state[EL2N] += rival_exp * math.sqrt(np.float64(scaled) * scaled + scaled_squares) / total
            count[EL2N_OBSERVATIONS] += 1
        count[OBSERVATIONS] += 1
        if correct:
            count[CORRECT] += 1
            if count[FIRST_LEARNED] < 0:
                count[FIRST_LEARNED] = epoch
        elif count[LAST_CORRECT] == 1:
            count[FORGOTTEN] += 1
        count[LAST_CORRECT] = 1 if correct else 0
    return OK, -1
