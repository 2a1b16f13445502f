"""Shards of a conversion that was killed, kept beside its output: the next one of the same pictures goes on there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from hbr_fast import progress
from hbr_fast.data.npy import read_npy
from hbr_fast.data.shards import INDEX, FinishedShard, Outcome, shard_name
from hbr_fast.files import LOCK_NAME, content_hash, locked, make_directory, read_json, remove_partials, write_json
from hbr_fast.json_schema import Natural, read_sealed_json, require_schema, write_sealed_json

_IDENTITY = "identity.json"
_REMEDY = "remove its directory"
_KEPT = re.compile(r".+\.\d{5,}\.(tar|npy|json)")  # of a shard, by `shard_name`


class _Entry(TypedDict):
    sha256: str
    bytes: Natural


class _Finished(TypedDict):
    """What is kept of a shard, beside its index."""

    entry: _Entry
    index: str
    outcomes: list[list[Any]]


class Unfinished:
    """A locked directory of finished shards; another conversion's are removed.

    Parameters
    ----------
    directory : Path
    identity : mapping
        JSON values that determine the shards: files with their states, labels, options.

    Raises
    ------
    FileExistsError
        If the directory holds what no conversion writes there.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self.directory = directory
        remove_partials(directory)
        names = {entry.name for entry in directory.iterdir()} - {LOCK_NAME, _IDENTITY}
        if foreign := sorted(name for name in names if not _KEPT.fullmatch(name)):
            raise FileExistsError(
                f"{directory} is where conversion keeps unfinished shards, and holds {foreign[0]!r}, which it did not "
                "write: move it away"
            )
        mine = content_hash(dict(identity))
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            if read_json(directory / _IDENTITY)["identity"] == mine:
                return
        for name in names:
            (directory / name).unlink()
        write_json(directory / _IDENTITY, {"identity": mine})

    def finished(self, split: str) -> list[FinishedShard]:
        """The shards of a split that are whole, up to the first that is not."""
        found: list[FinishedShard] = []
        while (one := self._read(shard_name(split, len(found)))) is not None:
            found.append(one)
        return found

    def keep(self, shard: FinishedShard) -> None:
        """Record a shard whose file lies in `directory`; from then on it is finished."""
        path = self.directory / shard.name
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        np.save(path.with_suffix(".npy"), shard.index, allow_pickle=False)
        outcomes = [[one.checksum, one.fault, one.warning, one.is_transparent] for one in shard.outcomes]
        kept = {"entry": shard.entry, "index": _hash(shard.index), "outcomes": outcomes}
        write_sealed_json(path.with_suffix(".json"), kept)

    def _read(self, name: str) -> FinishedShard | None:
        path = self.directory / name
        try:
            kept = read_sealed_json(path.with_suffix(".json"), remedy=_REMEDY)
            require_schema(kept, _Finished, where=str(path), remedy=_REMEDY)
            index = read_npy(path.with_suffix(".npy"), dtype=INDEX)
            # A damaged shard is found later by its checksum, but a damaged index would be vouched for as converted.
            if path.stat().st_size != kept["entry"]["bytes"] or _hash(index) != kept["index"]:
                return None
        except (FileNotFoundError, ValueError):
            return None
        outcomes = [
            Outcome(checksum, fault=fault, warning=warning, is_transparent=clear)
            for checksum, fault, warning, clear in kept["outcomes"]
        ]
        return FinishedShard(name, kept["entry"], index, outcomes)


def _hash(index: np.ndarray) -> str:
    return hashlib.sha256(index.tobytes()).hexdigest()


@contextlib.contextmanager
def unfinished_shards(out: Path, identity: Mapping[str, Any]) -> Iterator[Unfinished]:
    """The unfinished shards of a conversion to `out`: removed when the block ends, but not if it is interrupted.

    Raises
    ------
    BlockingIOError
        If another process converts to `out`.
    FileExistsError
        If the place of the shards is taken by a link or by other files.
    """
    directory = out.parent / f".{out.name}.shards"
    if directory.is_symlink():
        raise FileExistsError(f"{directory} is a link, and conversion keeps unfinished shards there: remove it")
    make_directory(directory)
    with locked(directory):
        kept = Unfinished(directory, identity)
        count = sum(len(kept.finished(split)) for split in identity["splits"])
        if count:
            progress.say(f"{out}: goes on after {count} shards of an interrupted conversion")
        try:
            yield kept
        except Exception:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        shutil.rmtree(directory, ignore_errors=True)
