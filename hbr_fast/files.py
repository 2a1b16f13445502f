"""Files that are either whole or absent: atomic writes, checksums and canonical JSON for content hashes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

# What the system says where a disk, a quota or a file is full.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
LOCK_NAME = ".lock"  # an empty file that stays; the lock on it does not


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits; the file is streamed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def let_go(mapped: np.ndarray) -> None:
    """Take what was read of a memory-mapped array out of this process's memory; reading it again brings it back.

    The system does so by itself where memory is short, but until then a pass over a file counts as memory of the size
    of the file. Does nothing for other arrays, and where the system has no such call.
    """
    owner: Any = mapped
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that is hashed: sorted keys, no spaces, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a `ValueError` names the file where it does not parse."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): restore it or write it again") from None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open `path` for writing bytes so that it appears whole or not at all.

    The bytes go to a temporary name in the same directory, are flushed to the disk and renamed over `path`.
    On any error the temporary file is removed and what stood at `path` before still stands.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `atomic_write`, for what opens files by name: yields the temporary name, an empty file."""
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {target.parent} to write {target.name} into: make it first")
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _sync_file(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(target.parent)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Fill a directory so that it appears whole or not at all.

    Yields a temporary sibling of `path`; when the block ends without error its files are flushed to the disk
    and it is renamed to `path`. On any error it is removed.

    Raises
    ------
    FileExistsError
        If `path` exists and `force` is false. With `force` the old directory is replaced, after the new one
        is complete.
    """
    target = Path(path)
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists already: choose another name or replace it with --force")
    make_directory(target.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        for file in temporary.rglob("*"):
            _sync_directory(file) if file.is_dir() else _sync_file(file)
        _sync_directory(temporary)
        if not target.exists():
            os.replace(temporary, target)
        elif force:
            _swap(temporary, target)
        else:
            raise FileExistsError(
                f"{target} was made by something else meanwhile: choose another name or replace it with --force"
            )
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_directory(target.parent)


def make_directory(path: str | os.PathLike[str]) -> None:
    """Make a directory and those above it, where they are not there yet.

    Raises
    ------
    FileExistsError
        If one of them is a file.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(part for part in (Path(path), *Path(path).parents) if part.exists())
        raise FileExistsError(f"{file} is a file, not a directory: choose another place than {path}") from None


def remove_partials(directory: str | os.PathLike[str]) -> None:
    """Remove what killed writers left half-written in a directory that nobody else writes to now."""
    for left in Path(directory).glob(".*.partial"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Hold an existing directory for this process; the system lets go of it however the process ends.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    with open(Path(directory) / LOCK_NAME, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{directory} is in use by another process: wait for it to end, or choose another directory"
            ) from None
        yield


@contextlib.contextmanager
def scratch_directory(parent: str | os.PathLike[str], prefix: str) -> Iterator[Path]:
    """A directory for this process while the block runs, in one that processes share; it is made if it is not there.

    What processes left there that were killed, under the same prefix, is removed first.
    """
    make_directory(parent)
    with contextlib.ExitStack() as held:
        with open(Path(parent) / LOCK_NAME, "w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # nobody else looks between making one and holding it
            for other in Path(parent).glob(f"{prefix}*"):
                with contextlib.suppress(BlockingIOError, FileNotFoundError), locked(other):
                    shutil.rmtree(other, ignore_errors=True)
            own = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            held.enter_context(locked(own))
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def relative_path(target: str | os.PathLike[str], start: str | os.PathLike[str]) -> str:
    """The way from directory `start` to `target`, for files that name each other and may be moved together.

    Links are followed first: `start` may be one, and ".." means the parent of where it leads.
    """
    return os.path.relpath(Path(target).resolve(), Path(start).resolve())


def _swap(temporary: Path, target: Path) -> None:
    """Put a directory in the place of another, which is moved aside first: no rename goes over a full directory."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    os.replace(target, aside / "replaced")
    try:
        os.replace(temporary, target)
    except BaseException:
        os.replace(aside / "replaced", target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# POSIX flushes a directory's entries through a descriptor of the directory, exactly as it flushes a file.
_sync_directory = _sync_file


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
