"""Shards of encoded pictures: uncompressed tar files of WebDataset's convention, and an index of every picture.

Sample 17 is the members `000000017.jpg` (or `.png`) and `000000017.cls`, its label as text. Tar headers hold no times
and no owners, so that the same pictures give the same bytes.
"""

from __future__ import annotations

import hashlib
import struct
import tarfile
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from hbr_fast.data.images import release_pages
from hbr_fast.files import require_ordinary

SHARD_BYTES = 512 * 2**20
WRITE_BYTES = 2**20  # written at a time
RELEASE_BYTES = 256 * 2**20  # bytes read before their pages are released
STORE = "encoded"  # what a split's entry in `meta.json` says of its store
INDEX_PART, SHARD_PART = "index", "shard"  # its files: the index, and shard00000, shard00001, ...
BLOCK = 512  # of tar
DIGITS = 9

# One record of the index for each picture: where its bytes are, their CRC-32, and its size when upright. The EXIF
# orientation (1 to 8) says how the stored pixels are turned to be upright.
INDEX = np.dtype(
    [
        ("offset", "<i8"),
        ("length", "<i4"),
        ("shard", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("crc", "<u4"),
        ("orientation", "<i4"),
    ]
)
_RECORD = struct.Struct("<qiiiiIi")  # the same, for `INDEX` is slow to fill one by one


@dataclass(frozen=True)
class EncodedPicture:
    """One picture as it is stored.

    Attributes
    ----------
    content : bytes
    suffix : str
        "jpg" or "png": of what `content` is.
    height, width : int
        When upright.
    orientation : int
        EXIF orientation of the stored pixels.
    """

    content: bytes
    suffix: str
    height: int
    width: int
    orientation: int = 1


class Outcome(NamedTuple):
    """What reading one file of a source gave.

    Attributes
    ----------
    checksum : str
        SHA-256 of the file.
    picture : EncodedPicture or None
        None if it is unusable, or if it is in a shard that was finished before.
    fault : str or None
        Why it is unusable, as the end of a sentence.
    warning : str or None
        If it is usable but not whole.
    is_transparent : bool
    """

    checksum: str
    picture: EncodedPicture | None = None
    fault: str | None = None
    warning: str | None = None
    is_transparent: bool = False


@dataclass(frozen=True)
class FinishedShard:
    """A shard as written: its file, the entry for `meta.json`, its part of the index, and what was read for it."""

    name: str
    entry: dict[str, Any]
    index: np.ndarray
    outcomes: list[Outcome]


def write_shards(
    directory: Path,
    split: str,
    outcomes: Iterable[Outcome],
    labels_n: np.ndarray,
    *,
    finished: Sequence[FinishedShard] = (),
) -> Iterator[FinishedShard]:
    """Write the usable pictures of a split as `SPLIT.00000.tar`, `SPLIT.00001.tar`, ..., each with its label.

    A shard ends before the picture that would make it larger than `SHARD_BYTES`, so that where one ends depends on
    nothing but the pictures.

    Parameters
    ----------
    directory : Path
    split : str
    outcomes : iterable of Outcome
        Of all files in order, from the first that `finished` does not have.
    labels_n : int64 [N]
        Of all files.
    finished : sequence of FinishedShard
        The first shards, if they are written already.

    Yields
    ------
    FinishedShard
        Each when its file is whole.
    """
    number, sample = len(finished), sum(len(one.index) for one in finished)
    begin = sum(len(one.outcomes) for one in finished)
    shard: _Shard | None = None
    index, read = bytearray(), list[Outcome]()
    for row, outcome in enumerate(outcomes, start=begin):
        picture = outcome.picture
        if picture is not None:
            if shard is not None and shard.size + len(picture.content) + 4 * BLOCK > SHARD_BYTES:
                yield FinishedShard(shard.path.name, shard.close(), np.frombuffer(index, INDEX), read)
                shard, number, index, read = None, number + 1, bytearray(), []
            if shard is None:
                shard = _Shard(directory / shard_name(split, number))
            name = f"{sample:0{DIGITS}}"
            offset = shard.add(f"{name}.{picture.suffix}", picture.content)
            shard.add(f"{name}.cls", str(labels_n[row]).encode())
            index += _RECORD.pack(
                offset, len(picture.content), number, picture.height, picture.width, zlib.crc32(picture.content),
                picture.orientation,
            )  # fmt: skip
            sample += 1
        read.append(outcome._replace(picture=None))
    if shard is not None:
        yield FinishedShard(shard.path.name, shard.close(), np.frombuffer(index, INDEX), read)


def shard_name(split: str, number: int) -> str:
    """The name of a shard's file."""
    return f"{split}.{number:05}.tar"


class _Shard:
    """A tar file that is being written, and hashed in another thread at the same time."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._digest = hashlib.sha256()
        self._parts: list[bytes] = []
        self._waiting = 0  # bytes of `_parts`
        self._hashing: threading.Thread | None = None

    def add(self, name: str, content: bytes) -> int:
        """Add a member; returns the offset of its content."""
        offset = self.size + BLOCK
        self._parts += (_tar_header(name, len(content)), content, bytes(-len(content) % BLOCK))
        added = BLOCK + len(content) + -len(content) % BLOCK
        self.size, self._waiting = self.size + added, self._waiting + added
        if self._waiting >= WRITE_BYTES:
            self._write()
        return offset

    def close(self) -> dict[str, Any]:
        """End the file; returns its entry for `meta.json`."""
        end = 2 * BLOCK
        end += -(self.size + end) % tarfile.RECORDSIZE
        self._parts.append(bytes(end))
        self.size += end
        self._write()
        self._wait()
        self._file.close()
        return {"sha256": self._digest.hexdigest(), "bytes": self.size}

    def _write(self) -> None:
        """Write and hash what was added since."""
        content = b"".join(self._parts)
        self._parts, self._waiting = [], 0
        self._wait()
        self._hashing = threading.Thread(target=self._digest.update, args=(content,))
        self._hashing.start()
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]

    def _wait(self) -> None:
        if self._hashing is not None:
            self._hashing.join()


def _plain_header() -> bytes:
    info = tarfile.TarInfo("")
    return info.tobuf(tarfile.USTAR_FORMAT)


_PLAIN = _plain_header()
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)
_PLAIN_SUM = sum(_PLAIN) - sum(_PLAIN[_SIZE]) - sum(_PLAIN[_CHECKSUM]) + sum(b" " * 8)


def _tar_header(name: str, size: int) -> bytes:
    """What `tarfile` writes for a file of mode 0644 without owner and time, a few times faster."""
    header, encoded, digits = bytearray(_PLAIN), name.encode(), b"%011o\0" % size
    header[: len(encoded)] = encoded
    header[_SIZE] = digits
    header[_CHECKSUM] = b"%06o\0 " % (_PLAIN_SUM + sum(encoded) + sum(digits))
    return bytes(header)


class Located(NamedTuple):
    """Where the bytes of pictures are in memory.

    Attributes
    ----------
    data, length : int64 [B]
        Address and number of bytes; 0 bytes if a picture lies outside of its shard.
    held : list
        Keeps the memory.
    """

    data: np.ndarray
    length: np.ndarray
    held: list[np.ndarray]


class ShardFiles(Sequence[np.ndarray]):
    """The bytes of shards, uint8 [size] each, memory-mapped when first used."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._mapped: list[np.ndarray | None] = [None] * len(self.paths)
        self._lock = threading.Lock()
        self._read = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: by their paths."""
        return ShardFiles, (self.paths,)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, shard: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, shard: slice) -> list[np.ndarray]: ...
    def __getitem__(self, shard: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(shard, slice):
            return [self[number] for number in range(*shard.indices(len(self)))]
        with self._lock:
            mapped = self._mapped[shard]
            if mapped is None:
                require_ordinary(self.paths[shard])
                mapped = self._mapped[shard] = np.memmap(self.paths[shard], np.uint8, mode="r")
        return mapped

    def located(self, rows_b: np.ndarray, entries: np.ndarray) -> Located:
        """Where pictures are in memory: of these rows, and their `entries` in the index [B]."""
        data, length, held = np.zeros(len(entries), np.int64), np.zeros(len(entries), np.int64), []
        shards = np.clip(entries["shard"], 0, len(self) - 1)
        for shard in np.unique(shards).tolist():
            mapped, own = self[shard], shards == shard
            held.append(mapped)
            data[own] = mapped.ctypes.data + entries["offset"][own]
            fits = (entries["offset"][own] >= 0) & (entries["length"][own] > 0)
            fits &= entries["offset"][own] + entries["length"][own] <= len(mapped)
            length[own] = np.where(fits & (entries["shard"][own] == shard), entries["length"][own], 0)
        return Located(data, length, held)

    def expect(self, rows: np.ndarray, *, first: bool) -> None:
        """Be told which pictures are needed next, in this sequence; `first` if an epoch begins."""

    def forget(self, row: int) -> bool:
        """Forget a copy of a picture that turned out to be damaged; False if there is only the picture itself."""
        return False

    def count_read(self, size: int) -> None:
        """Count bytes that were read; now and then, release their pages, so that an epoch's memory does not grow."""
        with self._lock:
            self._read += size
            if self._read < RELEASE_BYTES:
                return
            self._read = 0
        self.release_memory()

    def release_memory(self) -> None:
        """Release the pages that were read; reading them again brings them back."""
        for mapped in self._mapped:
            if mapped is not None:
                release_pages(mapped)
