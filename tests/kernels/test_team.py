import ctypes
import os
import sys
import threading
from array import array

import numba as nb
import numpy as np
import pytest
import torch

from hbr_fast.kernels import team

_thread_id = ctypes.CDLL(None).pthread_self
_thread_id.argtypes, _thread_id.restype = (), ctypes.c_int64


@nb.cfunc(team.KERNEL, cache=True)
def count_up(first, last, words):  # type: ignore[no-untyped-def]
    values = team.array_at(words[0], (words[1],), np.int64)
    for i in range(first, last):
        values[i] += i + words[2]


@nb.cfunc(team.KERNEL)
def who(first, last, words):  # type: ignore[no-untyped-def]
    """The thread of each item, after some work on it."""
    threads = team.array_at(words[0], (words[1],), np.int64)
    for i in range(first, last):
        x = np.float64(i)
        for _ in range(200_000):
            x = np.sqrt(x + 1.0)
        threads[i] = _thread_id() + (0 if x > 0 else 1)


@nb.cfunc(team.KERNEL, cache=True)
def widest(first, last, words):  # type: ignore[no-untyped-def]
    widths = team.array_at(words[0], (words[1],), np.int64)
    widths[first] = last - first


@nb.cfunc(team.KERNEL, cache=True)
def look_for(first, last, words):  # type: ignore[no-untyped-def]
    """Set the second flag if the first is seen within a number of looks; then set the third."""
    flags = team.array_at(words[0], (3,), np.int64)
    for _ in range(words[1]):
        if team._claim(words[0], 0) != 0:  # type: ignore[call-arg]  # numba gives the typing context
            flags[1] = 1
            break
    flags[2] = 1


@nb.cfunc(team.KERNEL, cache=True)
def raise_flag(first, last, words):  # type: ignore[no-untyped-def]
    """Item 0: set the first flag to 1, or to 2 if the third is set."""
    if first == 0:
        team._claim(words[0], 1 + team.array_at(words[0], (3,), np.int64)[2])  # type: ignore[call-arg]


def assert_each_item_once(size: int, **options: int) -> None:
    values = np.zeros(size + 2, np.int64)
    team.run(count_up, size, (values.ctypes.data, size, 5), **options)
    np.testing.assert_array_equal(values[:size], np.arange(size) + 5)
    assert values[size:].tolist() == [0, 0]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [0, 1, 2, 7, 1000, 100_003])
def test_team_does_each_item_once(size: int, threads: int) -> None:
    assert_each_item_once(size, threads=threads)
    assert_each_item_once(size, threads=threads, piece=3)
    assert_each_item_once(size)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_team_repeats_stages_on_every_run(threads: int) -> None:
    values = np.zeros(100, np.int64)
    words = array("q", (values.ctypes.data, 100, 5))
    task = team.Task(team.Stage(count_up, 100, words), team.Stage(count_up, 50, words), threads=threads)
    task.run()
    words[2] = 1000
    task.run()
    once = np.arange(100) + np.arange(100) + 1005
    np.testing.assert_array_equal(values, once * np.where(np.arange(100) < 50, 2, 1))


@pytest.mark.skipif(team.team() is None, reason="torch has no OpenMP team here")
def test_team_synchronises_stages_by_default() -> None:
    flags = np.zeros(3, np.int64)
    looks = team.Stage(look_for, 1, (flags.ctypes.data, 10_000))
    team.run_stages(looks, team.Stage(raise_flag, 2, (flags.ctypes.data,)), threads=2)
    assert flags.tolist() == [2, 0, 1]  # the flag was raised only after the looking had ended
    flags[:] = 0
    looks = team.Stage(look_for, 1, (flags.ctypes.data, 2_000_000_000))
    team.run_stages(looks, team.Stage(raise_flag, 2, (flags.ctypes.data,), wait=False), threads=2)
    assert flags.tolist() == [1, 1, 1]


def test_team_limits_piece_size() -> None:
    widths = np.zeros(100, np.int64)
    team.run(widest, 100, (widths.ctypes.data, 100), threads=2, piece=7)
    assert widths.max() == 7
    assert widths.sum() == 100


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch may have another team, or none")
def test_team_uses_several_threads_and_caller() -> None:
    assert team.team() is not None
    threads = np.zeros(64, np.int64)
    team.run(who, 64, (threads.ctypes.data, 64), threads=2)
    assert len(set(threads.tolist())) == 2
    assert threading.get_ident() in threads
    team.run(who, 64, (threads.ctypes.data, 64), threads=1)
    assert set(threads.tolist()) == {threading.get_ident()}


def test_teams_run_from_several_python_threads() -> None:
    failures = []

    def work() -> None:
        try:
            for _ in range(50):
                assert_each_item_once(1000, threads=2)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def test_caller_works_alone_without_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "team", lambda: None)
    assert_each_item_once(1000, threads=2)
    threads = np.zeros(4, np.int64)
    team.run(who, 4, (threads.ctypes.data, 4), threads=2)
    assert set(threads.tolist()) == {threading.get_ident()}


def test_library_without_entry_has_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "__file__", "/nowhere/at/all.so")
    assert team.team.__wrapped__() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_process_does_not_wait_for_missing_threads() -> None:
    values = np.zeros(1000, np.int64)
    task = team.Task(team.Stage(count_up, 1000, (values.ctypes.data, 1000, 5)), threads=2)
    task.run()  # the team exists before the fork
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task.run()
            np.testing.assert_array_equal(values, 2 * (np.arange(1000) + 5))
            assert_each_item_once(1000, threads=2)
            code = 0
        finally:
            os._exit(code)
    done = threading.Event()
    watchdog = threading.Timer(20, lambda: None if done.is_set() else os.kill(child, 9))
    watchdog.start()
    status = os.waitpid(child, 0)[1]
    done.set()
    watchdog.cancel()
    assert status == 0
