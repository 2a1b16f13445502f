"""torchvision datasets by name, from files generated here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision as library
from PIL import Image
from scipy.io import savemat

from hbr_fast.data.convert import convert
from hbr_fast.data.sources import Source, torchvision
from hbr_fast.data.sources.opening import open_source


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def write_mnist_like(raw: Path, names: dict[str, str], labels: np.ndarray) -> dict[str, np.ndarray]:
    """IDX files of both splits; returns the images."""
    images = {}
    for index, (split, name) in enumerate(names.items()):
        images[split] = noise(len(labels), 28, 28, seed=index)
        write_idx(raw / f"{name}-images-idx3-ubyte", images[split])
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels)
    return images


def images_of(source: Source, split: str) -> np.ndarray:
    return np.concatenate(list(source.splits[split].blocks()))


def test_torchvision_kmnist(tmp_path: Path) -> None:
    labels = np.arange(20) % 10
    images = write_mnist_like(tmp_path / "KMNIST" / "raw", {"train": "train", "test": "t10k"}, labels)
    dataset = convert("torchvision:KMNIST", tmp_path / "kmnist.hbr", root=tmp_path)
    assert dataset.classes == tuple(library.datasets.KMNIST.classes)
    for split in ("train", "test"):
        np.testing.assert_array_equal(dataset.splits[split].images[:, 0], images[split])
        np.testing.assert_array_equal(dataset.splits[split].labels, labels)
    assert dataset.meta["source"]["kind"] == "torchvision:KMNIST"
    assert dataset.test.sources is not None
    assert dataset.test.sources[3] == "test[3]", "a row where there is no file for each picture"


def test_torchvision_emnist_letters_count_from_1(tmp_path: Path) -> None:
    labels = 1 + np.arange(52) % 26
    names = {split: f"emnist-letters-{split}" for split in ("train", "test")}
    images = write_mnist_like(tmp_path / "EMNIST" / "raw", names, labels)
    source = torchvision(name="EMNIST", root=tmp_path, split="letters")
    assert len(source.classes) == 26
    assert source.classes[0] == "a"
    np.testing.assert_array_equal(source.splits["train"].labels_n, labels - 1)
    np.testing.assert_array_equal(images_of(source, "test")[:, 0], images["test"])


def test_torchvision_emnist_digits_count_from_0(tmp_path: Path) -> None:
    labels = np.arange(30) % 10
    names = {split: f"emnist-digits-{split}" for split in ("train", "test")}
    write_mnist_like(tmp_path / "EMNIST" / "raw", names, labels)
    dataset = convert("torchvision:EMNIST", tmp_path / "digits.hbr", root=tmp_path, split="digits")
    assert dataset.classes == tuple("0123456789")
    np.testing.assert_array_equal(dataset.test.labels, labels)
    with pytest.raises(ValueError, match="torchvision:KMNIST has no variants: leave out --split"):
        torchvision(name="KMNIST", root=tmp_path, split="digits")


def write_food(root: Path) -> dict[str, list[np.ndarray]]:
    written: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    listed: dict[str, dict[str, list[str]]] = {}
    for index, split in enumerate(written):
        listed[split] = {"pie": [], "soup": []}
        for label, name in enumerate(listed[split]):
            for number in range(2):
                pixels = noise(20, 30 + label, 3, seed=100 * index + 10 * label + number)
                place = f"{name}/{split}{number}"
                listed[split][name].append(place)
                written[split].append(pixels)
                path = root / "food-101" / "images" / f"{place}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, "PNG")  # lossless, whatever its name
        meta = root / "food-101" / "meta" / f"{split}.json"
        meta.parent.mkdir(parents=True, exist_ok=True)
        meta.write_text(json.dumps(listed[split]))
    return written


def test_torchvision_food101_is_resized(tmp_path: Path) -> None:
    written = write_food(tmp_path)
    with pytest.raises(ValueError, match="Food101: images differ in size, 20x30 and 20x31: give one with --size"):
        images_of(torchvision(name="Food101", root=tmp_path), "train")
    source = torchvision(name="Food101", root=tmp_path, size=(8, 9))
    assert source.classes == ("pie", "soup")
    origins = source.splits["test"].origins
    assert origins is not None
    assert [origins[row] for row in (0, 3)] == ["food-101/images/pie/test0.jpg", "food-101/images/soup/test1.jpg"]
    np.testing.assert_array_equal(source.splits["train"].labels_n, [0, 0, 1, 1])
    for split in ("train", "test"):
        wanted = [np.asarray(Image.fromarray(p).resize((9, 8), Image.Resampling.BILINEAR)) for p in written[split]]
        np.testing.assert_array_equal(images_of(source, split), np.stack(wanted).transpose(0, 3, 1, 2))
    assert images_of(torchvision(name="Food101", root=tmp_path, size=(8, 9), mode="gray"), "test").shape == (4, 1, 8, 9)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_torchvision_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matlab files whose digit 0 is labelled 10."""
    files = {}
    for seed, split in enumerate(("train", "test")):
        images = noise(32, 32, 3, 20, seed=seed)
        file = tmp_path / f"{split}_32x32.mat"
        savemat(file, {"X": images, "y": 1 + np.arange(20)[:, None] % 10})
        files[split] = (images.transpose(3, 2, 0, 1), ("", file.name, md5(file)))
    monkeypatch.setattr(library.datasets.SVHN, "split_list", {split: entry for split, (_, entry) in files.items()})
    dataset = convert("torchvision:SVHN", tmp_path / "svhn.hbr", root=tmp_path)
    assert dataset.classes == tuple("0123456789")
    for split, (wanted, _) in files.items():
        np.testing.assert_array_equal(dataset.splits[split].images, wanted)
        np.testing.assert_array_equal(dataset.splits[split].labels, (1 + np.arange(20)) % 10)


def test_torchvision_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary files, column by column; the unlabelled pictures are no split."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    lists: dict[str, list[list[str]]] = {"train": [], "test": []}
    for seed, split in enumerate(lists):
        noise(11, 3, 96, 96, seed=seed).tofile(folder / f"{split}_X.bin")
        (np.arange(11) % 3 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
        lists[split] = [[name, md5(folder / name)] for name in (f"{split}_X.bin", f"{split}_y.bin")]
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    for split, entries in lists.items():
        monkeypatch.setattr(library.datasets.STL10, f"{split}_list", entries)
    dataset = convert("torchvision:STL10", tmp_path / "stl10.hbr", root=tmp_path)
    assert dataset.classes == ("airplane", "bird", "car")
    np.testing.assert_array_equal(dataset.test.labels, np.arange(11) % 3)
    np.testing.assert_array_equal(dataset.test.images, noise(11, 3, 96, 96, seed=1).transpose(0, 1, 3, 2))


def test_torchvision_qmnist(tmp_path: Path) -> None:
    """A row of eight numbers for each picture, of which the first is its class."""
    raw = tmp_path / "QMNIST" / "raw"
    for seed, split in enumerate(("train", "test")):
        write_idx(raw / f"qmnist-{split}-images-idx3-ubyte", noise(20, 28, 28, seed=seed))
        rows = np.arange(160, dtype=">i4").reshape(20, 8)
        rows[:, 0] = np.arange(20) % 10
        (raw / f"qmnist-{split}-labels-idx2-int").write_bytes(
            b"\0\0\x0c\2" + (20).to_bytes(4, "big") + (8).to_bytes(4, "big") + rows.tobytes()
        )
    dataset = convert("torchvision:QMNIST", tmp_path / "qmnist.hbr", root=tmp_path)
    np.testing.assert_array_equal(dataset.test.labels, np.arange(20) % 10)
    np.testing.assert_array_equal(dataset.test.images[:, 0], noise(20, 28, 28, seed=1))


def test_torchvision_eurosat_has_no_test_split(tmp_path: Path) -> None:
    for label, name in enumerate(("Forest", "River")):
        for number in range(5):
            path = tmp_path / "eurosat" / "2750" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(8, 8, 3, seed=10 * label + number)).save(path)
    with pytest.raises(ValueError, match=r"EuroSAT has no test split: hold one out with --test-fraction"):
        open_source("torchvision:EuroSAT", root=tmp_path)
    source = open_source("torchvision:EuroSAT", root=tmp_path, test_fraction=0.4)
    assert [split.labels_n.tolist() for split in source.splits.values()] == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1]]
    every = {image.tobytes() for split in source.splits for image in images_of(source, split)}
    assert every == {noise(8, 8, 3, seed=10 * a + b).transpose(2, 0, 1).tobytes() for a in range(2) for b in range(5)}


def test_torchvision_downloads_only_if_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"torchvision:KMNIST is not in .* or allow --download"):
        torchvision(name="KMNIST", root=tmp_path)

    def fetch(self: Any) -> None:
        write_mnist_like(tmp_path / "KMNIST" / "raw", {"train": "train", "test": "t10k"}, np.arange(10))

    monkeypatch.setattr(library.datasets.KMNIST, "download", fetch)
    assert len(torchvision(name="KMNIST", root=tmp_path, download=True).splits["train"]) == 10


def test_torchvision_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(library.datasets.KMNIST, "download", fail)
    with pytest.raises(OSError, match=r"torchvision could not fetch KMNIST into .*: no network"):
        torchvision(name="KMNIST", root=tmp_path, download=True)


def test_torchvision_suggests_misspelt_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torchvision has no dataset 'kmnist': did you mean .*KMNIST"):
        torchvision(name="kmnist", root=tmp_path)
    with pytest.raises(ValueError, match="convert the source cifar10 instead"):
        torchvision(name="CIFAR10", root=tmp_path)
    with pytest.raises(ValueError, match="torchvision is not a source: give it as torchvision:SVHN"):
        convert("torchvision", tmp_path / "a.hbr", root=tmp_path)
    with pytest.raises(ValueError, match="npz:x is not a source: give it as npz"):
        convert("npz:x", tmp_path / "a.hbr", root=tmp_path)
    with pytest.raises(ValueError, match="say where its files are"):
        torchvision(name="SVHN")
