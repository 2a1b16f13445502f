"""Calls the kernels of `cpu_record` and `cpu_cross_entropy` on torch tensors.

A kernel needs words, buffers for results, and threads. Preparing these takes as long as recording a small batch, so it
is done once for all batches of one form (shapes, strides and types), in a `HardnessPass`.
"""

from __future__ import annotations

import functools
from array import array
from typing import Any

import torch

from hbr_fast.kernels import team
from hbr_fast.kernels.hardness import cpu_cross_entropy, cpu_record, layout
from hbr_fast.kernels.hardness import cpu_rows as k

FLOATS = {
    torch.float32: k.FLOAT32,
    torch.float64: k.FLOAT64,
    torch.float16: k.FLOAT16,
    torch.bfloat16: k.BFLOAT16,
}
INTEGERS = {torch.int64: k.INT64, torch.int32: k.INT32}

Kernels = tuple[Any, ...]  # the stages of a pass
Form = tuple[Any, ...]
RECORD: Kernels = (cpu_record.record,)

_KEPT = 8  # at most this many forms have passes kept: 80 bytes a row, for each Python thread that recorded at a time
# A row costs as much as this many classes, and batches that cost less than `_SMALL` in total are faster on one thread.
_ROW_COST, _SMALL = 100, 40_000


class HardnessPass:
    """A pass over batches of the one form (shapes, strides and types) that it was made for.

    Attributes
    ----------
    outcomes : int64 [all rows]
        Outcomes of the rows; after recording without a loss, only those of rows that are not finite.
    losses : float64 [all rows]
    observed : float64 [all rows, 8]
    options : array of 3 float64
        Of the loss; see `cpu_cross_entropy`.
    """

    def __init__(
        self,
        kernels: Kernels,
        logits: torch.Tensor,
        labels: torch.Tensor,
        ids: torch.Tensor,
        samples: int,
        estimators: int,
    ) -> None:
        rows, classes = logits.shape
        scratch = torch.empty(layout.SUM_COLUMNS + 2, rows, dtype=torch.float64, device="cpu")
        self.observed = scratch[: layout.SUM_COLUMNS].reshape(rows, layout.SUM_COLUMNS)
        self.outcomes, self.losses = (
            scratch[layout.SUM_COLUMNS].view(torch.int64).zero_(),
            scratch[layout.SUM_COLUMNS + 1],
        )
        self.options = array("d", bytes(8 * cpu_cross_entropy.OPTION_ENTRIES))
        self._noted = array("q", (0,))
        threads = threads_for(logits)
        owners = owners_for(threads)
        found = (self.observed.data_ptr(), self.outcomes.data_ptr(), self._noted.buffer_info()[0])
        self._words = array(
            "q",
            (
                *(0, FLOATS[logits.dtype], *logits.stride()),
                *_integers(labels),
                *_integers(ids),
                *(rows, classes, samples, estimators, *found, owners, 0, 0, 0, 0, 0),
                *(0, self.losses.data_ptr(), 0, self.options.buffer_info()[0], 0),
            ),
        )
        stages = {
            cpu_record.record: team.Stage(cpu_record.record, owners, self._words, piece=1),
            cpu_cross_entropy.weigh_labels: team.Stage(cpu_cross_entropy.weigh_labels, 1, self._words),
            cpu_cross_entropy.observe_with_loss: team.Stage(cpu_cross_entropy.observe_with_loss, rows, self._words),
            cpu_cross_entropy.add_losses: team.Stage(cpu_cross_entropy.add_losses, 1, self._words),
            cpu_record.accumulate: team.Stage(cpu_record.accumulate, owners, self._words, piece=1, wait=False),
        }
        self._task = team.Task(*(stages[kernel] for kernel in kernels), threads=threads)

    def point_to(self, loss: torch.Tensor, gradient: torch.Tensor, weights: torch.Tensor) -> None:
        """Set where the next `run` writes the loss and its gradient, and reads the class weights."""
        words = self._words
        words[k.RESULT], words[k.GRADIENT], words[k.WEIGHTS] = loss.data_ptr(), gradient.data_ptr(), weights.data_ptr()

    def run(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        ids: torch.Tensor,
        recording: tuple[Any, ...] | None,
    ) -> None:
        """Run on a non-empty batch; `recording` is the epoch, EL2N's epochs and the state, if it records.

        Raises
        ------
        ValueError
            If a label or an id is out of range. Then the state is as it was, and the pass must not be run again.
        """
        words = self._words
        words[k.LOGITS], words[k.LABELS], words[k.IDS] = logits.data_ptr(), labels.data_ptr(), ids.data_ptr()
        if recording is not None:
            words[k.EPOCH], words[k.EL2N_EPOCHS], sums, counters, status = recording
            words[k.SUMS], words[k.COUNTERS], words[k.STATUS] = sums.data_ptr(), counters.data_ptr(), status.data_ptr()
        self._task.run()
        if self._noted[0]:
            self._noted[0] = 0
            _require_in_range(logits, labels, ids, words[k.SAMPLES])
            if recording is not None:
                self._count_not_finite(ids, recording[-1])

    def _count_not_finite(self, ids: torch.Tensor, status: torch.Tensor) -> None:
        """Count rows that are not finite: here, because an owner sees its own rows only, and such rows are rare."""
        rows = (self.outcomes == layout.NOT_FINITE).nonzero()
        if status[layout.ROWS_NOT_FINITE] == 0:
            status[layout.FIRST_NOT_FINITE] = ids[rows[0]].item()
        status[layout.ROWS_NOT_FINITE] += len(rows)
        self.outcomes.zero_()


# Passes that are not running, by what they were made for. A pass is taken out while it runs, so that two Python threads
# never share one.
_passes: dict[tuple[Any, ...], list[HardnessPass]] = {}


def form_of(logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor) -> Form:
    """Everything about the input tensors that a pass depends on, except their addresses."""
    return (
        *(logits.shape, logits.stride(), logits.dtype, logits.is_cpu),
        *(labels.shape, labels.stride(), labels.dtype, labels.is_cpu),
        *(ids.shape, ids.stride(), ids.dtype, ids.is_cpu),
    )


def plain_form_of(logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor) -> Form | None:
    """The form, or None if torch must see an operator (`team.is_plain`) or these are not tensors."""
    try:
        return form_of(logits, labels, ids) if team.is_plain(logits) else None
    except AttributeError:
        return None


def take(
    kernels: Kernels,
    form: Form,
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    samples: int,
    estimators: int,
) -> tuple[list[HardnessPass], HardnessPass]:
    """A pass for the caller alone, and the list to return it to after it ran; a pass that raised is not returned."""
    key = (kernels, form, samples, estimators, torch.get_num_threads())
    kept = _passes.get(key)
    if kept is None:
        if len(_passes) >= _KEPT:
            _passes.clear()
        kept = _passes[key] = []
    try:
        return kept, kept.pop()
    except IndexError:
        return kept, HardnessPass(kernels, logits, labels, ids, samples, estimators)


def record(
    form: Form,
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    epoch: int,
    el2n_epochs: int,
    estimators: int,
    *state: torch.Tensor,
) -> None:
    """Add one observation per row of tensors of this form; for the other parameters see `ops`."""
    if logits.numel():
        columns = estimators & ~outside_window(epoch, el2n_epochs)
        kept, one = take(RECORD, form, logits, labels, ids, len(state[0]), columns)
        one.run(logits, labels, ids, (epoch, el2n_epochs, *state))
        kept.append(one)


def outside_window(epoch: int, el2n_epochs: int) -> int:
    """Mask of the columns that are not recorded in this epoch."""
    return 0 if epoch < el2n_epochs else 1 << layout.EL2N


@functools.cache
def loss_kernels(*, mean: bool, record: bool) -> Kernels:
    """The kernels of a pass that computes the loss, in order; with `record` it also records."""
    before, after = (cpu_cross_entropy.weigh_labels,) if mean else (), (cpu_record.accumulate,) if record else ()
    return *before, cpu_cross_entropy.observe_with_loss, cpu_cross_entropy.add_losses, *after


def add_observed(
    observed: torch.Tensor,
    outcomes: torch.Tensor,
    ids: torch.Tensor,
    epoch: int,
    el2n_epochs: int,
    sums: torch.Tensor,
    counters: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """Add observations of rows (at least one, none out of range) that were made elsewhere to a state."""
    good, owners = array("q", (0,)), owners_for(torch.get_num_threads())
    logits, labels, classes, estimators = (0,) * 4, (0,) * 3, 0, 0  # not read
    words = (
        *(*logits, *labels, *_integers(ids), len(outcomes), classes, len(sums), estimators),
        *(observed.data_ptr(), outcomes.data_ptr(), good.buffer_info()[0]),
        *(owners, epoch, el2n_epochs, sums.data_ptr(), counters.data_ptr(), status.data_ptr()),
    )
    team.run(cpu_record.accumulate, owners, words, piece=1)


def threads_for(logits: torch.Tensor) -> int:
    """Threads for a batch: one if synchronising takes longer than the batch, as with 128 rows of 10 classes."""
    rows, classes = logits.shape
    return 1 if rows * (classes + _ROW_COST) < _SMALL else torch.get_num_threads()


def owners_for(threads: int) -> int:
    """Number of owners of samples: a power of two, at least one per thread."""
    return 1 << (threads - 1).bit_length()


def _integers(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Address, type and stride of labels or ids [B]."""
    return tensor.data_ptr(), INTEGERS[tensor.dtype], tensor.stride(0)


def _require_in_range(logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, samples: int) -> None:
    counted, which_dataset = labels != layout.IGNORED_LABEL, ": was the recorder made for this dataset?"
    for what, given, end, hint in (("label", labels, logits.shape[1], ""), ("id", ids, samples, which_dataset)):
        bad = (((given < 0) | (given >= end)) & counted).nonzero()
        if len(bad):
            row = int(bad[0])
            raise ValueError(f"row {row} has {what} {int(given[row])}, outside [0, {end}){hint}")
