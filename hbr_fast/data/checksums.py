"""Files compared with their checksums once, and again only after they changed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbr_fast.files import read_json, sha256_of_file, write_json
from hbr_fast.temporary import temporary_root

_RECORD = "checked-files.json"  # in this user's temporary directory: absolute path to checksum and state of the file
_MOST = 1000
# A file that changes twice within the resolution of its times looks unchanged: younger ones are checked again.
_YOUNG_NS = 2 * 10**9

_checked: dict[str, list[Any]] = {}  # by this process


def require_checksums(directory: Path, files: Mapping[str, Mapping[str, Any]], *, remedy: str) -> bool:
    """Raise unless files have the checksums that were recorded; only those that changed since the last time are read.

    A file's size, times and inode tell whether it changed. What was checked is remembered for all processes of this
    user, in their private temporary directory.

    Parameters
    ----------
    directory : Path
    files : mapping
        Name to an entry with "sha256".
    remedy : str
        The end of the message.

    Returns
    -------
    bool
        Whether any file was read.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        Names all files with other checksums.
    """
    known = {**_recorded(), **_checked}
    found: dict[str, list[Any]] = {}
    changed = []
    for name, entry in files.items():
        path = directory / name
        key = str(path.resolve())
        state = [entry["sha256"], *_state(path)]
        if known.get(key) == state:
            continue
        if sha256_of_file(path) != entry["sha256"]:
            changed.append(str(path))
        elif state[1:] == _state(path):
            found[key] = state
    if changed:
        raise ValueError(f"{', '.join(changed)} changed after conversion (another checksum): {remedy}")
    _checked.update(found)
    now = time.time_ns()
    settled = {key: state for key, state in found.items() if max(state[-2:]) < now - _YOUNG_NS}
    if settled:
        with contextlib.suppress(OSError):  # without a private directory, every process checks for itself
            write_json(temporary_root() / _RECORD, dict([*{**_recorded(), **settled}.items()][-_MOST:]))
    return bool(found)


def _state(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _recorded() -> dict[str, list[Any]]:
    try:
        record = read_json(temporary_root() / _RECORD)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
