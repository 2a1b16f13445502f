"""Logits of samples by networks that were not trained on them, for the scripts beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.files import locked, make_directory
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job
from hbr_fast.members.obtain import obtain_members
from hbr_fast.members.scoring.final_model import as_trained, trained_model
from hbr_fast.members.store import StoredMember
from hbr_fast.seeding import member_seed
from hbr_fast.training.predict import predict
from hbr_fast.training.recipe import Recipe


@dataclass(frozen=True)
class HeldOut:
    """Logits of the samples that each of several networks did not see.

    Attributes
    ----------
    rows : tuple of int [n]
        Of each network, the ids of those samples, ascending.
    logits : tuple of float32 [n, C]
        Their logits.
    trainings : tuple of float
        Samples that each network was trained on, as a share of all.
    seconds : tuple of float
        What each training took.
    """

    rows: tuple[np.ndarray, ...]
    logits: tuple[np.ndarray, ...]
    trainings: tuple[float, ...]
    seconds: tuple[float, ...]


def held_out_logits(
    dataset: Dataset,
    recipe: Recipe,
    rows: Sequence[np.ndarray],
    out: Path,
    *,
    execution: Execution,
    numbers: Sequence[int] | None = None,
) -> HeldOut:
    """Train on all samples but `rows`, and predict those, for each; networks already in `out` are not trained again.

    Parameters
    ----------
    dataset, recipe
    rows : sequence of int [n]
        Of each network, the samples to hold out, ascending.
    out : Path
        Where the networks are kept.
    execution : Execution
    numbers : sequence of int, optional
        Of each network, the number of its seed; default: 0, 1, ...
    """
    everything = np.arange(len(dataset.train))
    plans = [Plan.of_rows(np.setdiff1d(everything, one)) for one in rows]
    numbers = range(len(rows)) if numbers is None else numbers
    jobs = [Job(member_seed(0, number), plan) for number, plan in zip(numbers, plans, strict=True)]
    make_directory(out)
    with locked(out):
        trained = obtain_members(dataset, recipe, jobs, store=out, execution=execution, label="held out")
    logits = [
        predict(
            trained_model(member, dataset.train), as_trained(member, dataset.train), dtype=member.dtype, rows=of_network
        )
        for member, of_network in zip(trained, rows, strict=True)
    ]
    shares = tuple(len(plan) / len(everything) for plan in plans)
    return HeldOut(tuple(rows), tuple(logits), shares, tuple(seconds_of([member]) for member in trained))


def seconds_of(members: Sequence[StoredMember]) -> float:
    """What their trainings took, one after another."""
    return sum(float(member.history()["seconds"].sum()) for member in members)
