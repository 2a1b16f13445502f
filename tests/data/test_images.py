"""Image stores; only they and the loaders' first stage see how pixels are stored."""

import ast
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import hbr_fast
from hbr_fast.data.dataset import Split
from hbr_fast.data.images import BLOCK_BYTES, RawImages, channel_mean_std, channel_sums, statistics_of
from hbr_fast.loaders.loader import Loader

PACKAGE = Path(hbr_fast.__file__).parent
# Modules that may read the array: the stores, and those that compute the address of each image of a batch.
MAY_SEE_ARRAYS = {
    "data/dataset.py",
    "loaders/native.py",
    "loaders/resident.py",
    "loaders/native_cuda.py",
    "loaders/batch.py",  # a batch's own images
}
# Names of other objects with an attribute `images`: batches, preview counts and an open .beton file.
NOT_SPLITS = {"batch", "batches", "file", "found"}


def random_images(count: int = 5, shape: tuple[int, int, int] = (2, 3, 4)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


class OddSizes:
    """A store of images of varying sizes."""

    image_shape = None
    nbytes = 100

    def __len__(self) -> int:
        return 3

    def gather(self, index: np.ndarray | Sequence[int], *, out: np.ndarray | None = None) -> np.ndarray:
        raise NotImplementedError

    def blocks(self) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def release_memory(self) -> None:
        raise NotImplementedError


def split_of(images: np.ndarray) -> Split:
    channels = images.shape[1]
    return Split(
        name="train",
        store=RawImages(images),
        labels=np.arange(len(images)) % 2,
        classes=("a", "b"),
        mean=np.full(channels, 0.5, np.float32),
        std=np.full(channels, 0.25, np.float32),
    )


def test_raw_images_gather() -> None:
    images = random_images()
    store = RawImages(images)
    assert (len(store), store.image_shape, store.nbytes) == (5, (2, 3, 4), images.nbytes)
    index = [4, 0, 0, 2]
    np.testing.assert_array_equal(store.gather(index), images[index])
    out = np.zeros((4, 2, 3, 4), np.uint8)
    assert store.gather(np.array(index), out=out) is out
    np.testing.assert_array_equal(out, images[index])
    assert store.gather([]).shape == (0, 2, 3, 4)
    with pytest.raises(IndexError):
        store.gather([5])


def test_raw_images_gather_returns_a_copy() -> None:
    images = random_images()
    RawImages(images).gather([1])[:] = 0
    assert images[1].any()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_raw_images_blocks_cover_all_images_in_order(count: int) -> None:
    images = random_images(count, (1, 512, 1024))
    blocks = list(RawImages(images).blocks())
    assert all(block.nbytes <= BLOCK_BYTES for block in blocks)
    assert len(blocks) == -(-count // 2)
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 1, 512, 1024), np.uint8), *blocks]), images)


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (np.zeros((2, 1, 3, 3), np.int8), r"int8 \[2, 1, 3, 3\]"),
        (np.zeros((2, 3, 3), np.uint8), r"uint8 \[2, 3, 3\]"),
        (np.zeros((4, 1, 3, 3), np.uint8)[::2], r"uint8 \[2, 1, 3, 3\] with gaps"),
    ],
)
def test_raw_images_rejects_invalid_arrays(images: np.ndarray, what: str) -> None:
    with pytest.raises(ValueError, match=rf"images must be uint8 \[N, C, H, W\] in one piece, got {what}: convert"):
        RawImages(images)


def test_statistics_over_several_blocks() -> None:
    images = random_images(5, (2, 600, 900))
    assert len(list(RawImages(images).blocks())) > 1
    assert statistics_of(RawImages(images)) == channel_mean_std(5 * 600 * 900, *channel_sums(images))


def test_split_images_returns_raw_array() -> None:
    images = random_images()
    split = split_of(images)
    assert split.images is images
    assert split.image_shape == (2, 3, 4)


def test_split_images_rejects_varying_sizes() -> None:
    split = dataclasses.replace(split_of(random_images(3)), store=OddSizes())
    assert split.store.image_shape is None
    with pytest.raises(ValueError, match="images of split 'train' vary in size: choose one"):
        _ = split.image_shape
    with pytest.raises(ValueError, match=r"images of split 'train' are not one array: .* split.store.gather\(ids\)"):
        _ = split.images
    with pytest.raises(ValueError, match="vary in size"):
        Loader(split, batch_size=1)


def array_uses(source: str) -> list[int]:
    """Lines that read a split's array: `X.store.array`, or `X.images` where X is not a batch and it is not called."""
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in called:
            continue
        base = node.value
        while isinstance(base, ast.Subscript):
            base = base.value
        name = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
        if (node.attr == "images" and name not in NOT_SPLITS) or (node.attr == "array" and name.endswith("store")):
            lines.append(node.lineno)
    return lines


def test_split_arrays_are_read_only_by_stores_and_loader_first_stage() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := array_uses(path.read_text()))
    }
    assert set(found) <= MAY_SEE_ARRAYS, {name: found[name] for name in set(found) - MAY_SEE_ARRAYS}
    assert set(found) == MAY_SEE_ARRAYS, "a module that needs no array any more leaves the list"


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("split.images.shape[1:]", 1),
        ("x = dataset.train.images[ids]", 1),
        ("self.job.split.images", 1),
        ("splits[0].images", 1),
        ("f(split.store.array)", 1),
        ("model(batch.images), batches[0].images, found.images", 0),
        ("self._rows.images(rows)", 0),
        ("split.store.gather(ids), split.image_shape", 0),
    ],
)
def test_array_readers_finds_uses(source: str, uses: int) -> None:
    assert len(array_uses(source)) == uses
