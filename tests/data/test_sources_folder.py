"""Folders of images: classes from names, sizes, colours, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hbr_fast.data.convert import convert
from hbr_fast.data.sources import Source, folder


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def colours(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def images_of(source: Source, split: str) -> np.ndarray:
    return np.concatenate(list(source.splits[split].blocks()))


def write_set(root: Path, *shape: int) -> None:
    for index, split in enumerate(("train", "test")):
        for label, name in enumerate(("zebra", "ape")):
            for number in range(3):
                write_image(root / split / name / f"{number}.png", colours(index * 100 + label * 10 + number, *shape))


def test_classes_sorted_and_pixels_exact(tmp_path: Path) -> None:
    write_set(tmp_path, 6, 5, 3)
    source = folder(root=tmp_path)
    assert source.classes == ("ape", "zebra")
    assert source.name == tmp_path.name
    assert source.splits["test"].shape == (3, 6, 5)
    np.testing.assert_array_equal(source.splits["train"].labels_n, [0, 0, 0, 1, 1, 1])
    seeds = [110, 111, 112, 100, 101, 102]
    expected = np.stack([colours(seed, 6, 5, 3).transpose(2, 0, 1) for seed in seeds])
    np.testing.assert_array_equal(images_of(source, "test"), expected)


def test_mixed_formats_nested_folders_and_strangers(tmp_path: Path) -> None:
    write_set(tmp_path, 8, 8, 3)
    write_image(tmp_path / "train" / "ape" / "deeper" / "a.JPEG", colours(1, 8, 8, 3))
    write_image(tmp_path / "train" / "ape" / "b.bmp", colours(2, 8, 8, 3))
    (tmp_path / "train" / "ape" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "ape" / ".hidden.png").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    source = folder(root=tmp_path)
    np.testing.assert_array_equal(np.bincount(source.splits["train"].labels_n), [5, 3])
    np.testing.assert_array_equal(images_of(source, "train")[3], colours(2, 8, 8, 3).transpose(2, 0, 1))
    assert len(images_of(source, "train")) == 8


def test_gray_only_where_all_are(tmp_path: Path) -> None:
    write_set(tmp_path, 4, 4)
    assert folder(root=tmp_path).splits["train"].shape == (1, 4, 4)
    assert folder(root=tmp_path, mode="rgb").splits["train"].shape == (3, 4, 4)
    write_image(tmp_path / "test" / "ape" / "colour.png", colours(0, 4, 4, 3))
    source = folder(root=tmp_path)
    assert source.splits["train"].shape == source.splits["test"].shape == (3, 4, 4)
    assert images_of(folder(root=tmp_path, mode="gray"), "test").shape == (7, 1, 4, 4)


def test_resizes_to_height_and_width(tmp_path: Path) -> None:
    write_set(tmp_path, 4, 4, 3)
    halves = np.zeros((10, 30, 3), dtype=np.uint8)
    halves[:, 15:] = 200
    write_image(tmp_path / "train" / "ape" / "wide.png", halves)
    with pytest.raises(ValueError, match=r"images differ in size, from \(4, 4\) to \(10, 30\): give one with --size"):
        folder(root=tmp_path)
    source = folder(root=tmp_path, size=(6, 9))
    images = images_of(source, "train")
    assert images.shape == (7, 3, 6, 9)
    assert np.all(images[3, :, :, :4] == 0)
    assert np.all(images[3, :, :, 5:] == 200)


def test_val_stands_in_for_test(tmp_path: Path) -> None:
    write_set(tmp_path, 4, 4)
    (tmp_path / "test").rename(tmp_path / "val")
    assert len(folder(root=tmp_path).splits["test"]) == 6
    (tmp_path / "val").rename(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="test is missing"):
        folder(root=tmp_path)


def test_class_sets_must_be_equal(tmp_path: Path) -> None:
    write_set(tmp_path, 4, 4)
    (tmp_path / "test" / "extra").mkdir()
    with pytest.raises(ValueError, match="class 'extra' is in only one of train and test"):
        folder(root=tmp_path)


def test_empty_class_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, 4, 4)
    for split in ("train", "test"):
        (tmp_path / split / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class 'empty' \(label 1\) has no sample in train"):
        convert("folder", tmp_path / "out.hbr", root=tmp_path)


def test_no_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="train has no sub-folder"):
        folder(root=tmp_path)


def test_not_an_image_is_named_and_counted(tmp_path: Path) -> None:
    write_set(tmp_path, 4, 4)
    for name in ("1.png", "2.png"):
        (tmp_path / "train" / "zebra" / name).write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"1\.png is not a readable image .*\(2 such files\)") as raised:
        folder(root=tmp_path)
    assert "\n" not in str(raised.value)


def test_truncated_image_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    write_set(tmp_path, 40, 40, 3)
    for name in ("0.png", "2.png"):
        path = tmp_path / "test" / "ape" / name
        path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"test.ape.0\.png is not a readable image .*\(2 such files\)"):
        convert("folder", tmp_path / "out.hbr", root=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "train"]


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    """Pillow would clip them at 255 without a word."""
    write_set(tmp_path, 4, 4)
    write_image(tmp_path / "train" / "ape" / "deep.png", np.full((4, 4), 40_000, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"deep\.png has more than 8 bits"):
        folder(root=tmp_path)


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--root"):
        folder()
    with pytest.raises(ValueError, match="mode must be auto, rgb or gray, got 'cmyk'"):
        folder(root=tmp_path, mode="cmyk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be"):
        folder(root=tmp_path, size=(0, 3))
    with pytest.raises(FileNotFoundError, match="train is missing"):
        folder(root=tmp_path)


def test_origin_changes_with_content_not_with_place(tmp_path: Path) -> None:
    write_set(tmp_path / "a" / "same", 4, 4)
    write_set(tmp_path / "b" / "same", 4, 4)
    first, second = folder(root=tmp_path / "a" / "same"), folder(root=tmp_path / "b" / "same")
    assert (first.name, first.origin) == (second.name, second.origin)
    write_image(tmp_path / "b" / "same" / "train" / "ape" / "0.png", colours(99, 4, 4))
    assert folder(root=tmp_path / "b" / "same").origin != first.origin
