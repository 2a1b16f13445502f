"""Directories of temporary files: this user's own, and one of each process that ends with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hbr_fast.files import LOCK_NAME, locked, make_directory
from hbr_fast.locks import held


@contextlib.contextmanager
def scratch_directory(parent: str | os.PathLike[str], prefix: str) -> Iterator[Path]:
    """A directory of this process while the block runs, in a shared `parent`, which is created if missing.

    Leftovers of killed processes with the same prefix are removed first.
    """
    make_directory(parent)
    with contextlib.ExitStack() as stack:
        with held(Path(parent) / LOCK_NAME):  # no other process looks between creation and locking
            for other in Path(parent).glob(f"{prefix}*"):
                if other.is_symlink():
                    continue
                with contextlib.suppress(BlockingIOError, FileNotFoundError), locked(other):
                    shutil.rmtree(other, ignore_errors=True)
            own = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.enter_context(locked(own))
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def private_directory(path: str | os.PathLike[str]) -> Path:
    """A directory that only this user can read and write; it is created if missing.

    Raises
    ------
    PermissionError
        If `path` is a link or a file, belongs to another user, or can be written to by others: they may have put
        anything there.
    """
    place = Path(path)
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    status = place.lstat()
    remedy = "remove it, or set TMPDIR to a directory of your own"
    if not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{place} is not a directory, so what is in it cannot be trusted: {remedy}")
    if status.st_uid != os.getuid():
        raise PermissionError(f"{place} belongs to another user, so what is in it cannot be trusted: {remedy}")
    if status.st_mode & 0o022:
        raise PermissionError(f"{place} can be written to by other users and cannot be trusted: {remedy}")
    if status.st_mode & 0o055:
        place.chmod(0o700)
    return place


def temporary_root() -> Path:
    """This user's private directory of temporary files: `hbr-fast-UID` in the system's temporary directory."""
    return private_directory(Path(tempfile.gettempdir()) / f"hbr-fast-{os.getuid()}")
