"""CIFAR-10 and CIFAR-100 from the binary or the Python archive, packed or extracted.

Archives are read in place: nothing is extracted, so names inside an archive never become paths.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from hbr_fast.data.sample_sources import NumberedSources
from hbr_fast.data.sources.plain_pickle import PickledArray, load_plain_pickle
from hbr_fast.data.sources.published import is_changed, pieces_of
from hbr_fast.data.sources.source import Source, SourceSplit, array_split, checked_labels, torchvision_download
from hbr_fast.files import sha256_of_file

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32

# The largest file of the four archives has 155 MB, the largest archive unpacks to 187 MB.
_MOST_FILE_BYTES = 400 << 20
_MOST_ARCHIVE_BYTES = 1 << 30
_MOST_HEADER_BYTES = 1 << 20


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
        directory that holds either. If several are there, extracted ones and the binary form take precedence.
    download : bool
        Whether torchvision may fetch the Python archive into `root`.

    Raises
    ------
    FileNotFoundError
        If it is not there, or a file of the set is missing; without the test file there is only a train split.
    ValueError
        If a file is damaged, holds a label out of range, or its pickle asks for anything but plain data: the
        message names the file.
    """
    return _cifar("cifar10", "CIFAR10", 10, _CIFAR10_LAYOUTS, root=root, download=download)


def cifar100(*, root: str | os.PathLike[str] | None = None, download: bool = False, labels: str = "fine") -> Source:
    """CIFAR-100 with its 100 fine or its 20 coarse classes: 50,000 and 10,000 colour 32x32 images.

    Parameters and errors are as in `cifar10`, for `cifar-100-binary.tar.gz` and `cifar-100-python.tar.gz`; `labels` is
    "fine" or "coarse".
    """
    if labels not in ("fine", "coarse"):
        raise ValueError(f"cifar100: labels must be fine or coarse, got {labels!r}")
    num_classes = {"fine": 100, "coarse": 20}[labels]
    name = "cifar100" if labels == "fine" else "cifar100-coarse"
    return _cifar(name, "CIFAR100", num_classes, _cifar100_layouts(labels), root=root, download=download)


def _binary_part(label_bytes: int, at: int = 0) -> Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]:
    """Reader of records of `label_bytes` labels (`at` selects one) and 3072 planar pixels."""
    size = label_bytes + _PIXELS

    def read(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
        if not content or len(content) % size:
            raise ValueError(
                f"{where} has {len(content)} bytes, not a whole number of {size}-byte records: fetch it again"
            )
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
        return records[:, label_bytes:].reshape(-1, *_SHAPE), records[:, at].astype(np.int64)

    return read


def _python_part(label_key: str) -> Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]:
    """Reader of a pickled dict of uint8 `data` [n, 3072] and a list of labels under `label_key`."""

    def read(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
        fields = _pickled_dict(content, where)
        pickled, labels = fields.get("data"), fields.get(label_key)
        data = pickled.uint8() if isinstance(pickled, PickledArray) else None
        if data is None or data.shape[1:] != (_PIXELS,):
            raise ValueError(f"{where}: field 'data' is not a uint8 array [n, {_PIXELS}]: fetch it again")
        if not isinstance(labels, list) or not all(_is_int64(label) for label in labels):
            raise ValueError(f"{where}: field '{label_key}' is not a list of whole numbers: fetch it again")
        if len(labels) != len(data):
            raise ValueError(f"{where} has {len(data)} images but {len(labels)} labels: fetch it again")
        return data.reshape(-1, *_SHAPE), np.array(labels, dtype=np.int64)

    return read


def _is_int64(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _text_names(content: bytes, where: str) -> list[str]:
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not text with one class name per line: fetch it again") from None
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


def _cifar100_layouts(labels: str) -> tuple[_Layout, ...]:
    return (
        _Layout(
            archive="cifar-100-binary.tar.gz",
            folder="cifar-100-binary",
            names_file=f"{labels}_label_names.txt",
            train=("train.bin",),
            test=("test.bin",),
            read_part=_binary_part(2, ("coarse", "fine").index(labels)),
            read_names=_text_names,
        ),
        _Layout(
            archive="cifar-100-python.tar.gz",
            folder="cifar-100-python",
            names_file="meta",
            train=("train",),
            test=("test",),
            read_part=_python_part(f"{labels}_labels"),
            read_names=_python_names(f"{labels}_label_names"),
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
    contents = _folder_contents(place, layout) if place.is_dir() else _archive_contents(place, layout)
    kind = torchvision_name.lower()
    changed = [str(place / file) for file, content in contents.items() if is_changed(kind, file, [content])]
    if place.is_dir():
        checksums = {file: sha256_of_file(place / file) for file in contents}
    else:
        checksums = {place.name: sha256_of_file(place)}
        changed += [str(place)] if is_changed(kind, place.name, pieces_of(str(place))) else []

    names = layout.read_names(contents[layout.names_file], str(place / layout.names_file))
    if len(names) != num_classes:
        raise ValueError(f"{place / layout.names_file} names {len(names)} classes, not {num_classes}: fetch it again")
    splits = {
        split: _split({file: contents.pop(file) for file in files}, place, layout, num_classes)
        for split, files in (("train", layout.train), ("test", layout.test))
        if files[0] in contents
    }
    return Source(
        name,
        tuple(names),
        splits,
        {"kind": name, "files": checksums},
        no_test=FileNotFoundError(
            f"{place} lacks {layout.test[0]}: fetch {layout.archive} again, or hold a share of each class out with "
            "--test-fraction 0.2"
        ),
        changed=sorted(changed),
    )


def _split(parts: dict[str, bytes], place: Path, layout: _Layout, num_classes: int) -> SourceSplit:
    images, labels = [], []
    for file, content in parts.items():
        images_nchw, labels_n = layout.read_part(content, str(place / file))
        images.append(images_nchw)
        labels.append(checked_labels(labels_n, num_classes, where=str(place / file)))

    origins = NumberedSources([(file, len(labels_n)) for file, labels_n in zip(parts, labels, strict=True)])
    return array_split(images, np.concatenate(labels), origins=origins)


def _find(root: Path, layouts: tuple[_Layout, ...]) -> tuple[_Layout, Path] | None:
    """The layout found at `root`, and its folder or archive."""
    if root.is_file():
        for layout in layouts:
            if root.name == layout.archive:
                return layout, root
        wanted = " or ".join(layout.archive for layout in layouts)
        raise ValueError(f"{root} is not named {wanted}: give it its published name")
    for layout in layouts:
        # Any of its batches identifies the folder, so that an incomplete one is reported as such.
        for folder in (root, root / layout.folder):
            if any((folder / file).is_file() for file in (*layout.train, *layout.test)):
                return layout, folder
    for layout in layouts:
        if (root / layout.archive).is_file():
            return layout, root / layout.archive
    return None


def _require_all_but_test(found: Sequence[str], layout: _Layout, place: Path, remedy: str) -> None:
    """Refuse missing files; the test file alone may be missing."""
    missing = [file for file in layout.files if file not in found]
    if missing and missing != list(layout.test):
        raise FileNotFoundError(f"{place} lacks {', '.join(missing)}: {remedy}")


def _folder_contents(folder: Path, layout: _Layout) -> dict[str, bytes]:
    files = [file for file in layout.files if (folder / file).is_file()]
    _require_all_but_test(files, layout, folder, f"extract {layout.archive} again")
    for file in files:
        if (size := (folder / file).stat().st_size) > _MOST_FILE_BYTES:
            raise ValueError(f"{folder / file} has {size:,} bytes, more than any of this set: extract it again")
    return {file: (folder / file).read_bytes() for file in files}


class _Member(tarfile.TarInfo):
    """A member of an archive, with a limit on the size of its description."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type not in tarfile.REGULAR_TYPES and self.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a description of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


class _Unpacked:
    """A stream that raises an error after a limit of bytes: an archive of 1 MB can unpack to 1 GB."""

    def __init__(self, stream: gzip.GzipFile, most: int) -> None:
        self.stream, self.left = stream, most

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise tarfile.ReadError("it unpacks to far more than the data set has")
        return content


def _archive_contents(archive: Path, layout: _Layout) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    twice = None
    try:
        with gzip.open(archive) as packed:
            stream = _Unpacked(packed, _MOST_ARCHIVE_BYTES)
            with tarfile.open(fileobj=cast(Any, stream), mode="r|", tarinfo=_Member) as members:
                for member in members:
                    file = PurePosixPath(member.name).name
                    if not member.isfile() or file not in layout.files:
                        continue
                    if file in contents:
                        twice = file
                        break
                    if member.issparse() or member.size > _MOST_FILE_BYTES:
                        raise tarfile.ReadError(f"{file} of {member.size:,} bytes")
                    reader = members.extractfile(member)
                    assert reader is not None, "a regular file can be read"
                    contents[file] = reader.read()
            while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
                pass
    # tarfile does not catch the errors of damaged numbers, names and chains of headers.
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError, ValueError, LookupError, OverflowError) as error:
        raise ValueError(f"{archive} is a damaged or truncated archive ({error!s:.120}): fetch it again") from None
    except RecursionError:
        raise ValueError(f"{archive} is a damaged archive (too many headers in a row): fetch it again") from None
    if twice is not None:
        raise ValueError(f"{archive} holds {twice} twice: fetch it again")
    _require_all_but_test(list(contents), layout, archive, "fetch it again")
    return contents
