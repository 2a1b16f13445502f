"""MNIST and Fashion-MNIST from their IDX files, plain or gzipped, read strictly."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np

from hbr_fast.data.sample_sources import NumberedSources
from hbr_fast.data.sources.published import is_changed
from hbr_fast.data.sources.source import (
    Source,
    SourceSplit,
    array_split,
    checked_labels,
    torchvision_download,
)
from hbr_fast.files import require_ordinary, sha256_of_file

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MNIST_CLASSES = tuple("0123456789")

_SPLIT_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_UINT8 = 0x08
_DEFLATE_AT_MOST = 1032  # gzip's maximum expansion of a byte
_MOST_BYTES = 1 << 30  # MNIST's largest file has 47 MB; EMNIST's, in the same format, 550 MB
_DTYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}


def fashion_mnist(*, root: str | os.PathLike[str] | None = None, download: bool = False) -> Source:
    """Fashion-MNIST: 60,000 and 10,000 gray 28x28 images of 10 kinds of clothing.

    Looks in `root` (and in `root/FashionMNIST/raw`, where torchvision keeps it); then, if `root` is not
    given or a download is allowed, in the folder of Debian's package `dataset-fashion-mnist`; then, if
    allowed, lets torchvision download it into `root`.

    Parameters
    ----------
    root : path, optional
        Directory of the four IDX files, plain or `.gz`.
    download : bool
        Whether torchvision may fetch them into `root`.

    Raises
    ------
    FileNotFoundError
        If the files are not found, or some of the four are missing; without both test files there is only a train
        split.
    ValueError
        If a file is invalid: the message names it.
    """
    places = [] if root is None else _places(root, "FashionMNIST")
    if root is None or download:
        places.append(DEBIAN_FASHION_MNIST)
    directory = _find("fashion-mnist", "FashionMNIST", places, root=root, download=download)
    return _source("fashion-mnist", FASHION_MNIST_CLASSES, directory)


def mnist(*, root: str | os.PathLike[str] | None = None, download: bool = False) -> Source:
    """MNIST: 60,000 and 10,000 gray 28x28 images of the digits.

    Parameters and errors are as in `fashion_mnist`; there is no Debian package to fall back on.
    """
    places = [] if root is None else _places(root, "MNIST")
    directory = _find("mnist", "MNIST", places, root=root, download=download)
    return _source("mnist", MNIST_CLASSES, directory)


def read_idx(path: str | os.PathLike[str], *, dimensions: int) -> np.ndarray:
    """Read a whole IDX file of unsigned bytes, gzipped or not.

    The format is two zero bytes, a code for the type, the number of dimensions, each dimension as a
    big-endian 32-bit number, and the data; nothing may follow.

    Parameters
    ----------
    path : path
        The file; its first bytes, not its name, show whether it is gzipped.
    dimensions : int
        Number of dimensions the file must have.

    Returns
    -------
    uint8 array, read-only
        With the dimensions in the file's header.

    Raises
    ------
    ValueError
        If the magic number, type or number of dimensions is wrong, if bytes are missing or left over, or if
        the gzip stream is damaged. The message names the file.
    """
    with _opened(Path(path)) as file:
        start = file.read(4 + 4 * dimensions)
        shape = _shape(start, dimensions, path)
        expected = math.prod(shape)
        size = os.path.getsize(path)
        most = size * _DEFLATE_AT_MOST if isinstance(file, gzip.GzipFile) else size - len(start)
        if most < expected:  # before allocating that much
            raise ValueError(f"{path} is truncated: at most {most} of {expected} bytes of data: fetch it again")
        if expected > _MOST_BYTES:
            raise ValueError(
                f"{path} claims {expected:,} bytes of data, far more than any set of this kind: fetch it again"
            )
        content = file.read(expected + 1)
        found = len(content)
        while found > expected and (more := file.read(1 << 20)):  # to the end, without keeping it
            found += len(more)
            if found > 2 * _MOST_BYTES:
                break
    if found < expected:
        raise ValueError(f"{path} is truncated: {found} of {expected} bytes of data: fetch it again")
    if found > expected:
        raise ValueError(f"{path} has {found - expected} bytes after its {expected} bytes of data: fetch it again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _shape(start: bytes, dimensions: int, path: str | os.PathLike[str]) -> tuple[int, ...]:
    """The shape in a file's header."""
    if len(start) < 4 or start[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file (it begins with 0x{start[:4].hex()}): fetch it again")
    if start[2] != _UINT8:
        kind = _DTYPES.get(start[2], f"type code 0x{start[2]:02x}")
        raise ValueError(f"{path} holds {kind} where uint8 (0x08) is needed: fetch the right file")
    if start[3] != dimensions:
        raise ValueError(f"{path} has {start[3]} dimensions where {dimensions} are needed: is it another file?")
    if len(start) < 4 + 4 * dimensions:
        raise ValueError(f"{path} is truncated inside its header: fetch it again")
    return tuple(int(size) for size in np.frombuffer(start, dtype=">u4", count=dimensions, offset=4))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed if gzipped, reading no more than requested."""
    require_ordinary(path)
    with open(path, "rb") as plain:
        if plain.read(2) != b"\x1f\x8b":
            plain.seek(0)
            yield plain
            return
        plain.seek(0)
        try:
            with gzip.open(plain) as unpacked:
                yield cast(IO[bytes], unpacked)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a damaged or truncated gzip file ({error}): fetch it again") from None


def _places(root: str | os.PathLike[str], torchvision_name: str) -> list[Path]:
    if not Path(root).is_dir():
        return []
    return [Path(root), Path(root) / torchvision_name / "raw"]


def _present(directory: Path) -> dict[str, Path]:
    """File name without `.gz` -> the file, for those of the four that exist; plain files are preferred."""
    names = [name for pair in _SPLIT_FILES.values() for name in pair]
    candidates = [(name, directory / f"{name}{suffix}") for name in names for suffix in (".gz", "")]
    return {name: path for name, path in candidates if path.is_file()}


def _find(
    name: str,
    torchvision_name: str,
    places: list[Path],
    *,
    root: str | os.PathLike[str] | None,
    download: bool,
) -> Path:
    """The directory with the files: the first complete one, a fresh download, or the first incomplete one."""
    held = {place: len(_present(place)) for place in places}
    complete = [place for place, count in held.items() if count == 4]
    if complete:
        return complete[0]
    if download:
        if root is None:
            raise ValueError(f"{name}: a download needs a directory to go to: give it as --root")
        torchvision_download(torchvision_name, Path(root))
        return Path(root) / torchvision_name / "raw"
    incomplete = [place for place, count in held.items() if count]
    if incomplete:
        return incomplete[0]
    wanted = f"the directory with {_SPLIT_FILES['train'][0]}[.gz] and its companions as --root"
    package = ", install Debian's dataset-fashion-mnist" if name == "fashion-mnist" else ""
    place = f"in {root}" if root is not None else "here"
    raise FileNotFoundError(f"{name} is not {place}: give {wanted}{package}, or allow --download")


def _source(name: str, classes: tuple[str, ...], directory: Path) -> Source:
    files = _present(directory)
    splits: dict[str, SourceSplit] = {}
    changed: list[str] = []
    missing = [wanted for pair in _SPLIT_FILES.values() for wanted in pair if wanted not in files]
    has_test = not set(_SPLIT_FILES["test"]) <= set(missing)
    if missing and (has_test or len(missing) > len(_SPLIT_FILES["test"])):
        raise FileNotFoundError(f"{directory} lacks {_listed(missing)}: fetch {'it' if len(missing) == 1 else 'them'}")
    for split, pair in _SPLIT_FILES.items():
        if split == "test" and not has_test:
            break
        images_path, labels_path = (files[wanted] for wanted in pair)
        images_nhw = read_idx(images_path, dimensions=3)
        labels_read_n = read_idx(labels_path, dimensions=1)
        if len(images_nhw) != len(labels_read_n):
            raise ValueError(
                f"{images_path} has {len(images_nhw)} images but {labels_path.name} {len(labels_read_n)} labels: "
                "fetch both again"
            )
        labels_n = checked_labels(labels_read_n, len(classes), where=str(labels_path))
        origins = NumberedSources([(pair[0], len(labels_n))])
        for file, array in zip(pair, (images_nhw, labels_read_n), strict=True):
            changed += [str(files[file])] if is_changed(name, file, _idx_bytes(array)) else []
        splits[split] = array_split(images_nhw[:, None], labels_n, origins=origins)
    return Source(
        name,
        classes,
        splits,
        {"kind": name, "files": {path.name: sha256_of_file(path) for path in files.values()}},
        no_test=FileNotFoundError(
            f"{directory} lacks {_listed(missing)}: fetch them, or hold a share of each class out with "
            "--test-fraction 0.2"
        ),
        changed=changed,
    )


def _listed(missing: Sequence[str]) -> str:
    return " and ".join(f"{file} (or {file}.gz)" for file in missing)


def _idx_bytes(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """The content of the IDX file of an array."""
    yield bytes([0, 0, _UINT8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    yield array.data.cast("B")
