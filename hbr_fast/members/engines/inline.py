"""Members trained one after another in this process, with all its threads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from hbr_fast.data.dataset import Dataset
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job, train_job
from hbr_fast.members.telemetry import Board
from hbr_fast.training.member import Diverged
from hbr_fast.training.recipe import Recipe


def wanted(execution: Execution, *, at_once: int) -> bool:
    """See `hbr_fast.members.engines.Engine`."""
    return True


def run(
    jobs: Sequence[Job],
    execution: Execution,
    *,
    dataset: Dataset,
    recipe: Recipe,
    store: Path,
    at_once: int,
    board: Board,
) -> dict[int, FloatingPointError]:
    """See `hbr_fast.members.engines.Engine`."""
    diverged: dict[int, FloatingPointError] = {}
    for place, job in enumerate(jobs):
        advance, on_epoch = functools.partial(board.advance, place=place), functools.partial(board.epoch, place=place)
        try:
            train_job(job, execution, dataset=dataset, recipe=recipe, store=store, advance=advance, on_epoch=on_epoch)
        except Diverged as error:
            diverged[place] = error
    return diverged
