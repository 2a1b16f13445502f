"""Training processes that are killed because they do not end in time leave no half-written file."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from hbr_fast.files import atomic_path
from hbr_fast.members.engines import processes


def save_for_ever(path: Path, started: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        started.send_bytes(b"started")
        time.sleep(600)


def test_end_removes_what_a_killed_worker_was_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ENDING_S", 0.1)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a.safetensors").write_bytes(b"the one before")
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)
    children = [
        context.Process(target=save_for_ever, args=(tmp_path / "checkpoints" / name, writing))
        for name in ("a.safetensors", "b.safetensors")
    ]
    for child in children:
        child.start()
        reading.recv_bytes()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    processes._end(children, tmp_path)
    assert [child.exitcode for child in children] == [-signal.SIGKILL, -signal.SIGKILL]
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert left.read_bytes() == b"the one before"
