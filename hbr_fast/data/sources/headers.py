"""What the headers of pictures say before any is decoded: whether there is colour, and the sizes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

from hbr_fast import progress
from hbr_fast.data.sources import pictures
from hbr_fast.data.sources.layouts import Listing
from hbr_fast.data.sources.pictures import Decoding, Header, Unusable
from hbr_fast.data.sources.read_ahead import read_ahead
from hbr_fast.data.sources.trees import Tree

Mode = Literal["auto", "rgb", "gray"]

_HEADER_BYTES = 1 << 16


def _header(tree: Tree, path: str) -> Header | None:
    """What the beginning of a file says; None if it is unusable, which a full read will report."""
    try:
        try:
            return pictures.header(io.BytesIO(tree.head(path, _HEADER_BYTES)), path)
        except Unusable:  # TIFF may keep its description at the end
            return pictures.header(io.BytesIO(tree.read(path)), path)
    except (Unusable, OSError):
        return None


def _headers(listings: Mapping[str, Listing]) -> Iterator[Header]:
    with pictures.own_pixel_limit():
        for listing in listings.values():
            rows, work = len(listing.paths), partial(_header, listing.place.tree)
            first = list(listing.paths[:1])  # the first colour picture settles it
            yield from (one for path in first if (one := work(path)) is not None)
            with progress.task(f"read headers of {listing.place.path.name}", total=rows, unit="files") as advance:
                advance(len(first))
                for found in read_ahead(work, listing.paths[1:], 1024):
                    yield from (one for one in found if one is not None)
                    advance(len(found))


def channels_and_size(listings: Mapping[str, Listing], mode: Mode, how: Decoding) -> tuple[int, tuple[int, int]]:
    """From the options if they say it, else from as few headers as needed."""
    size, channels = how.size, {"rgb": 3, "gray": 1}.get(mode)
    if size is None or channels is None:
        found = _headers(listings)
        for header in found:
            size = size or header.size
            if not header.is_gray:
                channels = channels or 3
            if channels is not None:
                break
        else:
            channels = channels or (1 if size is not None else 3)
        found.close()  # type: ignore[attr-defined]
    return channels or 3, size or (1, 1)


def header_sizes(listings: Mapping[str, Listing]) -> list[tuple[int, int]]:
    """The sizes that the pictures' headers say, each once, in ascending order."""
    return sorted({header.size for header in _headers(listings)})


def sizes_differ(sizes: Sequence[tuple[int, int]]) -> str:
    return f"images differ in size, from {sizes[0]} to {sizes[-1]}: give one with --size"
