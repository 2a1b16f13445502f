import dataclasses
import gc
import importlib.util
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numba.core.event
import numpy as np
import pytest
import torch

from hbr_fast.data.beton import open_beton
from hbr_fast.data.beton_writer import write_beton
from hbr_fast.data.plan import Plan
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.loader import Loader
from loaders.contracts import MakeLoader, assert_same, checks_of, checks_of_pictures, make_split, textured_split

# Not importorskip: FFCV compiles for seconds when it is imported, and every test process would do so to collect.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed")


STRONG = Augment(flip=0.5, alternating_flip=True, pad=3, padding="reflect", cutout=4)


@pytest.mark.parametrize("check", checks_of("ffcv"), ids=lambda check: check.__name__)
def test_ffcv_contract(check: Callable[[MakeLoader], None]) -> None:
    check(MakeLoader("ffcv"))


@pytest.mark.parametrize("check", checks_of_pictures("ffcv"), ids=lambda check: check.__name__)
def test_ffcv_contract_of_pictures(check: Callable[[MakeLoader], None]) -> None:
    check(MakeLoader("ffcv", encoded=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_ffcv_matches_native_bits(dtype: torch.dtype, channels: int) -> None:
    images = textured_split(40, size=12).images[:, :channels].copy()
    split = make_split(images, mean=0.3, std=0.21)
    plan = Plan.of_rows(np.random.default_rng(0).integers(0, 40, 60))
    native, other = (
        Loader(split, plan=plan, augment=STRONG, batch_size=25, dtype=dtype, backend=backend)
        for backend in ("native", "ffcv")
    )
    assert_same(other.epoch(3), list(native.epoch(3)))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that no other process uses."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_ffcv_reads_given_file(tmp_path: Path, temporary: Path) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    images = textured_split(30, size=8).images
    # Shuffled by a third-party program, with ids after a field of its own.
    order = np.random.default_rng(1).permutation(30)
    samples = [(5, int(i), images[i].transpose(1, 2, 0).copy(), int(i % 4)) for i in order]
    fields = {"other": IntField(), "id": IntField(), "picture": RGBImageField(), "label": IntField()}
    DatasetWriter(str(tmp_path / "a.beton"), fields, num_workers=1).from_indexed_dataset(samples)
    split = open_beton(tmp_path / "a.beton")
    np.testing.assert_array_equal(split.images, images)
    native, other = (Loader(split, batch_size=7, backend=backend) for backend in ("native", "ffcv"))
    assert_same(other.epoch(0), list(native.epoch(0)))
    assert not list(temporary.glob("hbr-fast-*/beton-*"))
    # Without ids: samples are identified by their position.
    unnumbered = [sample[2:] for sample in samples]
    fields = {"picture": RGBImageField(), "label": IntField()}
    DatasetWriter(str(tmp_path / "b.beton"), fields, num_workers=1).from_indexed_dataset(unnumbered)
    split = open_beton(tmp_path / "b.beton")
    native, other = (Loader(split, batch_size=7, backend=backend) for backend in ("native", "ffcv"))
    assert_same(other.epoch(0), list(native.epoch(0)))


def test_ffcv_decodes_jpeg_file(tmp_path: Path) -> None:
    ramp = np.linspace(0, 200, 64).astype(np.uint8)
    images = np.broadcast_to(ramp, (20, 3, 64, 64)) + np.arange(20, dtype=np.uint8)[:, None, None, None]
    split = write_beton(make_split(images.copy()), tmp_path / "a.beton", mode="jpg", quality=95)
    for batch in Loader(split, batch_size=8, backend="ffcv", threads=2).epoch(0):
        assert np.abs(batch.images.numpy() - images[batch.ids.numpy()]).mean() < 2


def test_ffcv_refuses_file_of_another_split(tmp_path: Path) -> None:
    split = textured_split(10, size=8)
    written = write_beton(split, tmp_path / "a.beton")
    other_labels = dataclasses.replace(written, labels=(split.labels + 1) % 5)
    with pytest.raises(ValueError, match=r"a\.beton has other labels than split 'train': write it again"):
        Loader(other_labels, batch_size=5, backend="ffcv")
    larger = dataclasses.replace(textured_split(10, size=9), beton=written.beton)
    with pytest.raises(ValueError, match=r"holds images of \(3, 8, 8\) \(C, H, W\), split 'train' others"):
        Loader(larger, batch_size=5, backend="ffcv")
    with pytest.raises(ValueError, match=r"backend 'ffcv' has no several stores: use .*native"):
        Loader(split, stores=[split], batch_size=5, backend="ffcv")


def test_ffcv_removes_temporary_file_with_split(temporary: Path) -> None:
    def made() -> list[Path]:
        return list(temporary.glob("hbr-fast-*/beton-*"))

    split = textured_split(20)
    for _ in range(2):
        loader = Loader(split, batch_size=5, backend="ffcv")
        list(loader.epoch(0))
        assert len(made()) == 1, "one for all loaders of the split"
    del loader, split
    gc.collect()
    assert made() == []


class _Compilations(numba.core.event.Listener):
    def __init__(self) -> None:
        self.count = 0

    def on_start(self, event: numba.core.event.Event) -> None:
        self.count += 1

    def on_end(self, event: numba.core.event.Event) -> None:
        pass


def test_ffcv_compiles_once_for_partial_batches_and_other_loaders() -> None:
    split = textured_split(70)
    list(Loader(split, batch_size=16, backend="ffcv", drop_last=True, threads=1).epoch(0))
    seen = _Compilations()
    with numba.core.event.install_listener("numba:compile", seen):
        loader = Loader(split, batch_size=16, backend="ffcv", threads=1)
        in_loader = seen.count
        sizes = [len(batch.ids) for batch in loader.epoch(0)]
        sizes += [len(batch.ids) for batch in Loader(split, batch_size=33, backend="ffcv", threads=1).epoch(1)]
    assert sizes == [16, 16, 16, 16, 6, 33, 33, 4]
    assert seen.count <= 2 * in_loader, "FFCV compiles how it reads memory for every loader, and nothing more"


def test_ffcv_leaves_torch_and_numba_threads_unchanged() -> None:
    split = textured_split(70)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        counts = (2, numba.get_num_threads())
        for threads in (1, 2):
            for batch in Loader(split, batch_size=16, backend="ffcv", threads=threads).epoch(0):
                assert (torch.get_num_threads(), numba.get_num_threads()) == counts
                del batch
    finally:
        torch.set_num_threads(before)


def test_ffcv_byte_arrays_stay_writable_when_compiled_later() -> None:
    # FFCV 1.0.2 declares its memory read-only on numba's one type of byte arrays, which lives while anything uses it.
    type_of_bytes = numba.uint8[::1]
    list(Loader(textured_split(20), batch_size=5, backend="ffcv", threads=1).epoch(0))
    assert type_of_bytes is numba.uint8[::1]
    assert type_of_bytes.mutable

    @numba.njit
    def clear(bytes_n: np.ndarray) -> None:
        bytes_n[:] = 0

    clear(cleared := np.ones(3, np.uint8))
    assert not cleared.any()


def test_ffcv_raises_error_of_reading_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from ffcv.loader.epoch_iterator import EpochIterator

    run_pipeline = EpochIterator.run_pipeline

    def broken(self: EpochIterator, number: int, *arguments: object) -> object:
        if number == failing:
            raise OSError("the disk is gone")
        return run_pipeline(self, number, *arguments)

    loader = Loader(textured_split(20), batch_size=5, backend="ffcv")
    monkeypatch.setattr(EpochIterator, "run_pipeline", broken)
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    for failing in (0, 3):
        batches = loader.epoch(0)
        for _ in range(failing):
            assert len(next(batches).ids) == 5
        with pytest.raises(RuntimeError, match="FFCV's reading thread failed"):
            next(batches)
