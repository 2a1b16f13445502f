"""A test split is held out in the same way from every kind of source, and only where there is none.

That of `.beton` files is in `test_beton.py`, where FFCV is imported anyway.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars
import pytest
from PIL import Image
from torchvision import datasets

from hbr_fast.data.convert import convert
from hbr_fast.data.sources import Source
from hbr_fast.data.sources.opening import open_source

LABELS = np.repeat([0, 1], [20, 10])


def picture(row: int, side: int = 4) -> np.ndarray:
    """uint8 [side, side, 3], another one for each row."""
    return np.full((side, side, 3), 3 * row + 1, np.uint8)


def encoded(row: int, *, side: int = 4) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(row, side)).save(file, "PNG")
    return file.getvalue()


def write_idx(path: Path, array: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def write_mnist(root: Path) -> None:
    write_idx(root / "train-images-idx3-ubyte", np.stack([picture(row)[..., 0] for row in range(30)]))
    write_idx(root / "train-labels-idx1-ubyte", LABELS)


def write_cifar10(root: Path) -> None:
    pixels = np.stack([picture(row, 32).transpose(2, 0, 1).ravel() for row in range(30)])
    records = np.concatenate([LABELS[:, None].astype(np.uint8), pixels], axis=1)
    for part in range(5):
        (root / f"data_batch_{part + 1}.bin").write_bytes(records[6 * part : 6 * part + 6].tobytes())
    (root / "batches.meta.txt").write_text("".join(f"class {number}\n" for number in range(10)))


def write_npz(root: Path) -> None:
    np.savez(root / "a.npz", images=np.stack([picture(row) for row in range(30)]), labels=LABELS)


def write_folder(root: Path) -> None:
    for row, label in enumerate(LABELS):
        path = root / "ab"[label] / f"{row:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(row))


def write_huggingface(root: Path) -> None:
    frame = polars.DataFrame({"image": [encoded(row) for row in range(30)], "label": LABELS})
    frame.write_parquet(root / "train.parquet")


def write_eurosat(root: Path) -> None:
    (root / "eurosat").mkdir()
    (root / "eurosat" / "2750").mkdir()
    write_folder(root / "eurosat" / "2750")


# source: writes its train split only, where its root is, origin of row 7
SOURCES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "mnist": (write_mnist, "", "train-images-idx3-ubyte[7]"),
    "fashion-mnist": (write_mnist, "", "train-images-idx3-ubyte[7]"),
    "cifar10": (write_cifar10, "", "data_batch_2.bin[1]"),
    "npz": (write_npz, "a.npz", "images[7]"),
    "folder": (write_folder, "", "a/07.png"),
    "huggingface": (write_huggingface, "", "train/7"),
    "torchvision:EuroSAT": (write_eurosat, "", "eurosat/2750/a/07.png"),
}


def rows_of(source: Source, split: str) -> np.ndarray:
    pixels = np.concatenate(list(source.splits[split].blocks()))
    assert len(np.unique(pixels)) == len(pixels), "every picture is of one gray level of its own"
    return (pixels[:, 0, 0, 0].astype(np.int64) - 1) // 3


@pytest.mark.parametrize("name", SOURCES)
def test_hold_out_from_every_source(tmp_path: Path, name: str) -> None:
    write, place, origin = SOURCES[name]
    write(tmp_path)
    root = tmp_path / place
    options = {"accept_changed": True} if name in ("mnist", "fashion-mnist") else {}
    with pytest.raises((FileNotFoundError, ValueError), match=r"--test-fraction 0\.2"):
        open_source(name, root=root, **options)
    source = open_source(name, root=root, test_fraction=0.3, seed=5, **options)
    rows = {split: rows_of(source, split) for split in ("train", "test")}
    assert sorted([*rows["train"], *rows["test"]]) == list(range(30))
    for split, found in rows.items():
        assert list(found) == sorted(found)
        assert source.splits[split].labels_n.tolist() == LABELS[found].tolist()
        assert len(source.splits[split].origins or []) == len(found)
    assert np.bincount(LABELS[rows["test"]]).tolist() == [6, 3]
    split = "train" if 7 in rows["train"] else "test"
    origins = source.splits[split].origins
    assert origins is not None
    assert origins[list(rows[split]).index(7)] == origin
    other = rows_of(open_source(name, root=root, test_fraction=0.3, **options), "test")
    assert list(other) != list(rows["test"]), "the seed decides"


def test_hold_out_is_described_in_the_dataset(tmp_path: Path) -> None:
    write_folder(tmp_path)
    dataset = convert("folder", tmp_path / "a.hbr", root=tmp_path, test_fraction=0.3, seed=5)
    options = dataset.meta["source"]["options"]
    assert (options["test_fraction"], options["seed"], options["mode"]) == (0.3, 5, "rgb")
    assert dataset.meta["source"]["files"]["test"]["count"] == 9
    (tmp_path / "npz").mkdir()
    write_npz(tmp_path / "npz")
    dataset = convert("npz", tmp_path / "b.hbr", root=tmp_path / "npz" / "a.npz", test_fraction=0.3)
    assert dataset.meta["source"]["options"] == {"test_fraction": 0.3}


def test_hold_out_leaves_unusable_pictures_out(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for row in (3, 25):
        (tmp_path / "ab"[LABELS[row]] / f"{row:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    dataset = convert("folder", tmp_path / "a.hbr", root=tmp_path, test_fraction=0.3, skip_bad=True)
    assert len(dataset.train) + len(dataset.test) == 28
    assert (dataset.path / "skipped.csv").read_text().count(".png") == 2
    for split in dataset.splits.values():
        for row in range(len(split)):
            assert split.sources is not None
            assert split.images[row, 0, 0, 0] == 3 * int(split.sources[row][2:4]) + 1


def test_hold_out_is_refused_where_there_is_a_test_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="synthetic has a test split of its own: leave out --test-fraction"):
        convert("synthetic", tmp_path / "a.hbr", test_fraction=0.1)
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match="uses a seed only to hold out a test split: leave out --seed"):
        convert("mnist", tmp_path / "a.hbr", root=tmp_path, seed=1)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-labels-idx1-ubyte \(or .*\): fetch it"):
        convert("mnist", tmp_path / "a.hbr", root=tmp_path, test_fraction=0.1)
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="test_fraction must be between 0 and 1"):
            open_source("mnist", root=tmp_path, test_fraction=fraction)
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*63\), got -1"):
        open_source("folder", root=tmp_path, test_fraction=0.1, seed=-1)


def test_hold_out_from_torchvision_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes that hold all pixels in one array, such as USPS, which are not decoded picture by picture."""

    class Gray:
        def __init__(self, root: str) -> None:
            self.data = np.stack([picture(row)[..., 0] for row in range(30)])
            self.targets, self.classes = LABELS.tolist(), ["a", "b"]

        def __len__(self) -> int:
            return 30

    monkeypatch.setattr(datasets, "USPS", Gray)
    source = open_source("torchvision:USPS", root=tmp_path, test_fraction=0.3)
    assert len(source.splits["test"]) == 9
    origins = source.splits["test"].origins
    assert origins is not None
    assert [origins[at] for at in range(9)] == [f"train[{row}]" for row in rows_of(source, "test")]
