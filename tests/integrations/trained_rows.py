"""The data and order shared by the trainer tests, and the rows that every rank must train on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from hbr_fast.orders import QuotaOrder, quota_order

EPOCHS, BATCH, WORLD = 2, 5, 2
LABELS = np.arange(200) % 4
COUNTS = [11, 12, 24, 47]  # 94 rows: 47 on each rank, in 10 batches of which the last has 2
BATCHES = 10
STOPS = (1, 5, 10)  # batches of the second epoch: first, middle, last


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Samples that return their own row number."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([float(LABELS[row]), 1.0]), "row": torch.tensor(row)}


def the_order() -> QuotaOrder:
    return quota_order(LABELS, COUNTS, seed=3)


def whole(epoch: int) -> list[int]:
    order = the_order()
    return order.rows(0, len(order), epoch=epoch).tolist()


def part_of(rank: int, epoch: int) -> list[int]:
    """Rows of a rank when the sampler shards."""
    return whole(epoch)[rank::WORLD]


def dealt_batches(rank: int, epoch: int) -> list[int]:
    """Rows of a rank when Accelerate assigns batches of 5 in turn: 18 full ones, then two filled from the start."""
    rows = whole(epoch)
    rows += rows[: 2 * BATCHES * BATCH - len(rows)]
    batches = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
    return [row for batch in batches[rank::WORLD] for row in batch]


def assert_counts_are_exact(rows: list[int]) -> None:
    """Check the number of rows of each class against the order's counts."""
    assert np.bincount(LABELS[rows], minlength=4).tolist() == COUNTS
    assert max(Counter(rows).values()) == 1  # every class has more samples than the order draws


def rows_of(batch: Any) -> list[int]:
    return [int(row) for row in (batch["row"] if isinstance(batch, dict) else batch)]


def as_rows(samples: list[dict[str, torch.Tensor]]) -> list[int]:
    """A batch without tensors, because each tensor costs a worker a file."""
    return [int(sample["row"]) for sample in samples]
