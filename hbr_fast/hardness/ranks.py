"""Merging the recorders of several processes: the visits of each rank, and their common order.

Sums and counts of different visits simply add up. Forgetting does not: it compares consecutive visits, and those of one
sample may fall to different ranks, in one epoch (it was drawn twice, or a sampler padded the last batch) or in two. So
a recorder of a distributed run keeps a short log with one row per visit, and a merge counts transitions from the logs
of all ranks put in one order.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed

from hbr_fast.kernels.hardness import layout
from hbr_fast.processes import in_process_group, left_alone

# Counters that add up over visits in any order.
ADDED = [layout.OBSERVATIONS, layout.CORRECT, layout.EL2N_OBSERVATIONS]


class VisitLog:
    """Visits since the last merge, in order: epoch, and sample id with the outcome in its lowest two bits."""

    def __init__(self) -> None:
        self._rows: list[torch.Tensor] = []

    def __len__(self) -> int:
        """Number of visits."""
        return sum(len(rows) for rows in self._rows)

    def add(self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor, *, epoch: int) -> None:
        """Log the visits of one batch; nothing is read back from the device."""
        logits_bc = logits_bc.float()  # as the kernels read them: a float64 may be out of range
        outcome = (logits_bc.argmax(1) == labels_b).long()
        outcome = torch.where(is_recorded(logits_bc, labels_b), outcome, layout.NOT_FINITE)
        outcome = torch.where(labels_b == layout.IGNORED_LABEL, layout.IGNORED, outcome)
        self._rows.append(torch.stack([torch.full_like(ids_b, epoch), ids_b << 2 | outcome], dim=1))

    def clear(self) -> None:
        """Forget the visits."""
        self._rows.clear()

    def gathered(self, *, device: torch.device, group: torch.distributed.ProcessGroup | None) -> torch.Tensor:
        """Visits of all ranks in the order (epoch, row of the rank in the epoch, rank): int64 [V, 2].

        This equals the order of one process if rank r of W takes the positions r, r + W, ... of an epoch, as our
        shards and torch's `DistributedSampler` do.
        """
        own = torch.cat(self._rows) if self._rows else torch.empty(0, 2, dtype=torch.int64, device=device)
        ranks = _all_gather(own, group)
        rows = torch.cat(ranks)
        within = torch.cat([_place_in_run(log[:, 0]) for log in ranks])
        order = torch.argsort(within, stable=True)  # rows are already sorted by rank, and the sort is stable
        order = order[torch.argsort(rows[order, 0], stable=True)]
        return rows[order]


def is_recorded(logits_bc: torch.Tensor, labels_b: torch.Tensor) -> torch.Tensor:
    """Whether the kernels record these rows, bool [B]: `kernels.reference.is_recorded` of float32 logits.

    Labels out of range, which the kernels refuse or count, are clamped to the nearest class.
    """
    own = labels_b.long().clamp(0, logits_bc.shape[1] - 1)[:, None]
    rival = logits_bc.scatter(1, own, float("-inf")).amax(1)
    return logits_bc.gather(1, own)[:, 0].isfinite() & rival.isfinite()


def add_visits(
    sums: torch.Tensor, counters: torch.Tensor, more_sums: torch.Tensor, more_counters: torch.Tensor
) -> None:
    """Add the sums and counters of other visits, in place, except transitions, which depend on the visits' order."""
    sums += more_sums
    for column in ADDED:
        counters[:, column] += more_counters[:, column]
    first, more = counters[:, layout.FIRST_LEARNED], more_counters[:, layout.FIRST_LEARNED]
    counters[:, layout.FIRST_LEARNED] = torch.where((first < 0) | ((more >= 0) & (more < first)), more, first)


def reduce_visits(sums: torch.Tensor, counters: torch.Tensor, group: torch.distributed.ProcessGroup | None) -> None:
    """`add_visits` over the ranks: afterwards every rank has the visits of all, except transitions."""
    all_reduce(sums, group)
    added = counters[:, ADDED].contiguous()
    all_reduce(added, group)
    counters[:, ADDED] = added
    never = torch.iinfo(counters.dtype).max
    first = counters[:, layout.FIRST_LEARNED].contiguous()
    first[first < 0] = never
    all_reduce(first, group, "MIN")
    first[first == never] = -1
    counters[:, layout.FIRST_LEARNED] = first


def replay_transitions(counters: torch.Tensor, visits: torch.Tensor) -> int:
    """Count right -> wrong transitions of visits in order, continuing from the last ones in `counters`, in place.

    Returns
    -------
    int
        Id of the first visit whose logits were not finite, or -1.
    """
    ids, outcome = visits[:, 1] >> 2, visits[:, 1] & 3
    not_finite = ids[outcome == layout.NOT_FINITE]
    observed = outcome <= layout.RIGHT
    ids, right = ids[observed], outcome[observed].int()
    ids, order = torch.sort(ids, stable=True)
    right = right[order]
    follows = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # another visit of the same sample
    follows[1:] = ids[1:] == ids[:-1]
    before = torch.where(follows, right.roll(1), counters[ids, layout.LAST_CORRECT])
    forgotten = ((before == 1) & (right == 0)).int()
    counters[:, layout.FORGOTTEN].index_add_(0, ids, forgotten)
    last = ~follows.roll(-1) if len(ids) else follows
    counters[ids[last], layout.LAST_CORRECT] = right[last]
    return int(not_finite[0]) if len(not_finite) else -1


def all_reduce(
    tensor: torch.Tensor,
    group: torch.distributed.ProcessGroup | None,
    operation: Literal["SUM", "MIN", "MAX"] = "SUM",
) -> None:
    """Reduce over the ranks, in place; does nothing outside a distributed run."""
    distributed = torch.distributed
    if _in_process_group():
        distributed.all_reduce(tensor, getattr(distributed.ReduceOp, operation), group=group)


def _in_process_group() -> bool:
    """Whether there are ranks to merge with.

    Raises
    ------
    ValueError
        If there should be: merging would silently leave out what they recorded.
    """
    if alone := left_alone():
        raise ValueError(alone)
    return in_process_group()


def _all_gather(own: torch.Tensor, group: torch.distributed.ProcessGroup | None) -> list[torch.Tensor]:
    """Tensors [V_r, 2] of all ranks, of different lengths."""
    distributed = torch.distributed
    if not _in_process_group():
        return [own]
    world = distributed.get_world_size(group)
    length = torch.tensor([len(own)], device=own.device)
    lengths = [torch.empty_like(length) for _ in range(world)]
    distributed.all_gather(lengths, length, group=group)
    counts = [int(length) for length in lengths]
    padded = own.new_zeros(max(counts), 2)
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(parts, padded, group=group)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


def _place_in_run(values: torch.Tensor) -> torch.Tensor:
    """Position of each element in its run of equal values: 0, 1, ... from the run's beginning."""
    _, lengths = torch.unique_consecutive(values, return_counts=True)
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.arange(len(values), device=values.device) - starts
