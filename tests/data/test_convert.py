"""Conversion: atomic, deterministic, exact statistics."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbr_fast.data import convert as convert_module
from hbr_fast.data.class_counts import notes_on_counts
from hbr_fast.data.convert import convert, write_dataset
from hbr_fast.data.dataset import open_dataset
from hbr_fast.data.images import channel_mean_std, channel_sums
from hbr_fast.data.sources import Findings, Source, SourceSplit, array_split
from hbr_fast.data.verify import verify_dataset
from hbr_fast.files import atomic_directory

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TINY: dict[str, Any] = {"classes": 3, "train_per_class": 6, "test_per_class": 2, "shape": (3, 8, 8)}


def source_of(images_nchw: np.ndarray, labels: list[int], *, classes: int = 2, **changes: SourceSplit) -> Source:
    split = array_split(images_nchw, np.array(labels, dtype=np.int64))
    names = tuple(f"c{index}" for index in range(classes))
    return Source("mine", names, {"train": split, "test": split} | changes, {"kind": "mine"})


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_convert_writes_source_contents(tmp_path: Path) -> None:
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


def test_convert_writes_transposed_views_planar(tmp_path: Path) -> None:
    images = noise(700, 32, 32, 3)  # several blocks
    dataset = write_dataset(source_of(images.transpose(0, 3, 1, 2), [0, 1] * 350), tmp_path / "a.hbr")
    np.testing.assert_array_equal(dataset.train.images, images.transpose(0, 3, 1, 2))
    assert dataset.train.images.flags.c_contiguous
    verify_dataset(tmp_path / "a.hbr")


def test_convert_stores_synthetic_truth(tmp_path: Path) -> None:
    dataset = convert("synthetic", tmp_path / "a.hbr", **TINY)
    for split in (dataset.train, dataset.test):
        assert split.truth is not None
        assert split.truth.shape == (len(split),)
        assert split.truth.dtype == np.float64
    verify_dataset(tmp_path / "a.hbr")


def test_convert_is_deterministic(tmp_path: Path) -> None:
    """Independent of location and machine."""
    for place in ("a", "b"):
        convert("synthetic", tmp_path / place / "x.hbr", **TINY)
    assert files_of(tmp_path / "a" / "x.hbr") == files_of(tmp_path / "b" / "x.hbr")
    assert str(tmp_path) not in (tmp_path / "a" / "x.hbr" / "meta.json").read_text()
    other = convert("synthetic", tmp_path / "c.hbr", **TINY, seed=1)
    assert other.fingerprint != open_dataset(tmp_path / "a" / "x.hbr").fingerprint


def test_convert_golden_bytes(tmp_path: Path) -> None:
    write_dataset(source_of(np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2), [0, 1]), tmp_path / "a.hbr")
    content = (tmp_path / "a.hbr" / "train.images.npy").read_bytes()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 2, 2), }"
    assert content == b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n" + bytes(range(8))
    labels = (tmp_path / "a.hbr" / "train.labels.npy").read_bytes()
    assert b"'descr': '<i8'" in labels
    assert labels.endswith(bytes([0] * 8 + [1] + [0] * 7))


def test_trap_19_std_is_over_all_pixels(tmp_path: Path) -> None:
    """One black and one white image: the mean of per-image deviations is 0, the true deviation 0.5."""
    images = np.zeros((2, 1, 4, 4), dtype=np.uint8)
    images[1] = 255
    dataset = write_dataset(source_of(images, [0, 1]), tmp_path / "a.hbr")
    assert dataset.mean == (0.5,)
    assert dataset.std == (0.5,)


def test_trap_20_statistics_come_from_the_dataset_itself(tmp_path: Path) -> None:
    """The statistics come from the train split's pixels, whatever the source's name."""
    images, others = noise(40, 3, 5, 7, seed=1), noise(9, 3, 5, 7, seed=2) // 3
    source = source_of(images, [0, 1] * 20, test=array_split(others, np.arange(9) % 2))
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
def test_convert_channel_sums_are_exact(count: int, channels: int, height: int, width: int, kind: str) -> None:
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


def test_convert_channel_sums_of_no_images() -> None:
    """Of pictures none of which could be decoded."""
    assert [sums.tolist() for sums in channel_sums(noise(0, 3, 4, 5))] == [[0, 0, 0], [0, 0, 0]]


def test_convert_does_not_overwrite_without_force(tmp_path: Path) -> None:
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


def test_convert_checks_output_before_reading_source(tmp_path: Path) -> None:
    (tmp_path / "a.hbr").mkdir()
    with pytest.raises(FileExistsError, match="--force"):
        convert("cifar10", tmp_path / "a.hbr", root=tmp_path / "absent")


def test_convert_failed_force_keeps_old_dataset(tmp_path: Path) -> None:
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


def test_convert_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A file size limit simulates a full disk: writing fails partway through the images."""
    source = source_of(noise(400, 3, 32, 32), [0, 1] * 200)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"no space left for .*a\.hbr, which needs at least 2\.5 MB: free some"
        ) as raised:
            write_dataset(source, tmp_path / "a.hbr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_convert_full_disk_while_writing_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert_module, "write_sealed_json", full)
    with pytest.raises(OSError, match="no space left for"):
        convert("synthetic", tmp_path / "a.hbr", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_convert_keeps_other_os_error_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, value: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(convert_module, "write_sealed_json", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        convert("synthetic", tmp_path / "a.hbr", **TINY)


def test_convert_rejects_invalid_requests(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown source 'imagenet': choose one of fashion-mnist, mnist"):
        convert("imagenet", tmp_path / "a.hbr")
    with pytest.raises(ValueError, match=r"name the dataset a\.hbr"):
        convert("synthetic", tmp_path / "a")
    with pytest.raises(ValueError, match="source mnist takes no option 'size': it takes root, download"):
        convert("mnist", tmp_path / "a.hbr", size=(3, 3))
    with pytest.raises(ValueError, match="source synthetic takes no option 'download'"):
        convert("synthetic", tmp_path / "a.hbr", download=True)
    assert list(tmp_path.iterdir()) == []


def test_convert_drops_none_options(tmp_path: Path) -> None:
    assert convert("synthetic", tmp_path / "a.hbr", **TINY, size=None, layout=None).name == "synthetic"


def test_convert_rejects_invalid_sources(tmp_path: Path) -> None:
    images = noise(4, 1, 2, 2)
    out = tmp_path / "a.hbr"
    with pytest.raises(ValueError, match=r"class 'c1' \(label 1\) has no sample in train, nor 'c3' \(2 such\)"):
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


def test_convert_meta_follows_contract(tmp_path: Path) -> None:
    convert("synthetic", tmp_path / "a.hbr", **TINY)
    meta = json.loads((tmp_path / "a.hbr" / "meta.json").read_text())
    assert meta["schema"] == 2
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
        "sources": [["train", 18]],
    }
    assert set(meta["files"]["test.images.npy"]) == {"sha256", "bytes"}


def test_convert_rejects_class_without_test_images(tmp_path: Path) -> None:
    """The error names every such class, because evaluation needs images of each."""
    images = noise(4, 1, 2, 2)
    test = array_split(images[:1], np.array([2]))
    source = source_of(images, [0, 1, 2, 3], classes=4, test=test)
    with pytest.raises(ValueError, match=r"class 'c0' \(label 0\) has no sample in test, nor 'c1', 'c3' \(3 such\)"):
        write_dataset(source, tmp_path / "a.hbr")
    assert list(tmp_path.iterdir()) == []


def test_convert_rejects_single_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only one class, 'c0'"):
        write_dataset(source_of(noise(2, 1, 2, 2), [0, 0], classes=1), tmp_path / "a.hbr")


def test_convert_checks_space_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source's blocks are never read."""

    def refuse() -> Iterator[np.ndarray]:
        raise AssertionError("read although there is no space")

    split = SourceSplit((3, 100, 100), np.array([0, 1]), refuse)
    source = Source("mine", ("a", "b"), {"train": split, "test": split})
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(OSError, match=r"needs at least 0\.1 MB, of which 0\.1 MB are free"):
        write_dataset(source, tmp_path / "a.hbr")


def test_convert_removes_leftovers_of_killed_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Leftovers still being written, or of another dataset, stay."""
    killed, other = (tmp_path / f".{name}.partial" for name in ("a.hbr.12345678", "b.hbr.12345678"))
    with atomic_directory(tmp_path / "a.hbr", force=True) as running:
        for directory in (killed, other):
            directory.mkdir()
            (directory / "train.images.npy").write_bytes(b"half")
        convert("synthetic", tmp_path / "a.hbr", **TINY)
        assert {path.name for path in tmp_path.iterdir()} == {running.name, other.name, "a.hbr"}
    assert f"removed {killed}" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["none", "meta.json is no JSON", "files gone", "note of the conversion"])
def test_convert_force_replaces_damaged_dataset(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "a.hbr"
    convert("synthetic", out, **TINY)
    if damage == "meta.json is no JSON":
        (out / "meta.json").write_text("{")
    elif damage == "files gone":
        (out / "train.images.npy").unlink()
    elif damage == "note of the conversion":
        (out / "skipped.csv").write_text("file")
    convert("synthetic", out, **TINY, force=True)
    verify_dataset(out)


def test_convert_force_deletes_only_datasets(tmp_path: Path) -> None:
    out = tmp_path / "a.hbr"
    out.write_text("a file")
    with pytest.raises(FileExistsError, match=r"a\.hbr is not a dataset, and --force replaces nothing else"):
        convert("synthetic", out, **TINY, force=True)
    out.unlink()
    out.mkdir()
    (out / "photo.jpg").write_text("precious")
    with pytest.raises(FileExistsError, match=r"is not a dataset \(it has photo\.jpg and no meta\.json\)"):
        convert("synthetic", out, **TINY, force=True)
    (out / "photo.jpg").unlink()
    convert("synthetic", out, **TINY, force=True)
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"holds notes/mine\.txt, which conversion did not write \(1 such\)"):
        convert("synthetic", out, **TINY, force=True)
    assert (out / "notes" / "mine.txt").read_text() == "precious"


def test_convert_leaves_out_dropped_rows(tmp_path: Path) -> None:
    """Images, labels, statistics and checksums match a source without those rows; `findings` add a file."""
    images = noise(11, 3, 4, 4)
    labels = np.array([0, 1] * 5 + [1])
    left_out = np.array([0, 9])
    kept = np.delete(np.arange(11), left_out)
    split = SourceSplit((3, 4, 4), labels, lambda: iter([images[kept]]))
    findings = Findings({"kind": "late"}, left_out={"train": left_out}, files={"skipped.csv": b"file\n"})
    source = Source(
        "mine", ("a", "b"), {"train": split, "test": array_split(images, labels)}, findings=lambda: findings
    )
    dataset = write_dataset(source, tmp_path / "a.hbr")
    plain = write_dataset(
        Source(
            "mine",
            ("a", "b"),
            {
                "train": array_split(images[kept], labels[kept], origins=[f"train[{row}]" for row in kept]),
                "test": array_split(images, labels),
            },
            {"kind": "late"},
        ),
        tmp_path / "b.hbr",
    )
    assert dataset.fingerprint == plain.fingerprint
    assert files_of(tmp_path / "a.hbr") == files_of(tmp_path / "b.hbr") | {"skipped.csv": b"file\n"}
    verify_dataset(tmp_path / "a.hbr")


def test_convert_rejects_class_with_all_rows_dropped(tmp_path: Path) -> None:
    images = noise(4, 1, 2, 2)
    split = SourceSplit((1, 2, 2), np.array([0, 1, 0, 1]), lambda: iter([images[[0, 2]]]))
    source = Source(
        "mine",
        ("a", "b"),
        {"train": split, "test": array_split(images, np.array([0, 1, 0, 1]))},
        findings=lambda: Findings(left_out={"train": np.array([1, 3])}),
    )
    with pytest.raises(ValueError, match=r"class 'b' \(label 1\) has no sample in train"):
        write_dataset(source, tmp_path / "a.hbr")


@pytest.mark.parametrize("pixels", [(1, 3, 3), (3, 4, 4)])
def test_convert_names_duplicate_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pixels: tuple[int, int, int]
) -> None:
    """Duplicates across splits or labels are named; a repetition within one class of one split is fine."""
    images, others = noise(6, *pixels, seed=1), noise(4, *pixels, seed=2)
    images[3] = images[0]  # two labels
    images[4] = images[2]  # same label
    others[1] = images[5]  # both splits
    train = dataclasses.replace(
        array_split(images, np.array([0, 1, 0, 1, 0, 1])), origins=[f"{i}.png" for i in range(6)]
    )
    test = array_split(others, np.array([0, 1, 0, 1]))
    write_dataset(Source("mine", ("cat", "dog"), {"train": train, "test": test}), tmp_path / "a.hbr")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mine: ")]
    assert lines == [
        "mine: the same picture is in two splits, so results will look too good (1 pair): 5.png and test[1]",
        "mine: the same picture has two labels (1 pair): 0.png and 3.png (cat and dog)",
    ]


@pytest.mark.parametrize(
    ("names", "train", "notes"),
    [
        (("a", "b", "c"), (120, 120, 31), ["2 of 3 classes have 120 train images, but c 31"]),
        (("a", "b", "c"), (120, 60, 31), []),  # classes of different sizes
        (("a", "b", "c"), (12, 12, 3), []),  # so few may be chance
        (("a", "b", "c"), (120, 120, 150), []),  # no class has fewer than most
        (
            CIFAR10,
            (5000, 5000, *[5001] * 7, 212),
            ["CIFAR-10 has 5,000 train images of each class, but truck 212"],
        ),
        (
            CIFAR10,
            (20,) * 10,
            [
                "CIFAR-10 has 5,000 train images of each class, but airplane 20, automobile 20, bird 20, cat 20, deer "
                "20 and 5 more have fewer"
            ],
        ),
    ],
)
def test_counts_of_a_half_unpacked_archive_are_noted(
    names: tuple[str, ...], train: tuple[int, ...], notes: list[str]
) -> None:
    ending = ": if an archive was not unpacked whole, unpack it again"
    test = np.repeat(np.arange(len(names)), 1000)
    labels = {"train": np.repeat(np.arange(len(names)), train), "test": test}
    assert notes_on_counts(labels, names) == [note + ending for note in notes]


def test_convert_notes_classes_with_fewer_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.repeat([0, 1, 2], [100, 100, 40])
    test = array_split(noise(3, 1, 2, 2), np.arange(3))
    train = array_split(noise(240, 1, 2, 2, seed=1), labels)
    write_dataset(Source("mine", ("a", "b", "c"), {"train": train, "test": test}), tmp_path / "a.hbr")
    assert "mine: 2 of 3 classes have 100 train images, but c 40" in capsys.readouterr().err


def test_convert_rejects_non_utf8_class_name(tmp_path: Path) -> None:
    """The surrogate name Python gives such a folder; no results file could hold it."""
    split = array_split(noise(2, 3, 4, 4), np.array([0, 1]))
    source = Source("mine", ("a", os.fsdecode(b"caf\xe9")), {"train": split, "test": split})
    with pytest.raises(ValueError, match=r"class 'caf\\udce9' is not UTF-8 \(1 such\).*: rename it"):
        write_dataset(source, tmp_path / "a.hbr")
    assert list(tmp_path.iterdir()) == []
