"""MNIST and Fashion-MNIST from their IDX files, plain or gzipped, read strictly."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from hbr_fast.data.sources.source import (
    Source,
    SourceSplit,
    array_split,
    checked_labels,
    torchvision_download,
)
from hbr_fast.files import sha256_of_file

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
_DTYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}


def fashion_mnist(*, root: str | os.PathLike[str] | None = None, download: bool = False) -> Source:
    """Fashion-MNIST: 60,000 and 10,000 gray 28x28 images of 10 kinds of clothing.

    Looks in `root` (and in `root/FashionMNIST/raw`, where torchvision keeps it); then, where `root` is not
    given or a download is allowed, in the folder of Debian's package `dataset-fashion-mnist`; then, where
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
        If the files are nowhere to be found, or some of the four are missing.
    ValueError
        If a file is not what it should be: the message names it.
    """
    places = [] if root is None else _places(root, "FashionMNIST")
    if root is None or download:
        places.append(DEBIAN_FASHION_MNIST)
    directory = _find("fashion-mnist", "FashionMNIST", places, root=root, download=download)
    return _source("fashion-mnist", FASHION_MNIST_CLASSES, directory)


def mnist(*, root: str | os.PathLike[str] | None = None, download: bool = False) -> Source:
    """MNIST: 60,000 and 10,000 gray 28x28 images of the digits.

    Parameters and errors are those of `fashion_mnist`; there is no Debian package to fall back on.
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
        The file; whether it is gzipped is seen from its first bytes, not from its name.
    dimensions : int
        How many the file must have.

    Returns
    -------
    uint8 array, read-only
        Of the dimensions the file gives.

    Raises
    ------
    ValueError
        If the magic number, type or number of dimensions is wrong, if bytes are missing or left over, or if
        the gzip stream is damaged. The message names the file.
    """
    content = _read_maybe_gzipped(Path(path))
    header = 4 + 4 * dimensions
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file (it begins with 0x{content[:4].hex()}): fetch it again")
    if content[2] != _UINT8:
        kind = _DTYPES.get(content[2], f"type code 0x{content[2]:02x}")
        raise ValueError(f"{path} holds {kind} where uint8 (0x08) is needed: fetch the right file")
    if content[3] != dimensions:
        raise ValueError(f"{path} has {content[3]} dimensions where {dimensions} are needed: is it another file?")
    if len(content) < header:
        raise ValueError(f"{path} is truncated inside its header: fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4))
    expected, found = math.prod(shape), len(content) - header
    if found < expected:
        raise ValueError(f"{path} is truncated: {found} of {expected} bytes of data: fetch it again")
    if found > expected:
        raise ValueError(f"{path} has {found - expected} bytes after its {expected} bytes of data: fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _read_maybe_gzipped(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged or truncated gzip file ({error}): fetch it again") from None


def _places(root: str | os.PathLike[str], torchvision_name: str) -> list[Path]:
    if not Path(root).is_dir():
        return []
    return [Path(root), Path(root) / torchvision_name / "raw"]


def _present(directory: Path) -> dict[str, Path]:
    """File name without `.gz` -> the file, for those of the four that are there; a plain one is preferred."""
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
    for split, pair in _SPLIT_FILES.items():
        for wanted in pair:
            if wanted not in files:
                raise FileNotFoundError(f"{directory} lacks {wanted} (or {wanted}.gz): fetch it")
        images_path, labels_path = (files[wanted] for wanted in pair)
        images_nhw = read_idx(images_path, dimensions=3)
        labels_n = read_idx(labels_path, dimensions=1)
        if len(images_nhw) != len(labels_n):
            raise ValueError(
                f"{images_path} has {len(images_nhw)} images but {labels_path.name} {len(labels_n)} labels: "
                "fetch both again"
            )
        labels_n = checked_labels(labels_n, len(classes), where=str(labels_path))
        splits[split] = array_split(images_nhw[:, None], labels_n)
    checksums = {path.name: sha256_of_file(path) for path in files.values()}
    return Source(name, classes, splits, {"kind": name, "files": checksums})
