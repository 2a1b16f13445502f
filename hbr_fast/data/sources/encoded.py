"""Encoded pictures as a source: every file is read once, and hashed, decoded and checked from that one read."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast.data.images import rows_per_block
from hbr_fast.data.shards import Outcome
from hbr_fast.data.sources import pictures
from hbr_fast.data.sources.headers import Mode, channels_and_size, header_sizes, sizes_differ
from hbr_fast.data.sources.layouts import Listing
from hbr_fast.data.sources.pictures import Decoded, Decoding, Unusable
from hbr_fast.data.sources.read_ahead import read_ahead
from hbr_fast.data.sources.source import EncodedSplit, Findings, Source, SourceSplit
from hbr_fast.data.sources.stored import Stored, Storing, read_and_store
from hbr_fast.data.sources.trees import DirectoryTree, PassedOver, Tree
from hbr_fast.files import canonical_json

SKIPPED = "skipped.csv"
_UNUSABLE_NAMED, _WARNINGS_NAMED = 100, 10
_LEAST_ROWS, _MOST_ROWS = 64, 512  # pictures handed to the threads at a time
_ENCODED_ROWS = 32  # the same where they are stored encoded: each may be many megabytes

# Reads a file, by tree and path: its SHA-256, and what it became (pixels in `out`, if given) or what is wrong with it.
Work = Callable[..., tuple[str, "Decoded | Stored | str"]]


def picture_source(
    name: str,
    classes: tuple[str, ...],
    listings: Mapping[str, Listing],
    *,
    mode: Mode = "auto",
    how: Decoding,
    skip_bad: bool = False,
    passed: PassedOver,
    notes: Sequence[str] = (),
    options: Mapping[str, Any],
    kind: str = "folder",
    no_test: Exception | None = None,
    storing: Storing | None = None,
) -> Source:
    """The source of listed files.

    Parameters
    ----------
    name : str
    classes : tuple of str
    listings : mapping of str to Listing
    mode : {"auto", "rgb", "gray"}
        "auto": RGB, unless every picture is gray.
    how : Decoding
        Without a size all pictures must already have the same one.
    skip_bad : bool
        Whether unusable files are left out, and listed in `skipped.csv`, or an error.
    passed : PassedOver
        Files that the listings left out.
    notes : sequence of str
        Further lines for the user.
    options : mapping
        Further entries of the dataset's description.
    kind : str
        Name of the source in that description.
    no_test : Exception, optional
        See `Source`.
    storing : Storing, optional
        Store encoded pictures, of any sizes; without it, pixels.

    Raises
    ------
    ValueError
        While the blocks are read: naming all unusable files and what is wrong with each, or sizes that differ.
    """
    channels, size = channels_and_size(listings, mode, how if storing is None else replace(how, size=(1, 1)))
    work: Work
    if storing is None:
        work = partial(_read_and_decode, channels=channels, how=how)
    else:
        work = partial(read_and_store, channels=channels, how=storing)
    files = _Files(classes, {}, channels, None if storing else size, how, skip_bad, {}, work, repr(storing))
    splits: dict[str, Any] = {split: files.split(split, listing) for split, listing in listings.items()}

    def findings() -> Findings:
        checksums = {split: {"count": read.count, "sha256": read.checksum()} for split, read in files.reads.items()}
        made = {"size": list(size)} if storing is None else {"store": "encoded"}
        made |= {"mode": "gray" if channels == 1 else "rgb", **options}
        return Findings(
            origin={"kind": kind, "files": checksums, "options": made},
            left_out={
                split: np.array([row for row, _ in read.unusable], dtype=np.int64)
                for split, read in files.reads.items()
            },
            files=files.skipped(),
            notes=[*notes, *passed.notes(), *files.notes()],
        )

    def also_missing() -> str | None:
        sizes = header_sizes(listings) if storing is None and how.size is None else []
        return sizes_differ(sizes) if len(sizes) > 1 else None

    return Source(name, classes, splits, findings=findings, no_test=no_test, also_missing=also_missing)


@dataclass
class _Read:
    """The outcome for each file of one split, filled while its blocks are read."""

    listed: Any = field(default_factory=lambda: hashlib.sha256(b"["))
    count: int = 0
    unusable: list[tuple[int, str]] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)
    transparent: int = 0

    def add(self, path: str, checksum: str) -> None:
        self.listed.update(b"," * (self.count > 0) + canonical_json([path, checksum]).encode())
        self.count += 1

    def checksum(self) -> str:
        """`files.content_hash` of the list of paths and checksums, which is never held in memory as a whole."""
        whole = self.listed.copy()
        whole.update(b"]")
        return str(whole.hexdigest())


@dataclass(eq=False)
class _Files:
    """The files of all splits as they are read."""

    classes: tuple[str, ...]
    listings: dict[str, Listing]
    channels: int
    size: tuple[int, int] | None  # None: any
    how: Decoding
    skip_bad: bool
    reads: dict[str, _Read]
    work: Work
    stored_as: str = ""  # options of encoded pictures

    def split(self, name: str, listing: Listing) -> SourceSplit | EncodedSplit:
        """Add a split, or replace the one of that name."""
        self.listings[name], self.reads[name] = listing, _Read()
        common: dict[str, Any] = {
            "labels_n": listing.labels_n,
            "origins": listing.paths,
            "subset": lambda new, rows_n: self.split(new, listing.subset(rows_n)),
        }
        if self.size is None:
            common |= {"outcomes": partial(self.outcomes, name), "identity": partial(self.identity, name)}
            return EncodedSplit(self.channels, **common)
        return SourceSplit((self.channels, *self.size), blocks=partial(self.blocks, name), **common)

    def blocks(self, split: str) -> Iterator[np.ndarray]:
        """Planar blocks of the usable pictures; without `skip_bad`, none after the first that is not."""
        assert self.size is not None
        self.reads[split] = _Read()
        shape = (self.channels, *self.size)
        fitting = rows_per_block(shape)
        rows = min(max(fitting, _LEAST_ROWS), _MOST_ROWS)
        halves = np.empty((2, rows, *shape), np.uint8)  # one is in use while the threads fill the other
        with pictures.own_pixel_limit():
            for number, found in enumerate(self._decoded(split, rows, out=halves.reshape(-1, *shape))):
                usable = [row for row, (_, one) in enumerate(found) if isinstance(one, Decoded)]
                chunk = halves[number % 2][: len(found)]
                chunk = chunk if len(usable) == len(found) else chunk[usable]
                if self.skip_bad or not self.reads[split].unusable:
                    for start in range(0, len(chunk), fitting):
                        yield chunk[start : start + fitting]
            if self.reads[split].unusable and not self.skip_bad:
                self._refuse(split, rows)

    def outcomes(self, split: str, known: Iterable[Outcome] = ()) -> Iterator[Outcome]:
        """What every file gave, from the first that is not known; without `skip_bad`, none after an unusable one."""
        read = self.reads[split] = _Read()
        begin = 0
        for row, outcome in enumerate(known):
            begin = row + 1
            if outcome.fault is not None:
                read.unusable.append((row, outcome.fault))
            else:
                self._note(split, row, outcome.checksum, outcome.warning, outcome.is_transparent)
        with pictures.own_pixel_limit():
            for found in self._decoded(split, _ENCODED_ROWS, begin):
                for checksum, one in found:
                    if isinstance(one, str):
                        yield Outcome(checksum, fault=one)
                    elif isinstance(one, Stored) and (self.skip_bad or not read.unusable):
                        yield Outcome(checksum, one.picture, None, one.warning, one.is_transparent)
            if read.unusable and not self.skip_bad:
                self._refuse(split, _ENCODED_ROWS)

    def identity(self, split: str) -> Any:
        """What the shards of a split follow from: files with their sizes and times, labels, and how they are stored."""
        listing, digest = self.listings[split], hashlib.sha256()
        tree = listing.place.tree
        apart = isinstance(tree, DirectoryTree)
        for path in listing.paths:
            state = _state(os.path.join(tree.place, path)) if apart else ""
            digest.update(f"{path}\0{state}\0".encode("utf-8", "surrogateescape"))
        if not apart:
            digest.update(_state(tree.place).encode())
        digest.update(np.ascontiguousarray(listing.labels_n).tobytes())
        return {"files": digest.hexdigest(), "channels": self.channels, "how": self.stored_as}

    def _decoded(
        self, split: str, rows: int, begin: int = 0, out: np.ndarray | None = None
    ) -> Iterator[list[tuple[str, Decoded | Stored | str]]]:
        """Checksum of each file, from `begin` on, and what it became or what is wrong with it, `rows` at a time."""
        listing, read = self.listings[split], self.reads[split]
        work = partial(self.work, listing.place.tree)
        row = begin
        for found in read_ahead(work, listing.paths, rows, begin, out):
            for checksum, one in found:
                if isinstance(one, str):
                    read.unusable.append((row, one))
                elif isinstance(one, Decoded) and one.pixels.shape[1:] != self.size:
                    raise ValueError(f"{listing.place.tree.place}: {sizes_differ(header_sizes(self.listings))}")
                else:
                    self._note(split, row, checksum, one.warning, one.is_transparent)
                row += 1
            yield found

    def _note(self, split: str, row: int, checksum: str, warning: str | None, is_transparent: bool) -> None:
        """Keep what a usable file gave."""
        listing, read = self.listings[split], self.reads[split]
        prefix = f"{listing.place.folder}/" if listing.place.folder else ""
        read.add(listing.paths[row].removeprefix(prefix), checksum)
        read.transparent += is_transparent
        read.warnings += [(row, warning)] if warning else []

    def _refuse(self, split: str, rows: int) -> None:
        """Raise for all unusable files, including those of later splits."""
        later = list(self.listings)[list(self.listings).index(split) + 1 :]
        for name in later:
            self.reads[name] = _Read()
            for _ in self._decoded(name, rows):
                pass
        found = [
            f"{self._path(name, row)} {reason}"
            for name in (split, *later)
            for row, reason in self.reads[name].unusable
        ]  # fmt: skip
        more = f"; and {len(found) - _UNUSABLE_NAMED:,} more" if len(found) > _UNUSABLE_NAMED else ""
        count = f" ({len(found):,} such files)" if len(found) > 1 else ""
        raise ValueError(
            f"{'; '.join(found[:_UNUSABLE_NAMED])}{more}{count}: replace or remove "
            f"{'it' if len(found) == 1 else 'them'}, or leave out what is unusable with --skip-bad"
        )

    def _path(self, split: str, row: int) -> str:
        listing = self.listings[split]
        return str(listing.place.tree.place / listing.paths[row])

    def skipped(self) -> dict[str, bytes]:
        """`skipped.csv`, if there is anything to list."""
        if not any(read.unusable for read in self.reads.values()):
            return {}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "split", "class", "reason"])
        for split, read in self.reads.items():
            listing = self.listings[split]
            for row, reason in read.unusable:
                writer.writerow([listing.paths[row], split, self.classes[listing.labels_n[row]], reason])
        return {SKIPPED: text.getvalue().encode("utf-8", "surrogateescape")}

    def notes(self) -> list[str]:
        """Lines for the user about what was skipped, repaired or has transparent parts."""
        skipped = sum(len(read.unusable) for read in self.reads.values())
        warned = [
            f"{self._path(split, row)} {text}" for split, read in self.reads.items() for row, text in read.warnings
        ]
        transparent = sum(read.transparent for read in self.reads.values())
        lines = []
        if skipped:
            lines.append(f"left out {skipped:,} unusable {_files(skipped)}, listed in {SKIPPED} in the dataset")
        if warned:
            more = f"; and {len(warned) - _WARNINGS_NAMED:,} more" if len(warned) > _WARNINGS_NAMED else ""
            lines.append(f"usable but not whole: {'; '.join(warned[:_WARNINGS_NAMED])}{more}")
        if transparent and self.how.background is None:
            lines.append(
                f"{transparent:,} {_files(transparent)} with transparent parts, which show the colours stored there: "
                "lay them on one with --background 255 255 255"
            )
        return lines


def _files(count: int) -> str:
    return "file" if count == 1 else "files"


def _read_and_decode(
    tree: Tree, path: str, *, channels: int, how: Decoding, out: np.ndarray | None = None
) -> tuple[str, Decoded | str]:
    """SHA-256 of a file and its picture, or what is wrong with it."""
    try:
        content = tree.read(path)
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error})"
    checksum = hashlib.sha256(content).hexdigest()
    try:
        return checksum, pictures.decode(content, path, channels=channels, how=how, out=out)
    except Unusable as error:
        return checksum, str(error)


def _state(path: str | Path) -> str:
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"
