"""Members trained in several processes in parallel.

Processes have one thread each: small networks keep one core busy and leave a second one waiting at barriers, so two
members on one thread each finish sooner than one after the other on two threads, and suffer far less from other
programs on the machine. They share the dataset's pages, since it is memory-mapped.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.files import remove_partials
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job, PackedJob, packed, train_packed
from hbr_fast.members.store import CHECKPOINTS, MEMBERS
from hbr_fast.members.telemetry import Board
from hbr_fast.training import signals
from hbr_fast.training.member import Diverged
from hbr_fast.training.recipe import Recipe

REPORT_INTERVAL_S = 0.2  # how often a worker reports
ENDING_S = 20.0  # do not wait longer for a worker to save: Kubernetes kills after 30 s


def wanted(execution: Execution, *, at_once: int) -> bool:
    """See `hbr_fast.members.engines.Engine`."""
    return at_once > 1


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
    with _workers(at_once, board, store) as pool:
        with _interrupts_ignored():  # processes start here and inherit it: the parent handles interrupts
            train = functools.partial(_train_in_worker, dataset_path=dataset.path, recipe=recipe, store=store)
            futures = [pool.submit(train, packed(job), execution, place=place) for place, job in enumerate(jobs)]
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
def _workers(count: int, board: Board, store: Path) -> Iterator[ProcessPoolExecutor]:
    """A pool whose workers report to the board; an exception ends them once they have saved."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    reports: Any = context.Queue()
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(reports,))

    def pass_on() -> None:
        seen: dict[int, int] = {}
        while (report := reports.get()) is not None:
            place, rows, record = report
            if rows is not None:
                board.advance(rows - seen.get(place, 0), place=place)
                seen[place] = rows
            if record is not None:
                board.epoch(record, place=place)

    # A daemon, joined with a timeout: a worker killed in the middle of a report may leave the queue unreadable.
    listener = threading.Thread(target=pass_on, name="hbr-progress", daemon=True)
    listener.start()
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        _end(set(multiprocessing.active_children()) - before, store)
        raise
    finally:
        reports.put(None)
        listener.join(timeout=5)


def _end(children: Collection[BaseProcess], store: Path) -> None:
    """End processes that train into a store: each saves itself first, and what is not done in time is killed.

    A file that a killed one was writing is removed; the one before it stays.
    """
    for child in children:
        child.terminate()
    last = time.monotonic() + ENDING_S
    for child in children:
        child.join(timeout=max(0.0, last - time.monotonic()))
        if child.is_alive():
            child.kill()
            child.join()
    for directory in (store / MEMBERS, store / CHECKPOINTS):
        remove_partials(directory)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_reports: Any = None  # in a worker: where it reports


def _start_worker(reports: Any) -> None:
    global _reports
    _reports = reports
    signal.signal(signal.SIGTERM, _end_soon)  # during a training the signal is handled at the next step
    threading.Thread(target=_end_with_parent, name="hbr-parent", daemon=True).start()


def _end_soon(*_: object) -> None:
    """SIGTERM with nothing to save: wait a moment for the pool to tell the worker to end.

    A worker that exits at once might leave a message of the shared queue half read, and break the next reader.
    """
    timer = threading.Timer(2.0, os._exit, (signals.EXIT_CODE,))
    timer.daemon = True
    timer.start()


def _end_with_parent() -> None:
    """Exit if the parent is killed; the worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _train_in_worker(
    job: PackedJob, execution: Execution, *, dataset_path: Path, recipe: Recipe, store: Path, place: int
) -> Diverged | None:
    try:
        train_packed(
            job,
            execution,
            dataset=open_dataset(dataset_path),
            recipe=recipe,
            store=store,
            threads=1,
            report=lambda rows: _reports.put((place, rows, None)),
            interval_s=REPORT_INTERVAL_S,
            on_epoch=lambda record: _reports.put((place, None, record)),
        )
    except Diverged as error:
        return error
    return None
