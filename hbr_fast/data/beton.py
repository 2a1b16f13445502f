"""Reading FFCV's file format (`.beton`, version 2) without FFCV: any file with images and labels opens as a Split.

A file is a header, one descriptor per field, a table with one entry per sample, pages of data, and a list of the
allocations in them. Writing uses FFCV's own writer (`beton_writer.py`).
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from hbr_fast.data.dataset import Split
from hbr_fast.data.images import RawImages, channel_mean_std, channel_sums, rows_per_block
from hbr_fast.data.sample_sources import NumberedSources, RowsOf, SampleSources
from hbr_fast.data.sources.source import checked_labels
from hbr_fast.machine import usable_cpus

VERSION = 2

# The structures of FFCV 1.0 (ffcv/types.py and ffcv/fields).
_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("fields", "<u2"),
        ("page_size", "<u4"),
        ("samples", "<u8"),
        ("allocations_at", "<u8"),
    ],
    align=True,
)
_FIELD = np.dtype([("kind", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
_ALLOCATION = np.dtype([("sample", "<u8"), ("at", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("at", "<u8")])
_BYTES = np.dtype([("at", "<u8"), ("size", "<u8")])
_AT = np.dtype("<u8")
_FLOAT, _INT, _RGB, _ARRAYS = 0, 1, 2, (4, 6)
_ENTRY = {_FLOAT: np.dtype("<f8"), _INT: np.dtype("<i8"), _RGB: _IMAGE, 3: _BYTES, 4: _AT, 5: _BYTES, 6: _AT}
_ARRAY_ARGUMENTS = np.dtype([("shape", "<u8", 32), ("type_bytes", "<u8")])
JPEG, RAW = 0, 1  # modes of RGB images
_STORED = np.dtype([("mode", "<u1"), ("height", "<i8"), ("width", "<i8"), ("at", "<i8"), ("size", "<i8")])

MOST_CLASSES = 100_000  # that are named by numbers where there are fewer samples
_MOST_CHANNELS = 4  # an axis this short holds channels


@dataclass(frozen=True, eq=False)
class Beton:
    """A `.beton` file with its table read and checked, but not its pixels.

    Attributes
    ----------
    path : Path
    fields : tuple of str
        Names of all fields.
    image, label : str
        Names of the image and label fields.
    kind : int
        FFCV's type number of the image field.
    labels : int64 [N]
    place : int64 [N]
        Position of each sample in the file: by the field `id` if that numbers the samples 0 to N - 1, else file order.
    has_ids : bool
        Whether the field `id` does so.
    encoded : bool
        Whether any image is a JPEG.
    planar : bool
        Whether images are stored [C, H, W] and not [H, W, C].
    shape : tuple of int, or None
        (C, H, W), or None if images differ in size.
    read : callable
        Takes a position in the file, returns its decoded image: uint8 [H, W, C].
    images : structured array [N] or None
        Of RGB images, in the file's order: mode, height, width, and where their bytes are and how many.
    """

    path: Path
    fields: tuple[str, ...]
    image: str
    label: str
    kind: int
    labels: np.ndarray
    place: np.ndarray
    has_ids: bool
    encoded: bool
    planar: bool
    shape: tuple[int, int, int] | None
    read: Callable[[int], np.ndarray]
    images: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sources(self) -> SampleSources:
        """The sample of the file behind each row: `cifar10.train.beton[17]`."""
        if np.array_equal(self.place, np.arange(len(self))):
            return NumberedSources([(self.path.name, len(self))])
        return RowsOf(self.path.name, self.place)

    def decoded(self, start: int, stop: int, size: tuple[int, int] | None) -> np.ndarray:
        """Samples `start` to `stop - 1`, uint8 [stop - start, C, H, W]; `size` resizes, required if sizes differ."""
        images = []
        for at in self.place[start:stop]:
            pixels = self.read(int(at))
            if size is not None and pixels.shape[:2] != size:
                pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
            images.append(pixels.transpose(2, 0, 1))
        return np.stack(images)


def open_beton(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    image: str | None = None,
    label: str | None = None,
    size: tuple[int, int] | None = None,
) -> Split:
    """Open a `.beton` as a split: images of one size are decoded into memory, others stay encoded pictures.

    A file too large for memory is converted first: `hbr-fast convert beton NAME.hbr --root FOLDER`.

    Parameters
    ----------
    path : path
        A file that FFCV wrote, with images (RGB, or arrays of uint8) and labels (whole numbers).
    name : str, optional
        Of the split; by default the file's name.
    classes : sequence of str, optional
        Class names; by default "0", "1", ... up to the largest label.
    image, label : str, optional
        Names of the fields; by default the only field of images, and "label" or else the only whole number.
    size : (int, int), optional
        Height and width to resize to. Without it, images of different sizes stay in the file, which is read once for
        their checksums; `split.at_size` chooses their size, as of other encoded pictures.

    Returns
    -------
    Split
        Row i is the sample with id i if the file numbers its samples (field `id`), else the file's i-th. Mean and
        standard deviation are those of this file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a complete `.beton` of version 2 with images and labels; the message says what is wrong.
    """
    found = read_beton(path, image=image, label=label)
    names = numbered_classes(found) if classes is None else tuple(classes)
    labels_n = checked_labels(found.labels, len(names), where=f"{found.path} {found.label}")
    if size is None and found.shape is None:
        return _of_pictures(found, name or found.path.stem, names, labels_n)
    shape = shape_of(found, size)
    try:
        images_nchw = np.empty((len(found), *shape), np.uint8)
    except (MemoryError, ValueError):
        needed = len(found) * math.prod(shape)
        raise ValueError(
            f"{found.path} holds {needed / 1e9:,.1f} GB of pixels, which do not fit into memory: convert it"
        ) from None
    sums_c, squares_c = np.zeros(shape[0], np.int64), np.zeros(shape[0], np.int64)
    rows = rows_per_block(shape)

    def decode(start: int) -> tuple[np.ndarray, np.ndarray]:
        block = images_nchw[start : start + rows]
        block[:] = found.decoded(start, start + len(block), size)
        return channel_sums(block)

    with ThreadPoolExecutor(usable_cpus()) as pool:  # Pillow decodes without holding the interpreter lock
        for sums, squares in pool.map(decode, range(0, len(found), rows)):
            sums_c += sums
            squares_c += squares
    mean, std = channel_mean_std(len(found) * shape[1] * shape[2], sums_c, squares_c)
    for array in (images_nchw, labels_n):
        array.setflags(write=False)
    return Split(
        name=name or found.path.stem,
        store=RawImages(images_nchw),
        labels=labels_n,
        classes=names,
        mean=np.array(mean, np.float32),
        std=np.array(std, np.float32),
        beton=found.path if size is None else None,
        sources=found.sources,
    )


def _of_pictures(found: Beton, name: str, classes: tuple[str, ...], labels_n: np.ndarray) -> Split:
    from hbr_fast.data.beton_pictures import pictures_of
    from hbr_fast.data.convert_encoded import pictures_mean_std

    store = pictures_of(found)
    mean, std = (np.array(values, np.float32) for values in pictures_mean_std(store))
    labels_n.setflags(write=False)
    return Split(name, store, labels_n, classes, mean, std, beton=found.path, sources=found.sources)


def numbered_classes(*files: Beton) -> tuple[str, ...]:
    """Class names "0", "1", ... up to the largest label of the files.

    Raises
    ------
    ValueError
        If that exceeds both `MOST_CLASSES` and the number of samples: the label is damaged.
    """
    largest = max(files, key=lambda file: int(file.labels.max()))
    count, samples = int(largest.labels.max()) + 1, sum(map(len, files))
    if count > max(samples, MOST_CLASSES):
        raise ValueError(
            f"{largest.path}: label {count - 1} of sample {largest.labels.argmax()} is far beyond the number of "
            f"samples, {samples:,}: correct it, or give the names of the classes"
        )
    return tuple(map(str, range(count)))


def shape_of(found: Beton, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(C, H, W) of the images of a file, after resizing to `size` if given."""
    if size is not None and found.kind == _RGB:
        return (3, *size)
    if size is not None:
        raise ValueError(f"{found.path}: field {found.image!r} holds arrays, which cannot be resized: leave out size")
    if found.shape is None:
        raise ValueError(f"{found.path}: images differ in size: give a size (height, width) to resize them to")
    return found.shape


def read_beton(path: str | os.PathLike[str], *, image: str | None = None, label: str | None = None) -> Beton:
    """Read and check everything in a `.beton` except its pixels; see `open_beton`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: write one with hbr-fast convert SOURCE OUT --formats beton")
    length = path.stat().st_size
    header = _part(path, _HEADER, 1, 0, length)[0]
    if header["version"] != VERSION:
        raise ValueError(
            f"{path} is not a .beton of version {VERSION} (it says {header['version']}): write it again with FFCV 1.0"
        )
    samples, start = int(header["samples"]), int(header["allocations_at"])
    descriptors = _part(path, _FIELD, int(header["fields"]), _HEADER.itemsize, length)
    kinds = {_name(descriptor["name"]): int(descriptor["kind"]) for descriptor in descriptors}
    if len(kinds) != len(descriptors):
        raise ValueError(f"{path} is damaged: two of its fields have one name: write it again")
    for field, kind in kinds.items():
        if kind not in _ENTRY:
            raise ValueError(f"{path}: field {field!r} is of a custom kind ({kind}), readable only by its program")
    if samples == 0:
        raise ValueError(f"{path} holds no samples")
    entry = np.dtype([("", _ENTRY[kind]) for kind in kinds.values()], align=True)
    table = _part(path, entry, samples, _HEADER.itemsize + descriptors.nbytes, length)
    allocated = samples * sum(kind not in (_FLOAT, _INT) for kind in kinds.values())
    if start == 0 or start + allocated * _ALLOCATION.itemsize != length:
        raise ValueError(
            f"{path} is not whole (its list of {allocated:,} allocations is not at its end): write it again"
        )
    allocations = _part(path, _ALLOCATION, allocated, start, length)

    columns = dict(zip(kinds, (table[field] for field in entry.names or ()), strict=True))
    image = _chosen(path, kinds, "image", image, (_RGB, *_ARRAYS), "images")
    label = _chosen(path, kinds, "label", label, (_INT,), "whole numbers")
    ids = columns["id"] if kinds.get("id") == _INT and label != "id" else None
    has_ids = ids is not None and np.array_equal(np.sort(ids), np.arange(samples))
    place = np.argsort(ids) if has_ids and ids is not None else np.arange(samples)
    pages = np.memmap(path, np.uint8, mode="r")
    column = columns[image]
    encoded = planar = False
    shape: tuple[int, int, int] | None
    images = None
    if kinds[image] == _RGB:
        sizes = _sizes(path, column, allocations, start)
        images = np.empty(samples, _STORED)
        images["size"] = sizes
        for part in ("mode", "height", "width", "at"):
            images[part] = column[part]
        encoded = bool((column["mode"] != RAW).any())
        height, width = int(column["height"][0]), int(column["width"][0])
        one_size = (column["height"] == height).all() and (column["width"] == width).all()
        shape = (3, height, width) if one_size else None

        def read(at: int) -> np.ndarray:
            return _rgb(path, pages, column[at], int(sizes[at]))
    else:
        arguments = descriptors[list(kinds).index(image)]["arguments"]
        stored = _stored_shape(path, image, arguments)
        planar = stored[-1] > _MOST_CHANNELS and stored[0] <= _MOST_CHANNELS
        height, width, channels = (*stored[1:], stored[0]) if planar else stored
        shape = (channels, height, width)
        if int(column.max()) + channels * height * width > start:
            raise ValueError(f"{path} is damaged: an image lies past the end of its data: write it again")

        def read(at: int) -> np.ndarray:
            begin = int(column[at])
            pixels = pages[begin : begin + channels * height * width].reshape(stored)
            return pixels.transpose(1, 2, 0) if planar else pixels

    labels_n = np.ascontiguousarray(columns[label][place], np.int64)
    if labels_n.min() < 0:
        raise ValueError(f"{path}: label {labels_n.min()} of sample {labels_n.argmin()} is negative: correct it")
    return Beton(
        path, tuple(kinds), image, label, kinds[image], labels_n, place, has_ids, encoded, planar, shape, read, images
    )


def _part(path: Path, dtype: np.dtype[Any], count: int, at: int, length: int) -> np.ndarray:
    if at + count * dtype.itemsize > length:
        raise ValueError(
            f"{path} is not a .beton, or not whole: it has {length:,} bytes, and its header alone speaks of "
            f"{at + count * dtype.itemsize:,}: write it again"
        )
    return np.fromfile(path, dtype, count=count, offset=at)


def _name(name: np.ndarray) -> str:
    return name.tobytes().split(b"\0")[0].decode("ascii", "replace")


def _chosen(
    path: Path, kinds: Mapping[str, int], use: str, given: str | None, wanted: tuple[int, ...], what: str
) -> str:
    """The field for a use: the given one, the one of that name, or the only one of a suitable kind."""
    fitting = [name for name, kind in kinds.items() if kind in wanted and (name != "id" or given == "id")]
    if given is not None:
        if given not in fitting:
            raise ValueError(f"{path}: {given!r} is no field of {what}: fields are {', '.join(kinds)}")
        return given
    if use in fitting:
        return use
    if len(fitting) != 1:
        raise ValueError(
            f"{path} has {len(fitting) or 'no'} fields of {what} ({', '.join(kinds)}): say which with {use}=NAME"
        )
    return fitting[0]


def _sizes(path: Path, column: np.ndarray, allocations: np.ndarray, end: int) -> np.ndarray:
    """Bytes of each image, int64 [N]: computed from the size for raw images, listed in the allocations for JPEG."""
    order = np.argsort(allocations["at"])
    found = np.minimum(np.searchsorted(allocations["at"], column["at"], sorter=order), len(order) - 1)
    if (allocations["at"][order[found]] != column["at"]).any():
        raise ValueError(f"{path} is damaged: its list of allocations lacks an image: write it again")
    sizes = allocations["size"][order[found]].astype(np.int64)
    raw = 3 * column["height"].astype(np.int64) * column["width"]
    wrong = (column["mode"] > RAW) | ((column["mode"] == RAW) & (sizes != raw)) | (sizes <= 0) | (sizes > end)
    # Compare unsigned first: a position beyond 2^63 would turn negative and pass.
    if wrong.any() or (column["at"] > end).any() or (column["at"].astype(np.int64) + sizes > end).any():
        raise ValueError(f"{path} is damaged: an image's position or size is impossible: write it again")
    return sizes


def _rgb(path: Path, pages: np.ndarray, entry: np.ndarray, size: int) -> np.ndarray:
    at, height, width = int(entry["at"]), int(entry["height"]), int(entry["width"])
    content = pages[at : at + size]
    if entry["mode"] == RAW:
        return content.reshape(height, width, 3)
    try:
        with Image.open(io.BytesIO(content.tobytes()), formats=("JPEG",)) as image:
            if image.size != (width, height):
                raise ValueError(f"it is {image.size}, and the table says {(width, height)}")
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:  # its message is an address in memory
        raise ValueError(f"{path}: the image at byte {at} is not a readable JPEG: write it again") from None
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged images
        raise ValueError(f"{path}: the image at byte {at} is not a readable JPEG ({error}): write it again") from None
    return pixels


def _stored_shape(path: Path, field: str, arguments: np.ndarray) -> tuple[int, int, int]:
    """[H, W, C] or [C, H, W] of a field of arrays, as stored; [H, W] is one channel."""
    header = arguments[: _ARRAY_ARGUMENTS.itemsize].view(_ARRAY_ARGUMENTS)[0]
    end = _ARRAY_ARGUMENTS.itemsize + int(header["type_bytes"])
    shape = tuple(int(side) for side in header["shape"] if side)
    try:
        ((_, dtype),) = json.loads(arguments[_ARRAY_ARGUMENTS.itemsize : end].tobytes())
    except (ValueError, TypeError, RecursionError):
        dtype = "unknown"
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or dtype != "|u1" or min(shape[0], shape[-1]) > _MOST_CHANNELS:
        raise ValueError(
            f"{path}: field {field!r} holds {dtype} {list(shape)}, not uint8 images [H, W, C] or [C, H, W]"
        )
    return shape


def is_beton(path: Path) -> bool:
    """Whether a file begins as `.beton` files do; the rest may be damaged."""
    with open(path, "rb") as file:
        start = file.read(_HEADER.itemsize)
    return len(start) == _HEADER.itemsize and np.frombuffer(start, _HEADER)["version"][0] == VERSION
