"""Writing a source as a dataset: pixels are written once, planar, with checksums and channel statistics."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast import progress
from hbr_fast.data import shards
from hbr_fast.data.class_counts import notes_on_counts
from hbr_fast.data.convert_encoded import pictures_mean_std, write_pictures
from hbr_fast.data.dataset import Dataset, fingerprint_of, open_dataset
from hbr_fast.data.duplicates import PictureHashes, notes_on_repeated, repeated_pictures
from hbr_fast.data.images import channel_mean_std, channel_sums
from hbr_fast.data.meta_json import META, SCHEMA, SCHEMA_ENCODED
from hbr_fast.data.replaceable import require_replaceable
from hbr_fast.data.sample_sources import (
    PARTS,
    NumberedSources,
    SampleSources,
    kept_sources,
    packed_names,
)
from hbr_fast.data.shards import BLOCK, INDEX, INDEX_PART, SHARD_PART, STORE
from hbr_fast.data.sources import EncodedSplit, Findings, Source, SourceSplit
from hbr_fast.data.sources.opening import open_source
from hbr_fast.data.unfinished import Unfinished, unfinished_shards
from hbr_fast.files import DISK_FULL, atomic_directory, make_directory, remove_leftovers, sha256_of_file
from hbr_fast.json_schema import write_sealed_json
from hbr_fast.progress import printable


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
        One of `SOURCES`; for torchvision with the dataset's class: "torchvision:SVHN".
    out : path
        The directory to write; its name ends in `.hbr`.
    root : path, optional
        Where the source's files are: a directory, an archive, or the file of `npz`.
    download : bool
        Whether torchvision may fetch what is missing into `root`.
    force : bool
        Whether to replace what is at `out`.
    **options
        `test_fraction` and `seed` hold out a test split if the source has none: that share of each class, rounded half
        up. `accept_changed` admits files that differ from the published ones. Others are passed to the source's
        function, e.g. `size=(32, 32)` for folder. None means not given.

    Returns
    -------
    Dataset
        Opened.

    Raises
    ------
    FileExistsError
        If `out` exists and `force` is false.
    FileNotFoundError, ValueError
        If the source's files are missing or wrong, the source is unknown, or it does not take an option.
    OSError
        If the disk is full. On any failure, nothing half-written is left behind.

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
    check_output(out, force=force)  # before reading the source, which can take minutes
    return write_dataset(open_source(source, root=root, download=download, **options), out, force=force)


def write_dataset(source: Source, out: str | os.PathLike[str], *, force: bool = False) -> Dataset:
    """Write a source to the directory `out` (ending in `.hbr`), whole or not at all.

    The same input gives the same bytes. Images are processed block by block, each written once.

    Raises
    ------
    FileExistsError, ValueError, OSError
        As in `convert`.
    """
    out = Path(out)
    check_output(out, force=force)
    _check_source(source)
    for left in remove_leftovers(out):  # before checking the free space
        progress.say(f"removed {left}, left by a conversion that was killed")
    needed = sum(_least_bytes(split) for split in source.splits.values())
    make_directory(out.parent)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise OSError(
            f"no space left for {out}, which needs at least {needed / 1e6:,.1f} MB, of which {free / 1e6:,.1f} MB are "
            "free: free some or choose another place"
        )
    try:
        with _unfinished(source, out) as unfinished, atomic_directory(out, force=force) as directory:
            _write(source, directory, unfinished)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(
                f"no space left for {out}, which needs at least {needed / 1e6:,.1f} MB: "
                "free some or choose another place"
            ) from error
        raise
    return open_dataset(out)


def _unfinished(source: Source, out: Path) -> contextlib.AbstractContextManager[Unfinished | None]:
    """Where shards of encoded pictures are written until the dataset is whole."""
    encoded = {name: split for name, split in source.splits.items() if isinstance(split, EncodedSplit)}
    if not encoded:
        return contextlib.nullcontext()
    splits = {name: split.identity() for name, split in encoded.items()}
    return unfinished_shards(out, {"shard_bytes": shards.SHARD_BYTES, "splits": splits})


def _least_bytes(split: SourceSplit | EncodedSplit) -> int:
    """What a split takes on disk; of encoded pictures, whose sizes are not known yet, the least: tar's blocks."""
    if isinstance(split, EncodedSplit):
        return len(split) * (4 * BLOCK + INDEX.itemsize + 8)
    return len(split) * (int(np.prod(split.shape)) + 8)


def check_output(out: str | os.PathLike[str], *, force: bool) -> None:
    """Refuse a name that does not end in `.hbr`, exists (unless `force`), or is taken by something not a dataset."""
    out = Path(out)
    if out.suffix != ".hbr":
        raise ValueError(f"{out} does not end in .hbr: name the dataset {out.name}.hbr")
    if os.path.lexists(out):
        if not force:
            raise FileExistsError(f"{out} exists already: choose another name or replace it with --force")
        require_replaceable(out)


def _check_source(source: Source) -> None:
    shapes = {name: split.shape for name, split in source.splits.items() if isinstance(split, SourceSplit)}
    other = next((name for name, shape in shapes.items() if shape != shapes["train"]), None)
    if other is not None:
        raise ValueError(
            f"{source.name}: train images are {list(shapes['train'])} but {other} images are {list(shapes[other])} "
            "(channels, height, width): give both one shape"
        )
    broken = [name for name in source.classes if any("\ud800" <= letter <= "\udfff" for letter in name)]
    if broken:  # Python's representation of a folder name that is not UTF-8
        raise ValueError(
            f"{source.name}: the name of class {broken[0]!a} is not UTF-8 ({len(broken)} such), so no results file "
            "could hold it: rename it"
        )
    blank = [number for number, name in enumerate(source.classes) if not name.strip()]
    if blank:
        raise ValueError(f"{source.name}: class {blank[0]} has no name ({len(blank)} such): give it one")
    counts = Counter(unicodedata.normalize("NFC", name) for name in source.classes)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise ValueError(f"{source.name}: two classes are named {repeated[0]!r}: give each a name of its own")
    _check_labels(source, {name: split.labels_n for name, split in source.splits.items()})


def _check_labels(source: Source, labels: dict[str, np.ndarray]) -> None:
    """Refuse an empty split, one class, or a class without samples to train on or to test."""
    for name, labels_n in labels.items():
        if len(labels_n) == 0:
            raise ValueError(f"{source.name}: the {name} split is empty: give it images")
    if len(source.classes) < 2:
        raise ValueError(
            f"{source.name}: there is only one class, {source.classes[0]!r}: classification needs at least two"
        )
    for name, labels_n in labels.items():
        if name not in ("train", "test"):
            continue
        empty = np.flatnonzero(np.bincount(labels_n, minlength=len(source.classes)) == 0)
        if len(empty):
            first = f"class {source.classes[empty[0]]!r} (label {empty[0]}) has no sample in {name}"
            others = ", ".join(repr(source.classes[label]) for label in empty[1:21])
            more = f", nor {others}" if others else ""
            raise ValueError(f"{source.name}: {first}{more} ({len(empty)} such): give it some or remove the class")


def _write(source: Source, directory: Path, unfinished: Unfinished | None) -> None:
    files: dict[str, dict[str, Any]] = {}
    splits: dict[str, dict[str, Any]] = {}
    written = {name: _write_split(directory, name, split, unfinished) for name, split in source.splits.items()}
    findings = source.findings() if source.findings is not None else Findings(source.origin)
    kept = {name: _kept_rows(len(split), findings.left_out.get(name)) for name, split in source.splits.items()}
    labels = {name: split.labels_n[kept[name]] for name, split in source.splits.items()}
    for name, split in source.splits.items():
        if len(split) and not len(labels[name]):
            raise ValueError(
                f"{source.name}: none of the {len(split):,} images of {name} can be used: without --skip-bad the "
                "reasons are given"
            )
    _check_labels(source, labels)
    for name, split in source.splits.items():
        parts = {**written[name].parts, "labels": f"{name}.labels.npy"}
        assert len(written[name].hashes) == len(labels[name]), "a source yields as many images as labels"
        files |= written[name].files
        files[parts["labels"]] = _write_array(directory / parts["labels"], labels[name])
        if split.truth_n is not None:
            parts["hardness"] = f"{name}.hardness.npy"
            files[parts["hardness"]] = _write_array(directory / parts["hardness"], split.truth_n[kept[name]])
        numbered = _write_sources(directory, name, split, kept[name], parts, files)
        splits[name] = {"samples": len(labels[name]), **written[name].entry, "files": parts, **numbered}
    mean, std = written["train"].mean_std()
    if min(std) == 0:
        channel = std.index(0.0)
        raise ValueError(
            f"{source.name}: channel {channel} has one value in all of train and cannot be normalised: "
            "correct the images or leave the channel out"
        )
    for file, content in findings.files.items():
        (directory / file).write_bytes(content)
    meta = {
        "schema": SCHEMA_ENCODED if isinstance(source.splits["train"], EncodedSplit) else SCHEMA,
        "name": source.name,
        "source": findings.origin,
        "classes": list(source.classes),
        "mean": list(mean),
        "std": list(std),
        "splits": splits,
        "files": files,
        "fingerprint": fingerprint_of(files, source.classes),
    }
    write_sealed_json(directory / META, meta)
    missing = notes_on_counts({name: split.labels_n for name, split in source.splits.items()}, source.classes)
    for note in [*findings.notes, *missing, *_notes_on_repeated(source, kept, labels, written)]:
        progress.say(f"{source.name}: {note}")


def _kept_rows(count: int, left_out_n: np.ndarray | None) -> np.ndarray:
    rows = np.arange(count)
    return rows if left_out_n is None else np.delete(rows, left_out_n)


def _notes_on_repeated(
    source: Source, kept: dict[str, np.ndarray], labels: dict[str, np.ndarray], written: dict[str, _Written]
) -> list[str]:
    def name_of(name: str, row: int) -> str:
        return printable(_origins(name, source.splits[name])[int(kept[name][row])])

    hashes = {name: one.hashes for name, one in written.items()}
    pairs = repeated_pictures(hashes, labels, lambda name, row: written[name].picture(row))
    return notes_on_repeated(pairs, labels, source.classes, name_of)


def _origins(name: str, split: SourceSplit | EncodedSplit) -> SampleSources:
    return NumberedSources([(name, len(split))]) if split.origins is None else split.origins


def _write_sources(
    directory: Path,
    name: str,
    split: SourceSplit | EncodedSplit,
    kept: np.ndarray,
    parts: dict[str, str],
    files: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Keep where the samples came from: in files, added to `parts` and `files`, or in the return value."""
    sources = kept_sources(_origins(name, split), kept)
    if isinstance(sources, NumberedSources):
        return {"sources": [list(run) for run in sources.runs]}
    packed = packed_names(sources)
    for part, array in zip(PARTS, (packed.names, packed.offsets), strict=True):
        parts[part] = f"{name}.{part}.npy"
        files[parts[part]] = _write_array(directory / parts[part], array)
    return {}


@dataclass(frozen=True)
class _Written:
    """The images of a split as written.

    Attributes
    ----------
    parts : dict
        File names by what they are.
    files : dict
        Entries of `meta.json` by file name.
    entry : dict
        What the split's own entry there says of the images.
    hashes : uint64 [N]
    picture : callable
        From a row to what is compared: pixels, or encoded bytes.
    mean_std : callable
        Of each channel.
    """

    parts: dict[str, str]
    files: dict[str, dict[str, Any]]
    entry: dict[str, Any]
    hashes: np.ndarray
    picture: Callable[[int], np.ndarray]
    mean_std: Callable[[], tuple[tuple[float, ...], tuple[float, ...]]]


def _write_split(
    directory: Path, name: str, split: SourceSplit | EncodedSplit, unfinished: Unfinished | None
) -> _Written:
    if isinstance(split, EncodedSplit):
        assert unfinished is not None
        written = write_pictures(directory, name, split, unfinished)
        index = f"{name}.{INDEX_PART}.npy"
        return _Written(
            parts={INDEX_PART: index, **{f"{SHARD_PART}{n:05}": file for n, file in enumerate(written.files)}},
            files={index: _write_array(directory / index, written.store.index), **written.files},
            entry={"store": STORE, "channels": split.channels},
            hashes=written.hashes(),
            picture=written.content,
            mean_std=lambda: pictures_mean_std(written.store),
        )
    file = f"{name}.images.npy"
    entry, mean_std, hashes = _write_images(directory / file, name, split)
    images = np.load(directory / file, mmap_mode="r", allow_pickle=False)
    return _Written(
        parts={"images": file},
        files={file: entry},
        entry={"shape": list(split.shape)},
        hashes=hashes,
        picture=lambda row: images[row],
        mean_std=lambda: mean_std,
    )


def _write_images(
    path: Path, name: str, split: SourceSplit
) -> tuple[dict[str, Any], tuple[tuple[float, ...], tuple[float, ...]], np.ndarray]:
    """Write a split's images; return its entry under `files`, its (mean, std) and a hash of every picture."""
    channels, height, width = split.shape
    sums_c, squares_c = np.zeros(channels, dtype=np.int64), np.zeros(channels, dtype=np.int64)
    hashes = PictureHashes(channels * height * width)
    header = _npy_header(np.dtype(np.uint8), (len(split), *split.shape))
    digest = hashlib.sha256(header)
    written = 0
    # Plain writes, not a memory map: a full disk then raises an error here instead of a signal that ends the
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
            hashes.add(block_nchw)
            digest.update(block_nchw.data)
            file.write(block_nchw.data)
            written += len(block_nchw)
            advance(len(block_nchw), block_nchw.nbytes)
    checksum = digest.hexdigest()
    if written < len(split):  # the source left some out: the count is known only now
        shorter = _npy_header(np.dtype(np.uint8), (written, *split.shape))
        assert len(shorter) == len(header), "numpy pads headers to a multiple of 64 bytes"
        with open(path, "r+b") as file:
            file.write(shorter)
        checksum = sha256_of_file(path)
    entry = {"sha256": checksum, "bytes": path.stat().st_size}
    return entry, channel_mean_std(max(written, 1) * height * width, sums_c, squares_c), hashes.values()


def _write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Write an array as `.npy`, without a copy of it; return its entry under `files`."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    header, content = _npy_header(little.dtype, little.shape), little.reshape(-1).view(np.uint8).data
    digest = hashlib.sha256(header)
    digest.update(content)
    with open(path, "wb") as file:
        file.write(header)
        file.write(content)
    return {"sha256": digest.hexdigest(), "bytes": len(header) + len(content)}


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
