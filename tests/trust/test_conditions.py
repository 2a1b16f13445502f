"""Full disks, no permission, inputs that vanish or end the process, two processes at once, a clock set back."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from photographs import write_photographs
from PIL import Image

from hbr_fast import cli, csv_files, progress
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import open_dataset
from hbr_fast.data.plan import Plan
from hbr_fast.data.shards import FinishedShard
from hbr_fast.data.sources import folder
from hbr_fast.data.sources.tables import read_table as read_labels_table
from hbr_fast.data.unfinished import Unfinished
from hbr_fast.data.verify import verify_dataset
from hbr_fast.files import atomic_directory, locked
from hbr_fast.report.drawing import write_figure
from hbr_fast.tensor_files import write_tensors

TOY: dict[str, Any] = {"classes": 2, "train_per_class": 20, "test_per_class": 2, "shape": (1, 16, 16)}
NOBODY = 65534


def forked(work: Callable[[], object]) -> str:
    """The result of `work` in a fork, "done" or its exception: for limits that cannot be taken back."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "done"
        try:
            work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, answer.encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


def write_picture(path: Path) -> None:
    (figure := Figure()).subplots().plot(range(100))
    write_figure(figure, path)


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "dataset": ("a.hbr", lambda path: convert("synthetic", path, **TOY)),
    "plan": ("p.safetensors", Plan.of_rows(np.arange(1000)).save),
    "tensors": ("t.safetensors", lambda path: write_tensors(path, {"a": np.zeros(4000)}, {})),
    "picture": ("p.png", write_picture),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_full_disk(tmp_path: Path, kind: str) -> None:
    name, write = WRITERS[kind]

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the limit is then an error, like a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        write(tmp_path / name)

    answer = forked(limited)
    assert answer.startswith("OSError: no space left for"), answer
    assert name in answer
    assert "\n" not in answer
    assert list(tmp_path.iterdir()) == []


WRITE_TABLE = """
import resource, signal, sys
import polars as pl
from hbr_fast.files import atomic_write

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_write(sys.argv[1]) as file:
        pl.DataFrame({"a": range(4000)}).write_csv(file)
except OSError as error:
    print(error)
"""


def test_full_disk_while_a_table_is_written(tmp_path: Path) -> None:
    """In a new process: polars hangs in a fork of one in which its threads have started."""
    path = tmp_path / "t.csv"
    done = subprocess.run([sys.executable, "-c", WRITE_TABLE, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"no space left for {path}: free some or choose another place\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_directory_that_may_not_be_written_to(tmp_path: Path, kind: str) -> None:
    name, write = WRITERS[kind]
    write(tmp_path / name)  # imports what it needs while that may be read

    def unprivileged(path: Path) -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        write(path)

    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        place.chmod(0o555)
        answer = forked(lambda: unprivileged(place / name))
        assert list(place.iterdir()) == []
    assert answer.startswith("PermissionError"), answer
    assert str(place / name) in answer
    assert "\n" not in answer


def test_picture_that_vanishes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (4, 4), number).save(tmp_path / "set" / split / label / f"{number}.png")
    source = folder(root=tmp_path / "set")
    gone = tmp_path / "set" / "train" / "dog" / "1.png"
    gone.unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r"dog/1\.png") as raised:
        list(source.splits["train"].blocks())
    assert "\n" not in str(raised.value)


def test_two_processes_write_one_dataset(tmp_path: Path) -> None:
    """The second one finds it taken, whether it looks before or after the first one is done."""
    target = tmp_path / "a.hbr"
    with contextlib.ExitStack() as late:
        new = late.enter_context(atomic_directory(target))
        assert forked(lambda: convert("synthetic", target, **TOY)) == "done"
        (new / "file").touch()
        with pytest.raises(FileExistsError, match=r"a\.hbr was made by something else"):
            late.close()
    verify_dataset(target)
    assert forked(lambda: convert("synthetic", target, **TOY)).startswith(f"FileExistsError: {target} exists already")
    assert [path.name for path in tmp_path.iterdir()] == ["a.hbr"]


def test_two_processes_convert_encoded_pictures_to_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is refused, whatever it converts, and the first one's shards are there until it is done."""
    root, other = write_photographs(tmp_path / "root"), write_photographs(tmp_path / "other", per_class=7)
    out = tmp_path / "a.hbr"
    real, answers = Unfinished.keep, list[str]()
    words = [sys.executable, "-m", "hbr_fast", "convert", "folder", str(out), "--store", "encoded", "--root"]

    def keep(self: Unfinished, shard: FinishedShard) -> None:
        real(self, shard)
        if not answers:  # once, after the first shard
            for place in (root, other):
                done = subprocess.run([*words, str(place)], capture_output=True, text=True, check=False)
                answers.append(f"{done.returncode} {done.stderr.splitlines()[-1]}")

    monkeypatch.setattr(Unfinished, "keep", keep)
    convert("folder", out, root=root, store="encoded")
    assert len(answers) == 2
    assert all(f"{tmp_path}/.a.hbr.shards is in use by another process" in answer for answer in answers), answers
    verify_dataset(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hbr", "other", "root"]


def test_two_processes_lock_one_directory(tmp_path: Path) -> None:
    def lock() -> None:
        with locked(tmp_path):
            pass

    with locked(tmp_path):
        assert forked(lock).startswith(f"BlockingIOError: {tmp_path} is in use by another process: wait for it to end")
    assert forked(lock) == "done"


def test_clock_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 10**8)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() - 10**8) * 1e9))
    made = convert("synthetic", tmp_path / "a.hbr", **TOY)
    for path in made.path.iterdir():  # written in the future
        os.utime(path, (real() + 10**8, real() + 10**8))
    verify_dataset(made.path)
    assert open_dataset(made.path).fingerprint == made.fingerprint


def test_stopped_and_continued(tmp_path: Path) -> None:
    """A writer that stops while another process writes the same target keeps its half, and neither is lost."""
    target = tmp_path / "a.hbr"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with atomic_directory(target, force=True) as new:
                (new / "file").write_text("stopped")
                os.write(write, b".")
                os.kill(os.getpid(), signal.SIGSTOP)
            code = 0
        finally:
            os._exit(code)
    assert os.read(read, 1) == b"."
    os.waitpid(child, os.WUNTRACED)
    with atomic_directory(target, force=True) as new:
        (new / "file").write_text("other")
    assert (target / "file").read_text() == "other"
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (target / "file").read_text() == "stopped"
    assert [path.name for path in tmp_path.iterdir()] == ["a.hbr"]


@pytest.mark.parametrize("ends", ["kill -9 $$", "exit 1"])
def test_parquet_that_ends_the_process_which_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """polars aborts on some damaged files: another process reads them first."""
    pl.DataFrame({"file": ["a.png", "b.png"], "label": [0, 1]}).write_parquet(tmp_path / "t.parquet")
    reader = tmp_path / "python"
    reader.write_text(f"#!/bin/sh\n{ends}\n")
    reader.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(reader))
    content = (tmp_path / "t.parquet").read_bytes()
    if ends == "exit 1":  # an error that is raised here, too
        assert csv_files.read_table(tmp_path / "t.parquet").height == 2
        assert len(read_labels_table(content, "t.parquet").files) == 2
        return
    with pytest.raises(ValueError, match=r"t\.parquet cannot be read \(it is damaged: reading it ends the process\)"):
        csv_files.read_table(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet is not a readable Parquet file \(it is damaged"):
        read_labels_table(content, "t.parquet")


def test_names_from_files_give_terminals_no_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("arm,file\nbaseline,\x1b[2Jgone\u202e.npy\n")
    with pytest.raises(SystemExit):
        cli.main(["import", str(table), str(tmp_path / "out"), "--labels", str(table)])
    progress.say("a\x1b[2Jb")
    said = capsys.readouterr().err
    assert r"\x1b[2Jgone\u202e.npy" in said
    assert said.endswith("a\\x1b[2Jb\n")
    assert said.count("\n") == 2
