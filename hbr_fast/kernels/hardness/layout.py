"""The state of a hardness recorder, column by column, and the outcome codes of rows of logits.

The state of N samples is three arrays:

========  =================  ===================================================================================
sums      float64 [N, 8]     sums over visits, for means; a column that was not requested stays 0
counters  int32 [N, 8]       counts over visits, kept always
status    int64 [4]          counts of rows that were left out
========  =================  ===================================================================================

A batch visits samples in random order, so all numbers of a sample lie side by side: one cache line of sums and half a
line of counters. The kernels for the CPU (`cpu_record`, `tile_vectors`), those for a GPU (`triton_record`) and
everything that reads the state take the numbers of columns from here.
"""

from __future__ import annotations

# Columns of `sums`. Bit c of a mask of estimators requests column c.
AUM, AUM_SOFTMAX, CONFIDENCE, CONFIDENCE_SQUARED, CONFIDENCE_LOGIT, LOSS, EL2N = range(7)
SUM_COLUMNS = 8  # 64 bytes: one cache line; the last column is free
ALL_COLUMNS = (1 << 7) - 1
NEED_EXPONENTIALS = ALL_COLUMNS & ~(1 << AUM | 1 << CONFIDENCE_LOGIT)

# Columns of `counters`. The last outcome and the first-learned epoch are -1 where there is none.
OBSERVATIONS, CORRECT, FORGOTTEN, LAST_CORRECT, FIRST_LEARNED, EL2N_OBSERVATIONS = range(6)
COUNTER_COLUMNS = 8

# Entries of `status`. Rows are not finite if a logit is NaN or +inf, or if the own class or all others are -inf. Bad
# labels and ids, which are out of range, are only counted on a GPU, where no error can be raised. The first id is -1 at
# first.
ROWS_NOT_FINITE, FIRST_NOT_FINITE, ROWS_BAD_LABEL, ROWS_BAD_ID = range(4)
STATUS_ENTRIES = 4
ROW_COUNTS = (ROWS_NOT_FINITE, ROWS_BAD_LABEL, ROWS_BAD_ID)

# Outcomes of a row. The first two are observations; the first four fit into two bits (see `hardness.ranks`).
WRONG, RIGHT, IGNORED, NOT_FINITE, BAD_LABEL, BAD_ID = range(6)

IGNORED_LABEL = -100  # torch's: the row is left out
