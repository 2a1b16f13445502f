"""Files with published checksums are compared with them."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from hbr_fast import cli
from hbr_fast.data.convert import convert
from hbr_fast.data.sources import published
from hbr_fast.data.sources.idx import DEBIAN_FASHION_MNIST, fashion_mnist

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def idx_files(side: int = 4) -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, side, side))
    return dict(zip(IDX, (idx(pixels), idx(np.arange(20) % 10)) * 2, strict=True))


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def cifar_records() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3073), dtype=np.uint8)
    pixels[:, 0] = np.arange(20) % 10
    return pixels.tobytes()


def test_published_idx_files_by_their_unpacked_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = idx_files()
    write(tmp_path, {name: content for name, content in files.items() if "labels" in name})
    write(tmp_path, {f"{name}.gz": gzip.compress(content) for name, content in files.items() if "images" in name})
    with pytest.raises(
        ValueError, match=r"differ from the published mnist \(by MD5\): fetch them .*--accept-"
    ) as raised:
        convert("mnist", tmp_path / "a.hbr", root=tmp_path)
    assert all(name in str(raised.value) for name in files), "all differences in one run"
    assert len(convert("mnist", tmp_path / "a.hbr", root=tmp_path, accept_changed=True).train) == 20
    monkeypatch.setitem(published.MD5, "mnist", {name: md5(content) for name, content in files.items()})
    assert len(convert("mnist", tmp_path / "b.hbr", root=tmp_path).train) == 20
    monkeypatch.setitem(published.MD5["mnist"], IDX[3], "0" * 32)
    with pytest.raises(ValueError, match=rf"^\S*{IDX[3]} differs from the published mnist \(by MD5\): fetch it again"):
        convert("mnist", tmp_path / "c.hbr", root=tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_published_cifar_python_files(tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edited files are found in the extracted folder and in an archive packed anew."""
    parts = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    batch = {"data": pixels, "labels": [row % 10 for row in range(20)]}
    files = {name: pickle.dumps(batch, protocol=2) for name in parts}
    files["batches.meta"] = pickle.dumps({"label_names": [f"class {number}" for number in range(10)]}, protocol=2)
    folder = tmp_path / "cifar-10-batches-py"
    write(folder, files)
    if packed:
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
        shutil.rmtree(folder)
    monkeypatch.setitem(published.MD5, "cifar10", {name: md5(content) for name, content in files.items()})
    convert("cifar10", tmp_path / "a.hbr", root=tmp_path)
    published.MD5["cifar10"]["data_batch_3"] = published.MD5["cifar10"]["batches.meta"] = "0" * 32
    with pytest.raises(ValueError, match=r"batches.meta, \S*data_batch_3 differ from the published cifar10"):
        convert("cifar10", tmp_path / "b.hbr", root=tmp_path)
    convert("cifar10", tmp_path / "b.hbr", root=tmp_path, accept_changed=True)


def test_published_cifar_binary_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The binary form has a checksum for its archive only, so an extracted folder is used as it is."""
    names = "".join(f"class {number}\n" for number in range(10)).encode()
    files = {f"data_batch_{part}.bin": cifar_records() for part in range(1, 6)}
    files |= {"test_batch.bin": cifar_records(), "batches.meta.txt": names}
    write(tmp_path / "folder", files)
    convert("cifar10", tmp_path / "a.hbr", root=tmp_path / "folder")
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "folder", "cifar-10-batches-bin")
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz differs from the published cifar10"):
        convert("cifar10", tmp_path / "b.hbr", root=archive)
    monkeypatch.setitem(published.MD5["cifar10"], archive.name, md5(archive.read_bytes()))
    convert("cifar10", tmp_path / "b.hbr", root=archive)


def test_published_files_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacked files where their checksums are known, else the archives that torchvision left beside them."""
    files = idx_files(28)
    write(tmp_path / "MNIST" / "raw", files)
    with pytest.raises(ValueError, match=r"MNIST/raw/t10k-images-idx3-ubyte, .* differ from the published mnist"):
        convert("torchvision:MNIST", tmp_path / "a.hbr", root=tmp_path)
    raw = tmp_path / "KMNIST" / "raw"
    write(raw, files)
    convert("torchvision:KMNIST", tmp_path / "b.hbr", root=tmp_path)
    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}
    write(raw, packed)
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz differ from the published kmnist"):
        convert("torchvision:KMNIST", tmp_path / "c.hbr", root=tmp_path)
    monkeypatch.setattr(datasets.KMNIST, "resources", [(name, md5(content)) for name, content in packed.items()])
    convert("torchvision:KMNIST", tmp_path / "c.hbr", root=tmp_path)


def test_published_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "raw", idx_files())
    words = ["convert", "mnist", str(tmp_path / "a.hbr"), "--root", str(tmp_path / "raw")]
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    capsys.readouterr()
    cli.main([*words, "--accept-changed"])
    assert "differ from the published mnist, as accepted" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["convert", "synthetic", str(tmp_path / "b.hbr"), "--accept-changed"])
    assert "source synthetic does not take --accept-changed" in capsys.readouterr().err


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_published_fashion_mnist_is_debians() -> None:
    assert fashion_mnist().changed == []
