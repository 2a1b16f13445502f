"""A folder of image files: `train/CLASS/...` and `test/CLASS/...`, in any format that Pillow reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from hbr_fast.data.sources.source import Source, SourceSplit, rows_per_block
from hbr_fast.files import content_hash

Mode = Literal["auto", "rgb", "gray"]

_GRAY_MODES = {"1", "L"}
# More than 8 bits a channel: Pillow would cut values off at 255 without a word.
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}

_Result = TypeVar("_Result")


def folder(
    *,
    root: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
    mode: Mode = "auto",
) -> Source:
    """Images sorted into one sub-folder a class.

    Parameters
    ----------
    root : path
        Holds `train` and `test` (or `val`, read only where there is no `test`), each with the same
        sub-folders, whose names are the classes in sorted order. Images are searched at any depth below;
        names that begin with a dot, and files whose suffix no Pillow format has, are passed over.
    size : (H, W), optional
        Every image is resized to this, without keeping its aspect ratio (bilinear, antialiased). Not given:
        all images must have one size already.
    mode : {"auto", "rgb", "gray"}
        "auto": RGB, unless every image is gray already. An alpha channel is dropped.

    Raises
    ------
    FileNotFoundError
        If `root` or one of its two splits is missing.
    ValueError
        If an image cannot be read (the message names the first and says how many), holds more than 8 bits a
        channel, or sizes differ; if the splits' classes differ; if an option is out of range.
    """
    if root is None:
        raise ValueError("folder: say where the images are with --root (it holds train/CLASS and test/CLASS)")
    if mode not in ("auto", "rgb", "gray"):
        raise ValueError(f"folder: mode must be auto, rgb or gray, got {mode!r}")
    if size is not None and min(size) < 1:
        raise ValueError(f"folder: size must be (height, width) of at least one pixel each, got {size}")
    root = Path(root)
    directories = {"train": root / "train", "test": root / "test"}
    if not directories["test"].is_dir() and (root / "val").is_dir():
        directories["test"] = root / "val"
    for directory in directories.values():
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is missing: a folder source holds train/CLASS and test/CLASS")

    classes = _classes(directories["train"])
    if not classes:
        raise ValueError(f"{directories['train']} has no sub-folder: make one a class")
    different = sorted(set(classes) ^ set(_classes(directories["test"])))
    if different:
        raise ValueError(
            f"{root}: class {different[0]!r} is in only one of {directories['train'].name} and "
            f"{directories['test'].name} ({len(different)} such): give both the same sub-folders"
        )

    files = {split: _image_files(directory, classes) for split, directory in directories.items()}
    headers = {split: _map(_header, paths) for split, (paths, _) in files.items()}
    _raise_first([failure for split in headers.values() for failure in split if isinstance(failure, str)])
    facts = {split: [header for header in found if not isinstance(header, str)] for split, found in headers.items()}
    flat = [header for found in facts.values() for header in found]
    channels = 1 if mode == "gray" or (mode == "auto" and all(fact[1] in _GRAY_MODES for fact in flat)) else 3
    if size is None:
        sizes = sorted({fact[0] for fact in flat})
        if len(sizes) > 1:
            raise ValueError(f"{root}: images differ in size, from {sizes[0]} to {sizes[-1]}: give one with --size")
        size = sizes[0] if sizes else (1, 1)

    splits = {
        split: SourceSplit(
            shape=(channels, *size),
            labels_n=labels_n,
            blocks=partial(_blocks, paths, channels=channels, size=size),
        )
        for split, (paths, labels_n) in files.items()
    }
    contents = {
        split: [
            [path.relative_to(directories[split]).as_posix(), fact[2]]
            for path, fact in zip(files[split][0], facts[split], strict=True)
        ]
        for split in files
    }
    origin = {
        "kind": "folder",
        "files": {split: {"count": len(found), "sha256": content_hash(found)} for split, found in contents.items()},
        "options": {"size": list(size), "mode": "gray" if channels == 1 else "rgb"},
    }
    return Source(root.resolve().name, tuple(classes), splits, origin)


def _classes(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(directory: Path, classes: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    """Paths in sorted order, class by class, and their labels."""
    suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path
            for path in (directory / name).rglob("*")
            if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
        )
        paths += found
        labels += [label] * len(found)
    return paths, np.array(labels, dtype=np.int64)


def _header(path: Path) -> tuple[tuple[int, int], str, str] | str:
    """((height, width), Pillow mode, sha256) of a file, or what is wrong with it."""
    try:
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        with Image.open(path) as image:
            if image.mode in _DEEP_MODES:
                return f"{path} has more than 8 bits a channel (Pillow mode {image.mode}): convert it to 8"
            return (image.height, image.width), image.mode, checksum
    except Exception as error:  # Pillow's decoders raise all sorts on damaged files
        return f"{path} is not a readable image ({error}): replace or remove it"


def _pixels(path: Path, *, channels: int, size: tuple[int, int]) -> np.ndarray | str:
    """uint8 [H, W] or [H, W, 3] of a file, or what is wrong with it."""
    try:
        with Image.open(path) as image:
            pixels = image.convert("RGB" if channels == 3 else "L")
    except Exception as error:
        return f"{path} is not a readable image ({error}): replace or remove it"
    height, width = size
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(pixels)


def _blocks(paths: list[Path], *, channels: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Decoded blocks; unreadable files are reported after the last, all together."""
    rows = max(rows_per_block((channels, *size)), 64)  # enough for every thread
    failures: list[str] = []
    for start in range(0, len(paths), rows):
        decoded = _map(partial(_pixels, channels=channels, size=size), paths[start : start + rows])
        failures += [pixels for pixels in decoded if isinstance(pixels, str)]
        if not failures:
            images = np.stack([pixels for pixels in decoded if not isinstance(pixels, str)])
            yield images.reshape(-1, *size, channels).transpose(0, 3, 1, 2)
    _raise_first(failures)


def _map(function: Callable[[Path], _Result], paths: list[Path]) -> list[_Result]:
    """In order, over threads: Pillow decodes without holding the interpreter lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, paths))


def _raise_first(failures: list[str]) -> None:
    if failures:
        more = f" ({len(failures)} such files)" if len(failures) > 1 else ""
        raise ValueError(failures[0] + more)
