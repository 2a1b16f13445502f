"""Conversion: whole or not at all, the same bytes every time, exact statistics."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbr_fast.data import convert as convert_module
from hbr_fast.data.convert import convert, write_dataset
from hbr_fast.data.dataset import channel_mean_std, channel_sums, open_dataset, verify_dataset
from hbr_fast.data.sources import Source, SourceSplit, array_split

TINY: dict[str, Any] = {"classes": 3, "train_per_class": 6, "test_per_class": 2, "shape": (3, 8, 8)}


def source_of(images_nchw: np.ndarray, labels: list[int], *, classes: int = 2, **changes: SourceSplit) -> Source:
    split = array_split(images_nchw, np.array(labels, dtype=np.int64))
    names = tuple(f"c{index}" for index in range(classes))
    return Source("mine", names, {"train": split, "test": split} | changes, {"kind": "mine"})


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_writes_what_the_source_holds(tmp_path: Path) -> None:
    images = noise(5, 3, 4, 6)
    dataset = write_dataset(source_of(images, [0, 1, 1, 0, 1]), tmp_path / "a.hbr")
    np.testing.assert_array_equal(dataset.train.images, images)
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 1, 0, 1])
    assert dataset.train.truth is None
    assert sorted(files_of(tmp_path / "a.hbr")) == [
        "meta.json",
        "test.images.npy",
        "test.labels.npy",
        "train.images.npy",
        "train.labels.npy",
    ]
    np.testing.assert_array_equal(np.load(tmp_path / "a.hbr" / "train.images.npy"), images)


def test_transposed_views_are_written_planar(tmp_path: Path) -> None:
    images = noise(700, 32, 32, 3)  # several blocks
    dataset = write_dataset(source_of(images.transpose(0, 3, 1, 2), [0, 1] * 350), tmp_path / "a.hbr")
    np.testing.assert_array_equal(dataset.train.images, images.transpose(0, 3, 1, 2))
    assert dataset.train.images.flags.c_contiguous
    verify_dataset(tmp_path / "a.hbr")


def test_synthetic_carries_its_truth(tmp_path: Path) -> None:
    dataset = convert("synthetic", tmp_path / "a.hbr", **TINY)
    for split in (dataset.train, dataset.test):
        assert split.truth is not None
        assert split.truth.shape == (len(split),)
        assert split.truth.dtype == np.float64
    verify_dataset(tmp_path / "a.hbr")


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Wherever it is written; and nothing of this machine in it."""
    for place in ("a", "b"):
        convert("synthetic", tmp_path / place / "x.hbr", **TINY)
    assert files_of(tmp_path / "a" / "x.hbr") == files_of(tmp_path / "b" / "x.hbr")
    assert str(tmp_path) not in (tmp_path / "a" / "x.hbr" / "meta.json").read_text()
    other = convert("synthetic", tmp_path / "c.hbr", **TINY, seed=1)
    assert other.fingerprint != open_dataset(tmp_path / "a" / "x.hbr").fingerprint


def test_golden_bytes_of_the_format(tmp_path: Path) -> None:
    write_dataset(source_of(np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2), [0, 1]), tmp_path / "a.hbr")
    content = (tmp_path / "a.hbr" / "train.images.npy").read_bytes()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 2, 2), }"
    assert content == b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n" + bytes(range(8))
    labels = (tmp_path / "a.hbr" / "train.labels.npy").read_bytes()
    assert b"'descr': '<i8'" in labels
    assert labels.endswith(bytes([0] * 8 + [1] + [0] * 7))


def test_trap_19_std_is_over_all_pixels(tmp_path: Path) -> None:
    """Two flat images, black and white: the mean of per-image deviations would be 0, the true one is 0.5."""
    images = np.zeros((2, 1, 4, 4), dtype=np.uint8)
    images[1] = 255
    dataset = write_dataset(source_of(images, [0, 1]), tmp_path / "a.hbr")
    assert dataset.mean == (0.5,)
    assert dataset.std == (0.5,)


def test_trap_20_statistics_come_from_the_dataset_itself(tmp_path: Path) -> None:
    """Whatever the source is called, the constants are those of the train split's pixels, not of test's."""
    images, others = noise(40, 3, 5, 7, seed=1), noise(9, 3, 5, 7, seed=2) // 3
    source = source_of(images, [0, 1] * 20, test=array_split(others, np.zeros(9, dtype=np.int64)))
    for name in ("cifar10", "cifar100"):
        named = Source(name, source.classes, source.splits, source.origin)
        dataset = write_dataset(named, tmp_path / f"{name}.hbr")
        scaled = images.astype(np.float64) / 255
        np.testing.assert_allclose(dataset.mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(dataset.std, scaled.std(axis=(0, 2, 3)), rtol=1e-12)
        assert dataset.train.mean.dtype == dataset.test.std.dtype == np.float32


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["noise", "white", "black"]),
)
@settings(max_examples=50, deadline=None)
def test_channel_sums_are_exact(count: int, channels: int, height: int, width: int, kind: str) -> None:
    block = noise(count, channels, height, width)
    if kind != "noise":
        block[:] = 255 if kind == "white" else 0
    sums, squares = channel_sums(block)
    for channel in range(channels):
        values = [int(value) for value in block[:, channel].ravel()]
        assert sums[channel] == sum(values)
        assert squares[channel] == sum(value * value for value in values)
    mean, std = channel_mean_std(count * height * width, sums, squares)
    np.testing.assert_allclose(mean, block.mean(axis=(0, 2, 3)) / 255, rtol=1e-12)
    np.testing.assert_allclose(std, block.std(axis=(0, 2, 3)) / 255, rtol=1e-9, atol=1e-12)


def test_existing_output_stays_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "a.hbr"
    convert("synthetic", out, **TINY)
    before = files_of(out)
    with pytest.raises(FileExistsError, match=r"a\.hbr exists already: .*--force"):
        convert("synthetic", out, **TINY, seed=1)
    with pytest.raises(FileExistsError, match="--force"):
        write_dataset(source_of(noise(2, 1, 2, 2), [0, 1]), out)
    assert files_of(out) == before
    convert("synthetic", out, **TINY, seed=1, force=True)
    assert files_of(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["a.hbr"]


def test_existing_output_is_seen_before_the_source_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.hbr").mkdir()
    with pytest.raises(FileExistsError, match="--force"):
        convert("cifar10", tmp_path / "a.hbr", root=tmp_path / "absent")


def test_a_failed_forced_conversion_keeps_the_old(tmp_path: Path) -> None:
    out = tmp_path / "a.hbr"
    convert("synthetic", out, **TINY)
    before = files_of(out)

    def broken() -> Iterator[np.ndarray]:
        yield noise(1, 1, 2, 2)
        raise ValueError("the source broke")

    split = SourceSplit((1, 2, 2), np.array([0, 1]), broken)
    with pytest.raises(ValueError, match="the source broke"):
        write_dataset(Source("mine", ("a", "b"), {"train": split, "test": split}), out, force=True)
    assert files_of(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.hbr"]


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of a file stands in for a full disk: writing fails in mid-images."""
    source = source_of(noise(400, 3, 32, 32), [0, 1] * 200)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(OSError, match=r"no space left for .*a\.hbr, which needs 2\.5 MB: free some") as raised:
            write_dataset(source, tmp_path / "a.hbr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_writing_the_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert_module, "write_json", full)
    with pytest.raises(OSError, match="no space left for"):
        convert("synthetic", tmp_path / "a.hbr", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_keep_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, value: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(convert_module, "write_json", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        convert("synthetic", tmp_path / "a.hbr", **TINY)


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown source 'imagenet': choose one of fashion-mnist, mnist"):
        convert("imagenet", tmp_path / "a.hbr")
    with pytest.raises(ValueError, match=r"name the dataset a\.hbr"):
        convert("synthetic", tmp_path / "a")
    with pytest.raises(ValueError, match="source mnist takes no option 'size': it takes root, download"):
        convert("mnist", tmp_path / "a.hbr", size=(3, 3))
    with pytest.raises(ValueError, match="source synthetic takes no option 'download'"):
        convert("synthetic", tmp_path / "a.hbr", download=True)
    assert list(tmp_path.iterdir()) == []


def test_options_left_none_are_not_given(tmp_path: Path) -> None:
    assert convert("synthetic", tmp_path / "a.hbr", **TINY, size=None, layout=None).name == "synthetic"


def test_sources_that_make_no_dataset(tmp_path: Path) -> None:
    images = noise(4, 1, 2, 2)
    out = tmp_path / "a.hbr"
    with pytest.raises(ValueError, match=r"class 'c1' \(label 1\) has no sample in train \(2 such\)"):
        write_dataset(source_of(images, [0, 0, 2, 2], classes=4), out)
    nothing = array_split(images[:0], np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match="the test split is empty"):
        write_dataset(source_of(images, [0, 1, 0, 1], test=nothing), out)
    other = array_split(noise(1, 1, 3, 2), np.zeros(1, dtype=np.int64))
    with pytest.raises(ValueError, match=r"train images are \[1, 2, 2\] but test images are \[1, 3, 2\]"):
        write_dataset(source_of(images, [0, 1, 0, 1], test=other), out)
    with pytest.raises(ValueError, match="channel 0 has one value in all of train"):
        write_dataset(source_of(images * 0 + 9, [0, 1, 0, 1]), out)
    assert list(tmp_path.iterdir()) == []


def test_meta_says_what_the_contract_says(tmp_path: Path) -> None:
    convert("synthetic", tmp_path / "a.hbr", **TINY)
    meta = json.loads((tmp_path / "a.hbr" / "meta.json").read_text())
    assert meta["schema"] == 1
    assert meta["name"] == "synthetic"
    assert meta["source"]["options"]["shape"] == [3, 8, 8]
    assert meta["classes"] == ["class_0", "class_1", "class_2"]
    assert meta["splits"]["train"] == {
        "samples": 18,
        "shape": [3, 8, 8],
        "files": {
            "images": "train.images.npy",
            "labels": "train.labels.npy",
            "hardness": "train.hardness.npy",
        },
    }
    assert set(meta["files"]["test.images.npy"]) == {"sha256", "bytes"}
