"""Datasets of encoded pictures: conversion, other readers of the shards, decoding, damage."""

from __future__ import annotations

import gc
import io
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import ARITHMETIC, encoded, photograph, write_photographs
from PIL import Image

from hbr_fast.data import shards, unfinished
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, Split, open_dataset
from hbr_fast.data.encoded_images import BadPicture, EncodedImages
from hbr_fast.data.shards import INDEX
from hbr_fast.data.sources import encoded as encoded_source
from hbr_fast.data.sources import read_ahead
from hbr_fast.data.sources.trees import DirectoryTree
from hbr_fast.data.verify import verify_dataset


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def dataset(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return convert("folder", tmp_path_factory.mktemp("out") / "photos.hbr", root=photos, store="encoded")


def store_of(split: Split) -> EncodedImages:
    assert isinstance(split.store, EncodedImages)
    return split.store


def names_in(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


def one_picture(tmp_path: Path, content: bytes, name: str = "0.jpg", **options: Any) -> Split:
    """The train split of a dataset whose first picture is this file."""
    root = write_photographs(tmp_path / "root", per_class=2)
    (root / "train/cat/0.jpg").unlink()
    (root / "train/cat" / name).write_bytes(content)
    return convert("folder", tmp_path / "one.hbr", root=root, store="encoded", **options).train


# --- conversion ---


def test_encoded_jpegs_are_kept_byte_for_byte(photos: Path, dataset: Dataset) -> None:
    for name, split in dataset.splits.items():
        assert split.sources is not None
        for row in range(len(split)):
            path = photos / split.sources[row]
            assert path.parts[-3] == name
            assert store_of(split).content(row) == path.read_bytes()
            entry = store_of(split).index[row]
            assert (entry["width"], entry["height"]) == Image.open(path).size


@pytest.mark.parametrize("workers", [1, 3])
def test_encoded_same_input_gives_same_bytes(
    photos: Path, dataset: Dataset, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "usable_cpus", lambda: workers)
    monkeypatch.setattr(encoded_source, "_ENCODED_ROWS", 1 + workers)
    again = convert("folder", tmp_path / "again.hbr", root=photos, store="encoded")
    for file in dataset.path.iterdir():
        assert (again.path / file.name).read_bytes() == file.read_bytes()


def test_encoded_several_shards(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 12_000)
    several = convert("folder", tmp_path / "several.hbr", root=photos, store="encoded")
    paths = store_of(several.train).shards.paths
    assert len(paths) > 2
    assert [path.name for path in paths] == [f"train.{n:05}.tar" for n in range(len(paths))]
    for path in paths:
        assert path.stat().st_size <= 12_000 + tarfile.RECORDSIZE
    names = [name for path in paths for name in names_in(path)]
    assert names == [f"{row:09}.{suffix}" for row in range(12) for suffix in ("jpg", "cls")]
    assert verify_dataset(several.path).samples == 18


def test_encoded_index_is_small_and_opens_mapped(dataset: Dataset) -> None:
    assert 14_000_000 * INDEX.itemsize < 500e6
    assert isinstance(store_of(open_dataset(dataset.path).train).index, np.memmap)


def test_encoded_shortest_makes_smaller_jpegs(photos: Path, tmp_path: Path) -> None:
    small = convert("folder", tmp_path / "s.hbr", root=photos, store="encoded", shortest=30, quality=80)
    index = store_of(small.train).index
    assert (np.minimum(index["height"], index["width"]) == 30).all()
    first = Image.open(io.BytesIO(store_of(small.train).content(0)))
    assert (first.format, first.size) == ("JPEG", (52, 30))  # from 70 x 40


def test_encoded_shortest_never_enlarges(tmp_path: Path) -> None:
    split = one_picture(tmp_path, encoded(photograph(20, 30)), shortest=64)
    assert store_of(split).index[["height", "width"]][0].tolist() == (20, 30)


def ycck(image: Image.Image) -> bytes:
    """A JPEG of luma, chroma and black, whose colours are others than the image's."""
    content = bytearray(encoded(image.convert("CMYK")))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


KINDS = {  # what becomes of a file: kept, or made a PNG of the pixels that conversion to pixels gives
    "progressive": (encoded(photograph(40, 56), progressive=True), "jpg"),
    "gray": (encoded(photograph(40, 56).convert("L")), "jpg"),
    "not-subsampled": (encoded(photograph(40, 56), subsampling=0), "jpg"),
    "cmyk": (encoded(photograph(40, 56).convert("CMYK")), "png"),
    "ycck": (ycck(photograph(40, 56)), "png"),
    "arithmetic": (ARITHMETIC, "png"),
    "lab": (encoded(photograph(40, 56).convert("LAB"), "TIFF"), "png"),
    "palette": (encoded(photograph(40, 56).convert("P"), "PNG"), "png"),
    "transparent": (encoded(photograph(40, 56).convert("RGBA"), "PNG"), "png"),
    "webp": (encoded(photograph(40, 56), "WEBP", lossless=True), "png"),
    "gif": (encoded(photograph(40, 56), "GIF", save_all=True, append_images=[photograph(40, 56, seed=2)]), "png"),
    "rgb-png": (encoded(photograph(40, 56), "PNG"), "png"),
    "almost-whole": (encoded(photograph(40, 56))[:-2], "png"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_encoded_kinds_of_pictures(kind: str, tmp_path: Path) -> None:
    content, suffix = KINDS[kind]
    split = one_picture(tmp_path, content, f"0.{kind}")
    kept = store_of(split).content(0)
    assert (kept == content) == (suffix == "jpg")
    assert names_in(store_of(split).shards.paths[0])[0] == f"000000000.{suffix}"
    whole = split.at_size((40, 56), "stretch").store.gather([0])[0].transpose(1, 2, 0)
    expected = np.asarray(Image.open(io.BytesIO(content + b"\xff\xd9" * (kind == "almost-whole"))).convert("RGB"))
    assert np.abs(whole.astype(int) - expected).max() <= 1


def test_encoded_sixteen_bits(tmp_path: Path) -> None:
    deep = (np.arange(40 * 56).reshape(40, 56) * 29 % 65536).astype(np.uint16)
    content = encoded(Image.fromarray(deep), "PNG")
    with pytest.raises(ValueError, match=r"0.png has more than 8 bits a channel .* --bit-depth 16"):
        one_picture(tmp_path, content, "0.png")
    shutil.rmtree(tmp_path / "root")
    split = one_picture(tmp_path, content, "0.png", bit_depth=16)
    whole = split.at_size((40, 56), "stretch").store.gather([0])[0]
    np.testing.assert_array_equal(whole[0], deep >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_encoded_orientations(orientation: int, tmp_path: Path) -> None:
    stored = photograph(40, 56)
    content = encoded(stored, orientation=orientation)
    split = one_picture(tmp_path, content)
    assert store_of(split).content(0) == content
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert upright is not None
    assert store_of(split).index[["height", "width"]][0].tolist() == upright.size[::-1]
    for box in ((0, 0, *upright.size[::-1]), (3, 5, 30, 31)):
        images = np.zeros((1, 3, 20, 24), np.uint8)
        whole = np.array([[0, 0, 20, 24]])
        assert store_of(split).decode(np.array([0]), np.array([box], float), whole, images, threads=1) == []
        top, left, tall, wide = box
        part = upright.resize((24, 20), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + tall))
        assert np.abs(images[0].transpose(1, 2, 0).astype(int) - np.asarray(part)).mean() < 1.5


def test_encoded_bad_files_are_named_or_skipped(tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "root")
    (root / "train/cat/0.jpg").write_bytes(encoded(photograph(400, 600))[:3000])
    (root / "train/dog/1.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cat/0.jpg is not a .*dog/1.jpg is not a readable .*\(2 such files\)"):
        convert("folder", tmp_path / "x.hbr", root=root, store="encoded")
    assert not list(tmp_path.glob("*.hbr"))
    made = convert("folder", tmp_path / "x.hbr", root=root, store="encoded", skip_bad=True)
    assert len(made.train) == 10
    assert made.train.sources is not None
    assert made.train.sources[0] == "train/cat/1.jpg"
    assert (made.path / "skipped.csv").read_text().count("is not a readable image") == 2
    assert names_in(store_of(made.train).shards.paths[0])[-1] == "000000009.cls"
    for path in (root / "test").rglob("*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of the 6 images of test can be used: without --skip-bad the reasons"):
        convert("folder", tmp_path / "y.hbr", root=root, store="encoded", skip_bad=True)


def test_encoded_large_pictures_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 2,800 pixels, more than the 2,000 that are allowed \(--max-pixels\)"):
        convert("folder", tmp_path / "x.hbr", root=photos, store="encoded", max_pixels=2000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store": "tar"}, "store must be raw or encoded, got 'tar'"),
        ({"shortest": 256}, "--shortest and --quality are of encoded pictures: give --store encoded"),
        ({"store": "encoded", "size": (32, 32)}, "encoded pictures keep their own sizes: leave out --size"),
        ({"store": "encoded", "quality": 80}, "JPEGs are kept as they are: give --shortest with --quality"),
        ({"store": "encoded", "shortest": 0}, "shortest must be at least one pixel, got 0"),
        ({"store": "encoded", "shortest": 64, "quality": 100}, r"quality must be in 1\.\.95, got 100"),
    ],
)
def test_encoded_options_are_checked(photos: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert("folder", tmp_path / "x.hbr", root=photos, **options)


# --- interrupted conversions ---

CHILD = """
import os, sys
from hbr_fast.data import shards, unfinished
from hbr_fast.data.convert import convert
root, out, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
shards.SHARD_BYTES, shards.WRITE_BYTES = 12_000, 1
write, writes = shards._Shard._write, 0
def counted(shard):
    global writes
    writes += 1
    if writes == stop:
        shard._file.write(b"".join(shard._parts)[:700])
        os.kill(os.getpid(), 9)
    write(shard)
shards._Shard._write = counted
convert("folder", out, root=root, store="encoded")
"""


def test_killed_conversion_goes_on_at_the_last_whole_shard(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 12_000)
    whole = convert("folder", tmp_path / "whole.hbr", root=photos, store="encoded")
    out = tmp_path / "out.hbr"
    left = tmp_path / ".out.hbr.shards"
    done = subprocess.run([sys.executable, "-c", CHILD, str(photos), str(out), "17"], check=False)
    assert done.returncode == -9
    finished = len(list(left.glob("*.json"))) - 1  # beside the identity
    assert finished >= 1
    assert not out.exists()
    capsys.readouterr()
    read, real = list[str](), DirectoryTree.read

    def counted(tree: DirectoryTree, path: str) -> bytes:
        read.append(path)
        return real(tree, path)

    monkeypatch.setattr(DirectoryTree, "read", counted)
    again = convert("folder", out, root=photos, store="encoded")
    assert f"goes on after {finished} shards of an interrupted conversion" in capsys.readouterr().err
    assert 0 < len(read) < 18
    for file in whole.path.iterdir():
        assert (again.path / file.name).read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.hbr", "whole.hbr"]


def test_interrupted_at_any_moment_ends_with_the_same_bytes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at 20 moments, in this process; a kill leaves no more behind than this."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 12_000)
    whole = convert("folder", tmp_path / "whole.hbr", root=photos, store="encoded")
    expected = {file.name: file.read_bytes() for file in whole.path.iterdir()}
    monkeypatch.setattr(shards, "WRITE_BYTES", 1)  # a write for each of the 36 members, and one for each end
    write = shards._Shard._write
    for stop in np.random.default_rng(1).choice(np.arange(1, 37), 20, replace=False).tolist():
        writes = 0

        def interrupted(shard: Any, stop: int = stop) -> None:
            nonlocal writes
            writes += 1
            if writes == stop:
                raise KeyboardInterrupt
            write(shard)

        monkeypatch.setattr(shards._Shard, "_write", interrupted)
        out = tmp_path / "out.hbr"
        with pytest.raises(KeyboardInterrupt):
            convert("folder", out, root=photos, store="encoded", force=True)
        monkeypatch.setattr(shards._Shard, "_write", write)
        again = convert("folder", out, root=photos, store="encoded", force=True)
        assert {file.name: file.read_bytes() for file in again.path.iterdir()} == expected


@pytest.mark.parametrize("how", ["link", "directory"])
def test_place_of_unfinished_shards_with_files_of_others(photos: Path, tmp_path: Path, how: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "notes.md").write_text("mine")
    taken = tmp_path / ".out.hbr.shards"
    taken.symlink_to(precious) if how == "link" else precious.rename(taken)
    with pytest.raises(FileExistsError, match="is a link" if how == "link" else "holds 'notes.md', which it did not"):
        convert("folder", tmp_path / "out.hbr", root=photos, store="encoded")
    assert {path.name for path in taken.iterdir()} - {".lock"} == {"notes.md"}


def test_shards_of_other_pictures_or_damaged_ones_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 12_000)
    root = write_photographs(tmp_path / "root")
    out, left = tmp_path / "out.hbr", tmp_path / ".out.hbr.shards"

    def interrupt() -> None:
        calls = 0
        keep = unfinished.Unfinished.keep

        def kept(self: unfinished.Unfinished, shard: shards.FinishedShard) -> None:
            nonlocal calls
            calls += 1
            keep(self, shard)
            if calls == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(unfinished.Unfinished, "keep", kept)
            with pytest.raises(KeyboardInterrupt):
                convert("folder", out, root=root, store="encoded")
        assert (left / "train.00001.json").is_file()

    interrupt()
    (root / "train/cat/0.jpg").write_bytes(encoded(photograph(31, 33, seed=9)))
    made = convert("folder", out, root=root, store="encoded")
    assert store_of(made.train).content(0) == (root / "train/cat/0.jpg").read_bytes()
    verify_dataset(out)
    shutil.rmtree(out)
    interrupt()
    first = left / "train.00000.json"
    first.write_text(first.read_text().replace('"bytes": ', '"bytes": 1'))  # its checksum no longer fits
    convert("folder", out, root=root, store="encoded")
    verify_dataset(out)
    assert not left.exists()


def test_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "root")
    (root / "test/dog/0.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="is not a readable"):
        convert("folder", tmp_path / "out.hbr", root=root, store="encoded")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


# --- other readers ---


def test_encoded_shards_are_read_by_webdataset(dataset: Dataset) -> None:
    webdataset = pytest.importorskip("webdataset")
    store = store_of(dataset.train)
    samples = list(webdataset.WebDataset([str(path) for path in store.shards.paths], shardshuffle=False))
    assert [int(sample["__key__"]) for sample in samples] == list(range(12))
    assert [sample["jpg"] for sample in samples] == [store.content(row) for row in range(12)]
    assert [int(sample["cls"]) for sample in samples] == dataset.train.labels.tolist()


def test_encoded_shards_are_read_by_dali(dataset: Dataset) -> None:
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import Pipeline, fn

    readers: Any = fn.readers

    store = store_of(dataset.train)
    pipeline = Pipeline(batch_size=12, num_threads=1, device_id=None)
    with pipeline:
        paths = [str(path) for path in store.shards.paths]
        pictures, labels = readers.webdataset(paths=paths, ext=["jpg;png", "cls"])
        pipeline.set_outputs(pictures, labels)
    pipeline.build()
    outputs: Any = pipeline.run()
    pictures, labels = outputs
    for row in range(12):
        assert pictures.at(row).tobytes() == store.content(row)
        assert int(labels.at(row).tobytes()) == dataset.train.labels[row]
    del pipeline
    gc.collect()  # in a forked process, its collection would wait forever


# --- decoding ---


def test_gather_matches_torchvision_evaluation(dataset: Dataset) -> None:
    from torchvision.transforms import v2

    for size in (224, 32):
        split = dataset.train.at_size(size)
        standard = v2.Compose([v2.Resize(int(size * 256 / 224), antialias=True), v2.CenterCrop(size)])
        for row, image in enumerate(split.store.gather(range(len(split)))):
            picture = Image.open(io.BytesIO(store_of(split).content(row)))
            expected = np.asarray(standard(picture)).transpose(2, 0, 1)
            assert np.abs(image.astype(int) - expected).mean() < 2


def test_gather_pads_with_black_and_stretches(tmp_path: Path) -> None:
    split = one_picture(tmp_path, encoded(Image.new("RGB", (80, 40), (200, 100, 50))))
    padded = split.at_size(32, "pad").store.gather([0])[0]
    assert (padded[:, :8] == 0).all()
    assert (padded[:, 24:] == 0).all()
    assert np.abs(padded[:, 8:24].astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 2
    stretched = split.at_size(32, "stretch").store.gather([0])[0]
    assert np.abs(stretched.astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 2


def test_gather_is_the_same_for_any_number_of_rows_and_order(dataset: Dataset) -> None:
    store = store_of(dataset.train).at_size(24)
    together = store.gather(range(12))
    np.testing.assert_array_equal(store.gather([7, 0, 7]), together[[7, 0, 7]])
    np.testing.assert_array_equal(np.concatenate(list(store.blocks())), together)
    out = np.empty_like(together)
    assert store.gather(range(12), out=out) is out
    np.testing.assert_array_equal(out, together)
    with pytest.raises(IndexError, match="row 12 of 12"):
        store.gather([3, 12])


def test_gather_after_release_and_in_another_process(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "RELEASE_BYTES", 1)
    store = store_of(dataset.train).at_size(24)
    before = store.gather(range(12))
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent).gather(range(12)), before)
    store.release_memory()
    np.testing.assert_array_equal(store.gather(range(12)), before)


def test_gray_datasets_decode_to_one_channel(tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "root")
    gray = convert("folder", tmp_path / "g.hbr", root=root, store="encoded", mode="gray").train.at_size(24)
    colour = convert("folder", tmp_path / "c.hbr", root=root, store="encoded").train.at_size(24)
    assert gray.image_shape == (1, 24, 24)
    luma = np.tensordot(np.array([0.299, 0.587, 0.114]), colour.store.gather([0, 3]), (0, 1))
    assert np.abs(gray.store.gather([0, 3])[:, 0] - luma).mean() < 1.5


def test_sizes_are_checked(dataset: Dataset) -> None:
    assert dataset.train.store.image_shape is None
    with pytest.raises(ValueError, match=r"images of split 'train' vary in size: choose one, e.g. split.at"):
        _ = dataset.train.image_shape
    with pytest.raises(ValueError, match="pictures vary in size: choose one"):
        dataset.train.store.gather([0])
    for wrong in (0, -3, 2.5, (3, 4, 5), True, 2**15):
        with pytest.raises(ValueError, match="size must be one side in pixels, or height and width"):
            dataset.train.at_size(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fit must be one of crop, pad, stretch, got 'cut'"):
        dataset.train.at_size(3, "cut")  # type: ignore[arg-type]


# --- damage ---


@pytest.fixture
def damaged(dataset: Dataset, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged."""
    return Path(shutil.copytree(dataset.path, tmp_path / "damaged.hbr"))


def change_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


def test_verify_finds_every_damaged_byte(dataset: Dataset, damaged: Path) -> None:
    """50 random bytes of a shard: each is found, a picture is named if it is one's, and none gives a wrong picture."""
    shard = damaged / "train.00000.tar"
    content, store = shard.read_bytes(), store_of(dataset.train).at_size(16)
    whole = store.gather(range(12))
    named = 0
    for at in np.random.default_rng(0).integers(0, len(content), 50).tolist():
        change_byte(shard, at)
        hit = [
            row
            for row, entry in enumerate(store.index)
            if entry["offset"] <= at < entry["offset"] + entry["length"]
        ]  # fmt: skip
        what = f"picture {hit[0]} of train in train.00000.tar \\(train/" if hit else "train.00000.tar was changed after"
        with pytest.raises(ValueError, match=what):
            verify_dataset(damaged)
        opened = store_of(open_dataset(damaged).train).at_size(16)
        images = np.empty_like(whole)
        rows = np.arange(12)
        bad = opened.decode(rows, *views_of(opened), images, threads=2)
        assert [one.row for one in bad] == hit
        good = np.delete(rows, hit)
        np.testing.assert_array_equal(images[good], whole[good])
        assert not images[hit].any()
        named += len(hit)
        shard.write_bytes(content)
    assert named > 5
    verify_dataset(damaged)


def views_of(store: EncodedImages) -> tuple[np.ndarray, np.ndarray]:
    from hbr_fast.data.views import views

    assert store.size is not None
    return views(store.index["height"], store.index["width"], store.size, store.fit)


def test_damaged_pictures_are_named_by_gather(damaged: Path) -> None:
    split = open_dataset(damaged).train
    change_byte(damaged / "train.00000.tar", int(store_of(split).index["offset"][5]) + 100)
    with pytest.raises(BadPicture, match=r"/train\.00000\.tar: picture 5 is not as it was .*: convert the"):
        split.at_size(16).store.gather(range(12))
    assert split.at_size(16).store.gather([4, 6]).any()


def test_index_that_points_outside_is_not_followed(dataset: Dataset, damaged: Path) -> None:
    for field, value in (("offset", 2**40), ("offset", -5), ("length", 2**30), ("length", -1), ("shard", 3)):
        index = np.load(dataset.path / "train.index.npy", allow_pickle=False)
        index[field][2] = value
        np.save(damaged / "train.index.npy", index, allow_pickle=False)
        store = store_of(open_dataset(damaged).train).at_size(16)
        with pytest.raises(BadPicture, match="picture 2 "):
            store.gather(range(12))


@pytest.mark.parametrize("change", ["cut", "index"])
def test_files_that_do_not_fit_are_refused_when_opened(damaged: Path, change: str) -> None:
    if change == "cut":
        shard = damaged / "train.00000.tar"
        shard.write_bytes(shard.read_bytes()[:-512])
        message = r"train.00000.tar has \d+ bytes instead of \d+: convert it again with --force"
    else:
        old = np.load(damaged / "train.index.npy", allow_pickle=False)[["offset", "length"]]
        size = (damaged / "train.index.npy").stat().st_size
        np.save(damaged / "train.index.npy", old.astype([("offset", "<i8"), ("length", "<i8")]), allow_pickle=False)
        path = damaged / "train.index.npy"
        path.write_bytes(path.read_bytes().ljust(size, b"\0")[:size])
        message = r"train.index.npy holds .* instead of .*: convert it again with --force"
    with pytest.raises(ValueError, match=message):
        open_dataset(damaged)
