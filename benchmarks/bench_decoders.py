"""Decoders of JPEGs that threads can use side by side: whole pictures, and what evaluation at 224 needs of them.

`--root` names a folder with train/CLASS and test/CLASS of JPEGs; without it, photograph-sized JPEGs are generated. A
decoder that is not installed is left out. Errors are mean differences from Pillow, in shares of 255 grey levels.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import io
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from bench_convert import photographs
from bench_photos import converted
from photo_rivals import contents
from PIL import Image

from hbr_fast.data.dataset import Split
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.views import views

SIDE, SHORTEST = 224, 256
COMPARED = 16  # pictures whose pixels are compared with Pillow's
SIZES = {"full": (200, 5), "quick": (40, 3), "tiny": (2, 1)}  # generated photographs per class and split, rounds

Decode = Callable[[bytes], np.ndarray]  # to RGB [H, W, 3]


def pillow(content: bytes) -> np.ndarray:
    """Pillow, which holds the interpreter's lock for everything but decoding."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def torchvision(content: bytes) -> np.ndarray:
    """torchvision.io, linked with a libjpeg-turbo of its own."""
    from torchvision.io import ImageReadMode, decode_jpeg

    pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    planes: np.ndarray = pixels.numpy()
    return planes.transpose(1, 2, 0)


def opencv() -> Decode:
    """OpenCV, which FFCV brings."""
    import cv2

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

    def decode(content: bytes) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        assert pixels is not None
        return pixels[..., ::-1]

    return decode


def simplejpeg() -> Decode:
    """simplejpeg, a wheel around TurboJPEG."""
    import simplejpeg as library

    decode: Decode = library.decode_jpeg
    return decode


def turbojpeg() -> Decode:
    """The system's TurboJPEG through ctypes, which releases the interpreter's lock."""
    name = ctypes.util.find_library("turbojpeg")
    if name is None:
        raise ImportError("no TurboJPEG here")
    library = ctypes.CDLL(name)
    library.tjInitDecompress.restype = ctypes.c_void_p
    handles: dict[int, ctypes.c_void_p] = {}

    def decode(content: bytes) -> np.ndarray:
        handle = handles.setdefault(threading.get_ident(), ctypes.c_void_p(library.tjInitDecompress()))
        width, height, subsampling, space = (ctypes.c_int() for _ in range(4))
        size = ctypes.c_ulong(len(content))
        library.tjDecompressHeader3(
            handle, content, size, *(ctypes.byref(one) for one in (width, height, subsampling, space))
        )
        pixels = np.empty((height.value, width.value, 3), np.uint8)
        at = pixels.ctypes.data_as(ctypes.c_void_p)
        library.tjDecompress2(handle, content, size, at, width, 0, height, 0, 0)  # 0: lines without gaps, RGB
        return pixels

    return decode


WHOLE: dict[str, Callable[[], Decode]] = {
    "pillow": lambda: pillow,
    "torchvision.io": lambda: torchvision,
    "opencv": opencv,
    "turbojpeg": turbojpeg,
    "simplejpeg": simplejpeg,
}


def evaluated(image: Image.Image) -> np.ndarray:
    """The middle of a picture whose shortest side becomes 256."""
    scale = SHORTEST / min(image.size)
    width, height = (int(side * scale) for side in image.size)
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    return np.asarray(
        image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + SIDE, top + SIDE))
    )


def pillow_draft(content: bytes) -> np.ndarray:
    """Pillow, at the fraction of the size that JPEG's own scaling has."""
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (SHORTEST, SHORTEST))
    return evaluated(image.convert("RGB"))


def on_threads(decode: Decode, pictures: Sequence[bytes], threads: int) -> Callable[[], None]:
    """All pictures, each thread those of its own."""

    def some(part: Sequence[bytes]) -> None:
        for one in part:
            decode(one)

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, [pictures[start::threads] for start in range(threads)]))

    return run


def native_whole(store: EncodedImages, threads: int) -> tuple[Callable[[], None], Callable[[int], np.ndarray]]:
    """This package's decoder at the pictures' own sizes: a run, and the pixels of one picture."""
    groups: list[tuple[np.ndarray, ...]] = []
    shapes = store.index[["height", "width"]]
    for shape in np.unique(shapes):
        rows = np.flatnonzero(shapes == shape)
        images = np.empty((len(rows), 3, int(shape["height"]), int(shape["width"])), np.uint8)
        tall, wide = (np.full(len(rows), int(shape[side])) for side in ("height", "width"))
        boxes, places = views(tall, wide, (int(tall[0]), int(wide[0])), "stretch")
        groups.append((rows, boxes, places, images))

    def run() -> None:
        for group in groups:
            assert store.decode(*group, threads=threads) == []

    def pixels(row: int) -> np.ndarray:
        rows, _, _, images = next(group for group in groups if row in group[0])
        one: np.ndarray = images[int(np.flatnonzero(rows == row)[0])]
        return one.transpose(1, 2, 0)

    return run, pixels


def difference(found: Iterator[np.ndarray], expected: Iterator[np.ndarray]) -> float:
    """Mean absolute difference, in shares of 255."""
    pairs = zip(found, expected, strict=True)
    return float(np.mean([np.abs(one.astype(int) - other).mean() / 255 for one, other in pairs]))


def cases(split: Split, threads: int, rounds: int) -> list[harness.Case]:
    """Whole pictures, and evaluation at 224."""
    store, pictures = split.store, contents(split)
    assert isinstance(store, EncodedImages)
    some, count = pictures[:COMPARED], len(pictures)
    run, pixels = native_whole(store, threads)
    run()
    error = difference(map(pixels, range(len(some))), map(pillow, some))
    whole = [harness.Variant("native", run, count, error=error)]
    for name, made in WHOLE.items():
        with contextlib.suppress(ImportError):
            decode = made()
            error = difference(map(decode, some), map(pillow, some))
            whole.append(harness.Variant(name, on_threads(decode, pictures, threads), count, error=error))
    whole.append(harness.Variant(harness.NOOP, lambda: None, count))

    def full(content: bytes) -> np.ndarray:
        return evaluated(Image.fromarray(pillow(content)))

    boxes, places = views(store.index["height"], store.index["width"], (SIDE, SIDE), "crop")
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    rows = np.arange(count)

    def evaluate() -> None:
        assert store.decode(rows, boxes, places, images, threads=threads) == []

    evaluate()
    error = difference(iter(images[: len(some)].transpose(0, 2, 3, 1)), map(full, some))
    parts = [harness.Variant("native", evaluate, count, error=error)]
    for name, decode in (("pillow", full), ("pillow, draft mode", pillow_draft)):
        error = difference(map(decode, some), map(full, some))
        parts.append(harness.Variant(name, on_threads(decode, pictures, threads), count, error=error))
    parts.append(harness.Variant(harness.NOOP, lambda: None, count))
    mean_bytes = sum(map(len, pictures)) // count
    timings = [harness.measure(variants, rounds=rounds, seconds=0.0) for variants in (whole, parts)]
    names = ("whole pictures", f"evaluation at {SIDE}")
    return [harness.Case(name, "images", mean_bytes, "pillow", one) for name, one in zip(names, timings, strict=True)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    chosen = harness.settings("bench_decoders", __doc__ or "", argv, pictures=True)
    torch.set_num_threads(chosen.threads)
    count, rounds = SIZES[chosen.size]
    with tempfile.TemporaryDirectory() as scratch:
        root = chosen.root or photographs(Path(scratch) / "photographs", count)
        split: Any = converted(root, Path(scratch) / "kept.hbr").train
        whole, parts = cases(split, chosen.threads, rounds)
    ratios = {
        "native_over_pillow_whole": whole.speed_ratio("native", "pillow"),
        "native_over_pillow_evaluation": parts.speed_ratio("native", "pillow"),
        "native_over_draft": parts.speed_ratio("native", "pillow, draft mode"),
    }
    notes = "Photographs of --root." if chosen.root else "Generated photographs."
    harness.finish(chosen, [whole, parts], ratios, cache="in memory", notes=notes)


if __name__ == "__main__":
    main()
