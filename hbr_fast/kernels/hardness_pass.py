"""Calls the kernels of `cpu_hardness` and `cpu_cross_entropy` on torch tensors.

They need words, room for what they find, and threads. A batch is small: making all that takes as long as recording it.
So it is made once for all batches of one form.
"""

from __future__ import annotations

import functools
import math
from array import array
from typing import Any

import torch

from hbr_fast.kernels import cpu_cross_entropy, team
from hbr_fast.kernels import cpu_hardness as k

FLOATS = {
    torch.float32: k.FLOAT32,
    torch.float64: k.FLOAT64,
    torch.float16: k.FLOAT16,
    torch.bfloat16: k.BFLOAT16,
}
INTEGERS = {torch.int64: k.INT64, torch.int32: k.INT32}

Kernels = tuple[Any, ...]  # what a pass does, one after the other
Form = tuple[Any, ...]
RECORD: Kernels = (k.record,)

_KEPT = 8  # forms of batches whose passes are kept: 80 bytes a row each, for each Python thread that recorded at once
# A row costs as much as this many classes more; two threads are faster from this many on.
_ROW_COST, _SMALL = 100, 40_000


class HardnessPass:
    """A pass over batches of one form: shapes, strides and types are those that it was made for.

    Attributes
    ----------
    outcomes : int64 [all rows]
        What the rows were found to be; after recording alone, only of rows that are not finite.
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
        self._shape = logits.shape[:-1]
        rows = math.prod(self._shape)
        scratch = torch.empty(k.SUM_COLUMNS + 2, rows, dtype=torch.float64, device="cpu")
        self.observed = scratch[: k.SUM_COLUMNS].reshape(rows, k.SUM_COLUMNS)
        self.outcomes, self.losses = scratch[k.SUM_COLUMNS].view(torch.int64).zero_(), scratch[k.SUM_COLUMNS + 1]
        self.options = array("d", bytes(8 * cpu_cross_entropy.OPTION_ENTRIES))
        self._noted = array("q", (0,))
        *strides_m, stride_b, stride_c = logits.stride()
        *_, batch, classes = logits.shape
        threads = threads_for(logits)
        owners = owners_for(threads)
        found = (self.observed.data_ptr(), self.outcomes.data_ptr(), self._noted.buffer_info()[0])
        self._words = array(
            "q",
            (
                *(0, FLOATS[logits.dtype], strides_m[0] if strides_m else 0, stride_b, stride_c),
                *_integers(labels),
                *_integers(ids),
                *(rows, batch, classes, samples, estimators, *found, owners, 0, 0, 0, 0, 0),
                *(0, self.losses.data_ptr(), 0, self.options.buffer_info()[0], 0),
            ),
        )
        stages = {
            k.record: team.Stage(k.record, owners, self._words, piece=1),
            cpu_cross_entropy.weigh_labels: team.Stage(cpu_cross_entropy.weigh_labels, 1, self._words),
            cpu_cross_entropy.observe_with_loss: team.Stage(cpu_cross_entropy.observe_with_loss, rows, self._words),
            cpu_cross_entropy.add_losses: team.Stage(cpu_cross_entropy.add_losses, 1, self._words),
            k.accumulate: team.Stage(k.accumulate, owners, self._words, piece=1, wait=False),
        }
        self._task = team.Task(*(stages[kernel] for kernel in kernels), threads=threads)

    def point_to(self, loss: torch.Tensor, gradient: torch.Tensor, weights: torch.Tensor) -> None:
        """Where the next `run` writes the loss and its gradient, and finds the weights of the classes."""
        words = self._words
        words[k.RESULT], words[k.GRADIENT], words[k.WEIGHTS] = loss.data_ptr(), gradient.data_ptr(), weights.data_ptr()

    def run(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        ids: torch.Tensor,
        recording: tuple[Any, ...] | None,
    ) -> None:
        """Do it, for a batch that has rows; `recording` is the epoch, EL2N's epochs and the state, where it records.

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
        """What `accumulate` does: here because owners know nothing of each other's rows, and such rows are rare."""
        rows = (self.outcomes == k.NOT_FINITE).nonzero()
        if status[k.ROWS_NOT_FINITE] == 0:
            status[k.FIRST_NOT_FINITE] = ids.expand(self._shape).flatten()[rows[0]].item()
        status[k.ROWS_NOT_FINITE] += len(rows)
        self.outcomes.zero_()


# Those that do not run now, by what they were made for: a pass is taken out while it runs, so that two Python threads
# never share one.
_passes: dict[tuple[Any, ...], list[HardnessPass]] = {}


def form_of(logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor) -> Form:
    """All that a pass depends on in the tensors that it reads but their addresses."""
    return (
        *(logits.shape, logits.stride(), logits.dtype, logits.is_cpu),
        *(labels.shape, labels.stride(), labels.dtype, labels.is_cpu),
        *(ids.shape, ids.stride(), ids.dtype, ids.is_cpu),
    )


def plain_form_of(logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor) -> Form | None:
    """Their form, or None where torch must see an operator (`team.is_plain`) or these are not tensors."""
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
    """A pass for the caller alone, and where to put it back after it ran, unless it raised."""
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
    """Add one observation a row, of tensors of that form; the others are the operator's parameters (see `ops`)."""
    if logits.numel():
        columns = estimators & ~outside_window(epoch, el2n_epochs)
        kept, one = take(RECORD, form, logits, labels, ids, state[0].shape[-2], columns)
        one.run(logits, labels, ids, (epoch, el2n_epochs, *state))
        kept.append(one)


def outside_window(epoch: int, el2n_epochs: int) -> int:
    """The columns that are not recorded in an epoch, as a mask."""
    return 0 if epoch < el2n_epochs else 1 << k.EL2N


@functools.cache
def loss_kernels(*, mean: bool, record: bool) -> Kernels:
    """What makes the loss, and records."""
    before, after = (cpu_cross_entropy.weigh_labels,) if mean else (), (k.accumulate,) if record else ()
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
    """Add to a state what was observed of rows, at least one and none bad, elsewhere."""
    rows, good, owners = len(outcomes), array("q", (0,)), owners_for(torch.get_num_threads())
    logits, labels, classes, estimators = (0,) * 5, (0,) * 4, 0, 0  # not read
    words = (
        *(*logits, *labels, *_integers(ids), rows, ids.shape[-1], classes, sums.shape[-2], estimators),
        *(observed.data_ptr(), outcomes.data_ptr(), good.buffer_info()[0]),
        *(owners, epoch, el2n_epochs, sums.data_ptr(), counters.data_ptr(), status.data_ptr()),
    )
    team.run(k.accumulate, owners, words, piece=1)


def threads_for(logits: torch.Tensor) -> int:
    """One where the threads would take longer to meet than the batch takes (measured: 128 rows of 10 classes do)."""
    *_, batch, classes = logits.shape
    return 1 if batch * (classes + _ROW_COST) < _SMALL else torch.get_num_threads()


def owners_for(threads: int) -> int:
    """How many owners share the samples out among themselves: a power of two, at least one a thread."""
    return 1 << (threads - 1).bit_length()


def _integers(tensor: torch.Tensor) -> tuple[int, int, int, int]:
    """Address, type and strides of labels or ids [B] or [M, B]."""
    strides = tensor.stride()
    return tensor.data_ptr(), INTEGERS[tensor.dtype], strides[0] if len(strides) == 2 else 0, strides[-1]


def _require_in_range(logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, samples: int) -> None:
    shape, counted = logits.shape[:-1], labels != k.IGNORED_LABEL
    which_dataset = ": was the recorder made for this dataset?"
    for what, given, end, hint in (("label", labels, logits.shape[-1], ""), ("id", ids, samples, which_dataset)):
        bad = (((given < 0) | (given >= end)) & counted).expand(shape).nonzero()
        if len(bad):
            row = tuple(bad[0].tolist())
            raise ValueError(f"row {row[-1]} has {what} {int(given.expand(shape)[row])}, outside [0, {end}){hint}")
