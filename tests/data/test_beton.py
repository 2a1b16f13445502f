"""FFCV's format: read without FFCV, written atomically by FFCV itself."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pickle
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loaders.contracts import GUARD_S, make_split, wait_until
from photographs import encoded, photograph, write_photographs

from hbr_fast import cli
from hbr_fast.data import beton_writer
from hbr_fast.data.beton import RAW, open_beton, read_beton
from hbr_fast.data.beton_pictures import pictures_of
from hbr_fast.data.beton_writer import write_beton
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import open_dataset
from hbr_fast.data.encoded_images import BadPicture, EncodedImages

# Not importorskip: FFCV compiles for seconds when it is imported, and every test process would do so to collect.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed")


@pytest.fixture(autouse=True, scope="module")
def _ffcv_imported() -> Any:
    """Import FFCV once, not in every writer process; the import sets torch's thread count."""
    import torch

    threads = torch.get_num_threads()
    import ffcv.writer  # noqa: F401

    torch.set_num_threads(threads)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(samples: int, size: int) -> np.ndarray:
    """Images that compress well as JPEG: gradients, [N, 3, size, size]."""
    ramp = np.linspace(0, 200, size)
    images = np.stack([np.add.outer(ramp, 0 * ramp), np.add.outer(0 * ramp, ramp), np.add.outer(ramp, ramp) / 2])
    return (images[None] + np.arange(samples)[:, None, None, None] % 50).astype(np.uint8)


def left_over(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def foreign(path: Path, fields: dict[str, Any], samples: list[tuple[Any, ...]], **options: Any) -> Path:
    """A `.beton` written by a third-party program."""
    from ffcv.writer import DatasetWriter

    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(samples, **options)
    return path


@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 28, 28), (4, 5, 6), (3, 1, 1)])
def test_write_beton_round_trip(shape: tuple[int, int, int], tmp_path: Path) -> None:
    split = make_split(noise(700, *shape))
    written = write_beton(split, tmp_path / "a.beton", workers=2)
    assert written.beton == tmp_path / "a.beton"
    assert written.images is split.images
    opened = open_beton(tmp_path / "a.beton", classes=split.classes)
    np.testing.assert_array_equal(opened.images, split.images)
    np.testing.assert_array_equal(opened.labels, split.labels)
    assert opened.images.dtype == np.uint8
    assert opened.images.flags.c_contiguous
    assert not opened.images.flags.writeable
    assert (opened.name, opened.classes, opened.beton) == ("a", split.classes, tmp_path / "a.beton")
    pixels = split.images.astype(np.float64) / 255
    np.testing.assert_allclose(opened.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(opened.std, pixels.std(axis=(0, 2, 3)), rtol=1e-6)
    assert left_over(tmp_path) == ["a.beton"]


def test_write_beton_is_deterministic_with_one_worker(tmp_path: Path) -> None:
    split = make_split(noise(300, 3, 8, 8))
    for name in ("a", "b"):
        write_beton(split, tmp_path / f"{name}.beton", workers=1)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


def test_write_beton_is_readable_by_ffcv(tmp_path: Path) -> None:
    from ffcv.loader import Loader, OrderOption

    split = make_split(noise(50, 3, 8, 8))
    write_beton(split, tmp_path / "a.beton")
    loader = Loader(str(tmp_path / "a.beton"), batch_size=16, num_workers=1, order=OrderOption.RANDOM, drop_last=False)
    seen = []
    for images, labels, ids in loader:
        np.testing.assert_array_equal(images.numpy(), split.images[ids[:, 0]].transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(labels[:, 0].numpy(), split.labels[ids[:, 0]])
        seen += ids[:, 0].tolist()
    assert sorted(seen) == list(range(50))


def test_write_beton_stores_large_images_as_jpeg_by_default(tmp_path: Path) -> None:
    split = make_split(smooth(6, 200))
    assert split.images[0].nbytes > beton_writer.RAW_BYTES
    write_beton(split, tmp_path / "auto.beton")
    write_beton(split, tmp_path / "raw.beton", mode="raw")
    assert read_beton(tmp_path / "auto.beton").encoded
    assert not read_beton(tmp_path / "raw.beton").encoded
    np.testing.assert_array_equal(open_beton(tmp_path / "raw.beton").images, split.images)
    opened = open_beton(tmp_path / "auto.beton")
    assert np.abs(opened.images.astype(int) - split.images).mean() < 2
    with pytest.raises(ValueError, match="JPEG is for 3 channels, and split 'train' has 1: mode must be raw"):
        write_beton(make_split(noise(3, 1, 8, 8)), tmp_path / "gray.beton", mode="jpg")


def test_write_beton_images_larger_than_a_page(tmp_path: Path) -> None:
    split = make_split(noise(2, 3, 1700, 1700))
    write_beton(split, tmp_path / "a.beton", mode="raw")
    np.testing.assert_array_equal(open_beton(tmp_path / "a.beton").images, split.images)


# --- third-party files ---


def test_open_beton_custom_fields_without_ids_shuffled(tmp_path: Path) -> None:
    from ffcv.fields import FloatField, IntField, RGBImageField

    images = noise(20, 6, 7, 3)
    fields = {"difficulty": FloatField(), "picture": RGBImageField(), "class": IntField()}
    path = foreign(tmp_path / "a.beton", fields, [(0.5, images[i], i % 4) for i in range(20)], indices=range(3, 20))
    opened = open_beton(path)
    np.testing.assert_array_equal(opened.images, images[3:].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(opened.labels, np.arange(3, 20) % 4)
    assert opened.classes == ("0", "1", "2", "3")
    # With ids, the row number is the id, whatever the sample's position.
    fields = {"image": RGBImageField(), "label": IntField(), "id": IntField()}
    shuffled = np.random.default_rng(0).permutation(20)
    path = foreign(tmp_path / "b.beton", fields, [(images[i], int(i % 4), int(i)) for i in shuffled])
    np.testing.assert_array_equal(open_beton(path).images, images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(read_beton(path).place[shuffled], np.arange(20))


def test_open_beton_rejects_ambiguous_fields(tmp_path: Path) -> None:
    from ffcv.fields import IntField, RGBImageField

    fields = {"left": RGBImageField(), "right": RGBImageField(), "a": IntField(), "b": IntField()}
    path = foreign(tmp_path / "a.beton", fields, [(noise(4, 4, 3, seed=i), noise(4, 4, 3), i, 7) for i in range(3)])
    with pytest.raises(ValueError, match=r"has 2 fields of images \(left, right, a, b\): say which with image=NAME"):
        open_beton(path)
    with pytest.raises(ValueError, match=r"has 2 fields of whole numbers .* say which with label=NAME"):
        open_beton(path, image="left")
    with pytest.raises(ValueError, match="'a' is no field of images: fields are left, right, a, b"):
        open_beton(path, image="a")
    np.testing.assert_array_equal(open_beton(path, image="left", label="a").labels, [0, 1, 2])
    with pytest.raises(ValueError, match=r"label at position 0 is 7, outside 0..4"):
        open_beton(path, image="left", label="b", classes="abcde")
    no_images = foreign(tmp_path / "b.beton", {"label": IntField()}, [(1,)])
    with pytest.raises(ValueError, match=r"has no fields of images \(label\)"):
        open_beton(no_images)


def test_open_beton_uint8_arrays_in_either_layout(tmp_path: Path) -> None:
    from ffcv.fields import IntField, NDArrayField

    for shape, axes in (((3, 8, 9), None), ((8, 9, 3), (2, 0, 1)), ((8, 9), None)):
        images = noise(5, *shape)
        fields = {"image": NDArrayField(np.dtype("uint8"), shape), "label": IntField()}
        opened = open_beton(foreign(tmp_path / "a.beton", fields, [(images[i], i) for i in range(5)]))
        expected = [image if axes is None else image.transpose(axes) for image in images]
        np.testing.assert_array_equal(opened.images, np.reshape(expected, opened.images.shape))
        assert opened.images.shape == (5, 1 if len(shape) == 2 else 3, 8, 9)
    floats = NDArrayField(np.dtype("float32"), (3, 8, 9))
    path = foreign(tmp_path / "b.beton", {"image": floats, "label": IntField()}, [(np.zeros((3, 8, 9), "f4"), 1)])
    with pytest.raises(ValueError, match=r"'image' holds <f4 \[3, 8, 9\], not uint8 images"):
        open_beton(path)


def test_open_beton_of_mixed_sizes_keeps_them_or_takes_a_size(tmp_path: Path) -> None:
    from ffcv.fields import IntField, RGBImageField

    samples = [(np.full((8 + i, 10, 3), 9 * i, np.uint8), i % 2) for i in range(4)]
    path = foreign(tmp_path / "a.beton", {"image": RGBImageField("jpg"), "label": IntField()}, samples)
    opened = open_beton(path)
    assert opened.store.image_shape is None
    for i, image in enumerate(opened.at_size(6, "stretch").store.gather(range(4))):
        assert (image == 9 * i).all()
    change_byte(path, int(read_beton(path).images["at"][2]) + 300)  # type: ignore[index]
    with pytest.raises(BadPicture, match=r"picture 2 is not as it was converted \(another checksum\)"):
        opened.at_size(6).store.gather(range(4))
    opened = open_beton(path, size=(6, 5))
    assert opened.images.shape == (4, 3, 6, 5)
    assert opened.beton is None  # its pixels differ from the file's
    for i in range(4):
        assert (opened.images[i] == 9 * i).all()


# --- encoded pictures ---


def test_write_beton_keeps_encoded_pictures(tmp_path: Path) -> None:
    """JPEGs byte for byte, others as pixels; the file opens as the same pictures, for any backend."""
    root = write_photographs(tmp_path / "root", per_class=3)
    photograph(30, 41, seed=7).save(root / "train/cat/1.png")
    (root / "train/dog/0.jpg").write_bytes(encoded(photograph(33, 60, seed=8), orientation=6))
    train = convert("folder", tmp_path / "p.hbr", root=root, store="encoded").train
    store = train.store
    assert isinstance(store, EncodedImages)
    path = tmp_path / "p.beton"
    written = write_beton(train, path, workers=1)
    assert written.beton == path
    found = read_beton(path)
    assert found.images is not None
    assert train.sources is not None
    raw = [row for row in range(len(train)) if train.sources[row].endswith("png")]
    assert len(raw) == 1
    assert np.flatnonzero(found.images["mode"] == RAW).tolist() == raw
    content = path.read_bytes()
    for row, entry in enumerate(found.images):
        if row not in raw:
            assert content[entry["at"] : entry["at"] + entry["size"]] == store.content(row)
    kept = pickle.loads(pickle.dumps(pictures_of(found, like=store)))
    np.testing.assert_array_equal(kept.at_size(24).gather(range(7)), store.at_size(24).gather(range(7)))
    again = write_beton(dataclasses.replace(train, store=kept), tmp_path / "again.beton", workers=1)
    assert again.beton is not None
    assert again.beton.read_bytes() == content
    with pytest.raises(ValueError, match="vary in size and are written as they are: leave mode at auto, or choose"):
        write_beton(train, tmp_path / "x.beton", mode="jpg")
    with pytest.raises(ValueError, match=r"has a picture 0 of \d+ x \d+ pixels, the split another: write it again"):
        pictures_of(found, like=dataclasses.replace(store, index=store.index[::-1]))


# --- damage ---


def change_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


def test_open_beton_rejects_damaged_files(tmp_path: Path) -> None:
    write_beton(make_split(noise(40, 3, 8, 8)), tmp_path / "good.beton", workers=1)
    good = (tmp_path / "good.beton").read_bytes()
    bad = tmp_path / "bad.beton"

    def refused(content: bytes, message: str) -> None:
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            open_beton(bad)
        assert "\n" not in str(caught.value)
        assert str(bad) in str(caught.value)

    for length in (0, 7, 24, 500, 2000, 4000):
        refused(good[:length], "not a .beton, or not whole")
    for length in (5000, 2**23, 2**23 + 500, len(good) - 24 * 40, len(good) - 24, len(good) - 1):
        refused(good[:length], "not whole")
    refused(b"\x03" + good[1:], r"not a .beton of version 2 \(it says 3\)")
    refused(b"PK\x03\x04" + good[4:], "not a .beton of version 2")
    refused(good[:16] + bytes(8) + good[24:], "not whole")  # FFCV writes this field last
    refused(good[:8] + bytes(8) + good[16:], "holds no samples")
    refused(good[:24] + b"\xff" + good[25:], "'image' is of a custom kind")
    table = 24 + 3 * 1041
    moved = bytearray(good)
    moved[table : table + 13] = b"\x01\x08\x00\x08\x00" + (2**40).to_bytes(8, "little")
    assert good[table : table + 5] == b"\x01\x08\x00\x08\x00", "the entry of the first image: raw, 8 x 8"
    refused(bytes(moved), "its list of allocations lacks an image")
    larger = good[: table + 1] + b"\x09" + good[table + 2 :]
    refused(larger, "an image's position or size is impossible")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_beton(tmp_path / "none.beton")


def test_open_beton_names_undecodable_jpeg(tmp_path: Path) -> None:
    write_beton(make_split(smooth(3, 200)), tmp_path / "a.beton", workers=1)
    content = bytearray((tmp_path / "a.beton").read_bytes())
    content[2**23 : 2**23 + 4] = bytes(4)  # the first page begins with the first image
    (tmp_path / "b.beton").write_bytes(content)
    with pytest.raises(ValueError, match=r"the image at byte 8388608 is not a readable JPEG: write it again$"):
        open_beton(tmp_path / "b.beton")


# --- arguments and dying writers ---


def test_write_beton_rejects_out_of_range_arguments(tmp_path: Path) -> None:
    split = make_split(noise(3, 3, 8, 8))
    for arguments, message in (
        ({"mode": "png"}, "mode must be auto, raw or jpg, got 'png'"),
        ({"quality": 101}, r"quality must be in \[1, 100\], got 101"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            write_beton(split, tmp_path / "a.beton", **arguments)
    with pytest.raises(ValueError, match=r"does not end in \.beton: name the file a\.ffcv\.beton"):
        write_beton(split, tmp_path / "a.ffcv")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        write_beton(split, tmp_path / "none" / "a.beton")
    assert left_over(tmp_path) == []


def test_write_beton_does_not_overwrite_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    path.write_bytes(b"precious")
    split = make_split(noise(30, 3, 8, 8))
    with pytest.raises(FileExistsError, match="exists already: choose another name or replace it with --force"):
        write_beton(split, path)
    assert path.read_bytes() == b"precious"
    write_beton(split, path, force=True)
    np.testing.assert_array_equal(open_beton(path).images, split.images)


def dying(monkeypatch: pytest.MonkeyPatch, die: Any) -> None:
    """Call `die` in the worker that takes sample 60 of 100."""
    take = beton_writer._Samples.__getitem__

    def taken(self: Any, index: int) -> Any:
        if index == 60:
            die()
        return take(self, index)

    monkeypatch.setattr(beton_writer._Samples, "__getitem__", taken)


def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_writer() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(2 * GUARD_S)  # far longer than anybody waits for its end


def fail() -> None:
    raise KeyError("no such sample")


def fill_disk() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("die", "error", "message"),
    [
        (kill_worker, ChildProcessError, r"could not be written \(a worker was ended by SIGKILL"),
        (kill_writer, ChildProcessError, r"could not be written \(the writer ended with exit code -9\)"),
        (fail, ChildProcessError, r"could not be written \(KeyError: 'no such sample'\): run it again"),
        (fill_disk, OSError, "no space left for .*a.beton: free some"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_write_beton_cleans_up_after_dead_worker(
    die: Any, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.beton"
    path.write_bytes(b"precious")
    before = shared_memory()
    dying(monkeypatch, die)
    with pytest.raises(error, match=message) as caught:
        write_beton(make_split(noise(100, 3, 8, 8)), path, workers=2, force=True)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"precious"
    assert left_over(tmp_path) == ["a.beton"]
    wait_until(lambda: shared_memory() <= before, "no shared memory is left")  # other tests have some for a moment
    assert_no_process_has_files_in(tmp_path)


def test_write_beton_interrupt_ends_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying(monkeypatch, lambda: time.sleep(2 * GUARD_S))
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        write_beton(make_split(noise(100, 3, 8, 8)), tmp_path / "a.beton", workers=2)
    timer.join()
    assert left_over(tmp_path) == []
    assert_no_process_has_files_in(tmp_path)


def assert_no_process_has_files_in(directory: Path) -> None:
    """FFCV's writer workers keep even a removed file open; a killed worker takes a moment to exit."""
    end = time.monotonic() + GUARD_S
    while True:
        found = set()
        for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if os.readlink(descriptor).startswith(f"{directory}/"):
                    found.add(descriptor.parts[2])
        if not found:
            return
        assert time.monotonic() < end, f"processes {found} still write"
        time.sleep(0.05)


def test_write_beton_without_ffcv_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beton_writer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape("pip install 'hbr-fast[ffcv]'")):
        write_beton(make_split(noise(3, 3, 8, 8)), tmp_path / "a.beton")


def test_write_beton_without_ffcv_converts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beton_writer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cli.main(["convert", "synthetic", str(tmp_path / "a.hbr"), "--formats", "hbr", "beton"])
    assert "writing a .beton needs FFCV" in capsys.readouterr().err
    assert left_over(tmp_path) == []


@pytest.mark.timeout(600)  # it would hang on failure
def test_write_beton_does_not_inherit_tqdm_lock(tmp_path: Path) -> None:
    from tqdm import tqdm

    tqdm(disable=True)  # creates the lock shared between processes
    with tqdm.get_lock():
        write_beton(make_split(noise(5, 3, 8, 8)), tmp_path / "a.beton")
    assert len(open_beton(tmp_path / "a.beton")) == 5


def test_open_beton_does_not_need_ffcv(tmp_path: Path) -> None:
    import subprocess
    import sys

    write_beton(make_split(noise(5, 3, 8, 8)), tmp_path / "a.beton")
    script = (
        "import sys; from hbr_fast.data.beton import open_beton; open_beton(sys.argv[1]); "
        "assert not {'ffcv', 'torch', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.beton")], check=True)


# --- conversion from and to datasets ---


def test_convert_dataset_to_beton_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--classes", "3", "--train-per-class", "5", "--test-per-class", "2"]
    first = tmp_path / "a.hbr"
    cli.main(["convert", "synthetic", str(first), *options, "--formats", "hbr", "beton"])
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"{first}: 15 train and 6 test images of synthetic",
        f"{tmp_path}/a.train.beton: 15 train images of synthetic, for FFCV",
        f"{tmp_path}/a.test.beton: 6 test images of synthetic, for FFCV",
    ]
    cli.main(["convert", "beton", str(tmp_path / "b.hbr"), "--root", str(tmp_path)])
    for name, split in open_dataset(first).splits.items():
        other = open_dataset(tmp_path / "b.hbr").splits[name]
        np.testing.assert_array_equal(split.images, other.images)
        np.testing.assert_array_equal(split.labels, other.labels)
        np.testing.assert_array_equal(split.mean, other.mean)
    # From a dataset or directly from a source: the same samples, and nothing else is written.
    (tmp_path / "only").mkdir()
    cli.main(["convert", str(first), str(tmp_path / "only" / "c.hbr"), "--formats", "beton"])
    cli.main(["convert", "synthetic", str(tmp_path / "only" / "d.hbr"), *options, "--formats", "beton"])
    assert left_over(tmp_path / "only") == ["c.test.beton", "c.train.beton", "d.test.beton", "d.train.beton"]
    for name in ("c", "d"):
        opened = open_beton(tmp_path / "only" / f"{name}.train.beton")
        np.testing.assert_array_equal(opened.images, open_dataset(first).train.images)


def test_convert_holds_a_test_split_out_of_beton(tmp_path: Path) -> None:
    whole = make_split(noise(30, 3, 4, 4))
    write_beton(whole, tmp_path / "train.beton")
    with pytest.raises(FileNotFoundError, match=r"test.beton or val.beton: .* --test-fraction 0.2"):
        convert("beton", tmp_path / "a.hbr", root=tmp_path)
    dataset = convert("beton", tmp_path / "a.hbr", root=tmp_path, test_fraction=0.3)
    assert [split.class_counts().tolist() for split in dataset.splits.values()] == [[4] * 5, [2] * 5]
    for split in dataset.splits.values():
        assert split.sources is not None
        rows = [int(split.sources[row].removeprefix("train.beton[")[:-1]) for row in range(len(split))]
        np.testing.assert_array_equal(split.images, whole.images[rows])
        np.testing.assert_array_equal(split.labels, whole.labels[rows])


def test_convert_command_reports_beton_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.train.beton").write_bytes(b"precious")
    (tmp_path / "b.train.beton").write_bytes(b"")
    out = str(tmp_path / "a.hbr")
    for words, message in (
        (["synthetic", out, "--formats", "hbr", "beton"], "a.train.beton exists already"),
        (["x.hbr", out, "--formats", "hbr"], "x.hbr is a dataset: name a source, or use --formats beton"),
        (["x.hbr", out, "--formats", "beton", "--seed", "1", "--force"], "without source options"),
        (["x.hbr", out, "--formats", "beton", "--force"], "a.train.beton is no .beton file, and --force replaces"),
        (["x.hbr", str(tmp_path / "c.hbr"), "--formats", "beton"], "there is no dataset at x.hbr"),
        (["synthetic", str(tmp_path / "a"), "--formats", "beton"], "does not end in .hbr"),
        (["beton", out, "--root", str(tmp_path)], "a.train.beton and b.train.beton: keep one file of the train split"),
        (["beton", out, "--root", str(tmp_path / "none")], "there is no folder"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["convert", *words])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert left_over(tmp_path) == ["a.train.beton", "b.train.beton"]
    assert (tmp_path / "a.train.beton").read_bytes() == b"precious"
