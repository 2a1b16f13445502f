"""The pictures of a `.beton` as encoded pictures: JPEGs where they lie in the file, raw ones decoded by a copy."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from hbr_fast.data.beton import JPEG, RAW, Beton
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.shards import INDEX, ShardFiles
from hbr_fast.machine import usable_cpus

Stored = tuple[int, int, int, np.ndarray]  # mode, height, width, bytes: what FFCV's RGB images consist of


@dataclass(frozen=True, eq=False)
class BetonPictures(EncodedImages):
    """Encoded pictures in a `.beton`; `is_raw` [N] tells those that are pixels, RGB [H, W, 3], and not files."""

    is_raw: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __reduce__(self) -> tuple[Any, ...]:
        return BetonPictures, (self.shards, self.index, self.channels, self.size, self.fit, self.is_raw)

    def intact_jpegs(self, rows_b: np.ndarray) -> list[bytes | None]:
        """See `EncodedImages.intact_jpegs`."""
        found = super().intact_jpegs(rows_b)
        return [None if raw else one for one, raw in zip(found, self.is_raw[rows_b].tolist(), strict=True)]

    def opened(self, row: int, content: bytes | None = None) -> Image.Image:
        """See `EncodedImages.opened`."""
        if not self.is_raw[row]:
            return super().opened(row, content)
        return Image.frombytes(
            "RGB",
            (int(self.index["width"][row]), int(self.index["height"][row])),
            self.content(row) if content is None else content,
        )


def pictures_of(found: Beton, like: EncodedImages | None = None) -> BetonPictures:
    """The pictures of a file of RGB images, of any sizes.

    Parameters
    ----------
    found : Beton
    like : EncodedImages, optional
        What the file was written from: of that are checksums, orientations, the size and the number of channels.
        Otherwise, checksums are those of the file as it is, and nothing is turned.

    Raises
    ------
    ValueError
        If the file has pictures of other sizes than `like`.
    """
    assert found.images is not None
    images = found.images[found.place]
    index = np.zeros(len(found), INDEX)
    index["offset"], index["length"] = images["at"], images["size"]
    is_raw = images["mode"] == RAW
    if like is None:
        index["height"], index["width"], index["orientation"] = images["height"], images["width"], 1
    else:
        for name in ("height", "width", "crc"):
            index[name] = like.index[name]
        index["orientation"] = np.where(is_raw, 1, like.index["orientation"])
        turned = index["orientation"] >= 5
        for name, other in (("height", "width"), ("width", "height")):
            wrong = np.flatnonzero(images[name] != np.where(turned, index[other], index[name]))
            if len(wrong):
                row = int(wrong[0])
                raise ValueError(
                    f"{found.path} has a picture {row} of {images['height'][row]} x {images['width'][row]} pixels, the "
                    "split another: write it again from this split"
                )
    shards = ShardFiles([found.path])
    content = shards[0]

    def checksum(row: int) -> int:
        entry = index[row]
        return zlib.crc32(content[int(entry["offset"]) : int(entry["offset"]) + int(entry["length"])].data)

    unknown = np.arange(len(index)) if like is None else np.flatnonzero(is_raw)
    with ThreadPoolExecutor(usable_cpus()) as pool:  # without the interpreter's lock
        index["crc"][unknown] = np.fromiter(pool.map(checksum, unknown.tolist()), np.uint32, len(unknown))
    shards.release_memory()
    if like is None:
        return BetonPictures(shards, index, 3, is_raw=is_raw)
    return BetonPictures(shards, index, like.channels, like.size, like.fit, is_raw)


def stored_picture(store: EncodedImages, row: int) -> Stored:
    """What a `.beton` stores of a picture: a JPEG as it is, another upright as pixels.

    One that cannot be read is stored as it is, too: it is found when it is decoded.
    """
    entry = store.index[row]
    height, width = int(entry["height"]), int(entry["width"])
    if entry["orientation"] >= 5:
        height, width = width, height
    try:
        content = store.content(row)
    except ValueError:
        content = b"\0"  # nothing is not stored
    is_pixels = isinstance(store, BetonPictures) and bool(store.is_raw[row])
    if is_pixels or (content[:2] != b"\xff\xd8" and store.is_intact(row)):
        try:
            pixels = np.asarray(store.opened(row).convert("RGB"))
        except Exception:  # Pillow's decoders raise many kinds of errors
            return JPEG, height, width, np.frombuffer(content, np.uint8)
        return RAW, *pixels.shape[:2], pixels.reshape(-1)
    return JPEG, height, width, np.frombuffer(content, np.uint8)


def largest_picture(store: EncodedImages) -> int:
    """Bytes that any picture takes in a `.beton`, at most."""
    most = 1
    for start in range(0, len(store), 2**16):  # the index is mapped
        part = store.index[start : start + 2**16]
        pixels = part["height"].astype(np.int64) * part["width"]
        most = max(most, int(part["length"].max()), 3 * int(pixels.max()))
    return most
