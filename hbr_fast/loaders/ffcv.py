"""The FFCV backend: FFCV's own loader reads and decodes in our order, our augmentation follows.

FFCV's random operators draw numbers that nobody can set, so a batch would not be the same twice. Here FFCV does what it
is fast at, reading and decoding in its threads, and crops and flips are ours, the same as every backend's.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from threading import Lock
from typing import Any

import numba
import numpy as np
import torch

from hbr_fast.data.beton import Beton, read_beton
from hbr_fast.data.beton_writer import write_beton
from hbr_fast.data.dataset import Split
from hbr_fast.kernels.cpu_decoded import finish_batch
from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.rows import Rows, RowsOfJob


@contextlib.contextmanager
def _thread_counts_kept() -> Iterator[None]:
    """FFCV sets how many threads torch and numba use, when it is imported and whenever it starts to read."""
    threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        numba.set_num_threads(numba_threads)


with _thread_counts_kept():
    from ffcv.loader import Loader as FFCVLoader
    from ffcv.memory_managers.os_cache import OSCacheManager
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.graph import Node
    from ffcv.transforms import ToTensor
    from ffcv.traversal_order.base import TraversalOrder


def _read(address: Any, state: Any) -> Any:
    """The bytes at an address of the file, which FFCV compiles into its pipelines."""
    size = state[2][np.searchsorted(state[1], address)]
    return state[0][address : address + size]


# FFCV's own declares its types, and to do so sets numba's one type of byte arrays to read-only: nothing that writes one
# can be compiled in the process from then on, FFCV's pipelines and our kernels included.
_READ = Compiler.compile(_read)
OSCacheManager.compile_reader = lambda self: _READ

_STARTING = Lock()  # FFCV numbers the parts of pipelines process-wide, and asks for its order when it starts
_compiled: dict[tuple[object, ...], Any] = {}  # FFCV compiles for every loader, though code of one kind would do
_made: weakref.WeakKeyDictionary[Split, Path] = weakref.WeakKeyDictionary()


class FfcvBackend:
    """Batches of a job from a `.beton`: the split's own, or one that is written for it and removed with it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._rows = RowsOfJob(job)
        self._file = read_beton(job.split.beton or _made_for(job.split))
        _check_same(self._file, job.split)
        self._images_a_row = 2 if self._rows.interpolates else 1  # with its partner's
        self._order = _Order(np.zeros(len(job.order) * self._images_a_row, np.int64))
        self._loader = self._ffcv_loader()
        # In double precision the product is exact, and the sum is rounded once: as a fused multiply-add does it.
        scaled = job.scale_c.astype(np.float64)[:, None] * np.arange(256)
        self._table_cv = (scaled + job.bias_c.astype(np.float64)[:, None]).astype(np.float32)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch."""
        batches = [self._rows.batch(epoch, number) for number in range(start, self.job.batches)]
        if not batches:
            return
        threads = torch.get_num_threads()
        decoded = self._decoded(batches)
        pool = ThreadPoolExecutor(1, thread_name_prefix="hbr-loader")
        waiting: deque[Future[Batch]] = deque()
        try:
            for rows in batches:
                waiting.append(pool.submit(self._finished, decoded, rows))
                if len(waiting) > self.job.prefetch:
                    yield self._first_of(waiting, threads)
            while waiting:
                yield self._first_of(waiting, threads)
        finally:  # also when the caller leaves early
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
        pipelines = {field: [ToTensor()] if field in (file.image, "id") else None for field in file.fields}
        kind = (file.kind, file.fields, file.image, job.threads > 1)
        with _STARTING, _thread_counts_kept():
            Node.last_node_id = 0  # code knows the parts of its pipeline by number: equal pipelines, equal numbers
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

    def _decoded(self, batches: Sequence[Rows]) -> Generator[tuple[np.ndarray, np.ndarray | None], None, None]:
        """Images uint8 [B, H, W, C] of each batch, and the ids beside them in the file; valid until the next."""
        with _STARTING, _thread_counts_kept():
            self._order.places = np.concatenate([self._places(rows) for rows in batches])
            reading = iter(self._loader)
        fields = [field for field in self._file.fields if field in (self._file.image, "id")]
        try:
            for _ in batches:
                columns = dict(zip(fields, next_batch(reading), strict=True))
                images = columns[self._file.image].numpy()
                if images.ndim == 3:
                    images = images[..., None]
                elif self._file.planar:
                    images = images.transpose(0, 2, 3, 1)
                yield images, columns["id"].numpy().ravel() if self._file.has_ids else None
        finally:
            _end(reading)

    def _places(self, rows: Rows) -> np.ndarray:
        """Where the images of a batch stand in the file: of each row, and after each its partner's."""
        if self._images_a_row == 1:
            return self._file.place[rows.index]
        both = np.stack([rows.index, np.where(rows.partner >= 0, rows.partner, rows.index)], axis=1)
        return self._file.place[both.ravel()]

    def _finished(self, decoded: Iterator[tuple[np.ndarray, np.ndarray | None]], rows: Rows) -> Batch:
        job = self.job
        images, ids = next(decoded)
        step = self._images_a_row
        height, width, channels = images.shape[1:]
        layout = torch.channels_last if job.channels_last else torch.contiguous_format
        out = torch.empty((len(rows.rows), channels, height, width), dtype=torch.float32, memory_format=layout)
        finish_batch(
            images[::step],
            images[step - 1 :: step],
            rows.partner,
            rows.weight,
            self._from(rows.crop[:, 0], height, None),
            self._from(rows.crop[:, 1], width, rows.flipped),
            job.padding_c,
            rows.cutout,
            job.augment.cutout,
            job.cutout_c,
            self._table_cv,
            job.scale_c,
            job.bias_c,
            out.numpy(),
        )
        own = rows.ids if ids is None else ids[::step].copy()
        labels = job.split.labels[own]
        return Batch(out.to(job.dtype), torch.from_numpy(labels), torch.from_numpy(own), torch.from_numpy(rows.rows))

    def _from(self, first_b: np.ndarray, size: int, reversed_b: np.ndarray | None) -> np.ndarray:
        """Which row (or column) of the image each row of the result comes from: int64 [B, size], -1 is outside."""
        at = first_b[:, None] + np.arange(size)
        if reversed_b is not None:
            at[reversed_b] = at[reversed_b, ::-1]
        if self.job.augment.padding == "edge":
            return at.clip(0, size - 1)
        if self.job.augment.padding == "reflect":
            at = np.abs(at)
            return np.minimum(at, 2 * (size - 1) - at)
        return np.where((at < 0) | (at >= size), -1, at)


class _Order(TraversalOrder):
    """Our order as FFCV takes one: it calls what it was given with its loader, and asks the result."""

    def __init__(self, places: np.ndarray) -> None:
        self.places = places

    def __call__(self, loader: Any) -> _Order:
        return self

    def sample_order(self, epoch: int) -> np.ndarray:
        return self.places


def next_batch(reading: Any) -> Any:
    """The next batch of FFCV's reading thread, which ends without a word to its reader if it fails.

    Raises
    ------
    RuntimeError
        If the thread has ended without making it; FFCV itself waits for ever.
    """
    while True:
        running = reading.is_alive()  # asked first: what it put before it ended is in the queue by then
        try:
            _, columns = reading.output_queue.get(timeout=1)
        except Empty:
            if not running:
                raise RuntimeError("FFCV's reading thread failed: what it printed says why") from None
        else:
            return columns


def _end(reading: Any) -> None:
    """End FFCV's reading thread, which waits up to half a second at a time for room, by itself and for nobody."""
    reading.iter_ixes = iter(())
    while reading.is_alive():
        with contextlib.suppress(Empty):
            reading.output_queue.get(timeout=0.002)
    reading.close()


def _made_for(split: Split) -> Path:
    """A raw `.beton` of the split in a temporary folder, for as long as the split lives."""
    if split not in _made:
        folder = tempfile.mkdtemp(prefix="hbr-beton-")
        weakref.finalize(split, shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder, "split.beton")
        write_beton(split, path, mode="raw")
        _made[split] = path
    return _made[split]


def _check_same(file: Beton, split: Split) -> None:
    remedy = "write it again from this split, or open the file with open_beton"
    if file.shape != split.images.shape[1:]:
        raise ValueError(f"{file.path} holds images of {file.shape} (C, H, W), split {split.name!r} others: {remedy}")
    if not np.array_equal(file.labels, split.labels):
        raise ValueError(f"{file.path} has other labels than split {split.name!r}: {remedy}")
