"""The shards of a dataset at a URL: pictures are fetched ahead in the sequence that a loader will need them in."""

from __future__ import annotations

import os
import threading
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast.data.remote import Unreadable, attempt, cache_size, filesystem, naming
from hbr_fast.data.shards import INDEX, Located, ShardFiles
from hbr_fast.files import DISK_FULL
from hbr_fast.locks import held

AHEAD_BYTES = 128 * 2**20  # fetched and not used yet, in memory
TOGETHER = 32  # pictures fetched by one task
TASKS = 4
_GAP, _RANGE = 2**16, 2**23  # bytes between pictures that are read in one piece, and of such a piece
_READS = 2  # of a picture without its checksum
_KEPT = "kept"  # ending of the files that say which pictures are on the disk


class RemoteShards(ShardFiles):
    """Sparse local shards, filled from a URL with the pictures that were needed; see `hbr_fast.data.remote`.

    Parameters
    ----------
    paths : sequence of Path
        The local shards.
    url : str
        Of the dataset; shards have the same names there.
    index : INDEX [N]
        Of the split, mapped from a file beside the shards.
    """

    def __init__(self, paths: Sequence[Path], url: str, index: np.ndarray) -> None:
        super().__init__(paths)
        self.url, self._index = url, index
        directory, split = self.paths[0].parent, self.paths[0].name.split(".")[0]
        self._kept_path, self._room = directory / f"{split}.{_KEPT}", _Room(directory)
        self._kept = _mapped_zeros(self._kept_path, np.dtype(np.uint8), len(index))
        self._start()

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: by their paths."""
        index: Any = self._index
        if isinstance(index, np.memmap) and index.filename is not None:
            index = (str(index.filename), len(index), index.offset)
        return _reopened, (self.paths, self.url, index)

    def _start(self) -> None:
        """In this process; of another one, only the lock and threads are lost by a fork."""
        self._process = os.getpid()
        self._guard = threading.Condition()
        self._pool: ThreadPoolExecutor | None = None
        self._expected: deque[int] = deque()
        self._fetching: dict[int, Future[dict[int, bytes]]] = {}
        self._uses: Counter[int] = Counter()  # of those fetched ahead, how often they are expected
        self._ahead = 0  # bytes

    def expect(self, rows: np.ndarray, *, first: bool) -> None:
        """Fetch pictures ahead in this sequence; `first` forgets what was expected before."""
        self._require_this_process()
        with self._guard:
            if first:
                self._expected.clear()
                self._fetching.clear()
                self._uses.clear()
                self._ahead = 0
            self._expected.extend(rows.tolist())
        self._fetch_ahead()

    def located(self, rows_b: np.ndarray, entries: np.ndarray) -> Located:
        """See `ShardFiles.located`; fetches what is missing."""
        self._require_this_process()
        found = super().located(rows_b, entries)
        missing = np.flatnonzero((found.length > 0) & (self._kept[rows_b] == 0))
        if not len(missing):
            return found
        contents = self._contents(rows_b[missing].tolist())
        held = []
        for b in missing.tolist():
            content = np.frombuffer(contents[int(rows_b[b])], np.uint8)
            held.append(content)
            found.data[b] = content.ctypes.data
        self._fetch_ahead()
        return found._replace(held=held)

    def forget(self, row: int) -> bool:
        """See `ShardFiles.forget`: of pictures on the local disk."""
        was_kept = bool(self._kept[row])
        self._kept[row] = 0
        return was_kept

    def _contents(self, rows: list[int]) -> dict[int, bytes]:
        """The bytes of pictures: fetched ahead, or now."""
        contents: dict[int, bytes] = {}
        with self._guard:
            waiting = {row: self._fetching[row] for row in rows if row in self._fetching}
        for row, future in waiting.items():
            try:
                contents[row] = future.result()[row]
            except Exception:
                with self._guard:  # whoever tries again fetches again
                    for other in [one for one, its in self._fetching.items() if its is future]:
                        del self._fetching[other], self._uses[other]
                        self._ahead -= int(self._index["length"][other])
                raise
        with self._guard:
            for row in rows:
                if row in waiting and self._fetching.get(row) is waiting[row]:
                    self._uses[row] -= 1
                    if self._uses[row] <= 0:
                        del self._fetching[row], self._uses[row]
                        self._ahead -= len(contents[row])
        left = sorted(set(rows) - set(contents))
        return {**contents, **self._fetched(left)} if left else contents

    def _fetch_ahead(self) -> None:
        """Start fetching what is expected next, as much as may be held."""
        with self._guard:
            while self._expected and self._ahead < AHEAD_BYTES:
                rows: list[int] = []
                while self._expected and len(rows) < TOGETHER and self._ahead < AHEAD_BYTES:
                    row = self._expected.popleft()
                    if self._kept[row]:
                        continue
                    self._uses[row] += 1
                    if row not in self._fetching and row not in rows:
                        rows.append(row)
                        self._ahead += int(self._index["length"][row])
                if rows:
                    if self._pool is None:
                        self._pool = ThreadPoolExecutor(TASKS, thread_name_prefix="hbr-fetch")
                    future = self._pool.submit(self._fetched, rows)
                    self._fetching.update(dict.fromkeys(rows, future))

    def _fetched(self, rows: list[int]) -> dict[int, bytes]:
        """Fetch pictures and keep them on the disk if there is room.

        One that does not have its checksum is fetched again, and in the end given as it is: it is damaged there, and is
        found when it is decoded.
        """
        contents: dict[int, bytes] = {}
        wrong = rows
        for _ in range(_READS):
            contents.update(attempt(self.url, partial(self._read_there, wrong)))
            wrong = [row for row in wrong if zlib.crc32(contents[row]) != int(self._index["crc"][row])]
            if not wrong:
                break
        self._keep({row: content for row, content in contents.items() if row not in wrong})
        return contents

    def _read_there(self, rows: list[int]) -> dict[int, bytes]:
        """Pictures as they are at the URL; neighbours are read in one piece."""
        entries = self._index[rows]
        order = np.lexsort((entries["offset"], entries["shard"])).tolist()
        pieces: list[list[int]] = []
        for place in order:
            if not pieces or not self._joins(pieces[-1], entries, place):
                pieces.append([])
            pieces[-1].append(place)
        starts = [int(entries["offset"][piece[0]]) for piece in pieces]
        ends = [int(entries["offset"][piece[-1]]) + int(entries["length"][piece[-1]]) for piece in pieces]
        paths = [f"{self.url}/{self.paths[int(entries['shard'][piece[0]])].name}" for piece in pieces]
        contents = {}
        read = filesystem(self.url).cat_ranges(paths, starts, ends, on_error="return")
        for path, piece, start, end, content in zip(paths, pieces, starts, ends, read, strict=True):
            if isinstance(content, BaseException):
                with naming(path):
                    raise content
            if len(content) > end - start:
                raise Unreadable(
                    f"{path}: the server sends whole files where a part is asked for: use one that knows ranges, or "
                    "copy the dataset to the disk"
                )
            if len(content) != end - start:
                raise OSError(f"{path}: {len(content):,} bytes came instead of {end - start:,}, which were asked for")
            for place in piece:
                begin = int(entries["offset"][place]) - start
                contents[rows[place]] = content[begin : begin + int(entries["length"][place])]
        return contents

    @staticmethod
    def _joins(piece: list[int], entries: np.ndarray, place: int) -> bool:
        first, last, new = entries[piece[0]], entries[piece[-1]], entries[place]
        near = new["offset"] - last["offset"] - last["length"] <= _GAP
        return bool(new["shard"] == last["shard"] and near and new["offset"] - first["offset"] < _RANGE)

    def _keep(self, contents: dict[int, bytes]) -> None:
        for row, content in contents.items():
            if self._kept[row]:
                continue
            if not self._room.take(len(content)):
                return
            entry = self._index[row]
            descriptor = os.open(self.paths[int(entry["shard"])], os.O_WRONLY)
            try:
                os.pwrite(descriptor, content, int(entry["offset"]))
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                return
            finally:
                os.close(descriptor)
            self._kept[row] = 1  # last: whoever sees it finds the picture

    def _require_this_process(self) -> None:
        if self._process != os.getpid():
            self._start()


class _Room:
    """How many bytes the pictures of a dataset take on the disk, counted by all processes."""

    def __init__(self, directory: Path) -> None:
        self._lock = directory / "room.lock"
        self._used = _mapped_zeros(directory / "room", np.dtype(np.int64), 1)

    def take(self, size: int) -> bool:
        """Whether there is room for so many bytes, which then is less."""
        with held(self._lock):
            if self._used[0] + size > cache_size():
                return False
            self._used[0] += size
            return True


def _mapped_zeros(path: Path, dtype: np.dtype[Any], count: int) -> np.ndarray:
    """A file that processes share, of zeros when it is new."""
    with open(path, "ab") as file:
        if file.tell() < count * dtype.itemsize:
            file.truncate(count * dtype.itemsize)
    return np.memmap(path, dtype, mode="r+", shape=(count,))


def _reopened(paths: Sequence[Path], url: str, index: Any) -> RemoteShards:
    if isinstance(index, tuple):
        name, count, offset = index
        index = np.memmap(name, INDEX, mode="r", offset=offset, shape=(count,))
    return RemoteShards(paths, url, index)
