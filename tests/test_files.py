import hashlib
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hbr_fast import files, temporary
from hbr_fast.files import (
    atomic_directory,
    atomic_write,
    canonical_json,
    content_hash,
    make_directory,
    read_json,
    sha256_of_file,
    write_json,
)


@pytest.fixture
def mask_027() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_sha256_of_file_hashes_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"pixels" * 100_000)
    assert sha256_of_file(path) == hashlib.sha256(b"pixels" * 100_000).hexdigest()


def test_canonical_json_is_unique() -> None:
    assert canonical_json({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert content_hash({"x": 1, "y": 2}) == content_hash({"y": 2, "x": 1})
    assert content_hash({"x": 1}) == hashlib.sha256(b'{"x":1}').hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_rejects_non_finite_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([value])


def test_write_json_and_read_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"classes": ["cat", "dog"], "mean": 0.5})
    assert read_json(tmp_path / "a.json") == {"classes": ["cat", "dog"], "mean": 0.5}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_read_json_names_invalid_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "meta.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"meta\.json is not valid JSON"):
        read_json(path)


def test_write_json_failure_keeps_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == 1
    assert names(tmp_path) == ["a.json"]


def test_atomic_write_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["scores"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_write_failure_keeps_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    def fail_halfway(path: Path) -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "fresh"):
        with pytest.raises(error):
            fail_halfway(tmp_path / name)
    assert (tmp_path / "old").read_bytes() == b"old"
    assert names(tmp_path) == ["old"]


@pytest.mark.usefixtures("mask_027")
def test_atomic_write_and_directory_use_default_permissions(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as file:
        file.write(b"x")
    with atomic_directory(tmp_path / "directory") as directory:
        (directory / "inside").write_bytes(b"x")
    assert permissions(tmp_path / "file") == 0o640
    assert permissions(tmp_path / "directory") == 0o750


def test_atomic_directory_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "set.hbr"
    with atomic_directory(path) as directory:
        assert directory.parent == path.parent, "a rename across file systems would not be atomic"
        (directory / "nested").mkdir()
        (directory / "nested" / "a").write_bytes(b"a")
        assert not path.exists()
    assert (path / "nested" / "a").read_bytes() == b"a"
    assert names(path.parent) == ["set.hbr"]


@pytest.mark.parametrize("below", ["", "deeper"])
def test_make_directory_below_a_file_names_the_file(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileExistsError, match=re.escape(f"{file} is a file, not a directory: choose another place")):
        make_directory(file / below)
    with (
        pytest.raises(FileExistsError, match=re.escape(f"{file} is a file")),
        atomic_directory(file / below / "new"),
    ):
        pass


def test_atomic_directory_does_not_replace_without_force(tmp_path: Path) -> None:
    path = tmp_path / "set.hbr"
    path.mkdir()
    (path / "old").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"set\.hbr exists already.*--force"), atomic_directory(path):
        pytest.fail("the block must not run")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["set.hbr"]


def test_atomic_directory_with_force_replaces_everything(tmp_path: Path) -> None:
    path = tmp_path / "set.hbr"
    path.mkdir()
    (path / "old").write_bytes(b"old")
    with atomic_directory(path, force=True) as directory:
        (directory / "new").write_bytes(b"new")
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["set.hbr"]


@pytest.mark.parametrize("force", [False, True])
def test_atomic_directory_failure_keeps_old_directory(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "set.hbr"
    if force:
        path.mkdir()
        (path / "old").write_bytes(b"old")

    def fail_halfway() -> None:
        with atomic_directory(path, force=force) as directory:
            (directory / "half").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_halfway()
    assert names(tmp_path) == (["set.hbr"] if force else [])
    if force:
        assert names(path) == ["old"]


def test_atomic_directory_does_not_replace_concurrent_directory(tmp_path: Path) -> None:
    path = tmp_path / "set.hbr"

    def lose_the_race() -> None:
        with atomic_directory(path) as directory:
            (directory / "ours").write_bytes(b"ours")
            path.mkdir()
            (path / "theirs").write_bytes(b"theirs")

    with pytest.raises(FileExistsError, match="--force"):
        lose_the_race()
    assert names(path) == ["theirs"]


def test_locked_directory_is_released_when_holder_dies(tmp_path: Path) -> None:
    program = f"""
import time
from hbr_fast.files import locked
with locked({str(tmp_path)!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="is in use by another process: wait"), files.locked(tmp_path):
            pass
        holder.kill()
    with files.locked(tmp_path):
        pass
    with files.locked(tmp_path):
        pass


def test_remove_partials_removes_only_leftovers(tmp_path: Path) -> None:
    (tmp_path / ".a.12345678.partial").write_text("half")
    (tmp_path / ".b.abcd_678.partial").mkdir()
    (tmp_path / ".b.abcd_678.partial" / "file").write_text("half")
    kept = {"c.partial", ".download.partial", ".d.123.partial"}
    for name in kept:
        (tmp_path / name).write_text("of another program")
    files.remove_partials(tmp_path)
    files.remove_partials(tmp_path / "nowhere")
    assert set(names(tmp_path)) == kept


def test_scratch_directory_removes_only_those_of_dead_processes(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    program = f"""
import time
from hbr_fast.temporary import scratch_directory
with scratch_directory({str(shared)!r}, "member-") as own:
    (own / "file").write_text("half")
    print(own, flush=True)
    time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        theirs = Path(holder.stdout.readline().decode().strip())
        with temporary.scratch_directory(shared, "member-") as own:
            assert own != theirs
            assert (theirs / "file").exists()
        assert not own.exists()
        holder.kill()
    assert (theirs / "file").exists()
    (shared / "dataset.hbr").mkdir()  # of another prefix
    with temporary.scratch_directory(shared, "member-"):
        assert not theirs.exists()
        assert (shared / "dataset.hbr").exists()
