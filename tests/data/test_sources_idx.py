"""IDX files: strict reading, search locations, errors that name the file."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.sources import Source, idx
from hbr_fast.data.sources.idx import fashion_mnist, mnist, read_idx

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(directory: Path, *, compress: bool) -> dict[str, np.ndarray]:
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = {
        NAMES[0]: generator.integers(0, 256, (20, 5, 4), dtype=np.uint8),
        NAMES[1]: np.arange(20, dtype=np.uint8) % 10,
        NAMES[2]: generator.integers(0, 256, (7, 5, 4), dtype=np.uint8),
        NAMES[3]: np.arange(7, dtype=np.uint8),
    }
    for name, array in arrays.items():
        content = idx_bytes(array)
        if compress:
            (directory / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (directory / name).write_bytes(content)
    return arrays


def images_of(source: Source, split: str) -> np.ndarray:
    return np.concatenate(list(source.splits[split].blocks()))


@pytest.mark.parametrize("compress", [False, True])
def test_idx_reads_plain_and_gzipped(tmp_path: Path, compress: bool) -> None:
    arrays = write_set(tmp_path, compress=compress)
    source = mnist(root=tmp_path)
    assert source.classes == tuple("0123456789")
    for split, images, labels in (("train", NAMES[0], NAMES[1]), ("test", NAMES[2], NAMES[3])):
        assert source.splits[split].shape == (1, 5, 4)
        np.testing.assert_array_equal(images_of(source, split)[:, 0], arrays[images])
        np.testing.assert_array_equal(source.splits[split].labels_n, arrays[labels])
        assert source.splits[split].labels_n.dtype == np.int64
    assert len(source.origin["files"]) == 4
    assert str(tmp_path) not in str(source.origin)


def test_idx_finds_torchvision_location(tmp_path: Path) -> None:
    write_set(tmp_path / "FashionMNIST" / "raw", compress=True)
    assert fashion_mnist(root=tmp_path).classes[6] == "Shirt"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x89PNG1234", "is not an IDX file"),
        (b"\0", "is not an IDX file"),
        (struct.pack(">BBBBI", 0, 0, 0x0D, 1, 0), "holds float32 where uint8"),
        (struct.pack(">BBBBI", 0, 0, 0x77, 1, 0), "type code 0x77"),
        (struct.pack(">BBBBII", 0, 0, 8, 2, 1, 1) + b"1", "has 2 dimensions where 1"),
        (struct.pack(">BBBB", 0, 0, 8, 1), "truncated inside its header"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 5) + b"1234", "truncated: at most 4 of 5 bytes"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 5) + b"123456", "has 1 bytes after its 5"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 2**32 - 1), "truncated: at most 0 of 4294967295"),
        (gzip.compress(b"\0" * 4000, mtime=0)[:-20], "damaged or truncated gzip"),
        (
            gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 4000) + bytes(4000), mtime=0)[:-8] + b"12345678",
            "damaged or truncated gzip",
        ),
    ],
)
def test_idx_names_damaged_file(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "some-file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"some-file.*{complaint}") as raised:
        read_idx(path, dimensions=1)
    assert "\n" not in str(raised.value)


def test_idx_names_out_of_range_label(tmp_path: Path) -> None:
    write_set(tmp_path, compress=False)
    (tmp_path / NAMES[1]).write_bytes(idx_bytes(np.array([0] * 19 + [10], dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte: the label at position 19 is 10, outside 0\.\.9"):
        mnist(root=tmp_path)


def test_idx_counts_must_agree(tmp_path: Path) -> None:
    write_set(tmp_path, compress=False)
    (tmp_path / NAMES[3]).write_bytes(idx_bytes(np.zeros(6, dtype=np.uint8)))
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte has 7 images but t10k-labels-idx1-ubyte 6"):
        mnist(root=tmp_path)


def test_idx_names_missing_file(tmp_path: Path) -> None:
    write_set(tmp_path, compress=True)
    (tmp_path / f"{NAMES[2]}.gz").unlink()
    with pytest.raises(FileNotFoundError, match="lacks t10k-images-idx3-ubyte"):
        mnist(root=tmp_path)


def test_idx_missing_data_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"--root, install Debian's dataset-fashion-mnist, or allow --download"):
        fashion_mnist()
    with pytest.raises(FileNotFoundError, match=r"mnist is not in .*nothing: give"):
        mnist(root=tmp_path / "nothing")
    with pytest.raises(ValueError, match="a download needs a directory"):
        fashion_mnist(download=True)


def test_idx_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The specified folder; Debian's if none is specified or a download is allowed; then the download."""
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    downloads: list[str] = []

    def fetch(root: str, *, download: bool) -> None:
        assert download
        downloads.append(root)
        write_set(Path(root) / "FashionMNIST" / "raw", compress=True)

    fake = SimpleNamespace(datasets=SimpleNamespace(FashionMNIST=fetch))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    root = tmp_path / "root"
    assert len(fashion_mnist(root=root, download=True).splits["train"]) == 20
    assert downloads == [str(root)]
    fashion_mnist(root=root, download=True)
    assert downloads == [str(root)], "what is there is not fetched again"
    write_set(tmp_path / "debian", compress=True)
    fashion_mnist()
    fashion_mnist(root=tmp_path / "elsewhere", download=True)
    assert downloads == [str(root)]
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        fashion_mnist(root=tmp_path / "elsewhere")


def test_idx_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, *, download: bool) -> None:
        raise RuntimeError("no mirror answered")

    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=SimpleNamespace(MNIST=fetch)))
    with pytest.raises(OSError, match=r"could not fetch MNIST into .*: no mirror answered"):
        mnist(root=tmp_path, download=True)


@pytest.mark.skipif(not idx.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_idx_real_fashion_mnist(tmp_path: Path) -> None:
    dataset = convert("fashion-mnist", tmp_path / "fashion.hbr")
    assert dataset.train.images.shape == (60_000, 1, 28, 28)
    np.testing.assert_array_equal(dataset.train.class_counts(), 6000)
    np.testing.assert_array_equal(dataset.test.class_counts(), 1000)
    # The constants commonly used for this dataset.
    assert dataset.mean == pytest.approx((0.2860,), abs=5e-5)
    assert dataset.std == pytest.approx((0.3530,), abs=5e-5)
