"""A member to have, what all members of a call share, and training one here, watched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.pool import Pool
from hbr_fast.plan import Plan
from hbr_fast.training import telemetry
from hbr_fast.training.checkpoint import CheckpointEvery
from hbr_fast.training.device import Compute
from hbr_fast.training.distributed import ranks
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.state import EpochRecord
from hbr_fast.training.store import member_key, train_and_store
from hbr_fast.training.telemetry import OnEpoch

TENSORBOARD = "tensorboard"  # directory of the store, one in it a member


@dataclass(frozen=True)
class Training:
    """One member to have: its seed, the rows it trains on (None: every sample once an epoch), and their pools."""

    seed: int
    plan: Plan | None = None
    pools: tuple[Pool, ...] = ()


@dataclass(frozen=True)
class Terms:
    """What all trainings of a call have in common, beside the dataset; see `obtain_members`."""

    recipe: Recipe
    store: Path
    checkpoint: CheckpointEvery
    tensorboard: bool
    compute: Compute


def train_here(dataset: Dataset, terms: Terms, job: Training, *, advance: progress.Advance, on_epoch: OnEpoch) -> None:
    with reported(dataset, terms, job, on_epoch=on_epoch) as epoch_ended:
        train_and_store(
            dataset,
            terms.recipe,
            seed=job.seed,
            plan=job.plan,
            pools=job.pools,
            store=terms.store,
            checkpoint=terms.checkpoint,
            advance=advance,
            on_epoch=epoch_ended,
            compute=terms.compute,
        )


@contextlib.contextmanager
def reported(dataset: Dataset, terms: Terms, job: Training, *, on_epoch: OnEpoch) -> Iterator[OnEpoch]:
    """What to call with a member's epochs: `on_epoch`, and TensorBoard's writer where it is wanted."""
    if not (terms.tensorboard and ranks().first):
        yield on_epoch
        return
    key = member_key(dataset, terms.recipe, seed=job.seed, plan=job.plan)
    with telemetry.events(terms.store / TENSORBOARD / key) as write:

        def epoch_ended(record: EpochRecord) -> None:
            on_epoch(record)
            write(record)

        yield epoch_ended
