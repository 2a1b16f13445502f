"""The FFCV backend: FFCV's own loader reads and decodes in our order, followed by the native backend's pass.

Of encoded pictures FFCV only reads: its decoders know neither our crops nor checksums, so decoding is native's.

FFCV's random operators draw numbers that cannot be seeded, so batches would not be reproducible. Here FFCV does what it
is fast at, reading and decoding in its threads, and crops and flips are ours, as in every backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from threading import Lock
from typing import Any

import numba
import numpy as np
import torch

from hbr_fast.data.beton import Beton, read_beton
from hbr_fast.data.beton_pictures import pictures_of
from hbr_fast.data.beton_writer import write_beton
from hbr_fast.data.dataset import Split
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.shards import ShardFiles
from hbr_fast.kernels.images.pixel_vectors import SLACK
from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.native import image_pass
from hbr_fast.loaders.pictures import IGNORED
from hbr_fast.loaders.rows import rows_of_order
from hbr_fast.loaders.slots import Decoded, DecodedSlots
from hbr_fast.temporary import scratch_directory, temporary_root


@contextlib.contextmanager
def thread_counts_kept() -> Iterator[None]:
    """Restore the thread counts of torch and numba, which FFCV sets on import and whenever it starts to read."""
    threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        numba.set_num_threads(numba_threads)


with thread_counts_kept():
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader as FFCVLoader
    from ffcv.memory_managers.os_cache import OSCacheManager
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.graph import Node
    from ffcv.transforms import ToTensor
    from ffcv.traversal_order.base import TraversalOrder


def _read(address: Any, state: Any) -> Any:
    """Read the bytes at an address of the file; FFCV compiles this into its pipelines."""
    size = state[2][np.searchsorted(state[1], address)]
    return state[0][address : address + size]


# FFCV's own version declares its types by setting numba's shared type of byte arrays to read-only: from then on nothing
# that writes one can be compiled in the process, including FFCV's pipelines and our kernels.
_READ = Compiler.compile(_read)
OSCacheManager.compile_reader = lambda self: _READ

_STARTING = Lock()  # FFCV numbers pipeline stages process-wide, and asks for its order when it starts
_compiled: dict[tuple[object, ...], Any] = {}  # FFCV compiles for every loader, though equal pipelines could share code
_made: weakref.WeakKeyDictionary[Split | ShardFiles, Path] = weakref.WeakKeyDictionary()


class FfcvBackend:
    """Batches of a job from a `.beton`: the split's own, or a temporary one that is removed with the split."""

    def __init__(self, job: Job) -> None:
        self._file = read_beton(job.split.beton or _made_for(job.split))
        _check_same(self._file, job.split)
        self.job = job = job if job.pictures is None else _reading_from(self._file, job)
        self._images_a_row = 2 if (job.plan.partner >= 0).any() else 1  # with its partner's
        self._order = _Order(np.zeros(len(job.order) * self._images_a_row, np.int64))
        self._loader = self._ffcv_loader()
        self._pass = image_pass(job)
        self._image_bytes = int(np.prod(job.split.image_shape))

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch."""
        size, position = self.job.batch_size, start * self.job.batch_size
        stop = min(self.job.batches * size, len(self.job.order))
        if position >= stop:
            return
        rows = rows_of_order(self.job, position, stop - position, epoch)
        places = range(0, len(rows), size)
        threads = torch.get_num_threads()
        decoded = self._decoded(rows, len(places))
        pictures: np.ndarray | DecodedSlots
        if self.job.pictures is None:
            pictures = np.empty(size * self._images_a_row * self._image_bytes + 2 * SLACK, np.uint8)
        else:
            pictures = DecodedSlots(self.job, size)
        pool = ThreadPoolExecutor(1, thread_name_prefix="hbr-loader")
        waiting: deque[Future[Batch]] = deque()
        try:
            for first in places:
                rows_b = torch.from_numpy(rows[first : first + size])
                waiting.append(pool.submit(self._finished, decoded, pictures, rows_b, position + first, epoch))
                if len(waiting) > self.job.prefetch:
                    yield self._first_of(waiting, threads)
            while waiting:
                yield self._first_of(waiting, threads)
        finally:  # also if the caller leaves early
            pool.shutdown(cancel_futures=True)
            decoded.close()

    @staticmethod
    def _first_of(waiting: deque[Future[Batch]], threads: int) -> Batch:
        batch = waiting.popleft().result()
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return batch

    def _ffcv_loader(self) -> Any:
        file, job = self._file, self.job
        steps = [ToTensor()] if job.pictures is None else [_Reading(), ToTensor()]
        pipelines = {field: steps if field == file.image else None for field in file.fields}
        kind = (file.kind, file.fields, file.image, job.threads > 1, len(steps))
        with _STARTING, thread_counts_kept():
            Node.last_node_id = 0  # compiled code refers to stages by number: equal pipelines need equal numbers
            loader = FFCVLoader(
                str(file.path),
                batch_size=job.batch_size * self._images_a_row,
                num_workers=job.threads,
                os_cache=True,
                order=self._order,
                pipelines=pipelines,
                drop_last=False,
                batches_ahead=max(1, job.prefetch),
            )
            loader.code = _compiled.setdefault(kind, loader.code)
        return loader

    def _decoded(self, rows: np.ndarray, batches: int) -> Generator[np.ndarray, None, None]:
        """What FFCV makes of each batch, valid until the next: uint8 [B, H, W, C], or as stored, or what it read."""
        with _STARTING, thread_counts_kept():
            self._order.places = self._places(rows)
            reading = iter(self._loader)
        try:
            for _ in range(batches):
                (images,) = next_batch(reading)
                yield images.numpy()
        finally:
            _end(reading)

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """File positions of the images of plan rows: of each row, followed by its partner's."""
        index, partner = self.job.plan.index[rows], self.job.plan.partner[rows]
        if self._images_a_row == 1:
            return self._file.place[index]
        return self._file.place[np.stack([index, np.where(partner >= 0, partner, index)], axis=1).ravel()]

    def _finished(
        self,
        decoded: Iterator[np.ndarray],
        pictures: np.ndarray | DecodedSlots,
        rows_b: torch.Tensor,
        position: int,
        epoch: int,
    ) -> Batch:
        """One batch; `pictures` is memory for its decoded images."""
        job, count = self.job, len(rows_b)
        channels, height, width = job.split.image_shape
        first_position, step = job.order.global_positions(position)
        images = next(decoded)
        if isinstance(pictures, DecodedSlots):
            made = pictures.decode(rows_b.numpy(), first_position, step, epoch)
        else:
            made = self._planar(images, pictures, rows_b)
        layout = torch.channels_last if job.channels_last else torch.contiguous_format
        out = torch.empty((count, channels, height, width), dtype=job.dtype, memory_format=layout)
        labels, ids = torch.empty_like(rows_b), torch.empty_like(rows_b)
        self._pass.make(
            rows_b,
            first_position=first_position,
            step=step,
            epoch=epoch,
            images=out,
            labels_r=labels,
            ids_r=ids,
            threads=1,  # FFCV's pipelines have the others
            pictures_b=made.pictures_b,
            partners_b=made.partners_b,
        )
        labels[made.bad_b] = IGNORED
        return Batch(out, labels, ids, rows_b)

    def _planar(self, images: np.ndarray, memory: np.ndarray, rows_b: torch.Tensor) -> Decoded:
        """FFCV's decoded images, copied to planes in `memory`."""
        slots = memory[SLACK : SLACK + len(images) * self._image_bytes].reshape(-1, *self.job.split.image_shape)
        if images.ndim == 3:
            images = images[..., None]
        np.copyto(slots, images if self._file.planar else images.transpose(0, 3, 1, 2))
        addresses = slots.ctypes.data + self._image_bytes * np.arange(len(slots))
        partners = None
        if self._images_a_row == 2:
            partners = np.where(self.job.plan.partner[rows_b.numpy()] >= 0, addresses[1::2], 0)
        return Decoded(np.ascontiguousarray(addresses[:: self._images_a_row]), partners)


class _Reading(SimpleRGBImageDecoder):  # FFCV knows decoders by their class
    """Reads pictures' bytes into memory, in FFCV's threads, without decoding them; makes one number of each."""

    def generate_code(self) -> Any:
        read, each = self.memory_read, Compiler.get_iterator()

        def touch(batch_indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
            for place in each(len(batch_indices)):
                content = read(metadata[batch_indices[place]]["data_ptr"], storage_state)
                total = 0
                for at in range(0, content.size, 4096):  # one byte of every page
                    total += content[at]
                destination[place, 0] = total
            return destination[: len(batch_indices)]

        touch.is_parallel = True  # type: ignore[attr-defined]
        return touch

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        state = dataclasses.replace(previous_state, jit_mode=True, shape=(1,), dtype=np.dtype("<i8"))
        return state, AllocationQuery((1,), np.dtype("<i8"))


class _Order(TraversalOrder):
    """Adapter of our order to FFCV, which calls it with its loader and queries the result."""

    def __init__(self, places: np.ndarray) -> None:
        self.places = places

    def __call__(self, loader: Any) -> _Order:
        return self

    def sample_order(self, epoch: int) -> np.ndarray:
        return self.places


def next_batch(reading: Any) -> Any:
    """The next batch of FFCV's reading thread, which ends without notifying its consumer if it fails.

    Raises
    ------
    RuntimeError
        If the thread ended without making it; FFCV itself would wait forever.
    """
    while True:
        running = reading.is_alive()  # checked first: everything it put before it ended is in the queue by then
        try:
            _, columns = reading.output_queue.get(timeout=1)
        except Empty:
            if not running:
                raise RuntimeError("FFCV's reading thread failed: see its output") from None
        else:
            return columns


def _end(reading: Any) -> None:
    """End FFCV's reading thread, which would go on waiting for room in the queue, half a second at a time."""
    reading.iter_ixes = iter(())
    while reading.is_alive():
        with contextlib.suppress(Empty):
            reading.output_queue.get(timeout=0.002)
    reading.close()


def _reading_from(file: Beton, job: Job) -> Job:
    """The job with its pictures in the file instead of the shards."""
    assert isinstance(job.split.store, EncodedImages)
    assert job.pictures is not None
    split = dataclasses.replace(job.split, store=pictures_of(file, like=job.split.store))
    job.pictures.take_from((split,))
    return dataclasses.replace(job, split=split)


def _made_for(split: Split) -> Path:
    """A `.beton` of the split in a temporary folder, kept as long as the split lives: raw, or its encoded pictures."""
    store = split.store
    owner = store.shards if isinstance(store, EncodedImages) else split  # at every size the same shards
    if owner not in _made:
        held = contextlib.ExitStack()
        folder = held.enter_context(scratch_directory(temporary_root(), "beton-"))
        weakref.finalize(owner, held.close)
        path = folder / "split.beton"
        if isinstance(store, EncodedImages):
            write_beton(dataclasses.replace(split, store=dataclasses.replace(store, size=None)), path)
        else:
            write_beton(split, path, mode="raw")
        _made[owner] = path
    return _made[owner]


def _check_same(file: Beton, split: Split) -> None:
    remedy = "write it again from this split, or open the file with open_beton"
    if isinstance(split.store, EncodedImages):
        if file.images is None or len(file) != len(split):
            raise ValueError(f"{file.path} does not hold the {len(split):,} pictures of split {split.name!r}: {remedy}")
    elif file.shape != split.image_shape:
        raise ValueError(f"{file.path} holds images of {file.shape} (C, H, W), split {split.name!r} others: {remedy}")
    if not np.array_equal(file.labels, split.labels):
        raise ValueError(f"{file.path} has other labels than split {split.name!r}: {remedy}")
