"""Files of others that datasets are made from."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .target import Target


def _source(source: Any) -> Any:
    splits = {
        name: (one.shape, one.labels_n, [block.copy() for block in one.blocks()]) for name, one in source.splits.items()
    }
    return source.name, source.classes, splits


def _records() -> dict[str, bytes]:
    def part(seed: int, count: int) -> bytes:
        random_bytes = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
        random_bytes[:, 0] %= 10
        return random_bytes.tobytes()

    files = {f"data_batch_{number}.bin": part(number, 2) for number in range(1, 6)}
    names = "\n".join(f"thing {number}" for number in range(10))
    return {**files, "test_batch.bin": part(6, 2), "batches.meta.txt": names.encode()}


def _write_archive(path: Path, files: dict[str, bytes], *, compressed: bool) -> None:
    import io
    import tarfile

    with tarfile.open(path, "w:gz" if compressed else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _pickles() -> dict[str, bytes]:
    """CIFAR-10's Python batches, with numpy's classes by their names of today."""
    import pickle

    files = {}
    for seed, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(seed).integers(0, 256, (2, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": data, "labels": [seed, 9 - seed]}, protocol=2)
    return {**files, "batches.meta": pickle.dumps({"label_names": [f"thing {n}" for n in range(10)]}, protocol=2)}


def _write_pickles(path: Path) -> None:
    folder = path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in _pickles().items():
        (folder / name).write_bytes(content)


def _cifar10(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("cifar10", root=path, accept_changed=True))


def _write_idx(path: Path) -> None:
    import gzip
    import struct

    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 5), dtype=np.uint8)
    content = struct.pack(">BBBBIII", 0, 0, 8, 3, 3, 5, 5) + pixels.tobytes()
    (path / "images").write_bytes(content)
    (path / "images.gz").write_bytes(gzip.compress(content, mtime=0))


def _idx(path: Path) -> Any:
    from hbr_fast.data.sources.idx import read_idx

    return [read_idx(path / name, dimensions=3) for name in ("images", "images.gz")]


def _write_npz(path: Path) -> None:
    random_images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    np.savez_compressed(
        path / "a.npz",
        x_train=random_images[:4],
        y_train=np.array([0, 1, 0, 1]),
        x_test=random_images[4:],
        y_test=np.array([1, 0]),
    )


def _npz(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("npz", root=path / "a.npz"))


def _write_folder(path: Path) -> None:
    from PIL import Image

    kinds: dict[str, dict[str, Any]] = {
        "a.png": {},
        "b.jpg": {"quality": 80},
        "c.webp": {"lossless": True},
        "d.bmp": {},
    }
    for split in ("train", "test"):
        for number, label in enumerate(("cat", "dog")):
            (path / "set" / split / label).mkdir(parents=True)
            for name, options in kinds.items():
                pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / "set" / split / label / name, **options)


def _folder(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("folder", root=path / "set"))


def _write_zip(path: Path) -> None:
    _write_folder(path)
    shutil.make_archive(str(path / "set"), "zip", path, "set")
    shutil.rmtree(path / "set")


def _zip(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("folder", root=path / "set.zip"))


def _write_tars(path: Path) -> None:
    """The train split as an archive of archives, the test split compressed."""
    import io
    import tarfile

    _write_folder(path)
    files = {
        split: {str(one.relative_to(path / "set" / split)): one.read_bytes() for one in _files(path / "set" / split)}
        for split in ("train", "test")
    }
    inner = {}
    for label in ("cat", "dog"):
        own = {Path(name).name: content for name, content in files["train"].items() if name.startswith(label)}
        _write_archive(path / "inner.tar", own, compressed=False)
        inner[f"{label}.tar"] = (path / "inner.tar").read_bytes()
    (path / "inner.tar").unlink()
    _write_archive(path / "train.tar", inner, compressed=False)
    with tarfile.open(path / "train.tar", "a") as archive:
        link = tarfile.TarInfo("dog/again.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        archive.addfile(link, io.BytesIO())
    _write_archive(path / "test.tar.gz", files["test"], compressed=True)
    shutil.rmtree(path / "set")


def _tars(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("folder", train_dir=path / "train.tar", test_dir=path / "test.tar.gz"))


def _write_table(path: Path, *, parquet: bool) -> None:
    """Pictures without folders of classes; their labels and split in a table, their names in a file."""
    import polars as pl
    from PIL import Image

    (path / "set").mkdir()
    for number in range(6):
        Image.new("L", (4, 4), 40 * number).save(path / "set" / f"{number}.png")
    columns = {"label": [0, 1, 0, 1, 0, 1], "split": ["train"] * 4 + ["test"] * 2}
    table = pl.DataFrame({"file": [f"{number}.png" for number in range(6)], **columns})
    if parquet:
        table.write_parquet(path / "labels.parquet")
        (path / "names.txt").write_text("0 cat\n1 dog\n")
    else:
        table.write_csv(path / "labels.csv")
        (path / "names.json").write_text('{"0": ["n01", "cat"], "1": "dog"}')


def _table(path: Path, *, parquet: bool) -> Any:
    from hbr_fast.data.sources.opening import open_source

    table, names = ("labels.parquet", "names.txt") if parquet else ("labels.csv", "names.json")
    return _source(open_source("folder", root=path / "set", labels=str(path / table), class_names=str(path / names)))


def _write_imagenet(path: Path) -> None:
    """The development kit's list and `meta.mat` beside the pictures of the validation split."""
    from PIL import Image
    from scipy.io import savemat

    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    synsets = np.empty((2, 1), dtype=kinds)
    for row, name in enumerate(("n01", "n02")):
        (path / "set" / "train" / name).mkdir(parents=True)
        Image.new("L", (4, 4), row).save(path / "set" / "train" / name / "a.png")
        synsets[row, 0] = (float(row + 1), name, f"word {row}", np.uint8(0), np.zeros(0))
    (path / "set" / "val").mkdir()
    for number in range(1, 5):
        Image.new("L", (4, 4), 9 * number).save(path / "set" / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    (path / "set" / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n2\n1\n")
    savemat(path / "set" / "meta.mat", {"other": np.arange(3), "synsets": synsets}, do_compression=False)


def _write_saved(path: Path) -> None:
    """A Hugging Face dataset as `save_to_disk` writes it."""
    import json

    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    for split in ("train", "test"):
        (path / "set" / split).mkdir(parents=True)
        _rows(split).write_ipc_stream(path / "set" / split / "data.arrow")
        (path / "set" / split / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        (path / "set" / split / "dataset_info.json").write_text(json.dumps({"features": features}))


def _write_hub(path: Path) -> None:
    """One as on the hub: Parquet files."""
    (path / "set" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        _rows(split).write_parquet(path / "set" / "data" / f"{split}-00000-of-00001.parquet")


def _rows(split: str) -> Any:
    import io

    import polars as pl
    from PIL import Image

    rows = []
    for number in range(4):
        file = io.BytesIO()
        Image.new("L", (4, 4), 10 * number + (split == "test")).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": number % 2})
    return pl.DataFrame(rows)


def _hugging_face(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("huggingface", root=path / "set"))


def _write_beton(path: Path) -> None:
    """As FFCV writes a raw image and a JPEG a split, by the same structures."""
    import io

    from PIL import Image

    from hbr_fast.data import beton

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG")
    contents = [np.asarray(image).tobytes(), file.getvalue()]
    header, fields = np.zeros(1, beton._HEADER), np.zeros(2, beton._FIELD)
    fields["kind"] = beton._RGB, beton._INT
    for row, name in enumerate((b"image", b"label")):
        fields["name"][row, : len(name)] = np.frombuffer(name, np.uint8)
    table = np.zeros(2, np.dtype([("", beton._IMAGE), ("", np.dtype("<i8"))], align=True))
    listed = np.zeros(2, beton._ALLOCATION)
    at = header.nbytes + fields.nbytes + table.nbytes
    for row, content in enumerate(contents):
        table[row] = ((beton.RAW, beton.JPEG)[row], 4, 4, at), row
        listed[row] = row, at, len(content)
        at += len(content)
    header["version"], header["fields"], header["samples"], header["allocations_at"] = beton.VERSION, 2, 2, at
    whole = b"".join((header.tobytes(), fields.tobytes(), table.tobytes(), *contents, listed.tobytes()))
    for split in ("train", "test"):
        (path / f"{split}.beton").write_bytes(whole)


def _beton(path: Path) -> Any:
    from hbr_fast.data.sources.opening import open_source

    return _source(open_source("beton", root=path))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


TARGETS = [
    Target("cifar binary", lambda path: _write_files(path / "cifar-10-batches-bin", _records()), _cifar10),
    Target("cifar pickles", _write_pickles, _cifar10),
    Target(
        "cifar archive",
        lambda path: _write_archive(path / "cifar-10-binary.tar.gz", _records(), compressed=True),
        _cifar10,
    ),
    Target("idx", _write_idx, _idx),
    Target("npz", _write_npz, _npz),
    Target("beton", _write_beton, _beton),
    Target("pictures", _write_folder, _folder),
    Target("pictures, zip", _write_zip, _zip),
    Target("pictures, tar", _write_tars, _tars),
    Target(
        "labels, CSV and JSON", partial(_write_table, parquet=False), partial(_table, parquet=False), changed="*.*s*"
    ),
    Target("labels, Parquet", partial(_write_table, parquet=True), partial(_table, parquet=True), changed="*.*t"),
    Target("imagenet's kit", _write_imagenet, _folder, changed="*.[mt][ax]t"),
    Target("hugging face, Arrow", _write_saved, _hugging_face),
    Target("hugging face, Parquet", _write_hub, _hugging_face),
]
