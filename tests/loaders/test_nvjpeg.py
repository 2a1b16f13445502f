"""The nvjpeg backend without a GPU: the same graph on the CPU, with DALI's decoder for the CPU."""

import dataclasses
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import encoded, photograph, write_photographs

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.images import RawImages
from hbr_fast.data.plan import Plan
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.backends import BACKENDS
from hbr_fast.loaders.loader import Loader
from loaders.contracts import MakeLoader, assert_same, checks_of_pictures, copies, joined

pytest.importorskip("nvidia.dali")

CROPPED = Augment(flip=0.5, resized_crop=(0.2, 0.9))


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = dict.fromkeys(("cpu", "cuda"), "nvjpeg:NvjpegBackend")
    monkeypatch.setitem(BACKENDS, "nvjpeg", dataclasses.replace(BACKENDS["nvjpeg"], classes=classes))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Photographs in every orientation; two are PNG."""
    root = write_photographs(tmp_path_factory.mktemp("photos"), per_class=8)
    for number in range(8):
        content = encoded(photograph(40 + 7 * number, 70 - 5 * number, seed=number), orientation=number + 1)
        (root / "train/cat" / f"{number}.jpg").write_bytes(content)
    for number in (2, 5):
        photograph(40, 60, seed=number).save(root / "train/dog" / f"{number}.jpg", "PNG")
    return convert("folder", tmp_path_factory.mktemp("out") / "photos.hbr", root=root, store="encoded")


def pixels(split: Any, images: torch.Tensor) -> np.ndarray:
    mean, std = (np.asarray(one, np.float64)[:, None, None] for one in (split.mean, split.std))
    found: np.ndarray = 255 * (images.numpy() * std + mean)
    return found


@pytest.mark.parametrize("check", checks_of_pictures("nvjpeg"), ids=lambda check: check.__name__)
@pytest.mark.usefixtures("on_the_cpu")
def test_nvjpeg_contract_of_pictures(check: Callable[[MakeLoader], None]) -> None:
    check(MakeLoader("nvjpeg", encoded=True))


@pytest.mark.parametrize("size", [24, (64, 70)])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("augment", [Augment(), CROPPED, Augment(flip=0.5, pad=3, cutout=5)], ids=["no", "crop", "pad"])
@pytest.mark.usefixtures("on_the_cpu")
def test_pixels_are_close_to_native(dataset: Dataset, size: Any, fit: str, augment: Augment) -> None:
    """Within one grey level, and where native decodes at a fraction of the size, two on average of a picture."""
    plan = Plan.of_rows(np.arange(30) % 16)
    options: dict[str, Any] = {"plan": plan, "size": size, "fit": fit, "augment": augment, "batch_size": 7, "seed": 5}
    native, other = (joined(Loader(dataset.train, **options, backend=name).epoch(2)) for name in ("native", "nvjpeg"))
    for column in ("labels", "ids", "rows"):
        assert torch.equal(getattr(native, column), getattr(other, column))
    differences = np.abs(pixels(dataset.train, native.images) - pixels(dataset.train, other.images))
    if size == 24:
        assert differences.mean() < 1
        assert differences.mean((1, 2, 3)).max() < 2
    else:
        assert differences.max() < 1.001
        assert differences.mean() < 0.01


@pytest.mark.parametrize("augment", [CROPPED, Augment(flip=0.5)], ids=["crop", "flip"])
@pytest.mark.usefixtures("on_the_cpu")
def test_interpolated_rows_and_a_pool_of_pixels(dataset: Dataset, augment: Augment) -> None:
    size = 64
    pool = dataset.test.at_size(size)
    images = pool.store.gather(np.arange(len(pool)))
    images.flags.writeable = False
    pool = dataclasses.replace(pool, store=RawImages(images))
    plan = Plan(
        np.array([0, 1, 0, 1, 0, 0], np.int16), np.array([4, 7, 0, 2, 15, 1]), np.array([10, 3, -1, -1, 6, 2]),
        np.array([0.25, 0.5, 1, 1, 0.75, 0.1], np.float32),
    )  # fmt: skip
    options: dict[str, Any] = {"stores": [pool], "plan": plan, "size": size, "augment": augment, "batch_size": 4}
    native, other = (joined(Loader(dataset.train, **options, backend=name).epoch(1)) for name in ("native", "nvjpeg"))
    assert torch.equal(native.ids, other.ids)
    differences = np.abs(pixels(dataset.train, native.images) - pixels(dataset.train, other.images))
    assert differences.max() < 1.001
    assert differences.mean() < 0.05


@pytest.mark.usefixtures("on_the_cpu")
def test_gray_pictures(tmp_path: Path) -> None:
    root = write_photographs(tmp_path / "photos", per_class=4)
    for path in root.rglob("*.jpg"):
        path.write_bytes(encoded(photograph(70, 80, seed=len(str(path))).convert("L")))
    split = convert("folder", tmp_path / "gray.hbr", root=root, store="encoded").train
    native, other = (
        joined(Loader(split, size=48, augment=CROPPED, batch_size=3, backend=name).epoch(0))
        for name in ("native", "nvjpeg")
    )
    assert native.images.shape == (8, 1, 48, 48)
    assert np.abs(pixels(split, native.images) - pixels(split, other.images)).max() < 1.001


@pytest.mark.usefixtures("on_the_cpu")
def test_an_epoch_resumes_and_is_shared_by_ranks(dataset: Dataset) -> None:
    loader = Loader(dataset.train, size=24, augment=CROPPED, batch_size=4, backend="nvjpeg")
    whole = copies(loader.epoch(1))
    assert_same(loader.epoch(1, start=2), whole[2:])
    assert_same(pickle.loads(pickle.dumps(loader)).epoch(1), whole)
    parts = [joined(loader.shard(rank, 2).epoch(1)) for rank in range(2)]
    together = torch.stack([part.images for part in parts], 1).flatten(0, 1)
    assert torch.equal(together, torch.cat([batch.images for batch in whole]))


@pytest.mark.parametrize("kind", ["changed", "undecodable"])
@pytest.mark.usefixtures("on_the_cpu")
def test_bad_pictures_are_set_aside(
    dataset: Dataset, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was changed, which its checksum tells, and one that DALI refuses together with its batch."""
    path = Path(shutil.copytree(dataset.path, tmp_path / "damaged.hbr"))
    shard, index = path / "train.00000.tar", np.load(path / "train.index.npy")
    content = bytearray(shard.read_bytes())
    begin, length = int(index["offset"][6]), int(index["length"][6])
    if kind == "changed":
        content[begin + 300] ^= 1
    else:
        content[begin + 2 : begin + length] = bytes(length - 2)
        index["crc"][6] = zlib.crc32(content[begin : begin + length])
        np.save(path / "train.index.npy", index)
    shard.write_bytes(content)
    options: dict[str, Any] = {"size": 64, "augment": CROPPED, "batch_size": 3, "backend": "nvjpeg"}
    damaged, whole = (Loader(data.train, **options) for data in (open_dataset(path), dataset))
    for epoch in range(2):
        found, expected = joined(damaged.epoch(epoch)), joined(whole.epoch(epoch))
        bad = found.ids == 6
        assert torch.equal(found.ids, expected.ids)
        differences = np.abs(pixels(dataset.train, found.images) - pixels(dataset.train, expected.images))
        assert differences[~bad].max() < 1.001
        assert torch.equal(found.labels[~bad], expected.labels[~bad])
        assert found.labels[bad].tolist() == [-100]
        assert found.images[bad].abs().max() < 0.01
        assert list(damaged.bad_pictures) == [6]
        # The second time it is known, and the pipeline does not stop.
        said = "could not decode it" in capsys.readouterr().err
        assert said == (kind == "undecodable" and epoch == 0)
    assert whole.bad_pictures == {}


def test_without_a_gpu_it_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="backend 'nvjpeg' makes batches on cuda, not on 'cpu': use native or ffcv"):
        Loader(dataset.train, size=24, batch_size=4, backend="nvjpeg")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU here: use device='cpu'"):
            Loader(dataset.train, size=24, batch_size=4, backend="nvjpeg", device="cuda")
