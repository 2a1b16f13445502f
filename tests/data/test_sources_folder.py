"""Folders of images: classes from names, sizes, colours, and damaged files."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.sources import Source, folder, headers
from hbr_fast.data.sources import encoded as encoded_module
from hbr_fast.data.sources.layouts import Listing, Place
from hbr_fast.data.sources.opening import open_source
from hbr_fast.data.sources.pictures import Decoding
from hbr_fast.data.sources.trees import DirectoryTree
from hbr_fast.files import content_hash, sha256_of_file


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def colours(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def images_of(source: Source, split: str) -> np.ndarray:
    return np.concatenate([block.copy() for block in source.splits[split].blocks()])


def write_set(root: Path, *shape: int) -> None:
    for index, split in enumerate(("train", "test")):
        for label, name in enumerate(("zebra", "ape")):
            for number in range(3):
                write_image(root / split / name / f"{number}.png", colours(index * 100 + label * 10 + number, *shape))


def test_folder_sorts_classes_and_keeps_pixels(tmp_path: Path) -> None:
    write_set(tmp_path, 6, 5, 3)
    source = folder(root=tmp_path)
    assert source.classes == ("ape", "zebra")
    assert source.name == tmp_path.name
    assert source.splits["test"].shape == (3, 6, 5)
    np.testing.assert_array_equal(source.splits["train"].labels_n, [0, 0, 0, 1, 1, 1])
    seeds = [110, 111, 112, 100, 101, 102]
    expected = np.stack([colours(seed, 6, 5, 3).transpose(2, 0, 1) for seed in seeds])
    np.testing.assert_array_equal(images_of(source, "test"), expected)


def test_folder_mixed_formats_nested_folders_and_other_files(tmp_path: Path) -> None:
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


def test_folder_is_gray_only_if_all_images_are(tmp_path: Path) -> None:
    write_set(tmp_path, 4, 4)
    assert folder(root=tmp_path).splits["train"].shape == (1, 4, 4)
    assert folder(root=tmp_path, mode="rgb").splits["train"].shape == (3, 4, 4)
    write_image(tmp_path / "test" / "ape" / "colour.png", colours(0, 4, 4, 3))
    source = folder(root=tmp_path)
    assert source.splits["train"].shape == source.splits["test"].shape == (3, 4, 4)
    assert images_of(folder(root=tmp_path, mode="gray"), "test").shape == (7, 1, 4, 4)


def test_folder_resizes_to_height_and_width(tmp_path: Path) -> None:
    write_set(tmp_path, 4, 4, 3)
    halves = np.zeros((10, 30, 3), dtype=np.uint8)
    halves[:, 15:] = 200
    write_image(tmp_path / "train" / "ape" / "wide.png", halves)
    with pytest.raises(ValueError, match=r"images differ in size, from \(4, 4\) to \(10, 30\): give one with --size"):
        images_of(folder(root=tmp_path), "train")
    with pytest.raises(FileNotFoundError) as caught:  # what is missing is named in one run
        convert("folder", tmp_path / "out.hbr", root=tmp_path / "train")
    for part in ("train/train is missing", "--test-fraction 0.2; images differ in size, from (4, 4) to (10, 30): give"):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"--test-fraction 0\.2$"):
        convert("folder", tmp_path / "out.hbr", root=tmp_path / "train", size=(6, 9))
    source = folder(root=tmp_path, size=(6, 9))
    images = images_of(source, "train")
    assert images.shape == (7, 3, 6, 9)
    assert np.all(images[3, :, :, :4] == 0)
    assert np.all(images[3, :, :, 5:] == 200)


def test_folder_names_empty_class(tmp_path: Path) -> None:
    write_set(tmp_path, 4, 4)
    for split in ("train", "test"):
        (tmp_path / split / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class 'empty' \(label 1\) has no sample in train"):
        convert("folder", tmp_path / "out.hbr", root=tmp_path)


def converted(tmp_path: Path, **options: Any) -> Dataset:
    return convert("folder", tmp_path / "out.hbr", force=True, **options)


def test_folder_rejects_root_without_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="train has no sub-folder: make one a class"):
        folder(root=tmp_path)


def test_folder_names_all_unusable_files_at_once(tmp_path: Path) -> None:
    """Of every kind and in both splits: damaged, truncated, and 16-bit."""
    root = tmp_path / "root"
    write_set(root, 40, 40, 3)
    for name in ("1.png", "2.png"):
        (root / "train" / "zebra" / name).write_bytes(b"no image at all")
    cut = root / "test" / "ape" / "0.png"
    cut.write_bytes(cut.read_bytes()[:-400])
    write_image(root / "test" / "zebra" / "deep.png", np.full((40, 40), 40_000, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"\(4 such files\): replace or remove them, or .* --skip-bad") as raised:
        converted(tmp_path, root=root)
    message = str(raised.value)
    assert "\n" not in message
    assert f"{root}/train/zebra/1.png is not a readable image (no format that is read); " in message
    assert f"{root}/train/zebra/2.png is not" in message
    assert f"{root}/test/ape/0.png is not a readable image (image file is truncated" in message
    assert f"{root}/test/zebra/deep.png has more than 8 bits a channel" in message
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_folder_skip_bad_drops_and_lists_unusable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The result equals the dataset of a folder without those files."""
    root = tmp_path / "root"
    write_set(root, 40, 40, 3)
    good = converted(tmp_path, root=root)
    (root / "train" / "zebra" / "00.png").write_bytes(b"no image at all")
    (root / "test" / "ape" / "9.png").write_bytes(b"no image at all")
    dataset = converted(tmp_path, root=root, skip_bad=True)
    assert dataset.fingerprint == good.fingerprint
    assert dataset.meta == good.meta
    assert (tmp_path / "out.hbr" / "skipped.csv").read_text().splitlines() == [
        "file,split,class,reason",
        "train/zebra/00.png,train,zebra,is not a readable image (no format that is read)",
        "test/ape/9.png,test,ape,is not a readable image (no format that is read)",
    ]
    assert "left out 2 unusable files, listed in skipped.csv" in capsys.readouterr().err
    for path in (root / "train" / "ape").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"class 'ape'.* has no sample in train"):
        converted(tmp_path, root=root, skip_bad=True)


def test_folder_keeps_order_over_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are decoded into memory that is used again, with unusable ones among them."""
    monkeypatch.setattr(encoded_module, "_LEAST_ROWS", 3)
    monkeypatch.setattr(encoded_module, "_MOST_ROWS", 3)
    monkeypatch.setattr(encoded_module, "rows_per_block", lambda shape: 2)
    values = [value for value in range(20) if value not in (1, 5, 12, 13, 14)]
    for name in ("ape", "zebra"):
        for value in range(20):
            path = tmp_path / "train" / name / f"{value:02}.png"
            write_image(path, np.full((4, 4), value, np.uint8))
            if value not in values:
                path.write_bytes(b"no image at all")
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    source = folder(root=tmp_path, skip_bad=True)
    assert images_of(source, "train")[:, 0, 0, 0].tolist() == 2 * values
    assert images_of(source, "test").max(axis=(1, 2, 3)).tolist() == 2 * values


def test_folder_warns_about_truncated_jpeg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    write_set(root, 64, 64, 3)
    path = root / "train" / "ape" / "3.jpg"
    Image.fromarray(colours(5, 64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-2])
    assert len(converted(tmp_path, root=root).train) == 7
    assert f"usable but not whole: {path} lacks its last bytes: 0 of 4,096" in capsys.readouterr().err


def test_folder_applies_orientation_before_comparing_sizes(tmp_path: Path) -> None:
    write_set(tmp_path, 6, 4, 3)
    lying = colours(3, 4, 6, 3)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(lying).save(tmp_path / "train" / "ape" / "3.png", exif=exif)
    found = images_of(folder(root=tmp_path), "train")[3]
    np.testing.assert_array_equal(found, np.rot90(lying, -1).transpose(2, 0, 1))


def test_folder_ignores_hidden_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    write_set(root, 4, 4)
    hidden = (".ipynb_checkpoints", "@eaDir", ".AppleDouble", "__MACOSX")
    for name in hidden:
        write_image(root / "train" / "ape" / name / "0.png", colours(1, 4, 4))
        write_image(root / "train" / name / "0.png", colours(1, 4, 4))
    write_image(root / "test" / "zebra" / "._0.png", colours(1, 4, 4))
    dataset = converted(tmp_path, root=root)
    assert dataset.classes == ("ape", "zebra")
    assert (len(dataset.train), len(dataset.test)) == (6, 6)
    assert "passed over 9 hidden files and folders: " in capsys.readouterr().err


def test_folder_detects_images_by_content_and_counts_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A suffix left by scraping, none, a wrong one; HEIC and HDF5 are named."""
    root = tmp_path / "root"
    write_set(root, 4, 4)
    ape = root / "train" / "ape"
    (root / "train" / "zebra" / "0.png").rename(ape / "0.jpg_large")
    (root / "train" / "zebra" / "1.png").rename(ape / "0")
    (ape / "2.png").rename(ape / "2.jpg")
    (ape / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90))
    (ape / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90))
    (ape / "c.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90))
    (ape / "notes").write_text("text")
    (root / "train" / "readme.md").write_text("text")
    dataset = converted(tmp_path, root=root)
    assert dataset.train.class_counts().tolist() == [5, 1]
    said = capsys.readouterr().err
    assert "passed over 1 .h5 file that is no picture of a format that is read: train/ape/c.h5" in said
    assert "passed over 1 .heic file that is no picture" in said
    assert "passed over 1 .HEIC file that is no picture" in said
    assert "passed over 1 file without suffix that is no picture of a format that is read: train/ape/notes" in said
    assert "passed over 1 file beside the folders of the classes: train/readme.md" in said


def test_folder_follows_external_links_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write_set(root, 4, 4)
    write_image(outside / "a.png", colours(1, 4, 4))
    ape = root / "train" / "ape"
    (ape / "inside.png").symlink_to(root / "test" / "ape" / "0.png")
    (ape / "linked").symlink_to(root / "test" / "zebra")
    (ape / "outside").symlink_to(outside)
    (ape / "outside.png").symlink_to(outside / "a.png")
    (ape / "broken.png").symlink_to(root / "nothing.png")
    (ape / "loop").symlink_to(root / "train")
    assert converted(tmp_path, root=root).train.class_counts().tolist() == [7, 3]
    said = capsys.readouterr().err
    assert "passed over 2 links out of the folder, for --follow-links to follow: train/ape/outside, " in said
    assert "passed over 1 broken link: train/ape/broken.png" in said
    assert "passed over 1 link to a folder that it is in: train/ape/loop" in said
    dataset = converted(tmp_path, root=root, follow_links=True)
    assert dataset.train.class_counts().tolist() == [9, 3]


def test_folder_names_both_paths_of_duplicate_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    write_set(root, 4, 4)
    shutil.copy(root / "train" / "ape" / "0.png", root / "test" / "ape" / "copy.png")
    shutil.copy(root / "train" / "ape" / "1.png", root / "train" / "zebra" / "copy.png")
    converted(tmp_path, root=root)
    said = capsys.readouterr().err
    assert "in two splits, so results will look too good (1 pair): train/ape/0.png and test/ape/copy.png" in said
    assert "two labels (1 pair): train/ape/1.png and train/zebra/copy.png (ape and zebra)" in said


def test_folder_background_and_transparency_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    write_set(root, 4, 4, 3)
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(root / "train" / "ape" / "3.png")
    assert (converted(tmp_path, root=root).train.images[3] == 9).all()
    assert "1 file with transparent parts" in capsys.readouterr().err
    assert (converted(tmp_path, root=root, background=(7, 8, 9)).train.images[3, 1] == 8).all()
    assert "transparent" not in capsys.readouterr().err


def test_folder_reads_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    write_set(root, 40, 40, 3)
    read: list[str] = []
    plain = DirectoryTree.read

    def counted(tree: DirectoryTree, path: str) -> bytes:
        read.append(path)
        return plain(tree, path)

    monkeypatch.setattr(DirectoryTree, "read", counted)
    converted(tmp_path, root=root, size=(8, 8))
    files = [path.relative_to(root).as_posix() for path in root.rglob("*.png")]
    assert sorted(read) == sorted(files)


def test_reading_headers_counts_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [f"a/{number}.png" for number in range(3)]
    for path in paths:
        write_image(tmp_path / path, colours(0, 4, 4))
    listing = Listing(Place(DirectoryTree(tmp_path), "train"), paths, np.zeros(3, np.int64))
    assert headers.channels_and_size({"train": listing}, "auto", Decoding()) == (1, (4, 4))
    assert "read headers of " in (said := capsys.readouterr().err)
    assert ": 3 files in " in said


def test_folder_detects_gray_from_headers(tmp_path: Path) -> None:
    """After the first colour image, no other header matters: all are converted to colour."""
    write_set(tmp_path, 4, 4)
    write_image(tmp_path / "train" / "ape" / "0.png", colours(0, 4, 4, 3))
    seen: list[str] = []
    plain = DirectoryTree.head

    class Tree(DirectoryTree):
        def head(self, path: str, count: int) -> bytes:
            seen.append(path)
            return plain(self, path, count)

    listing = folder(root=tmp_path).splits
    assert listing["train"].shape[0] == 3
    place = Place(Tree(tmp_path), "train")
    listings = {"train": Listing(place, ["train/ape/0.png", "train/ape/1.png"], np.zeros(2, np.int64))}
    assert headers.channels_and_size(listings, "auto", Decoding()) == (3, (4, 4))
    assert seen == ["train/ape/0.png"]


def test_folder_merges_composed_and_decomposed_class_names(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_set(root, 4, 4)
    (root / "train" / "ape").rename(root / "train" / unicodedata.normalize("NFD", "pingüino"))
    (root / "test" / "ape").rename(root / "test" / unicodedata.normalize("NFC", "pingüino"))
    assert converted(tmp_path, root=root).classes == (unicodedata.normalize("NFC", "pingüino"), "zebra")


def test_folder_expands_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not expand the tilde in --root=~/x."""
    write_set(tmp_path / "x", 4, 4)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(converted(tmp_path, root="~/x").train) == 6


def test_folder_rejects_invalid_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--root"):
        folder()
    with pytest.raises(ValueError, match="mode must be auto, rgb or gray, got 'cmyk'"):
        folder(root=tmp_path, mode="cmyk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be"):
        folder(root=tmp_path, size=(0, 3))
    with pytest.raises(ValueError, match="resize must be stretch, crop or pad, got 'fill'"):
        folder(root=tmp_path, resize="fill")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"background must be three values in 0\.\.255"):
        folder(root=tmp_path, background=(0, 0, 256))
    with pytest.raises(ValueError, match=r"bit_depth must be in 9\.\.16, got 8"):
        folder(root=tmp_path, bit_depth=8)
    with pytest.raises(ValueError, match="max_pixels must be at least 1"):
        folder(root=tmp_path, max_pixels=0)
    with pytest.raises(ValueError, match="test_fraction must be between 0 and 1, got 1"):
        open_source("folder", root=tmp_path, test_fraction=1.0)
    with pytest.raises(FileNotFoundError, match="train is missing"):
        folder(root=tmp_path)


def test_folder_origin_depends_on_content_not_location(tmp_path: Path) -> None:
    write_set(tmp_path / "a" / "same", 4, 4)
    write_set(tmp_path / "b" / "same", 4, 4)
    first = converted(tmp_path, root=tmp_path / "a" / "same").meta
    assert converted(tmp_path, root=tmp_path / "b" / "same").meta == first
    write_image(tmp_path / "b" / "same" / "train" / "ape" / "0.png", colours(99, 4, 4))
    assert converted(tmp_path, root=tmp_path / "b" / "same").meta["source"] != first["source"]
    train = [
        [f"{name}/{i}.png", sha256_of_file(tmp_path / "a/same/train" / name / f"{i}.png")]
        for name in ("ape", "zebra")
        for i in range(3)
    ]
    assert first["source"]["files"]["train"] == {"count": 6, "sha256": content_hash(train)}
