"""An ensemble's members: found in the store or trained, one after another, in processes, stacked, or on a cluster.

Processes have one thread each: small networks keep one core busy and leave a second one waiting at barriers, so two
members on a thread each finish before one after another on two threads, and suffer far less from other programs on the
machine. They share the dataset's pages: it is memory-mapped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.pool import Pool, open_pool
from hbr_fast.files import remove_partials
from hbr_fast.machine import usable_cpus
from hbr_fast.plan import Plan
from hbr_fast.training import signals, telemetry
from hbr_fast.training.checkpoint import CheckpointEvery
from hbr_fast.training.cluster import Cluster, train_on_cluster
from hbr_fast.training.device import Compute
from hbr_fast.training.distributed import ranks
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.stacked import StackedMember
from hbr_fast.training.state import EpochRecord
from hbr_fast.training.store import (
    CHECKPOINTS,
    MEMBERS,
    StoredMember,
    find_member,
    member_key,
    train_and_store,
    train_and_store_stacked,
)
from hbr_fast.training.telemetry import Board, MemberLine, OnEpoch
from hbr_fast.training.trainer import Diverged, check_fit

REPORT_INTERVAL_S = 0.2  # how often a worker says what it did
TENSORBOARD = "tensorboard"  # directory of the store, one in it a member
ENDING_S = 20.0  # a worker that has not saved by then is left to itself: Kubernetes kills after 30 s


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


def default_members_at_once(members: int) -> int:
    """One member a core, at most as many as there are."""
    return max(1, min(members, usable_cpus()))


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
        On which device; on a cluster, whatever its nodes have.
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
            diverged = _train_in_processes(dataset, terms, jobs, at_once=at_once, board=board)
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
            _train_one(dataset, terms, job, advance=advance, on_epoch=on_epoch)
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
                    on_epoch=writing.enter_context(_reported(dataset, terms, job, on_epoch=on_epoch)),
                )
                members.append(member)
            outcomes = train_and_store_stacked(dataset, members, store=terms.store, checkpoint=terms.checkpoint)
        diverged |= {place: error for place, error in zip(places, outcomes, strict=True) if error is not None}
    return diverged


def _train_in_processes(
    dataset: Dataset, terms: Terms, jobs: Sequence[Training], *, at_once: int, board: Board
) -> dict[int, FloatingPointError]:
    """Train all into the store, `at_once` of them at a time; those that diverge, by their place."""
    with _workers(at_once, board) as pool:
        with _interrupts_ignored():  # processes start here and inherit it: the parent decides what one means
            futures = []
            for place, job in enumerate(jobs):
                sent, pools = dataclasses.replace(job, pools=()), [one.path for one in job.pools]
                futures.append(pool.submit(_train_in_worker, dataset.path, terms, sent, pools, place))
        wait(futures, return_when=FIRST_EXCEPTION)
        try:
            results = [future.result() for future in futures if future.done()]
        except BrokenProcessPool:
            raise ChildProcessError(
                "a training process died (out of memory?): finished members are kept; run the same again, with fewer "
                "members at once"
            ) from None
    return {place: error for place, error in enumerate(results) if error is not None}


@contextlib.contextmanager
def _workers(count: int, board: Board) -> Iterator[ProcessPoolExecutor]:
    """A pool whose workers report to the board; leaving by an exception ends them, once they have saved."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    reports: Any = context.Queue()
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(reports,))

    def pass_on() -> None:
        while (report := reports.get()) is not None:
            place, rows, record = report
            board.advance(rows, place=place)
            if record is not None:
                board.epoch(record, place=place)

    # A daemon, joined with patience: a worker that is ended in the middle of a report may leave the queue unreadable.
    listener = threading.Thread(target=pass_on, name="hbr-progress", daemon=True)
    listener.start()
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        children = set(multiprocessing.active_children()) - before
        for child in children:
            child.terminate()
        for child in children:  # a training saves itself first
            child.join(timeout=ENDING_S)
        raise
    finally:
        reports.put(None)
        listener.join(timeout=5)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may say what signals do
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_reports: Any = None  # in a worker: where it says what it did


def _start_worker(reports: Any) -> None:
    global _reports
    _reports = reports
    signal.signal(signal.SIGTERM, _end_soon)  # within a training the signal is taken at the next step
    threading.Thread(target=_end_with_parent, name="hbr-parent", daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_soon(*_: object) -> None:
    """SIGTERM while there is nothing to save: the pool tells a worker to end, which is waited for a moment.

    One that left at once might leave half read what the pool says to all, and the next one would trip over the rest.
    """
    timer = threading.Timer(2.0, os._exit, (signals.EXIT_CODE,))
    timer.daemon = True
    timer.start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _train_in_worker(
    dataset_path: Path, terms: Terms, job: Training, pool_paths: Sequence[Path], place: int
) -> Diverged | None:
    done, last = 0, time.monotonic()

    def advance(rows: int) -> None:
        nonlocal done, last
        done += rows
        if time.monotonic() - last >= REPORT_INTERVAL_S:
            _reports.put((place, done, None))
            done, last = 0, time.monotonic()

    def on_epoch(record: EpochRecord) -> None:
        _reports.put((place, 0, record))

    dataset = open_dataset(dataset_path)
    pools = [open_pool(path, dataset=dataset) for path in pool_paths]  # memory-mapped here, not sent
    job = dataclasses.replace(job, pools=tuple(pools))
    try:
        _train_one(dataset, terms, job, advance=advance, on_epoch=on_epoch)
    except Diverged as error:
        return error
    finally:
        _reports.put((place, done, None))
    return None


def _train_one(dataset: Dataset, terms: Terms, job: Training, *, advance: progress.Advance, on_epoch: OnEpoch) -> None:
    with _reported(dataset, terms, job, on_epoch=on_epoch) as epoch_ended:
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
def _reported(dataset: Dataset, terms: Terms, job: Training, *, on_epoch: OnEpoch) -> Iterator[OnEpoch]:
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
