"""Pools of generated images: accepted inputs, streaming and errors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.pool import open_pool


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "a.hbr"
    return convert("synthetic", path, classes=3, train_per_class=4, test_per_class=2, shape=(3, 8, 6))


def images_nchw(count: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 8, 6), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("kind", ["npz", "compressed", "npy", "published"])
def test_pool_arrays_are_written_once_and_reopened(data: Dataset, tmp_path: Path, kind: str, layout: str) -> None:
    images, labels = images_nchw(), np.arange(9) % 3
    stored = images if layout == "nchw" else images.transpose(0, 2, 3, 1)
    path = tmp_path / ("p.images.npy" if kind == "npy" else "p.npz")
    if kind == "npy":
        np.save(path, np.ascontiguousarray(stored))
        np.save(tmp_path / "p.labels.npy", labels.astype(np.int32))
    elif kind == "published":
        np.savez(path, image=np.ascontiguousarray(stored), label=labels)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, images=np.ascontiguousarray(stored), labels=labels)
    pool = open_pool(path, dataset=data, cache=tmp_path / "cache")
    np.testing.assert_array_equal(pool.split.images, images)
    np.testing.assert_array_equal(pool.split.labels, labels)
    assert isinstance(pool.split.images, np.memmap)
    before = pool.path.stat().st_mtime_ns
    again = open_pool(path, dataset=data, cache=tmp_path / "cache")
    assert (again.path, again.fingerprint) == (pool.path, pool.fingerprint)
    assert pool.path.stat().st_mtime_ns == before
    assert open_pool(pool.path, dataset=data).fingerprint == pool.fingerprint
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_pool_identity_depends_on_pixels_and_labels(data: Dataset, tmp_path: Path) -> None:
    images, labels = images_nchw(), np.arange(9) % 3
    fingerprints = set()
    for number, (some_images, some_labels) in enumerate([(images, labels), (images ^ 1, labels), (images, 2 - labels)]):
        path = tmp_path / f"{number}.images.npy"
        np.save(path, some_images)
        np.save(tmp_path / f"{number}.labels.npy", some_labels)
        fingerprints.add(open_pool(path, dataset=data, cache=tmp_path / "cache").fingerprint)
    assert len(fingerprints) == 3


def test_pool_from_dataset_uses_train_split(data: Dataset, tmp_path: Path) -> None:
    other = convert("synthetic", tmp_path / "b.hbr", classes=3, train_per_class=5, test_per_class=2, shape=(3, 8, 6))
    pool = open_pool(other.path, dataset=data)
    assert pool.fingerprint == other.fingerprint
    assert len(pool.split) == 15
    more = convert("synthetic", tmp_path / "c.hbr", classes=4, train_per_class=5, test_per_class=2, shape=(3, 8, 6))
    with pytest.raises(ValueError, match="has other classes than"):
        open_pool(more.path, dataset=data)


MEASURED = """
import resource, sys
from pathlib import Path
from hbr_fast.data.dataset import open_dataset
from hbr_fast.data.pool import open_pool

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

data, pool, cache = open_dataset(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
before = peak()
open_pool(pool, dataset=data, cache=cache)
print(peak() - before)
"""


@pytest.mark.parametrize("name", ["p.npz", "compressed.npz", "p.images.npy"])
def test_pool_streams_large_file(data: Dataset, tmp_path: Path, name: str) -> None:
    """In a process of its own, whose peak is only this: what is mapped counts, and so do pages written and not yet on
    the disk."""
    images, labels = np.zeros((1_000_000, 3, 8, 6), np.uint8), np.zeros(1_000_000, np.int64)
    if name == "p.images.npy":
        np.save(tmp_path / name, images)
        np.save(tmp_path / "p.labels.npy", labels)
    else:
        (np.savez if name == "p.npz" else np.savez_compressed)(tmp_path / name, images=images, labels=labels)
    command = [sys.executable, "-c", MEASURED, str(data.path), str(tmp_path / name), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 40 * 1024, "labels (8 MB, some times) and blocks, of 144 MB of images"


def test_pool_rejects_invalid_input_and_leaves_nothing(data: Dataset, tmp_path: Path) -> None:
    labels = np.arange(9) % 3
    np.savez(tmp_path / "float.npz", images=images_nchw().astype(np.float32), labels=labels)
    np.savez(tmp_path / "none.npz", pictures=images_nchw(), labels=labels)
    np.savez(tmp_path / "few.npz", images=images_nchw(), labels=labels[:5])
    np.savez(tmp_path / "class.npz", images=images_nchw(), labels=labels + 1)
    np.savez(tmp_path / "size.npz", images=images_nchw()[:, :, :4], labels=labels)
    np.save(tmp_path / "alone.npy", images_nchw())
    for name, message in (
        ("float.npz", r"has images of float32 \[9, 3, 8, 6\], not uint8"),
        ("none.npz", "lacks the array 'images'"),
        ("few.npz", r"has 9 images but labels of int64 \[5\]"),
        ("class.npz", r"must be classes in \[0, 3\) of .*, got some from 1 to 3"),
        ("size.npz", r"has images of \[3, 4, 6\], the dataset of \[3, 8, 6\]"),
        ("alone.npy", "is not a pool: give a dataset, an .npz file"),
    ):
        with pytest.raises(ValueError, match=message):
            open_pool(tmp_path / name, dataset=data, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*"))) <= 1, "only the pool whose labels do not fit this dataset"
    with pytest.raises(FileNotFoundError, match="there is no pool at"):
        open_pool(tmp_path / "nothing.npz", dataset=data)
    with pytest.raises(ValueError, match="is a file: say where its images are to be kept"):
        open_pool(tmp_path / "size.npz", dataset=data)
