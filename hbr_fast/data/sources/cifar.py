"""CIFAR-10 and CIFAR-100 from the binary or the Python archive, packed or extracted.

Archives are read in place: nothing is extracted, so names inside an archive never become paths.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hbr_fast.data.sources.source import (
    Source,
    SourceSplit,
    array_blocks,
    checked_labels,
    torchvision_download,
)
from hbr_fast.files import sha256_of_file

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32

# What rebuilds numpy arrays, types and scalars, and the bytes inside them; numpy 1 and 2 spell the module
# differently.
_ADMITTED = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


@dataclass(frozen=True)
class _Layout:
    """One of the published forms of a data set."""

    archive: str
    folder: str
    names_file: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    read_part: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]
    read_names: Callable[[bytes, str], list[str]]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, *self.test, self.names_file)


def cifar10(*, root: str | os.PathLike[str] | None = None, download: bool = False) -> Source:
    """CIFAR-10: 50,000 and 10,000 colour 32x32 images of 10 classes.

    Parameters
    ----------
    root : path
        The archive (`cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz`), its extracted folder, or a
        directory that holds either. Where several are there, extracted ones and the binary form come first.
    download : bool
        Whether torchvision may fetch the Python archive into `root`.

    Raises
    ------
    FileNotFoundError
        If it is not there, or a file of the set is missing.
    ValueError
        If a file is damaged, holds a label out of range, or its pickle asks for anything but plain data: the
        message names the file.
    """
    return _cifar("cifar10", "CIFAR10", 10, _CIFAR10_LAYOUTS, root=root, download=download)


def cifar100(*, root: str | os.PathLike[str] | None = None, download: bool = False) -> Source:
    """CIFAR-100 with its 100 fine classes: 50,000 and 10,000 colour 32x32 images.

    Parameters and errors are those of `cifar10`, for `cifar-100-binary.tar.gz` and `cifar-100-python.tar.gz`.
    """
    return _cifar("cifar100", "CIFAR100", 100, _CIFAR100_LAYOUTS, root=root, download=download)


def load_plain_pickle(content: bytes, where: str) -> Any:
    """Unpickle data made of arrays, bytes, strings, numbers, lists and dicts; anything else is refused.

    Raises
    ------
    ValueError
        If the pickle asks for any other global (the message names `where` and the global) or is damaged.
    """
    try:
        # latin1 gives back the bytes that Python 2 wrote as its strings, as the arrays' contents are in
        # there.
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _ForbiddenGlobal as error:
        raise ValueError(f"{where} asks for {error}, which plain data never needs: refuse this file") from None
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise ValueError(f"{where} is not a readable pickle of plain data ({error!r}): fetch it again") from None


class _ForbiddenGlobal(Exception):
    pass


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _ForbiddenGlobal(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def _binary_part(label_bytes: int) -> Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]:
    """Reader of records of `label_bytes` labels (the last one counts) and 3072 planar pixels."""
    size = label_bytes + _PIXELS

    def read(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
        if not content or len(content) % size:
            raise ValueError(
                f"{where} has {len(content)} bytes, not a whole number of {size}-byte records: fetch it again"
            )
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
        return records[:, label_bytes:].reshape(-1, *_SHAPE), records[:, label_bytes - 1].astype(np.int64)

    return read


def _python_part(label_key: str) -> Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]:
    """Reader of a pickled dict with uint8 `data` [n, 3072] and a list of labels under `label_key`."""

    def read(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
        fields = _pickled_dict(content, where)
        data, labels = fields.get("data"), fields.get(label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (_PIXELS,):
            raise ValueError(f"{where}: field 'data' is not a uint8 array [n, {_PIXELS}]: fetch it again")
        if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
            raise ValueError(f"{where}: field '{label_key}' is not a list of whole numbers: fetch it again")
        if len(labels) != len(data):
            raise ValueError(f"{where} has {len(data)} images but {len(labels)} labels: fetch it again")
        return data.reshape(-1, *_SHAPE), np.array(labels, dtype=np.int64)

    return read


def _text_names(content: bytes, where: str) -> list[str]:
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not text with a class name a line: fetch it again") from None
    return [line.strip() for line in lines if line.strip()]


def _python_names(key: str) -> Callable[[bytes, str], list[str]]:
    def read(content: bytes, where: str) -> list[str]:
        names = _pickled_dict(content, where).get(key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{where}: field '{key}' is not a list of class names: fetch it again")
        return names

    return read


def _pickled_dict(content: bytes, where: str) -> dict[str, Any]:
    fields = load_plain_pickle(content, where)
    if not isinstance(fields, dict):
        raise ValueError(f"{where} holds a {type(fields).__name__}, not a dict: fetch it again")
    return fields


_CIFAR10_LAYOUTS = (
    _Layout(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        names_file="batches.meta.txt",
        train=tuple(f"data_batch_{index}.bin" for index in range(1, 6)),
        test=("test_batch.bin",),
        read_part=_binary_part(1),
        read_names=_text_names,
    ),
    _Layout(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        names_file="batches.meta",
        train=tuple(f"data_batch_{index}" for index in range(1, 6)),
        test=("test_batch",),
        read_part=_python_part("labels"),
        read_names=_python_names("label_names"),
    ),
)
_CIFAR100_LAYOUTS = (
    _Layout(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        names_file="fine_label_names.txt",
        train=("train.bin",),
        test=("test.bin",),
        read_part=_binary_part(2),  # the coarse label, then the fine one
        read_names=_text_names,
    ),
    _Layout(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        names_file="meta",
        train=("train",),
        test=("test",),
        read_part=_python_part("fine_labels"),
        read_names=_python_names("fine_label_names"),
    ),
)


def _cifar(
    name: str,
    torchvision_name: str,
    num_classes: int,
    layouts: tuple[_Layout, ...],
    *,
    root: str | os.PathLike[str] | None,
    download: bool,
) -> Source:
    archives = " or ".join(layout.archive for layout in layouts)
    if root is None:
        raise ValueError(f"{name}: say where {archives} (or its extracted folder) is, or is to go, with --root")
    found = _find(Path(root), layouts)
    if found is None and download:
        torchvision_download(torchvision_name, Path(root))
        found = _find(Path(root), layouts)
    if found is None:
        raise FileNotFoundError(
            f"{name} is not in {root}: put {archives} (or its extracted folder) there, or allow --download"
        )
    layout, place = found
    if place.is_dir():
        contents = _folder_contents(place, layout)
        checksums = {file: sha256_of_file(place / file) for file in layout.files}
    else:
        contents = _archive_contents(place, layout)
        checksums = {place.name: sha256_of_file(place)}

    names = layout.read_names(contents[layout.names_file], str(place / layout.names_file))
    if len(names) != num_classes:
        raise ValueError(f"{place / layout.names_file} names {len(names)} classes, not {num_classes}: fetch it again")
    splits = {
        split: _split([(contents.pop(file), str(place / file)) for file in files], layout, num_classes)
        for split, files in (("train", layout.train), ("test", layout.test))
    }
    return Source(name, tuple(names), splits, {"kind": name, "files": checksums})


def _split(parts: list[tuple[bytes, str]], layout: _Layout, num_classes: int) -> SourceSplit:
    images, labels = [], []
    for content, where in parts:
        images_nchw, labels_n = layout.read_part(content, where)
        images.append(images_nchw)
        labels.append(checked_labels(labels_n, num_classes, where=where))

    def blocks() -> Iterator[np.ndarray]:
        return chain.from_iterable(array_blocks(images_nchw) for images_nchw in images)

    return SourceSplit(shape=_SHAPE, labels_n=np.concatenate(labels), blocks=blocks)


def _find(root: Path, layouts: tuple[_Layout, ...]) -> tuple[_Layout, Path] | None:
    """The layout found at `root`, and its folder or archive."""
    if root.is_file():
        for layout in layouts:
            if root.name == layout.archive:
                return layout, root
        wanted = " or ".join(layout.archive for layout in layouts)
        raise ValueError(f"{root} is not named {wanted}: give it its published name")
    for layout in layouts:
        # The folder itself is known by any of its batches, so that an incomplete one is named as such.
        for folder in (root, root / layout.folder):
            if any((folder / file).is_file() for file in (*layout.train, *layout.test)):
                return layout, folder
    for layout in layouts:
        if (root / layout.archive).is_file():
            return layout, root / layout.archive
    return None


def _folder_contents(folder: Path, layout: _Layout) -> dict[str, bytes]:
    for file in layout.files:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} lacks {file}: extract {layout.archive} again")
    return {file: (folder / file).read_bytes() for file in layout.files}


def _archive_contents(archive: Path, layout: _Layout) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as members:
                for member in members:
                    file = PurePosixPath(member.name).name
                    if not member.isfile() or file not in layout.files:
                        continue
                    if file in contents:
                        raise ValueError(f"{archive} holds {file} twice: fetch it again")
                    reader = members.extractfile(member)
                    assert reader is not None, "a regular file can be read"
                    contents[file] = reader.read()
            while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{archive} is a damaged or truncated archive ({error}): fetch it again") from None
    for file in layout.files:
        if file not in contents:
            raise FileNotFoundError(f"{archive} lacks {file}: fetch it again")
    return contents
