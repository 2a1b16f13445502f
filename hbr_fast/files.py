"""Files that are either whole or absent: atomic writes, checksums and canonical JSON for content hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from hbr_fast.locks import exchange, opened_lock, try_lock

# Error numbers for a full disk, an exhausted quota or a file at its size limit.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
LOCK_NAME = ".lock"  # an empty file that stays after its lock is released

# Temporary names of `atomic_path` and `atomic_directory` before the rename, and of a replaced directory.
_LEFT = re.compile(r"\..+\.[a-z0-9_]{8}\.(partial|old)")


def require_ordinary(path: str | os.PathLike[str]) -> None:
    """Refuse pipes and devices, which opening or reading may wait for; whether there is a file is found by opening it.

    Raises
    ------
    ValueError
        If it is neither an ordinary file nor a directory.
    """
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError(f"{path} is a pipe or a device, not an ordinary file: give a file")


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits; the file is streamed."""
    require_ordinary(path)
    with named_reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def named_reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make errors of the block name the file: those of opening it do, not those of reading it, e.g. on a bad disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def reason(error: BaseException) -> str:
    """The first line of a library's message, for one of ours."""
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0]:.200}"


def canonical_json(value: Any) -> str:
    """The canonical form of a JSON value, for hashing: sorted keys, no spaces, no NaN or infinity."""
    return _CANONICAL.encode(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a `ValueError` names the file if it does not parse, or holds NaN, infinity or invalid
    Unicode."""
    require_ordinary(path)
    try:
        with named_reading(path), open(path, "rb") as file:
            return parse_json(file.read())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): restore it or write it again") from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from any source.

    Raises
    ------
    ValueError
        If it does not parse, is nested too deeply, or holds NaN, infinity or invalid Unicode.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if "\\ud" in text.lower():  # possibly a lone surrogate
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} is not a number of JSON")
    return number


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open `path` for writing bytes so that it appears whole or not at all.

    The bytes go to a temporary name in the same directory, are flushed to the disk and renamed over `path`.
    On any error the temporary file is removed and `path` is left as it was.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Like `atomic_write`, for code that opens files by name: yields the path of an empty temporary file."""
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {target.parent} to write {target.name} into: make it first")
    if target.exists() and not target.is_file():  # a rename would replace even /dev/null
        raise FileExistsError(f"{target} is not an ordinary file, and nothing else is replaced: choose another name")
    with _named_errors(target), _partial(target, directory=False) as temporary:
        yield temporary
        _sync_file(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    _sync_directory(target.parent)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Fill a directory so that it appears whole or not at all.

    Yields a temporary sibling of `path`; when the block ends without error its files are flushed to the disk
    and it is renamed to `path`. On any error it is removed. Leftovers of a killed process are removed by the next
    process that writes to `path`.

    Raises
    ------
    FileExistsError
        If `path` exists and `force` is false. With `force` the old directory is replaced, after the new one
        is complete: if the file system can exchange names, one of the two is at `path` at every moment.
    """
    target = Path(path)
    make_directory(target.parent)
    _recover(target)
    taken = f"{target} exists already: choose another name or replace it with --force"
    if os.path.lexists(target) and not force:
        raise FileExistsError(taken)
    with _named_errors(target), _partial(target, directory=True) as temporary:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        for file in temporary.rglob("*"):
            _sync_directory(file) if file.is_dir() else _sync_file(file)
        _sync_directory(temporary)
        if force and os.path.lexists(target):
            _swap(temporary, target)
        else:
            try:
                os.rename(temporary, target)
            except OSError:
                if os.path.lexists(target):
                    raise FileExistsError(taken.replace("exists already", "was made by something else")) from None
                raise
    _sync_directory(target.parent)


def make_directory(path: str | os.PathLike[str]) -> None:
    """Make a directory and its missing parents.

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


def linked(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system cannot."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)


def remove_partials(directory: str | os.PathLike[str]) -> None:
    """Remove the partial files of killed writers from a directory; those of running processes stay."""
    for left in Path(directory).glob(".*.partial"):
        if _LEFT.fullmatch(left.name):
            _remove_if_dead(left)


def remove_leftovers(target: str | os.PathLike[str]) -> list[Path]:
    """Remove partial files that killed writers of `target` left beside it; returns the removed paths."""
    return [left for left in _leftovers(Path(target), "partial") if _remove_if_dead(left)]


def foreign_entries(directory: str | os.PathLike[str], own: Collection[str]) -> list[str]:
    """Names of files below a directory, relative to it, that are not among `own`; links are not followed."""
    found = []
    for place, folders, names in os.walk(directory):
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [os.path.relpath(os.path.join(place, name), directory) for name in (*names, *linked)]
    return sorted(set(found) - set(own))


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Lock an existing directory for this process; the system releases the lock however the process ends.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    OSError
        If its `.lock` is not an ordinary file, e.g. a link to another one.
    """
    path = Path(directory) / LOCK_NAME
    while True:
        with opened_lock(path) as lock:
            if not try_lock(lock):
                raise BlockingIOError(
                    f"{directory} is in use by another process: wait for it to end, or choose another directory"
                )
            if _is_at(lock, path):  # else its holder removed it, with the directory, between the two calls
                yield
                return


def relative_path(target: str | os.PathLike[str], start: str | os.PathLike[str]) -> str:
    """The path from directory `start` to `target`, for files that refer to each other and may be moved together.

    Links are resolved first: `start` may be one, and ".." means the parent of its target.
    """
    return os.path.relpath(Path(target).resolve(), Path(start).resolve())


@contextlib.contextmanager
def _partial(target: Path, *, directory: bool) -> Iterator[Path]:
    """A temporary path beside `target`, locked while its process lives and removed afterwards if it still exists."""
    remove_leftovers(target)
    names: dict[str, Any] = {"prefix": f".{target.name}.", "suffix": ".partial", "dir": target.parent}
    while True:
        if directory:
            temporary = Path(tempfile.mkdtemp(**names))
        else:
            made, name = tempfile.mkstemp(**names)
            os.close(made)
            temporary = Path(name)
        try:
            descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # another process removed it as a leftover before it was locked
        with contextlib.suppress(OSError):  # without locks, no process removes it either
            try_lock(descriptor, wait=True)  # a process may hold it to check for a leftover
        if _is_at(descriptor, temporary):
            break
        os.close(descriptor)
    try:
        yield temporary
    finally:
        try:
            # After an exchange of names this is the replaced directory.
            _remove(temporary)
        finally:
            os.close(descriptor)


def _leftovers(target: Path, kind: str) -> list[Path]:
    """Temporary names of `target`, of killed and of running processes."""
    start = f".{target.name}."
    return [
        path
        for path in target.parent.glob(f".*.{kind}")
        if path.name.startswith(start) and len(path.name) == len(start) + 9 + len(kind) and _LEFT.fullmatch(path.name)
    ]


def _remove_if_dead(left: Path) -> bool:
    """Remove a partial unless its writer still holds the lock on it; returns whether it was removed."""
    with contextlib.suppress(OSError):
        if left.is_symlink():
            left.unlink()
            return True
        descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if try_lock(descriptor) and _is_at(descriptor, left):
                _remove(left)
                return True
        finally:
            os.close(descriptor)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


def _remove(path: Path) -> None:
    """Remove a file, a link (not its target) or a directory, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _swap(temporary: Path, target: Path) -> None:
    """Exchange a directory with the one at `target`."""
    if exchange(temporary, target):
        return
    # The file system cannot. Between these two renames nothing is at `target`; `_recover` handles that.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    descriptor = os.open(target, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try_lock(descriptor)
        os.rename(target, aside)  # onto an empty directory
        try:
            os.rename(temporary, target)
        except BaseException:
            os.rename(aside, target)
            raise
        _remove(aside)
    finally:
        os.close(descriptor)


def _recover(target: Path) -> None:
    """Complete a `_swap` whose process was killed: restore the old directory if there is no new one."""
    for old in _leftovers(target, "old"):
        descriptor = os.open(old, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            with contextlib.suppress(OSError):
                if not try_lock(descriptor):
                    continue
            if not _is_at(descriptor, old):
                continue
            if not os.path.lexists(target) and any(old.iterdir()):
                os.rename(old, target)
            else:
                _remove(old)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _named_errors(target: Path) -> Iterator[None]:
    """Make write errors that name no file, or a temporary one, name `target`."""
    try:
        yield
    except OSError as error:
        # Of NumPy and polars, an error for a full disk has its number in the text or none.
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno or (int(told[1]) if told else None)
        if number in DISK_FULL or (number is None and "requested and" in str(error)):
            named = OSError(f"no space left for {target}: free some or choose another place")
            named.errno = number or errno.ENOSPC
            raise named from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and ".partial" in str(error.filename):
            raise PermissionError(
                f"{target} cannot be written ({error.strerror}): choose a directory that you may write to"
            ) from error
        raise


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# POSIX flushes a directory's entries through its descriptor, like a file.
_sync_directory = _sync_file


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
