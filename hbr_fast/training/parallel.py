"""An ensemble's members: found in the store or trained, one after another, in processes, stacked, or on a cluster."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset
from hbr_fast.files import remove_partials
from hbr_fast.training import signals, telemetry
from hbr_fast.training.checkpoint import CheckpointEvery
from hbr_fast.training.cluster import Cluster, train_on_cluster
from hbr_fast.training.device import Compute
from hbr_fast.training.distributed import ranks
from hbr_fast.training.fit import check_fit
from hbr_fast.training.jobs import Terms, Training, reported, train_here
from hbr_fast.training.processes import train_in_processes
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.stacked import StackedMember
from hbr_fast.training.store import CHECKPOINTS, MEMBERS, StoredMember, find_member, train_and_store_stacked
from hbr_fast.training.telemetry import Board, MemberLine
from hbr_fast.training.trainer import Diverged


class MembersDiverged(FloatingPointError):
    """Some trainings of several diverged; the others are finished and kept.

    Attributes
    ----------
    members : list of StoredMember or None
        In the order asked for; None for those that diverged.
    diverged : dict of int to FloatingPointError
        By their place in that order.
    """

    def __init__(
        self, members: Sequence[StoredMember | None], diverged: Mapping[int, FloatingPointError], label: str
    ) -> None:
        self.members, self.diverged = list(members), dict(diverged)
        which = "; ".join(f"member {number}: {error}" for number, error in sorted(diverged.items()))
        super().__init__(f"{label}: {len(diverged)} of {len(members)} members failed, finished ones are kept. {which}")


def auto_members_at_once(members: int, *, cpus: int, device: str) -> int:
    """How many to train at once where nothing else is asked for: what docs/ensembles.md found to be fastest.

    Parameters
    ----------
    members : int
        To train.
    cpus : int
        That this process may use.
    device : {"cpu", "cuda"}
        What members compute on. A GPU takes one after another: several on one are not measured.
    """
    return max(1, min(members, cpus)) if device == "cpu" else 1


def obtain_members(
    dataset: Dataset,
    recipe: Recipe,
    trainings: Sequence[Training],
    *,
    store: Path,
    members_at_once: int = 1,
    stacked: bool = False,
    cluster: Cluster | None = None,
    checkpoint: CheckpointEvery | None = None,
    tensorboard: bool = False,
    compute: Compute | None = None,
    label: str,
) -> list[StoredMember]:
    """Members in the order of `trainings`: those in the store are found, the others trained into it.

    Parameters
    ----------
    dataset, recipe
        The same for all.
    trainings : sequence of Training
    store : path
        Members are kept under `store/members/`. No other process may write to it meanwhile.
    members_at_once : int
        1 trains one after another in this process, with all its threads; more start that many processes, which needs
        an importable main module (`if __name__ == "__main__":` in scripts).
    stacked : bool
        Train that many at once as one network in this process instead, with all its threads (`train_stacked`): their
        epochs must have equally many rows to be in one stack.
    cluster : Cluster, optional
        Train on a Ray cluster instead, as many at a time as it has room for.
    checkpoint : CheckpointEvery, optional
        How often members save themselves while they train, below `store/checkpoints/`, by default every five minutes.
        On a cluster members are started again instead.
    tensorboard : bool
        Write what epochs did for TensorBoard, one directory a member below `store/tensorboard/`.
    compute : Compute, optional
        On which device; on a cluster a node computes on what it has.
    label : str
        What the progress calls them.

    Raises
    ------
    ValueError
        If `members_at_once` is below 1, or what a training raises.
    MembersDiverged
        If trainings diverge, once all the others are finished.
    Terminated
        If SIGTERM came; what was trained is saved.
    ConnectionError, ImportError
        If the cluster does not answer or Ray is not installed.
    """
    if members_at_once < 1:
        raise ValueError(f"members_at_once must be at least 1, got {members_at_once}")
    if stacked and cluster is not None:
        raise ValueError("a cluster trains each member in a process of its own: leave out the cluster or the stack")
    own, compute = ranks(), compute or Compute()
    if cluster is not None and compute != Compute():
        raise ValueError("each node of a cluster computes on what it has: leave out the cluster, or device and compile")
    if stacked and compute.device.startswith("cuda"):
        raise ValueError("stacked members train on the processor: leave out the device or the stack")
    with own.agreed():
        compute.resolved()
        if own.size > 1 and (members_at_once > 1 or cluster is not None):
            raise ValueError(
                f"{own.size} processes of torchrun train one member at a time together: leave out the cluster, and "
                "train one member at once"
            )
        if own.first:
            for directory in (store, store / MEMBERS, store / CHECKPOINTS):
                remove_partials(directory)
        found = [find_member(dataset, recipe, seed=t.seed, plan=t.plan, store=store) for t in trainings]
    if tensorboard:
        telemetry.require_tensorboard()
        if cluster is not None:
            raise ValueError("TensorBoard's files are written where members train: leave it out on a cluster")
    missing = [number for number, member in enumerate(found) if member is None]
    own.require_same(
        f"the processes of this training see different members in {store}: put it where all of them see it",
        *(member is None for member in found),
    )
    if len(missing) < len(trainings):
        progress.say(f"{label}: {len(trainings) - len(missing)} of {len(trainings)} members are there already")
    if not missing:
        return [member for member in found if member is not None]
    with own.agreed():
        for number in missing:
            check_fit(dataset, recipe, trainings[number].plan, trainings[number].pools)
    lines = [
        MemberLine(
            number, rows=recipe.epochs * (len(dataset.train) if plan is None else len(plan)), epochs=recipe.epochs
        )
        for number in missing
        for plan in [trainings[number].plan]
    ]
    jobs = [trainings[number] for number in missing]
    at_once = min(members_at_once, len(missing))
    title = f"{label}: {len(missing)} members"
    if cluster is not None:
        title += f" on the cluster {cluster.address}"
    elif at_once > 1:
        title += f", {at_once} {'stacked' if stacked else 'at once'}"
    terms = Terms(recipe, store, checkpoint or CheckpointEvery(), tensorboard, compute)
    with telemetry.board(title, lines) as board, signals.raised_at_once():
        if cluster is not None:
            diverged = train_on_cluster(
                dataset,
                recipe,
                [(job.seed, job.plan, [pool.path for pool in job.pools]) for job in jobs],
                store=store,
                cluster=cluster,
                advance=board.advance,
            )
        elif at_once == 1:
            diverged = _train_in_turn(dataset, terms, jobs, board=board)
        elif stacked:
            diverged = _train_in_stacks(dataset, terms, jobs, at_once=at_once, board=board)
        else:
            diverged = train_in_processes(dataset, terms, jobs, at_once=at_once, board=board)
    if own.first:
        with contextlib.suppress(OSError):  # not there, or it holds what an earlier run left unfinished
            (store / CHECKPOINTS).rmdir()
    for place, number in enumerate(missing):
        if place not in diverged:
            job = trainings[number]
            found[number] = find_member(dataset, recipe, seed=job.seed, plan=job.plan, store=store)
    if diverged:
        raise MembersDiverged(found, {missing[place]: error for place, error in diverged.items()}, label)
    members = [member for member in found if member is not None]
    assert len(members) == len(trainings)
    return members


def _train_in_turn(
    dataset: Dataset, terms: Terms, jobs: Sequence[Training], *, board: Board
) -> dict[int, FloatingPointError]:
    """Train all into the store, one after another; those that diverge, by their place."""
    diverged: dict[int, FloatingPointError] = {}
    for place, job in enumerate(jobs):
        advance, on_epoch = functools.partial(board.advance, place=place), functools.partial(board.epoch, place=place)
        try:
            train_here(dataset, terms, job, advance=advance, on_epoch=on_epoch)
        except Diverged as error:
            diverged[place] = error
    return diverged


def _train_in_stacks(
    dataset: Dataset, terms: Terms, jobs: Sequence[Training], *, at_once: int, board: Board
) -> dict[int, FloatingPointError]:
    """Train all into the store, `at_once` of them as one network; those that diverge, by their place."""
    by_rows: dict[int, list[int]] = {}
    for place, job in enumerate(jobs):
        by_rows.setdefault(len(job.plan) if job.plan is not None else len(dataset.train), []).append(place)
    diverged: dict[int, FloatingPointError] = {}
    for places in (alike[i : i + at_once] for alike in by_rows.values() for i in range(0, len(alike), at_once)):
        with contextlib.ExitStack() as writing:
            members = []
            for place in places:
                job, on_epoch = jobs[place], functools.partial(board.epoch, place=place)
                member = StackedMember(
                    terms.recipe,
                    job.seed,
                    job.plan,
                    job.pools,
                    advance=functools.partial(board.advance, place=place),
                    on_epoch=writing.enter_context(reported(dataset, terms, job, on_epoch=on_epoch)),
                )
                members.append(member)
            outcomes = train_and_store_stacked(dataset, members, store=terms.store, checkpoint=terms.checkpoint)
        diverged |= {place: error for place, error in zip(places, outcomes, strict=True) if error is not None}
    return diverged
