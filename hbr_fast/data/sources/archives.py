"""Archives read in place like folders: nothing is extracted, so names in an archive never become paths."""

from __future__ import annotations

import os
import posixpath
import tarfile
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hbr_fast.arguments import near_names
from hbr_fast.data.sources.members import ArchiveTree, Members
from hbr_fast.data.sources.trees import SPECIAL, DirectoryTree, PassedOver, Tree, joined, plain_path, require_reasonable
from hbr_fast.data.sources.zips import open_zip
from hbr_fast.files import DISK_FULL, require_ordinary

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz")
_COPY_BYTES = 1 << 20


def open_tree(place: Path, passed: PassedOver, *, follow_links: bool = False) -> Tree:
    """The folder or archive at `place`.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ValueError
        If it is a file but not a zip or tar archive, or a damaged one.
    """
    if place.is_dir():
        return DirectoryTree(place, follow_links)
    if not place.exists():
        near = _near(place)
        hint = f"did you mean {near}?" if near else "give the folder or archive with the images"
        raise FileNotFoundError(f"{place} does not exist: {hint}")
    if place.is_file() and zipfile.is_zipfile(place):
        return open_zip(place, passed)
    if place.is_file() and (place.name.lower().endswith(_TAR_SUFFIXES) or tarfile.is_tarfile(place)):
        return _open_tar(place, passed)
    raise ValueError(f"{place} is neither a folder nor a zip or tar archive: give one of these")


def _near(place: Path) -> Path | None:
    if not place.parent.is_dir():
        return None
    names = near_names(place.name, [entry.name for entry in place.parent.iterdir()])
    return place.parent / names[0] if names else None


@dataclass(frozen=True, eq=False)
class TarTree(ArchiveTree):
    """A tar archive; if compressed, an unnamed decompressed copy, which the system removes."""

    file: IO[bytes]
    starts: array[int]  # by number of the file
    sizes: array[int]

    @property
    def name(self) -> str:
        lower = self.place.name.lower()
        return next((self.place.name[: -len(end)] for end in _TAR_SUFFIXES if lower.endswith(end)), self.place.stem)

    def part(self, number: int, count: int | None) -> bytes:
        size = self.sizes[number]
        if count is None:
            require_reasonable(size)
        return os.pread(self.file.fileno(), size if count is None else min(count, size), self.starts[number])


def _open_tar(place: Path, passed: PassedOver) -> TarTree:
    try:
        file = _uncompressed(place)
        tree = TarTree(place, Members(), file, array("q"), array("q"))
        links: list[tuple[str, str]] = []
        _index(tree, "", 0, os.fstat(file.fileno()).st_size, links, passed)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{place} is a damaged or truncated tar archive ({error}): fetch it again") from None
    tree.members.sort()
    target_of = dict(links)
    for path, target in links:
        at, found = tree.members.find(plain_path(target) or ""), {path}
        while at is None and (target := plain_path(target) or "") in target_of and target not in found:
            found.add(target)  # a link to a link
            target = target_of[target]
            at = tree.members.find(plain_path(target) or "")
        if at is None:
            passed.add("links/link to something that is not a file of the archive", path)
        else:
            _add(tree, path, tree.starts[at], tree.sizes[at])
    if links:
        tree.members.sort()
    return tree


def _index(tree: TarTree, above: str, start: int, end: int, links: list[tuple[str, str]], passed: PassedOver) -> None:
    """Add the members of the archive at [start, end) of the file; archives in the whole one become folders."""
    tree.file.seek(start)
    inner: list[tuple[str, int, int]] = []
    with tarfile.open(fileobj=tree.file, mode="r:") as archive:
        for member in _each(archive):
            if member.offset_data + member.size > end:  # else what follows it would go on in this folder
                raise tarfile.ReadError(f"{joined(above, member.name)} is longer than its archive")
            path = plain_path(member.name)
            if path is None:
                if not member.isdir():
                    passed.add("members/member whose names/name lead/leads out of the archive", member.name)
                continue
            path = joined(above, path)
            if member.isreg() and not above and path.lower().endswith(".tar"):
                inner.append((path[: -len(".tar")], member.offset_data, member.offset_data + member.size))
            elif member.isreg():
                _add(tree, path, member.offset_data, member.size)
            elif member.islnk() or member.issym():
                base = posixpath.dirname(path) if member.issym() else above
                links.append((path, posixpath.join(base, member.linkname)))
            elif not member.isdir():
                passed.add(SPECIAL, path)
    for folder, begin, until in inner:
        _index(tree, folder, begin, until, links, passed)


def _each(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members one by one, emptying the list that tarfile keeps of them."""
    while (member := archive.next()) is not None:
        yield member
        archive.members = []  # type: ignore[attr-defined]


def _add(tree: TarTree, path: str, start: int, size: int) -> None:
    tree.members.add(path)
    tree.starts.append(start)
    tree.sizes.append(size)


def _uncompressed(place: Path) -> IO[bytes]:
    import bz2
    import gzip
    import lzma

    openers: dict[bytes, Callable[[IO[bytes]], Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    require_ordinary(place)
    file: IO[bytes] = open(place, "rb")  # noqa: SIM115
    opener = openers.get(file.read(2))
    file.seek(0)
    if opener is None:
        return file
    # Reaching a picture in a compressed stream means reading everything before it, and samples are not read
    # in the archive's order.
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with file, opener(file) as stream:
            while block := stream.read(_COPY_BYTES):
                copy.write(block)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        copy.close()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise OSError(
                f"no space left in {tempfile.gettempdir()} to unpack {place}: free some, set TMPDIR to another "
                "place, or unpack it yourself"
            ) from None
        raise ValueError(f"{place} is a damaged or truncated archive ({error}): fetch it again") from None
    copy.flush()
    copy.seek(0)
    return copy
