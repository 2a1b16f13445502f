"""Loaders over encoded pictures: the same batches in every backend that decodes; crops follow the definition."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from photographs import write_photographs
from PIL import Image

from hbr_fast.data import shards
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, Split, open_dataset
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.images import RawImages
from hbr_fast.data.plan import Plan
from hbr_fast.kernels import reference
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.backends import BACKENDS
from hbr_fast.loaders.loader import Loader
from hbr_fast.orders import sequential_order
from hbr_fast.seeding import Stream, philox, stream_key
from loaders.contracts import assert_same, copies, joined
from loaders.on_device import use_memory_of_the_cpu

DECODING = [name for name, entry in BACKENDS.items() if "cpu" in entry.classes and "encoded pictures" in entry.features]
CROPPED = Augment(flip=0.5, resized_crop=(0.2, 0.9))


@pytest.fixture(autouse=True)
def no_pipelines_left() -> Iterator[None]:
    """DALI's pipelines are in reference cycles; one that is collected in a forked worker process waits forever."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_photographs(tmp_path_factory.mktemp("photos"), per_class=8)
    return convert("folder", tmp_path_factory.mktemp("out") / "photos.hbr", root=root, store="encoded")


def require(backend: str) -> None:
    """Skip the test where the backend is not installed."""
    if backend in (extras := {"dali": "nvidia.dali", "ffcv": "ffcv"}):
        pytest.importorskip(extras[backend])


def same_pixels_raw(split: Split) -> Split:
    """The split with its pictures stored as pixels, at the size it has."""
    images = split.store.gather(np.arange(len(split)))
    images.flags.writeable = False
    return dataclasses.replace(split, store=RawImages(images))


@pytest.mark.parametrize("backend", DECODING)
@pytest.mark.parametrize(
    "augment", [Augment(), Augment(flip=0.5, alternating_flip=True, pad=3, cutout=5)], ids=["plain", "augmented"]
)
def test_pictures_without_a_crop_are_those_of_stored_pixels(dataset: Dataset, backend: str, augment: Augment) -> None:
    require(backend)
    split = dataset.train.at_size(24)
    for dtype in (torch.float32, torch.bfloat16):
        of_pictures, of_pixels = (
            Loader(one, augment=augment, batch_size=5, seed=3, dtype=dtype, channels_last=True, backend=backend)
            for one in (split, same_pixels_raw(split))
        )
        for epoch in range(2):
            assert_same(of_pictures.epoch(epoch), copies(of_pixels.epoch(epoch)))


def test_pictures_on_a_gpu_are_those_of_the_cpu(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the class for GPUs, in the CPU's memory."""
    arguments: dict[str, Any] = {"augment": CROPPED, "batch_size": 5, "size": 24, "prefetch": 2}
    expected = copies(Loader(dataset.train, **arguments).epoch(1, start=1))
    use_memory_of_the_cpu(monkeypatch)
    assert_same(Loader(dataset.train, **arguments).epoch(1, start=1), expected)


@pytest.mark.parametrize("keyed_by", ["position", "sample"])
@pytest.mark.parametrize("backend", DECODING)
def test_pictures_are_the_same_in_every_backend(
    dataset: Dataset, backend: str, keyed_by: Literal["position", "sample"]
) -> None:
    require(backend)
    plan = Plan.of_rows(np.arange(30) % 16)
    augment = dataclasses.replace(CROPPED, keyed_by=keyed_by)
    arguments: dict[str, Any] = {"plan": plan, "augment": augment, "batch_size": 7, "seed": 5, "size": 24}
    native = joined(Loader(dataset.train, **arguments).epoch(2))
    other = joined(Loader(dataset.train, **arguments, backend=backend).epoch(2))
    torch.testing.assert_close(other.images, native.images, rtol=0, atol=1e-6)
    assert torch.equal(other.ids, native.ids)
    assert torch.equal(other.labels, native.labels)


def test_pictures_are_the_same_for_any_batches_and_threads(dataset: Dataset) -> None:
    whole = joined(Loader(dataset.train, size=24, augment=CROPPED, batch_size=16, threads=1).epoch(1))
    for batch_size, threads, prefetch in ((3, 2, 0), (5, 1, 2), (16, 2, 0)):
        loader = Loader(
            dataset.train, size=24, augment=CROPPED, batch_size=batch_size, threads=threads, prefetch=prefetch
        )
        assert_same([joined(loader.epoch(1))], [whole])
    resumed = joined(Loader(dataset.train, size=24, augment=CROPPED, batch_size=4).epoch(1, start=2))
    assert torch.equal(resumed.images, whole.images[8:])
    parts = [Loader(dataset.train, size=24, augment=CROPPED, batch_size=4).shard(rank, 2) for rank in range(2)]
    both = torch.stack([joined(part.epoch(1)).images for part in parts], 1).flatten(0, 1)
    assert torch.equal(both, whole.images)


def test_random_crops_follow_the_definition(dataset: Dataset) -> None:
    """Word 3 takes the size, 1 and 2 the place, from the picture as stored; then the antialiased resize."""
    store = dataset.train.store
    assert isinstance(store, EncodedImages)
    loader = Loader(
        dataset.train, size=20, augment=Augment(resized_crop=(0.2, 0.9)), batch_size=16, seed=5,
        order=sequential_order(16),
    )  # fmt: skip
    (batch,) = loader.epoch(3)
    mean, std = (np.asarray(one, np.float64)[:, None, None] for one in (dataset.train.mean, dataset.train.std))
    for row in range(16):
        height, width = (int(side) for side in store.index[["height", "width"]][row].tolist())
        words = philox((row, 0, 3, 0), stream_key(5, Stream.AUGMENTATION))
        tall, wide = reference.crop_sizes(height, width, (0.2, 0.9), (3 / 4, 4 / 3))[words[3] * 4096 >> 32].tolist()
        top, left = words[1] * (height - tall + 1) >> 32, words[2] * (width - wide + 1) >> 32
        whole = store.at_size((height, width), "stretch").gather([row])[0]
        expected = reference.box_resized(whole, (top, left, tall, wide), 20, 20)
        pixels = 255 * (batch.images[row].numpy() * std + mean)
        # Half a grey level, or more where the picture was decoded at half its size: these are rich in contrast.
        assert np.abs(pixels - expected).mean() < 2, row


def test_crops_equal_the_table_of_each_size() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (4, 50), dtype=np.uint64)
    for height, width in ((400, 533), (37, 21), (1, 5)):
        found = reference.crops(np.full(50, height), np.full(50, width), words, (0.08, 1.0), (3 / 4, 4 / 3))
        table = reference.crop_sizes(height, width, (0.08, 1.0), (3 / 4, 4 / 3))
        sizes = table[(words[3] * np.uint64(4096)) >> np.uint64(32)]
        np.testing.assert_array_equal(found[:, 2:], sizes)
        assert (found[:, :2] >= 0).all()
        assert (found[:, :2] + found[:, 2:] <= (height, width)).all()


def test_crops_golden() -> None:
    words = np.array([philox((row, 0, 7, 0), stream_key(11, Stream.AUGMENTATION)) for row in range(3)], np.uint64).T
    found = reference.crops(np.array([400, 600, 3000]), np.array([533, 400, 4000]), words, (0.08, 1.0), (3 / 4, 4 / 3))
    assert found.tolist() == [[175, 197, 220, 223], [43, 0, 378, 400], [327, 99, 2447, 3248]]


def test_interpolated_pictures(dataset: Dataset) -> None:
    split = dataset.train.at_size(24)
    plan = Plan(np.zeros(8, np.int16), np.arange(8), np.array([3, -1, 5, 0, -1, 2, 7, 1]), np.full(8, 0.25, np.float32))
    augment = Augment(flip=0.5, pad=2)
    one, two = (
        joined(Loader(s, plan=plan, augment=augment, batch_size=3).epoch(0)) for s in (split, same_pixels_raw(split))
    )
    assert_same([one], [two])


def test_pictures_beside_a_pool_of_pixels(dataset: Dataset) -> None:
    split = dataset.train.at_size(24)
    pool = same_pixels_raw(dataset.test.at_size(24))
    plan = Plan(np.array([0, 1, 1, 0], np.int16), np.array([4, 7, 0, 15]), np.full(4, -1), np.ones(4, np.float32))
    both = joined(Loader(split, stores=[pool], plan=plan, order=sequential_order(4), batch_size=4).epoch(0))
    pixels = joined(
        Loader(same_pixels_raw(split), stores=[pool], plan=plan, order=sequential_order(4), batch_size=4).epoch(0)
    )
    assert_same([both], [pixels])
    assert both.ids.tolist() == [4, 23, 16, 15]


@pytest.mark.parametrize("backend", DECODING)
def test_bad_pictures_are_set_aside(dataset: Dataset, tmp_path: Path, backend: str) -> None:
    require(backend)
    path = Path(shutil.copytree(dataset.path, tmp_path / "damaged.hbr"))
    shard = path / "train.00000.tar"
    store = dataset.train.store
    assert isinstance(store, EncodedImages)
    content = bytearray(shard.read_bytes())
    content[int(store.index["offset"][6]) + 300] ^= 1
    shard.write_bytes(content)
    damaged = Loader(open_dataset(path).train, size=24, augment=CROPPED, batch_size=5, backend=backend)
    whole = Loader(dataset.train, size=24, augment=CROPPED, batch_size=5, backend=backend)
    assert damaged.bad_pictures == {}
    found, expected = joined(damaged.epoch(0)), joined(whole.epoch(0))
    bad = found.ids == 6
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.images[~bad], expected.images[~bad])
    assert torch.equal(found.labels[~bad], expected.labels[~bad])
    assert found.labels[bad].tolist() == [-100]
    assert found.images[bad].abs().max() < 0.01
    assert list(damaged.bad_pictures) == [6]
    assert whole.bad_pictures == {}


def test_pictures_need_a_size(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"images of split 'train' vary in size: choose one, .*Loader\(size=224\)"):
        Loader(dataset.train, batch_size=4)
    raw = same_pixels_raw(dataset.train.at_size(24))
    with pytest.raises(ValueError, match=r"images of split 'train' are stored at 24 x 24 pixels, not 32 x 32"):
        Loader(raw, batch_size=4, size=32)
    assert len(Loader(raw, batch_size=4, size=24)) == 4


def test_pictures_in_a_copy_of_the_loader(dataset: Dataset) -> None:
    import pickle

    loader = Loader(dataset.train, size=24, augment=CROPPED, batch_size=8)
    assert_same(pickle.loads(pickle.dumps(loader)).epoch(0), copies(loader.epoch(0)))
    again = loader.with_order(sequential_order(16))
    assert torch.equal(joined(again.epoch(0)).ids, torch.arange(16))
    fixed = Loader(dataset.train, size=24, augment=CROPPED, batch_size=8, order=sequential_order(16))
    assert_same(again.epoch(0), copies(fixed.epoch(0)))


@pytest.mark.parametrize("backend", ["native", "ffcv", "dali"])
def test_cached_pictures_are_the_same(dataset: Dataset, backend: str) -> None:
    """Ten of sixteen pictures fit; from the second epoch on these are not decoded, and nothing else changes."""
    require(backend)
    plan = Plan(np.zeros(20, np.int16), np.arange(20) % 16, np.where(np.arange(20) < 5, 3, -1), np.full(20, 0.5, "f4"))
    arguments: dict[str, Any] = {"plan": plan, "augment": Augment(flip=0.5, pad=2), "batch_size": 7, "size": 24}
    cached = Loader(dataset.train, **arguments, backend=backend, cache=10 * 3 * 24 * 24)
    plain = Loader(dataset.train, **arguments, backend=backend)
    for epoch in range(3):
        assert_same(cached.epoch(epoch), copies(plain.epoch(epoch)))
    assert (cached.cache_use.pictures, cached.cache_use.bytes) == (10, 10 * 3 * 24 * 24)
    assert cached.cache_use.needed >= 3 * 25  # the partners are pictures, too; backends may look ahead
    assert 0.3 < cached.cache_use.rate < 0.8
    assert plain.cache_use == (0, 0, 0, 0)


def test_cached_pictures_are_not_decoded_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(dataset.train, augment=Augment(flip=0.5), size=24, batch_size=4, cache="1 MB")
    whole = joined(loader.epoch(0))
    assert loader.cache_use == (0, 16, 16, 16 * 3 * 24 * 24)
    decoded = []
    real = EncodedImages.decode

    def counted(self: EncodedImages, rows_b: np.ndarray, *args: Any, **named: Any) -> Any:
        decoded.extend(rows_b.tolist())
        return real(self, rows_b, *args, **named)

    monkeypatch.setattr(EncodedImages, "decode", counted)
    assert torch.equal(joined(loader.epoch(0)).images, whole.images)
    assert decoded == []
    assert loader.cache_use.rate == 0.5
    random_crops = Loader(dataset.train, augment=CROPPED, size=24, batch_size=4, cache="1 MB")
    joined(random_crops.epoch(0))
    assert len(decoded) == 16
    assert random_crops.cache_use == (0, 0, 0, 0)


def test_worker_processes_share_no_cache(dataset: Dataset) -> None:
    with pytest.raises(
        ValueError, match="backend 'torchvision' has no cache of decoded pictures: use native or ffcv or dali"
    ):
        Loader(dataset.train, size=24, batch_size=4, backend="torchvision", cache="1 MB")


def test_bad_pictures_are_not_cached(dataset: Dataset, tmp_path: Path) -> None:
    path = Path(shutil.copytree(dataset.path, tmp_path / "damaged.hbr"))
    store = dataset.train.store
    assert isinstance(store, EncodedImages)
    content = bytearray((path / "train.00000.tar").read_bytes())
    content[int(store.index["offset"][6]) + 300] ^= 1
    (path / "train.00000.tar").write_bytes(content)
    loader = Loader(open_dataset(path).train, size=24, batch_size=5, cache="1 MB")
    for epoch in range(2):
        batch = joined(loader.epoch(epoch))
        assert batch.labels[batch.ids == 6].tolist() == [-100]
        assert batch.images[batch.ids == 6].abs().max() < 0.01
    assert loader.cache_use.pictures == 15


def mapped_bytes(path: Path) -> int:
    """What a mapped file takes of this process's memory."""
    total, is_its = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            is_its = line.endswith(str(path))
        elif is_its and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is in memory")
def test_memory_of_an_epoch_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_photographs(tmp_path / "photos", per_class=10)
    noise = np.random.default_rng(0)
    for path in sorted(root.rglob("*.jpg")):
        Image.fromarray(noise.integers(0, 256, (400, 400, 3), np.uint8)).save(path, quality=95)
    split = convert("folder", tmp_path / "large.hbr", root=root, store="encoded").train
    shard = tmp_path / "large.hbr" / "train.00000.tar"
    loader = Loader(split, size=24, augment=CROPPED, batch_size=2)
    list(loader.epoch(0))
    assert mapped_bytes(shard) > 0.9 * split.store.nbytes
    split.store.release_memory()
    monkeypatch.setattr(shards, "RELEASE_BYTES", split.store.nbytes // 8)
    most = max(mapped_bytes(shard) for _ in loader.epoch(0))
    assert most < split.store.nbytes / 2
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    importlib.import_module("epoch_memory").main([str(tmp_path / "large.hbr"), "--size", "24", "--epochs", "1"])
    assert "MB of pictures in 1 batches: resident memory" in capsys.readouterr().out


@pytest.mark.parametrize("cache", ["lots", "3 pictures", "-1 MB", -1, 2.5])
def test_cache_sizes_are_checked(dataset: Dataset, cache: Any) -> None:
    with pytest.raises(ValueError, match=r"cache (must be|cannot be)"):
        Loader(dataset.train, size=24, batch_size=4, cache=cache)
