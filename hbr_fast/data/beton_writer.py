"""Writing a split as a `.beton` with FFCV's own writer, in supervised processes.

FFCV's writer waits forever for a worker that died. So it runs in its own process, which ends with the first worker
that fails, and the calling process then ends all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import mmap
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from hbr_fast import progress
from hbr_fast.data.beton_pictures import Stored, largest_picture, stored_picture
from hbr_fast.data.dataset import Split
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.files import DISK_FULL, atomic_path
from hbr_fast.machine import usable_cpus

Mode = Literal["auto", "raw", "jpg"]

RAW_BYTES = (
    2**16
)  # "auto" writes images up to this as they are: a JPEG of a small image saves little and costs decoding
_PAGE_BYTES = 2**23  # FFCV's own choice, where an image fits into it
_LOOK_S = 0.05


def write_beton(
    split: Split,
    path: str | os.PathLike[str],
    *,
    mode: Mode = "auto",
    quality: int = 90,
    workers: int | None = None,
    force: bool = False,
) -> Split:
    """Write a split as a `.beton` with the fields `image`, `label` and `id`, whole or not at all.

    Images of three channels become FFCV's RGB images, others arrays of uint8 [H, W, C]. Encoded pictures without a size
    become RGB images, too: JPEGs byte for byte, others as upright pixels. FFCV's own decoders do not turn JPEGs that
    have an EXIF orientation; the backend does.

    Parameters
    ----------
    split : Split
    path : path
        The file to write; its name ends in `.beton`.
    mode : "auto", "raw" or "jpg"
        How images are stored; "auto" is raw up to 64 KiB and JPEG, which changes pixels, above. Arrays are always raw.
        Encoded pictures without a size are kept as they are, which is "auto".
    quality : int
        JPEG quality, in [1, 100].
    workers : int, optional
        Processes, by default one per processor. FFCV hands out the pages of the file first come, first served, so the
        same split gives the same bytes with one worker, and the same samples with more.
    force : bool
        Whether to replace what is at `path`.

    Returns
    -------
    Split
        The same split with `beton` set: the FFCV backend reads from the file.

    Raises
    ------
    FileExistsError
        If `path` exists and `force` is false.
    ImportError
        If FFCV is not installed.
    ValueError
        If an argument is out of range.
    ChildProcessError
        If a writer process dies or fails; the message gives the reason. Nothing is left behind.
    OSError
        If the disk is full.
    """
    path = Path(path)
    if path.suffix != ".beton":
        raise ValueError(f"{path} does not end in .beton: name the file {path.name}.beton")
    if mode not in ("auto", "raw", "jpg"):
        raise ValueError(f"mode must be auto, raw or jpg, got {mode!r}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in [1, 100], got {quality}")
    workers = usable_cpus() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already: choose another name or replace it with --force")
    require_ffcv()
    if split.store.image_shape is None:
        _check_pictures(split, mode)
    else:
        mode = _mode_of(split, mode)
    with atomic_path(path) as temporary:
        _write(split, temporary, path, mode, quality, min(workers, len(split)))
    return dataclasses.replace(split, beton=path)


def _check_pictures(split: Split, mode: Mode) -> None:
    assert isinstance(split.store, EncodedImages)
    if mode != "auto":
        raise ValueError(
            f"pictures of split {split.name!r} vary in size and are written as they are: leave mode at auto, or choose "
            "a size, e.g. split.at_size(224)"
        )
    sides = np.maximum(split.store.index["height"], split.store.index["width"])
    if len(large := np.flatnonzero(sides >= 2**16)):
        raise ValueError(
            f"a .beton holds pictures of at most 65,535 pixels a side, and picture {large[0]} of split {split.name!r} "
            f"has {sides[large[0]]:,}: convert it with --shortest"
        )


def _mode_of(split: Split, mode: Mode) -> Mode:
    channels, height, width = split.image_shape
    if mode == "jpg" and channels != 3:
        raise ValueError(f"JPEG is for 3 channels, and split {split.name!r} has {channels}: mode must be raw")
    if mode == "auto":
        return "raw" if channels * height * width <= RAW_BYTES or channels != 3 else "jpg"
    return mode


def require_ffcv() -> None:
    """Raise if FFCV is not installed.

    Raises
    ------
    ImportError
    """
    if importlib.util.find_spec("ffcv") is None:
        raise ImportError("writing a .beton needs FFCV: pip install 'hbr-fast[ffcv]'")


def _write(split: Split, temporary: Path, path: Path, mode: Mode, quality: int, workers: int) -> None:
    context = multiprocessing.get_context("fork")  # like FFCV's own workers; the split is inherited, not sent
    done = context.Value("q", 0)
    with (
        tempfile.TemporaryFile() as messages,
        progress.task(f"convert {path.name}", total=len(split), unit="images") as advance,
    ):
        writer = context.Process(
            target=_run, args=(split, temporary, mode, quality, workers, done, messages), name="hbr-beton"
        )
        with warnings.catch_warnings():  # Python 3.12 warns about forking with threads: the writer uses none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            writer.start()
        assert writer.pid is not None
        seen = 0
        try:
            while writer.is_alive():
                writer.join(_LOOK_S)
                now = done.value
                advance(now - seen)
                seen = now
        finally:  # after an interrupt, or if the writer died: end the rest of its group
            writer.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(writer.pid, signal.SIGKILL)
            writer.join()
        if writer.exitcode != 0:
            raise _failure(writer.exitcode, messages, path)


def _failure(exitcode: int | None, messages: IO[bytes], path: Path) -> OSError:
    messages.seek(0)
    lines = messages.read().decode(errors="replace").replace("\r", "\n").split("\n")
    # The first is the worker's own.
    reason = next((line.strip() for line in lines if "Error: " in line), f"the writer ended with exit code {exitcode}")
    if any(f"[Errno {number}]" in line for line in lines for number in DISK_FULL):
        return OSError(f"no space left for {path}: free some or choose another place")
    return ChildProcessError(f"{path} could not be written ({reason.removeprefix('RuntimeError: ')}): run it again")


def _run(split: Split, temporary: Path, mode: Mode, quality: int, workers: int, done: Any, messages: IO[bytes]) -> None:
    """The writer's process: its main thread runs FFCV's loop; a failing worker ends all of them."""
    os.setpgid(0, 0)  # one process group with the workers, ended together
    os.dup2(messages.fileno(), 2)  # FFCV's progress bar, and what its workers print before they fail
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_start_method("fork", force=True)  # FFCV's workers inherit its shared table
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts
    try:
        from ffcv.fields import IntField, NDArrayField, RGBImageField
        from ffcv.writer import DatasetWriter
        from tqdm import tqdm

        # FFCV's bar takes tqdm's lock, inherited if the parent used tqdm: if this process ended while holding it,
        # it would stay locked for the parent and for every later writer.
        tqdm.set_lock(threading.RLock())

        class Writer(DatasetWriter):
            metadata_sm: Any

            def prepare(self) -> None:
                """Put the shared table into anonymous memory: it is freed with its processes, however they end."""
                super().prepare()
                self.metadata_sm.close()
                self.metadata_sm.unlink()
                self.metadata_sm = _Nameless(self.num_samples * self.metadata_type.itemsize)

        largest = int(np.prod(split.store.image_shape or 0))
        if split.store.image_shape is None:
            assert isinstance(split.store, EncodedImages)
            largest = largest_picture(split.store)
            image = RGBImageField()
            image.encode = _encode_stored  # of this one: a class of our own would be a kind that FFCV does not know
        elif split.image_shape[0] == 3:
            image = RGBImageField(write_mode=mode, jpeg_quality=quality)
        else:
            channels, height, width = split.image_shape
            image = NDArrayField(np.dtype(np.uint8), (height, width, channels))
        page = max(_PAGE_BYTES, 1 << (largest - 1).bit_length())
        fields = {"image": image, "label": IntField(), "id": IntField()}
        signal.signal(signal.SIGCHLD, _end_if_failed)
        writer = Writer(str(temporary), fields, page_size=page, num_workers=workers)
        writer.from_indexed_dataset(_Samples(split, done), chunksize=min(500, -(-len(split) // workers)))
    except BaseException:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        traceback.print_exc()
        os.killpg(0, signal.SIGKILL)


def _end_if_failed(*_: object) -> None:
    """On the end of children: if one failed, report it and end the whole group.

    Immediately, not by an exception: raised where Python swallows it, in a callback of the garbage collector, it
    would leave the others waiting forever.
    """
    with contextlib.suppress(ChildProcessError):  # from waitpid: none are left
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if code != 0:
                by_signal = f"was ended by {signal.Signals(-code).name} (out of memory?)" if code < 0 else ""
                os.write(2, f"\nRuntimeError: a worker {by_signal or f'ended with exit code {code}'}\n".encode())
                os.killpg(0, signal.SIGKILL)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


class _Nameless:
    """The part of `SharedMemory` that FFCV uses, inherited by its workers instead of found by name."""

    def __init__(self, size: int) -> None:
        self.buf = mmap.mmap(-1, size)

    def close(self) -> None:
        pass

    unlink = close


def _encode_stored(destination: Any, picture: Stored, malloc: Any) -> None:
    """What FFCV's RGB field does, without encoding."""
    mode, height, width, content = picture
    destination["mode"], destination["height"], destination["width"] = mode, height, width
    destination["data_ptr"], storage = malloc(len(content))
    storage[:] = content


class _Samples:
    """A split in the form FFCV's writer takes: [H, W, C], label and id, counted as they are read."""

    def __init__(self, split: Split, done: Any) -> None:
        self.split, self.done = split, done

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[np.ndarray | Stored, int, int]:
        with self.done.get_lock():
            self.done.value += 1
        store = self.split.store
        if isinstance(store, EncodedImages) and store.size is None:
            return stored_picture(store, index), int(self.split.labels[index]), int(index)
        image = np.ascontiguousarray(store.gather([index])[0].transpose(1, 2, 0))
        return image, int(self.split.labels[index]), int(index)
