"""Members trained in several processes at a time.

Processes have one thread each: small networks keep one core busy and leave a second one waiting at barriers, so two
members on a thread each finish before one after another on two threads, and suffer far less from other programs on the
machine. They share the dataset's pages: it is memory-mapped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.pool import open_pool
from hbr_fast.training import signals
from hbr_fast.training.jobs import Terms, Training, train_here
from hbr_fast.training.state import EpochRecord
from hbr_fast.training.telemetry import Board
from hbr_fast.training.trainer import Diverged

REPORT_INTERVAL_S = 0.2  # how often a worker says what it did
ENDING_S = 20.0  # a worker that has not saved by then is left to itself: Kubernetes kills after 30 s


def train_in_processes(
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
        train_here(dataset, terms, job, advance=advance, on_epoch=on_epoch)
    except Diverged as error:
        return error
    finally:
        _reports.put((place, done, None))
    return None
