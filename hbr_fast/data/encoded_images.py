"""Pictures as encoded files in shards, of any sizes: decoded, cropped and scaled when they are asked for."""

from __future__ import annotations

import ctypes
import dataclasses
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hbr_fast.data.images import in_words, rows_per_block
from hbr_fast.data.shards import INDEX, Located, ShardFiles
from hbr_fast.data.views import Fit, checked_size, views
from hbr_fast.machine import usable_cpus


class BadPicture(ValueError):
    """A stored picture that cannot be decoded, or is not as it was when it was converted."""

    def __init__(self, row: int, reason: str, *, shard: Path | None = None) -> None:
        where = "" if shard is None else f"{shard}: "
        super().__init__(f"{where}picture {row} {reason}")
        self.row, self.reason = row, reason


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Pictures in shards. With a `size` they are images of that size; without, their sizes vary.

    Parameters
    ----------
    shards : ShardFiles
    index : INDEX [N]
        Where each picture is (`hbr_fast.data.shards`); may be memory-mapped.
    channels : int
        3, or 1: of what decoding gives.
    size : (H, W), optional
    fit : {"crop", "pad", "stretch"}
        How pictures get that size (`hbr_fast.data.views.views`).
    """

    shards: ShardFiles
    index: np.ndarray
    channels: int
    size: tuple[int, int] | None = None
    fit: Fit = "crop"

    def __repr__(self) -> str:
        return f"<EncodedImages: {len(self):,} {in_words(self.image_shape)}>"

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: shards by their paths, a mapped index by its path, too."""
        index: Any = self.index
        if isinstance(index, np.memmap) and index.filename is not None:
            index = (str(index.filename), len(index), index.offset)
        return _reopened, (self.shards, index, self.channels, self.size, self.fit)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the images; None without a size."""
        return None if self.size is None else (self.channels, *self.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the encoded pictures."""
        return int(self.index["length"].sum(dtype=np.int64))

    def at_size(self, size: int | tuple[int, int], fit: Fit = "crop") -> EncodedImages:
        """The same pictures as images of a size.

        Raises
        ------
        ValueError
            If the size or the fit is not one.
        """
        return dataclasses.replace(self, size=checked_size(size, fit), fit=fit)

    def content(self, row: int) -> bytes:
        """The encoded bytes of a picture.

        Raises
        ------
        BadPicture
            If its shard is too short.
        """
        located = self.shards.located(np.array([row]), self.index[row : row + 1])
        if located.length[0] == 0:
            raise BadPicture(row, "lies outside of its shard", shard=self._shard_of(row))
        return ctypes.string_at(int(located.data[0]), int(located.length[0]))

    def intact_jpegs(self, rows_b: np.ndarray) -> list[bytes | None]:
        """The files of pictures; None of those that are no JPEGs, or not as they were converted."""
        entries = self.index[rows_b]
        located = self.shards.located(rows_b, entries)
        contents = [ctypes.string_at(*one) for one in zip(located.data.tolist(), located.length.tolist(), strict=True)]
        self.shards.count_read(int(located.length.sum()))
        del located  # not before: the addresses are of what it keeps
        crcs = entries["crc"].tolist()
        return [
            one if one.startswith(b"\xff\xd8") and zlib.crc32(one) == crc else None
            for one, crc in zip(contents, crcs, strict=True)
        ]

    def opened(self, row: int, content: bytes | None = None) -> Image.Image:
        """A picture, or its bytes `content`, as Pillow opens it, before it is turned upright."""
        return Image.open(io.BytesIO(self.content(row) if content is None else content), formats=STORED_FORMATS)

    def is_intact(self, row: int) -> bool:
        """Whether the bytes of a picture are as they were converted."""
        try:
            return zlib.crc32(self.content(row)) == int(self.index["crc"][row])
        except BadPicture:
            return False

    def gather(self, index: np.ndarray | Sequence[int], *, out: np.ndarray | None = None) -> np.ndarray:
        """Images of some rows, uint8 [n, C, H, W]: see `ImageStore.gather`. Needs a size.

        Raises
        ------
        BadPicture
            At the first picture that is damaged.
        """
        rows = np.asarray(index, np.int64)
        if self.size is None:
            raise ValueError("pictures vary in size: choose one, e.g. split.at_size(224)")
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"row {rows[(rows < 0) | (rows >= len(self))][0]} of {len(self)} pictures")
        assert self.image_shape is not None
        images = np.empty((len(rows), *self.image_shape), np.uint8) if out is None else out
        assert images.flags.c_contiguous
        boxes, places = views(self.index["height"][rows], self.index["width"][rows], self.size, self.fit)
        bad = self.decode(rows, boxes, places, images, threads=usable_cpus())
        if bad:
            row, reason = bad[0].row, bad[0].reason
            raise BadPicture(row, f"{reason}: convert the dataset again", shard=self._shard_of(row))
        return images

    def _shard_of(self, row: int) -> Path:
        """The shard of a picture, to be named in a message; the index may be damaged."""
        return self.shards.paths[min(max(int(self.index["shard"][row]), 0), len(self.shards) - 1)]

    def decode(
        self, rows_b: np.ndarray, boxes_b: np.ndarray, places_b: np.ndarray, images: np.ndarray, *, threads: int
    ) -> list[BadPicture]:
        """Decode a box of each picture to its place in an image.

        Parameters
        ----------
        rows_b : int64 [B]
            In [0, N).
        boxes_b : float64 [B, 4]
            Top, left, height, width in the upright picture; each lies within it.
        places_b : int64 [B, 4]
            Top, left, height, width in the image, which is black elsewhere.
        images : uint8 [B, C, H, W]
            Written in full; images of pictures that cannot be decoded are black.
        threads : int

        Returns
        -------
        list of BadPicture
            Those that could not be decoded.
        """
        from hbr_fast.kernels.images import cpu_decode  # here: opening a dataset must not import torch and numba

        _, channels, height, width = images.shape
        if not (places_b == (0, 0, height, width)).all():
            images[:] = 0
        entries = self.index[rows_b]
        located = self.shards.located(rows_b, entries)
        tasks = self._tasks(entries, located, boxes_b, places_b, images)
        found = tasks["length"] > 0
        made = tasks[found]
        cpu_decode.decode(made, channels, threads=threads)
        status = np.full(len(rows_b), cpu_decode.DAMAGED)
        status[found] = made["status"]
        bad = []
        for b in np.flatnonzero(status != cpu_decode.MADE).tolist():
            row = int(rows_b[b])
            try:
                if status[b] == cpu_decode.DAMAGED and self.shards.forget(row):  # and fetch it anew
                    one = slice(b, b + 1)
                    bad += self.decode(rows_b[one], boxes_b[one], places_b[one], images[one], threads=1)
                elif status[b] == cpu_decode.DAMAGED:
                    raise BadPicture(row, "is not as it was converted (another checksum)")
                else:
                    content = ctypes.string_at(int(located.data[b]), int(located.length[b]))
                    self._decode_otherwise(row, content, boxes_b[b], places_b[b], images[b])
            except BadPicture as error:
                images[b] = 0
                bad.append(error)
        self.shards.count_read(int(tasks["length"].sum()))
        del located  # not before: the tasks have its addresses
        return bad

    @staticmethod
    def _tasks(
        entries: np.ndarray, located: Located, boxes_b: np.ndarray, places_b: np.ndarray, images: np.ndarray
    ) -> np.ndarray:
        from hbr_fast.kernels.images import cpu_decode

        tasks = np.zeros(len(entries), cpu_decode.TASK)
        tasks["data"], tasks["length"] = located.data, located.length
        tasks["crc"] = entries["crc"]
        tasks["height"], tasks["width"], tasks["box"] = entries["height"], entries["width"], boxes_b
        _, _, height, width = images.shape
        tasks["plane"], tasks["down"], tasks["right"] = height * width, width, 1
        tasks["tall"], tasks["wide"] = places_b[:, 2], places_b[:, 3]
        first = places_b[:, 0] * width + places_b[:, 1]
        tasks["out"] = images.ctypes.data + np.arange(len(entries)) * images[:1].nbytes + first
        for b in np.flatnonzero(entries["orientation"] != 1).tolist():
            _turn(tasks[b : b + 1], int(entries["orientation"][b]))
        return tasks

    def _decode_otherwise(
        self, row: int, content: bytes, box: np.ndarray, place: np.ndarray, image_chw: np.ndarray
    ) -> None:
        """By Pillow: what libjpeg does not decode."""
        mode, entry = "RGB" if self.channels == 3 else "L", self.index[row]
        try:
            picture = self.opened(row, content)
            turn = TURNS.get(int(entry["orientation"]))
            height, width = int(entry["height"]), int(entry["width"])
            if picture.size != ((height, width) if turn in _SIDEWAYS else (width, height)):
                raise BadPicture(row, f"is {picture.size[::-1]} and not of the size that it was converted with")
            upright = picture.convert(mode) if turn is None else picture.convert(mode).transpose(turn)
        except BadPicture:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds of errors
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadPicture(row, f"cannot be decoded ({reason})") from None
        top, left, tall, wide = place.tolist()
        y, x, height, width = box.tolist()
        part = upright.resize((wide, tall), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
        pixels = np.asarray(part)
        image_chw[:, top : top + tall, left : left + wide] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def blocks(self) -> Iterator[np.ndarray]:
        """See `ImageStore.blocks`; needs a size."""
        if self.image_shape is None:
            raise ValueError("pictures vary in size: choose one, e.g. split.at_size(224)")
        step = rows_per_block(self.image_shape)
        for start in range(0, len(self), step):
            yield self.gather(np.arange(start, min(start + step, len(self))))

    def release_memory(self) -> None:
        """See `ImageStore.release_memory`."""
        self.shards.release_memory()


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Orientations in which the stored pixels run from the right, run from below, have columns for rows.
MIRRORED, UPSIDE_DOWN, SIDEWAYS = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)
_SIDEWAYS = {TURNS[orientation] for orientation in SIDEWAYS}
STORED_FORMATS = ("JPEG", "PNG")  # of which Pillow starts no other program


def _reopened(shards: ShardFiles, index: Any, channels: int, size: tuple[int, int] | None, fit: Fit) -> EncodedImages:
    if isinstance(index, tuple):
        name, count, offset = index
        index = np.memmap(name, INDEX, mode="r", offset=offset, shape=(count,))
    return EncodedImages(shards, index, channels, size, fit)


def _turn(task: np.ndarray, orientation: int) -> None:
    """Change a task [1] from the upright picture to the stored one: its box, and where its pixels go."""
    height, width = task["height"][0], task["width"][0]
    top, left, tall, wide = task["box"][0].tolist()
    down, right, out = int(task["down"][0]), 1, int(task["out"][0])
    rows, columns = int(task["tall"][0]), int(task["wide"][0])
    if orientation in MIRRORED:
        left = width - left - wide
        out, right = out + (columns - 1) * right, -right
    if orientation in UPSIDE_DOWN:
        top = height - top - tall
        out, down = out + (rows - 1) * down, -down
    if orientation in SIDEWAYS:
        top, left, tall, wide = left, top, wide, tall
        down, right, rows, columns = right, down, columns, rows
        task["height"], task["width"] = width, height
    task["box"] = top, left, tall, wide
    task["down"], task["right"], task["out"], task["tall"], task["wide"] = down, right, out, rows, columns
