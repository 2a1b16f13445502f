"""Writing a source as a dataset: pixels are written once, planar, with checksums and channel statistics."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast import progress
from hbr_fast.data.dataset import (
    META,
    SCHEMA,
    Dataset,
    channel_mean_std,
    channel_sums,
    fingerprint_of,
    open_dataset,
)
from hbr_fast.data.sources import SOURCES, Source, SourceSplit
from hbr_fast.files import DISK_FULL, atomic_directory, write_json


def convert(
    source: str,
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    force: bool = False,
    **options: Any,
) -> Dataset:
    """Convert a named source to a dataset.

    Parameters
    ----------
    source : str
        One of `SOURCES`: fashion-mnist, mnist, cifar10, cifar100, folder, npz, beton, synthetic.
    out : path
        The directory to write; its name ends in `.hbr`.
    root : path, optional
        Where the source's files are: a directory, an archive, or the file of `npz`.
    download : bool
        Whether torchvision may fetch what is missing into `root`.
    force : bool
        Whether to replace what is at `out`.
    **options
        Of the source's function, e.g. `size=(32, 32)` for folder; None stands for not given.

    Returns
    -------
    Dataset
        Opened.

    Raises
    ------
    FileExistsError
        If `out` exists and `force` is false.
    FileNotFoundError, ValueError
        If the source's files are missing or wrong, the source is unknown, or an option is not one of its own.
    OSError
        If the disk is full. Whatever fails, nothing half-written is left behind.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = Path(folder) / "toy.hbr"
    ...     dataset = convert("synthetic", out, classes=3, train_per_class=4, test_per_class=2)
    ...     dataset.train.images.shape
    (12, 3, 32, 32)
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}: choose one of {', '.join(SOURCES)}")
    check_output(out, force=force)  # before a source is read, which can take minutes
    given = {"root": root, "download": download or None, **options}
    given = {name: value for name, value in given.items() if value is not None}
    taken = inspect.signature(SOURCES[source]).parameters
    for name in given:
        if name not in taken:
            raise ValueError(f"source {source} takes no option {name!r}: it takes {', '.join(taken)}")
    return write_dataset(SOURCES[source](**given), out, force=force)


def write_dataset(source: Source, out: str | os.PathLike[str], *, force: bool = False) -> Dataset:
    """Write what a source holds to the directory `out` (ending in `.hbr`), whole or not at all.

    The same input gives the same bytes. Images pass block by block, each written once.

    Raises
    ------
    FileExistsError, ValueError, OSError
        As in `convert`.
    """
    out = Path(out)
    check_output(out, force=force)
    _check_source(source)
    try:
        with atomic_directory(out, force=force) as directory:
            _write(source, directory)
    except OSError as error:
        if error.errno in DISK_FULL:
            needed = sum(len(split) * int(np.prod(split.shape)) for split in source.splits.values())
            raise OSError(
                f"no space left for {out}, which needs {needed / 1e6:,.1f} MB: free some or choose another place"
            ) from error
        raise
    return open_dataset(out)


def check_output(out: str | os.PathLike[str], *, force: bool) -> None:
    """Refuse a name that is taken (unless `force`) or does not end in `.hbr`."""
    out = Path(out)
    if out.suffix != ".hbr":
        raise ValueError(f"{out} does not end in .hbr: name the dataset {out.name}.hbr")
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists already: choose another name or replace it with --force")


def _check_source(source: Source) -> None:
    train, test = source.splits["train"], source.splits["test"]
    for name, split in source.splits.items():
        if len(split) == 0:
            raise ValueError(f"{source.name}: the {name} split is empty: give it images")
    if train.shape != test.shape:
        raise ValueError(
            f"{source.name}: train images are {list(train.shape)} but test images are {list(test.shape)} "
            "(channels, height, width): give both one shape"
        )
    empty = np.flatnonzero(np.bincount(train.labels_n, minlength=len(source.classes)) == 0)
    if len(empty):
        raise ValueError(
            f"{source.name}: class {source.classes[empty[0]]!r} (label {empty[0]}) has no sample in train "
            f"({len(empty)} such): give it some or remove the class"
        )
    repeated = sorted({name for name in source.classes if source.classes.count(name) > 1})
    if repeated:
        raise ValueError(f"{source.name}: two classes are named {repeated[0]!r}: give each a name of its own")


def _write(source: Source, directory: Path) -> None:
    files: dict[str, dict[str, Any]] = {}
    splits: dict[str, dict[str, Any]] = {}
    statistics: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}
    for name, split in source.splits.items():
        parts = {"images": f"{name}.images.npy", "labels": f"{name}.labels.npy"}
        files[parts["images"]], statistics[name] = _write_images(directory / parts["images"], name, split)
        files[parts["labels"]] = _write_array(directory / parts["labels"], split.labels_n)
        if split.truth_n is not None:
            parts["hardness"] = f"{name}.hardness.npy"
            files[parts["hardness"]] = _write_array(directory / parts["hardness"], split.truth_n)
        splits[name] = {"samples": len(split), "shape": list(split.shape), "files": parts}
    mean, std = statistics["train"]
    if min(std) == 0:
        channel = std.index(0.0)
        raise ValueError(
            f"{source.name}: channel {channel} has one value in all of train and cannot be normalised: "
            "correct the images or leave the channel out"
        )
    meta = {
        "schema": SCHEMA,
        "name": source.name,
        "source": source.origin,
        "classes": list(source.classes),
        "mean": list(mean),
        "std": list(std),
        "splits": splits,
        "files": files,
        "fingerprint": fingerprint_of(files, source.classes),
    }
    write_json(directory / META, meta)


def _write_images(
    path: Path, name: str, split: SourceSplit
) -> tuple[dict[str, Any], tuple[tuple[float, ...], tuple[float, ...]]]:
    """Write a split's images; return its entry under `files` and its (mean, std)."""
    channels, height, width = split.shape
    sums_c, squares_c = np.zeros(channels, dtype=np.int64), np.zeros(channels, dtype=np.int64)
    header = _npy_header(np.dtype(np.uint8), (len(split), *split.shape))
    digest = hashlib.sha256(header)
    written = 0
    # Plain writes and not a memory map: a full disk is then an error here and not a signal that ends the
    # process.
    with (
        open(path, "wb") as file,
        progress.task(f"convert {name}", total=len(split), unit="images") as advance,
    ):
        file.write(header)
        for block in split.blocks():
            block_nchw = np.ascontiguousarray(block)
            assert block_nchw.dtype == np.uint8
            assert block_nchw.shape[1:] == split.shape
            sums, squares = channel_sums(block_nchw)
            sums_c += sums
            squares_c += squares
            digest.update(block_nchw.data)
            file.write(block_nchw.data)
            written += len(block_nchw)
            advance(len(block_nchw))
    assert written == len(split), "a source yields as many images as labels"
    entry = {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}
    return entry, channel_mean_std(written * height * width, sums_c, squares_c)


def _write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Write a small array as `.npy`; return its entry under `files`."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    content = _npy_header(little.dtype, little.shape) + little.tobytes()
    path.write_bytes(content)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
