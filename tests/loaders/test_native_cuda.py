"""The native backend for GPUs without its kernel: where images lie, what is streamed when, who owns memory."""

import gc
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast.data.dataset import Split
from hbr_fast.data.plan import Plan
from hbr_fast.loaders import native_cuda, resident
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.batch import Batch
from hbr_fast.loaders.loader import Loader
from hbr_fast.loaders.streaming import CopyStream, Slot
from hbr_fast.orders import UniformOrder, quota_order, uniform_order
from loaders.contracts import (
    FixedRows,
    MakeLoader,
    assert_same,
    checks_of,
    coded_split,
    copies,
    make_split,
    textured_split,
    wait_until,
)
from loaders.on_device import make_by_reference, use_memory_of_the_cpu

GPU_LOADER = partial(Loader, backend="native", device="cpu")


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the two kernels; returns the lengths of the pieces of order that a device would have made."""
    made: list[int] = []

    def device_rows(self: UniformOrder, start: int, count: int, *, device: torch.device, **place: int) -> torch.Tensor:
        made.append(count)
        return torch.from_numpy(self.rows(start, count, **place))

    use_memory_of_the_cpu(monkeypatch)
    monkeypatch.setattr(native_cuda.NativeCudaBackend, "_make", make_by_reference)
    monkeypatch.setattr(UniformOrder, "device_rows", device_rows)
    return made


@pytest.fixture(params=["resident", "streamed"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "streamed":
        monkeypatch.setattr(resident, "free_bytes", lambda device: 0.0)
    return str(request.param)


def make_zeros(
    self: native_cuda.NativeCudaBackend, table: Any, rows_b: torch.Tensor, position: int, epoch: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # No memory of their own: what the C library returns of a megabyte says nothing about the backend.
    images = torch.zeros(()).expand(len(rows_b), *self.job.split.images.shape[1:])
    return images, table.label[rows_b], table.id[rows_b]


@pytest.mark.parametrize("check", checks_of("native"), ids=lambda check: check.__name__)
def test_native_cuda_contract(check: Callable[[MakeLoader], None], place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_cuda, "ROWS_AHEAD", 20)
    if check.__name__ == "check_early_exit_releases_threads_and_memory":  # it does not look at pixels
        monkeypatch.setattr(native_cuda.NativeCudaBackend, "_make", make_zeros)
    check(MakeLoader("native"))


# --- a split in the device's memory ---


def test_native_cuda_uploads_split_once_and_frees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = []
    upload = resident._upload

    def counted(images: np.ndarray, device: torch.device) -> torch.Tensor:
        uploads.append(images)
        return upload(images, device)

    monkeypatch.setattr(resident, "_upload", counted)
    split, pool = coded_split(30), coded_split(40)
    plan = Plan(
        np.arange(30, dtype=np.int16) % 2, np.arange(30), np.full(30, -1), np.ones(30, np.float32)
    )  # fmt: skip
    one = GPU_LOADER(split, batch_size=10)
    two = GPU_LOADER(split, stores=[pool], plan=plan, batch_size=7)
    other_order = two.with_order(uniform_order(30, seed=4))
    assert [id(images) for images in uploads] == [id(split.images), id(pool.images)]
    del one, two
    gc.collect()
    GPU_LOADER(pool, batch_size=10)
    assert len(uploads) == 2
    del other_order
    gc.collect()
    GPU_LOADER(pool, batch_size=10)
    assert len(uploads) == 3
    assert len(resident._residents) == 0


@pytest.mark.parametrize("chunk_bytes", [1, 54 * 2 * 7, 54 * 2 * 20, 10**6])
def test_native_cuda_uploads_split_in_chunks(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "CHUNK_BYTES", chunk_bytes)
    images = textured_split(20).images
    np.testing.assert_array_equal(resident._upload(images, torch.device("cpu")).numpy(), images)


def test_native_cuda_resident_split_needs_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    split = coded_split(30)
    first = GPU_LOADER(split, batch_size=10)
    monkeypatch.setattr(resident, "free_bytes", lambda device: 0.0)
    assert GPU_LOADER(split, batch_size=10)._backend._residents == first._backend._residents


@pytest.mark.parametrize(("free", "fits"), [(2 * 3240, True), (2 * 3240 - 1, False)])
def test_native_cuda_split_may_use_half_of_free_memory(free: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "free_bytes", lambda device: free)
    split = coded_split(30)  # of 2 x 6 x 9 bytes
    assert (resident.resident([split], torch.device("cpu")) is not None) == fits


def test_native_cuda_reports_low_memory_once_per_split(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resident, "free_bytes", lambda device: 4e9)
    monkeypatch.setattr(resident, "SHARE", 0.0)
    split = coded_split(30)
    for _ in range(3):
        GPU_LOADER(split, batch_size=10)
    said = capsys.readouterr().err
    assert said == (
        "the images of split 'train' (3.24e-06 GB) do not fit beside the rest in the memory of cpu (4 GB free): "
        "they are streamed through pinned memory\n"
    )
    GPU_LOADER(coded_split(20), batch_size=10)
    assert "split 'train'" in capsys.readouterr().err


# --- orders ---


def test_native_cuda_accepts_rows_of_any_integer_type(place: str) -> None:
    rows = np.arange(10, dtype=np.int32)
    rows.flags.writeable = False
    batches = copies(GPU_LOADER(coded_split(10), order=FixedRows(rows), batch_size=4).epoch(0))
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(10))


def test_native_cuda_uniform_order_needs_no_host_rows(
    without_a_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_cuda, "ROWS_AHEAD", 12)
    split = coded_split(50)
    order = uniform_order(50, seed=3)
    list(GPU_LOADER(split, order=order, batch_size=5).epoch(0, start=1))
    assert without_a_gpu == [10, 10, 10, 10, 5]
    for rank in range(3):
        without_a_gpu.clear()
        shard = order.shard(rank, 3)  # of 17, 17 and 16 positions, and one of padding
        rows = torch.cat([batch.rows for batch in GPU_LOADER(split, order=shard, batch_size=4).epoch(1)])
        assert rows.tolist() == shard.rows(0, 17, epoch=1).tolist()
        assert sum(without_a_gpu) == (17 if rank < 2 else 12)
    without_a_gpu.clear()
    quota = quota_order(split.labels, [10, 0, 3, 7, 1], seed=0)
    rows = torch.cat([batch.rows for batch in GPU_LOADER(split, order=quota, batch_size=4).epoch(1)])
    assert rows.tolist() == quota.rows(0, 21, epoch=1).tolist()
    assert without_a_gpu == []


# --- streaming ---


class _LateDevice:
    """A device that delays and reorders work as far as streams and events allow.

    Work on a stream is done in order; only events order different streams. Without a seed it does only the work
    that is waited for.
    """

    def __init__(self, seed: int | None) -> None:
        self._random = None if seed is None else random.Random(seed)
        self._streams: dict[str, deque[tuple[str, Any]]] = {"copy": deque(), "compute": deque()}
        self._happened: set[object] = set()
        self._lock = RLock()  # threads send, and a step may look around
        self.copies_put = 0

    def put(self, stream: str, kind: str, what: Any) -> None:
        with self._lock:
            self._streams[stream].append((kind, what))
            self.copies_put += (stream, kind) == ("copy", "run")
            if self._random is not None:
                for _ in range(self._random.randrange(3)):
                    self._step(self._random.choice(["copy", "compute"]))

    def wait(self, event: object) -> None:
        with self._lock:
            while event not in self._happened:
                assert self._step("copy") or self._step("compute"), "waits for ever"

    def drain(self) -> None:
        while self._step("compute") or self._step("copy"):
            pass
        assert not any(self._streams.values()), "work that can never be done"

    def compute_all(self) -> None:
        """The work that the caller's stream must finish before memory returned to it is reused."""
        while self._streams["compute"]:
            assert self._step("compute") or self._step("copy"), "work that can never be done"

    @property
    def copies_left(self) -> int:
        return sum(kind == "run" for kind, _ in self._streams["copy"])

    def _step(self, stream: str) -> bool:
        if not self._streams[stream]:
            return False
        kind, what = self._streams[stream][0]
        if kind == "wait" and what not in self._happened:
            return False
        self._streams[stream].popleft()
        if kind == "record":
            self._happened.add(what)
        elif kind == "run":
            what()
        return True


class _LateCopies(CopyStream):
    """A copy stream on a late device. As in CUDA, an event is the last one that a slot recorded."""

    def __init__(self, late: _LateDevice) -> None:
        self._late = late
        self._sent: dict[Slot, object] = {}
        self._read: dict[Slot, object] = {}

    def wait_until_sent(self, slot: Slot) -> None:
        if slot in self._sent:
            self._late.wait(self._sent[slot])

    def send(self, slot: Slot) -> None:
        if slot in self._read:
            self._late.put("copy", "wait", self._read[slot])
        used = slot.used
        self._late.put("copy", "run", lambda: slot.device[:used].copy_(slot.host[:used]))
        self._sent[slot] = object()
        self._late.put("copy", "record", self._sent[slot])

    def wait_for(self, slot: Slot) -> None:
        self._late.put("compute", "wait", self._sent[slot])

    def release(self, slot: Slot) -> None:
        self._read[slot] = object()
        self._late.put("compute", "record", self._read[slot])

    def close(self) -> None:
        done = object()
        self._late.put("copy", "record", done)
        self._late.put("compute", "wait", done)


def mixed_plan(samples: int) -> Plan:
    rng = np.random.default_rng(0)
    return Plan(
        store=np.zeros(samples, np.int16),
        index=rng.integers(0, samples, samples),
        partner=np.where(rng.random(samples) < 0.6, rng.integers(0, samples, samples), -1),
        weight=rng.random(samples).astype(np.float32),
    )


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
@pytest.mark.parametrize("mixed", [False, True])
def test_native_cuda_batches_are_correct_under_any_delay(
    prefetch: int, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = textured_split(50)
    arguments: dict[str, Any] = {
        "batch_size": 6,
        "augment": Augment(flip=0.5, pad=2, keyed_by="sample" if mixed else "position"),
        "plan": mixed_plan(50) if mixed else None,
    }
    expected = copies(GPU_LOADER(split, **arguments).epoch(1))
    del expected[0]
    gc.collect()
    monkeypatch.setattr(resident, "free_bytes", lambda device: 0.0)
    for seed in range(8):
        late = _LateDevice(seed)

        def make(
            self: native_cuda.NativeCudaBackend, table: Any, *arguments: Any, late: _LateDevice = late
        ) -> tuple[torch.Tensor, ...]:
            count = len(table.id)
            out = (
                torch.empty(count, 3, 9, 9),
                torch.empty(count, dtype=torch.int64),
                torch.empty(count, dtype=torch.int64),
            )

            def launch() -> None:
                for one, made in zip(out, make_by_reference(self, table, *arguments), strict=True):
                    one.copy_(made)

            late.put("compute", "run", launch)
            return out

        def rows(self: Slot, late: _LateDevice = late) -> torch.Tensor:
            source = self.numbers[2, : self.count]
            out = torch.empty_like(source)
            late.put("compute", "run", lambda: out.copy_(source))
            return out

        monkeypatch.setattr(native_cuda.NativeCudaBackend, "_make", make)
        monkeypatch.setattr(Slot, "rows", rows)
        monkeypatch.setattr(native_cuda, "CopyStream", lambda device, late=late: _LateCopies(late))
        batches: list[Batch] = list(GPU_LOADER(split, **arguments, threads=2, prefetch=prefetch).epoch(1, start=1))
        late.drain()
        assert_same(batches, expected)


def test_native_cuda_releases_memory_after_last_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "free_bytes", lambda device: 0.0)
    monkeypatch.setattr(native_cuda.NativeCudaBackend, "_make", make_zeros)
    for seed in (None, *range(10)):
        late = _LateDevice(seed)
        monkeypatch.setattr(native_cuda, "CopyStream", lambda device, late=late: _LateCopies(late))
        batches = GPU_LOADER(coded_split(50), batch_size=5, prefetch=4).epoch(0)
        next(batches)
        if seed is None:
            wait_until(lambda: late.copies_put == 5, "the first batch and four ahead are sent")  # noqa: B023
            assert late.copies_left > 0  # the slot of the first batch is sent again only after the kernel has read it
        batches.close()  # type: ignore[attr-defined]
        late.compute_all()
        assert late.copies_left == 0


def test_native_cuda_streams_batches_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "free_bytes", lambda device: 0.0)
    for prefetch, made in ((0, [0]), (1, [0, 1]), (3, [0, 1, 2, 3])):
        asked: list[int] = []

        class Order(FixedRows):
            def rows(
                self, start: int, count: int, *, epoch: int, stride: int = 1, asked: list[int] = asked
            ) -> np.ndarray:
                asked.append(start)
                return np.arange(start, start + count)

        batches = GPU_LOADER(coded_split(10), order=Order(np.array(0)), batch_size=1, prefetch=prefetch).epoch(0)
        next(batches)
        wait_until(lambda: len(asked) >= len(made), f"batches {made} are made")  # noqa: B023
        assert sorted(asked) == made


# --- large splits ---


@pytest.fixture
def large_split(tmp_path: Path) -> Split:
    """More than 2**31 bytes, all 0 except the last few images: a sparse file."""
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(2**31 // 784 + 20, 1, 28, 28))
    images[-10:] = np.random.default_rng(0).integers(0, 256, (10, 1, 28, 28), dtype=np.uint8)
    return make_split(images)


def test_native_cuda_reads_images_beyond_2_to_the_31_bytes(
    large_split: Split, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here the device reads the file itself: otherwise 2 GB would be copied.
    images = large_split.images
    images.flags.writeable = True  # torch warns otherwise
    monkeypatch.setattr(resident, "_upload", lambda images, device: torch.from_numpy(images))
    last = len(images) - 1 - np.arange(10)
    plan = Plan(np.zeros(10, np.int16), last, last[::-1].copy(), np.full(10, 0.25, np.float32))
    (batch,) = GPU_LOADER(large_split, plan=plan, batch_size=10, order=FixedRows(np.arange(10))).epoch(0)
    expected = 0.25 * images[last] + 0.75 * images[last[::-1]]
    np.testing.assert_allclose(batch.images.numpy(), expected, rtol=1e-5, atol=1e-4)
    assert batch.ids.tolist() == last.tolist()
