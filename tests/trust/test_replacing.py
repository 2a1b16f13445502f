"""Writers that are killed, links where a lock or a directory is expected, and files of other users."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hbr_fast import files, locks, temporary
from hbr_fast.data.npy import read_npy
from hbr_fast.data.replaceable import require_replaceable
from hbr_fast.data.sources.trees import DirectoryTree

from .attempts import ROOT, attempt


@contextlib.contextmanager
def running(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that printed one line and waits."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def a_directory(path: Path, content: str) -> None:
    path.mkdir()
    (path / "file").write_text(content)


WRITER = """
import time
from hbr_fast.files import {function}
with {function}({path!r}):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("function", ["atomic_path", "atomic_directory"])
def test_remove_partials_keeps_files_of_living_processes(tmp_path: Path, function: str) -> None:
    target = tmp_path / "out"
    write = getattr(files, function)
    with running(WRITER.format(function=function, path=str(target))):
        (partial,) = names(tmp_path)
        files.remove_partials(tmp_path)
        with write(target):
            assert partial in names(tmp_path)
        assert names(tmp_path) == sorted([partial, "out"])
    assert partial in names(tmp_path), "nobody was there to remove it"
    with write(target) if function == "atomic_path" else files.atomic_directory(target, force=True):
        pass
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_atomic_directory_killed_between_renames(tmp_path: Path, can_exchange: bool) -> None:
    """Killed at each system call of the swap: the old or the new directory exists, at the latest after the next try."""
    killed = 0
    steps = [("hbr_fast.files.exchange", 1), ("os.rename", 1), ("os.rename", 2), ("shutil.rmtree", 1)]
    cases = [(*step, when) for step in steps for when in ("before", "after")]
    for number, (step, turn, when) in enumerate(cases):
        place = tmp_path / str(number)
        place.mkdir()
        target = place / "set"
        a_directory(target, "old")
        program = f"""
import os, shutil, hbr_fast.files
from hbr_fast.files import atomic_directory
exchange = hbr_fast.files.exchange if {can_exchange} else lambda one, other: False
hbr_fast.files.exchange = exchange
real, calls = {step}, 0
def killed(*arguments, **options):
    global calls
    calls += 1
    if calls == {turn} and {when!r} == "before":
        os.kill(os.getpid(), 9)
    result = real(*arguments, **options)
    if calls == {turn}:
        os.kill(os.getpid(), 9)
    return result
{step} = killed
with atomic_directory({str(target)!r}, force=True) as new:
    (new / "file").write_text("new")
"""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
        killed += ended.returncode == -signal.SIGKILL
        if can_exchange:
            assert (target / "file").read_text() in ("old", "new"), (step, when)
        with pytest.raises(FileExistsError), files.atomic_directory(target):
            pass
        assert (target / "file").read_text() in ("old", "new"), (step, when)
        with files.atomic_directory(target, force=True) as new:
            (new / "file").write_text("newer")
        assert names(place) == ["set"], (step, when)
    assert killed == (4 if can_exchange else 8), "steps that this way does not take end well"


def test_exchange_is_available(tmp_path: Path) -> None:
    a_directory(tmp_path / "a", "a")
    a_directory(tmp_path / "b", "b")
    assert locks.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "file").read_text() == "b"


def test_atomic_directory_replaces_link_not_target(tmp_path: Path) -> None:
    a_directory(tmp_path / "elsewhere", "kept")
    (tmp_path / "set").symlink_to(tmp_path / "elsewhere")
    with files.atomic_directory(tmp_path / "set", force=True) as new:
        (new / "file").write_text("new")
    assert (tmp_path / "elsewhere" / "file").read_text() == "kept"
    assert (tmp_path / "set" / "file").read_text() == "new"
    assert names(tmp_path) == ["elsewhere", "set"]


def test_lock_refuses_link_and_keeps_its_file(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    place = tmp_path / "run"
    place.mkdir()
    (place / ".lock").symlink_to(precious)
    with pytest.raises(OSError, match=r"\.lock is a symbolic link, not a lock: remove it"), files.locked(place):
        pass
    with pytest.raises(OSError, match=r"\.lock is a symbolic link"), temporary.scratch_directory(place, "x-"):
        pass
    assert precious.read_text() == "kept"
    (place / ".lock").unlink()
    (place / ".lock").hardlink_to(precious)
    with files.locked(place):
        assert precious.read_text() == "kept"
    (place / ".lock").unlink()
    os.mkfifo(place / ".lock")
    with pytest.raises(OSError, match="is not an ordinary file"), files.locked(place):
        pass
    (place / ".lock").unlink()
    (place / ".lock").mkdir()
    with pytest.raises(OSError, match="is not an ordinary file"), files.locked(place):
        pass


def test_scratch_directory_leaves_links_alone(tmp_path: Path) -> None:
    a_directory(tmp_path / "elsewhere", "kept")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "member-link").symlink_to(tmp_path / "elsewhere")
    with temporary.scratch_directory(shared, "member-"):
        pass
    assert names(tmp_path / "elsewhere") == ["file"]


def test_private_directory_trusts_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "private"
    assert stat.S_IMODE(temporary.private_directory(place).stat().st_mode) == 0o700
    place.chmod(0o755)
    assert stat.S_IMODE(temporary.private_directory(place).stat().st_mode) == 0o700
    place.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written to by other users"):
        temporary.private_directory(place)
    link = tmp_path / "link"
    link.symlink_to(place)
    with pytest.raises(PermissionError, match="is not a directory"):
        temporary.private_directory(link)
    place.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: place.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        temporary.private_directory(place)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError("800 requested and 496 written")],
)
def test_full_disk_names_the_file(tmp_path: Path, error: OSError) -> None:
    for write in (files.atomic_path, files.atomic_directory):
        with pytest.raises(OSError, match=r"^no space left for .*/out: free some") as raised, write(tmp_path / "out"):
            raise error
        assert raised.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_full_disk_in_numpy_names_the_file(tmp_path: Path) -> None:
    program = f"""
import resource, signal, numpy as np
from hbr_fast.files import atomic_path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with atomic_path({str(tmp_path / "a.npy")!r}) as path, open(path, "wb") as file:
    np.save(file, np.zeros(100_000), allow_pickle=False)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, check=False, capture_output=True)
    assert b"OSError: no space left for" in ended.stderr.splitlines()[-1]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "NaN", "[Infinity]", "1e999", "9" * 5000, '"\\ud800"', "\0", '{"a": 1} x']
)
def test_read_json_hostile(tmp_path: Path, content: str) -> None:
    path = tmp_path / "meta.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^.*meta\.json is not valid JSON .*write it again$"):
        files.read_json(path)


def test_foreign_entries_are_named(tmp_path: Path) -> None:
    a_directory(tmp_path / "sub", "")
    (tmp_path / "index.html").touch()
    (tmp_path / "link").symlink_to("/")
    assert files.foreign_entries(tmp_path, ["index.html", "sub/file"]) == ["link"]
    assert files.foreign_entries(tmp_path, ["index.html", "link"]) == ["sub/file"]


def test_atomic_write_replaces_ordinary_files_only(tmp_path: Path) -> None:
    """A rename would replace a device such as /dev/null, too, if the user may."""
    pipe, linked, directory = tmp_path / "pipe", tmp_path / "linked", tmp_path / "directory"
    os.mkfifo(pipe)
    linked.symlink_to(pipe)
    directory.mkdir()
    for path in (pipe, linked, directory):
        with (
            pytest.raises(FileExistsError, match=f"{path.name} is not an ordinary file"),
            files.atomic_write(path) as file,
        ):
            file.write(b"a")
    assert pipe.is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["directory", "linked", "pipe"]


@pytest.mark.parametrize("described", ['{"mine": 1}', '{"files": {"thesis.tex": {}, "train.csv": {}}}', "{"])
def test_force_keeps_what_another_program_describes(tmp_path: Path, described: str) -> None:
    place = tmp_path / "a.hbr"
    place.mkdir()
    for name, content in (("meta.json", described), ("thesis.tex", "mine"), ("train.csv", "mine")):
        (place / name).write_text(content)
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex, which conversion did not write \(2 such\)"):
        require_replaceable(place)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read at its beginning")
@pytest.mark.parametrize("read", ["file", "json", "npy", "tree", "head"])
def test_error_while_reading_names_the_file(read: str) -> None:
    """As on a damaged disk: the file opens, and reading it fails."""
    tree = DirectoryTree(Path("/proc/self"), follow_links=False)
    how = {
        "file": lambda: files.sha256_of_file("/proc/self/mem"),
        "json": lambda: files.read_json("/proc/self/mem"),
        "npy": lambda: read_npy("/proc/self/mem"),
        "tree": lambda: tree.read("mem"),
        "head": lambda: tree.head("mem", 10),
    }
    with pytest.raises(OSError, match=r"Input/output error: '/proc/self/mem'"):
        how[read]()


@pytest.mark.parametrize("what", ["folder", "pool"])
def test_endless_device_is_no_data(tmp_path: Path, what: str) -> None:
    """Not read to its end: there is none."""
    data = 'convert("synthetic", "a.hbr", classes=2, train_per_class=3, test_per_class=2)'
    outcome = attempt(
        {
            "folder": 'open_source("folder", root="/dev/zero")',
            "pool": 'open_pool("/dev/zero", dataset=data, cache=Path("cache"))',
        }[what],
        imports="from pathlib import Path\nfrom hbr_fast.data.convert import convert\n"
        "from hbr_fast.data.pool import open_pool\n"
        f"from hbr_fast.data.sources.opening import open_source\ndata = {data}",
        cwd=tmp_path,
    )
    assert (outcome.kind, outcome.lines) == ("ValueError", 1), outcome
    assert outcome.message.startswith("/dev/zero is n")
