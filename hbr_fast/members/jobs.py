"""Jobs: one member to train, passed to the process that trains it, and trained there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.data.pool import Pool, open_pool
from hbr_fast.members import telemetry
from hbr_fast.members.execution import Execution
from hbr_fast.members.store import StoredMember, member_key, train_and_store
from hbr_fast.members.telemetry import OnEpoch
from hbr_fast.progress import Advance
from hbr_fast.training.distributed import ranks
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.state import EpochRecord

TENSORBOARD = "tensorboard"  # directory of the store, with one directory per member


@dataclass(frozen=True)
class Job:
    """One member to train: its seed, the rows it trains on (None: every sample once per epoch), and their pools."""

    seed: int
    plan: Plan | None = None
    pools: tuple[Pool, ...] = ()


@dataclass(frozen=True)
class PackedJob:
    """A job as sent to another process: pools by path, since they are memory-mapped there."""

    seed: int
    plan: Plan | None
    pool_paths: tuple[Path, ...]


def packed(job: Job) -> PackedJob:
    return PackedJob(job.seed, job.plan, tuple(pool.path for pool in job.pools))


def train_job(
    job: Job,
    execution: Execution,
    *,
    dataset: Dataset,
    recipe: Recipe,
    store: Path,
    advance: Advance,
    on_epoch: OnEpoch,
) -> StoredMember:
    """Train a member in this process and keep it in the store."""
    with _reported(job, execution, dataset=dataset, recipe=recipe, store=store, on_epoch=on_epoch) as epoch_ended:
        return train_and_store(
            dataset,
            recipe,
            seed=job.seed,
            plan=job.plan,
            pools=job.pools,
            store=store,
            checkpoint=execution.checkpoint,
            advance=advance,
            on_epoch=epoch_ended,
            compute=execution.compute,
        )


def train_packed(
    job: PackedJob,
    execution: Execution,
    *,
    dataset: Dataset,
    recipe: Recipe,
    store: Path,
    threads: int,
    report: Callable[[int], object],
    interval_s: float,
    on_epoch: OnEpoch = lambda record: None,
) -> StoredMember:
    """Train a member in a process that was started for it.

    Parameters
    ----------
    threads : int
        Number of threads to compute with.
    report : callable
        Called with the rows trained so far, at most once per `interval_s` seconds, and at the end.
    on_epoch : callable
        Called when an epoch ends.
    """
    import torch

    torch.set_num_threads(threads)
    rows, last = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal rows, last
        rows += more
        if time.monotonic() - last >= interval_s:
            report(rows)
            last = time.monotonic()

    pools = tuple(open_pool(path, dataset=dataset) for path in job.pool_paths)
    here = Job(job.seed, job.plan, pools)
    try:
        return train_job(
            here, execution, dataset=dataset, recipe=recipe, store=store, advance=advance, on_epoch=on_epoch
        )
    finally:
        report(rows)


@contextlib.contextmanager
def _reported(
    job: Job, execution: Execution, *, dataset: Dataset, recipe: Recipe, store: Path, on_epoch: OnEpoch
) -> Iterator[OnEpoch]:
    """What to call with a member's epochs: `on_epoch`, and TensorBoard's writer if requested."""
    if not (execution.tensorboard and ranks().first):
        yield on_epoch
        return
    key = member_key(dataset, recipe, seed=job.seed, plan=job.plan)
    with telemetry.events(store / TENSORBOARD / key) as write:

        def epoch_ended(record: EpochRecord) -> None:
            on_epoch(record)
            write(record)

        yield epoch_ended
