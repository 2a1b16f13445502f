"""Zip archives read in place. `zipfile` keeps over 500 bytes of each member; here 8 and the name are kept."""

from __future__ import annotations

import bz2
import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hbr_fast.data.sources.members import ArchiveTree, Members
from hbr_fast.data.sources.trees import PassedOver, plain_path, require_reasonable
from hbr_fast.files import require_ordinary

_END, _END_BYTES, _MOST_COMMENT = b"PK\5\6", 22, 1 << 16
_LOCATOR, _LOCATOR_BYTES = b"PK\6\7", 20
_END64, _END64_BYTES = b"PK\6\6", 56
_CENTRAL, _CENTRAL_BYTES = b"PK\1\2", 46
_LOCAL, _LOCAL_BYTES = b"PK\3\4", 30
_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
_ENCRYPTED, _UTF8 = 0x1, 0x800
_MOST_UNPACKED, _MOST_EXPANSION = 64 << 20, 100  # of a member, in bytes and in bytes a packed one
_IN_EXTRA = 0xFFFFFFFF  # the value is in the extra field of large archives


class DamagedZip(Exception):
    """What is wrong with an archive or a member."""


@dataclass(frozen=True)
class _Member:
    """A member as the directory at the end of the archive describes it."""

    name: str
    flags: int
    method: int
    crc: int
    packed_size: int
    size: int
    header_at: int
    length: int  # of the description


@dataclass(frozen=True, eq=False)
class ZipTree(ArchiveTree):
    """A zip archive."""

    file: IO[bytes]
    described_at: array[int]  # by number of the file
    shift: int  # bytes before the archive's own beginning

    @property
    def name(self) -> str:
        return self.place.stem

    def part(self, number: int, count: int | None) -> bytes:
        try:
            return self._content(_member(self.file, self.described_at[number]), count)
        except (DamagedZip, zlib.error, OSError) as error:
            raise OSError(f"the archive is damaged or encrypted there: {error}") from None

    def _content(self, member: _Member, count: int | None) -> bytes:
        if count is None:
            require_reasonable(member.size)
        if member.flags & _ENCRYPTED:
            raise DamagedZip("it is encrypted")
        if member.method != _STORED and member.size > max(_MOST_UNPACKED, _MOST_EXPANSION * member.packed_size):
            raise DamagedZip(f"{member.packed_size:,} bytes would unpack to {member.size:,}: store it unpacked")
        descriptor, start = self.file.fileno(), member.header_at + self.shift
        header = os.pread(descriptor, _LOCAL_BYTES, start)
        if len(header) < _LOCAL_BYTES or not header.startswith(_LOCAL):
            raise DamagedZip("there is no file where its directory says")
        start += _LOCAL_BYTES + sum(struct.unpack_from("<HH", header, 26))
        packed = os.pread(descriptor, member.packed_size, start)
        wanted = member.size if count is None else min(count, member.size)
        if member.method == _STORED:
            content = packed[:wanted]
        elif member.method == _DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, wanted) if wanted else b""
        elif member.method == _BZIP2:
            content = bz2.BZ2Decompressor().decompress(packed, wanted) if wanted else b""
        else:
            raise DamagedZip(f"it is packed by method {member.method}, which is not read: pack it again by deflate")
        if len(content) < wanted:
            raise DamagedZip(f"{len(content):,} of {wanted:,} bytes")
        if count is None and zlib.crc32(content) != member.crc:
            raise DamagedZip("its checksum differs")
        return content


def open_zip(place: Path, passed: PassedOver) -> ZipTree:
    """The archive at `place`; members whose names lead out of it are counted in `passed`.

    Raises
    ------
    ValueError
        If its directory is damaged.
    """
    members, described_at = Members(), array("q")
    require_ordinary(place)
    file = open(place, "rb")  # noqa: SIM115
    try:
        at, end, shift, count = _directory(file)
        for _ in range(count):
            member = _member(file, at)
            path = plain_path(member.name)
            if path is None:
                passed.add("members/member whose names/name lead/leads out of the archive", member.name)
            elif not member.name.endswith("/"):
                members.add(path)
                described_at.append(at)
            at += member.length
        if at > end:
            raise DamagedZip("its directory runs past its end")
    except (DamagedZip, struct.error, OSError) as error:
        file.close()
        raise ValueError(f"{place} is a damaged zip archive ({error}): fetch it again") from None
    members.sort()
    return ZipTree(place, members, file, described_at, shift)


def _directory(file: IO[bytes]) -> tuple[int, int, int, int]:
    """Where the directory begins and ends, the bytes before the archive proper, and the number of members."""
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - _END_BYTES - _MOST_COMMENT)
    tail = os.pread(file.fileno(), size - start, start)
    at = tail.rfind(_END)
    while at >= 0 and at + _END_BYTES + int.from_bytes(tail[at + 20 : at + 22], "little") != len(tail):
        at = tail.rfind(_END, 0, at)  # that was inside the archive's comment, or bytes of a cut-off archive
    if at < 0:
        raise DamagedZip("it has no directory")
    count, length, offset = struct.unpack_from("<HLL", tail, at + 10)
    end = start + at
    locator = os.pread(file.fileno(), _LOCATOR_BYTES, end - _LOCATOR_BYTES) if end >= _LOCATOR_BYTES else b""
    if locator.startswith(_LOCATOR):
        large_at = end - _LOCATOR_BYTES - _END64_BYTES
        large = os.pread(file.fileno(), _END64_BYTES, max(0, large_at))
        if not large.startswith(_END64):
            raise DamagedZip("its directory cannot be found")
        count, length, offset = struct.unpack_from("<QQQ", large, 32)
        end = large_at
    begin = end - length
    if begin < 0 or begin < offset or count * _CENTRAL_BYTES > length:
        raise DamagedZip("its directory does not fit into it")
    return begin, end, begin - offset, count


def _member(file: IO[bytes], at: int) -> _Member:
    fixed = os.pread(file.fileno(), _CENTRAL_BYTES, at)
    if len(fixed) < _CENTRAL_BYTES or not fixed.startswith(_CENTRAL):
        raise DamagedZip("its directory is damaged")
    flags, method = struct.unpack_from("<HH", fixed, 8)
    crc, packed_size, size = struct.unpack_from("<LLL", fixed, 16)
    lengths = struct.unpack_from("<HHH", fixed, 28)
    (header_at,) = struct.unpack_from("<L", fixed, 42)
    rest = os.pread(file.fileno(), lengths[0] + lengths[1], at + _CENTRAL_BYTES)
    name = rest[: lengths[0]].decode("utf-8" if flags & _UTF8 else "cp437", "surrogateescape").partition("\0")[0]
    large = [size, packed_size, header_at]
    if _IN_EXTRA in large:
        values = iter(_large_values(rest[lengths[0] :]))
        large = [next(values, _IN_EXTRA) if value == _IN_EXTRA else value for value in large]
    size, packed_size, header_at = large
    return _Member(name, flags, method, crc, packed_size, size, header_at, _CENTRAL_BYTES + sum(lengths))


def _large_values(extra: bytes) -> Iterator[int]:
    """The 64-bit numbers of the extra field 1."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + length]
            for place in range(0, len(body) - 7, 8):
                yield struct.unpack_from("<Q", body, place)[0]
            return
        at += 4 + length
