"""Locks that are released when their process ends, and atomic exchange of two paths."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_LOCK = " is not an ordinary file, so it cannot be a lock: remove it"
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


@contextlib.contextmanager
def opened_lock(path: Path) -> Iterator[int]:
    """Open a lock file, created empty if missing; its content is kept.

    Yields
    ------
    int
        Its descriptor.

    Raises
    ------
    OSError
        If it is a link, which could point to any file, or not an ordinary file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path} is a symbolic link, not a lock: remove it") from None
        if error.errno == errno.EISDIR:
            raise OSError(f"{path}{_NO_LOCK}") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path}{_NO_LOCK}")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Wait for the lock file at `path` and hold it while the block runs."""
    with opened_lock(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def try_lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file or directory until it is closed; False if another process holds it and `wait` is false.

    Raises
    ------
    OSError
        If the file system cannot lock it, e.g. a directory on NFS.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths atomically; False if the system or the file system cannot.

    Raises
    ------
    OSError
        If it fails for another reason.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(other))
