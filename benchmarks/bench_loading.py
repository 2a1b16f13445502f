"""How fast batches come out of each loader doing the same work, in memory.

Work: gather in random order, flip (p 0.5), random crop (zero padding of 4), float32, normalise, NCHW,
batches of 128. Every variant is checked for it first: means and spreads of the channels, and the averages
that a missing flip or crop would move, must agree with the native loader's.

    python benchmarks/bench_loading.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: speed of the native loader over FFCV, DALI (CPU), torchvision's DataLoader, and its
bound, which gathers and converts without augmenting.
"""

from __future__ import annotations

import contextlib
import queue
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numba as nb
import numpy as np
import torch

from hbr_fast.data.dataset import Split
from hbr_fast.loaders.batch import Augment
from hbr_fast.loaders.loader import Loader

PAD, FLIP = 4, 0.5
AUGMENT = Augment(flip=FLIP, pad=PAD)
BATCH = 128  # the paper's, and FFCV's and DALI's best on the machines tried
KEYS = {
    "native_over_ffcv": "ffcv",
    "native_over_dali": "dali",
    "native_over_torchvision": "torchvision",
    "native_over_bound": "bound",
}


@dataclass(frozen=True)
class Size:
    """How much is timed: images, of which the slow torchvision takes `slow_images`."""

    images: int
    slow_images: int
    rounds: int
    seconds: float


SIZES = {
    "full": Size(images=50_000, slow_images=5_000, rounds=15, seconds=0.5),
    "quick": Size(images=10_000, slow_images=1_000, rounds=5, seconds=0.1),
    "tiny": Size(images=700, slow_images=700, rounds=2, seconds=0.0),
}
SHAPES = {"3x32x32": (3, 32, 32)}

Epoch = Callable[[], Iterable[Any]]  # batches of one epoch: images as a tensor or array, float32 [B, C, H, W]


def main(argv: Sequence[str] | None = None) -> None:
    chosen = harness.settings("bench_loading", str(__doc__), argv)
    size = SIZES[chosen.size]
    cases, missing = [], []
    for name, shape in SHAPES.items():
        case, without = measure_case(name, shape, size, chosen.threads)
        cases.append(case)
        missing += without
    ratios = {key: cases[0].speed_ratio("native", theirs) for key, theirs in KEYS.items()}
    harness.finish(chosen, cases, ratios, cache="uint8 in memory; .beton in the page cache", notes="\n".join(missing))


def measure_case(name: str, shape: tuple[int, int, int], size: Size, threads: int) -> tuple[harness.Case, list[str]]:
    """Measure every loader that is installed on images of one shape; also say which are not."""
    split = random_split(size.images, shape)
    slow_split = random_split(size.slow_images, shape)
    missing = []
    with contextlib.ExitStack() as stack:
        epochs: dict[str, tuple[Epoch, int]] = {
            "native": (native(split, threads), size.images),
            "bound": (bound(split, threads), size.images),
        }
        for other, make in (("ffcv", ffcv), ("dali", dali)):
            try:
                epochs[other] = (make(split, threads, stack), size.images)
            except ImportError as error:
                missing.append(
                    f"{other} is not installed, its ratio is null: pip install 'hbr-fast[{other}]' ({error})"
                )
        epochs["torchvision"] = (torchvision(slow_split, threads), size.slow_images)
        epochs["noop"] = (noop(split), size.images)
        errors = same_work(epochs, shape)
        variants = [
            harness.Variant(variant, _exhaust(epoch), images, error=errors.get(variant))
            for variant, (epoch, images) in epochs.items()
        ]
        timings = harness.measure(variants, rounds=size.rounds, seconds=size.seconds)
    pixels = int(np.prod(shape))
    case = harness.Case(name, "images", bytes_per_item=pixels * (1 + 4), reference="bound", timings=timings)
    return case, missing


def _exhaust(epoch: Epoch) -> Callable[[], None]:
    def run() -> None:
        for _ in epoch():
            pass

    return run


def random_split(samples: int, shape: tuple[int, int, int]) -> Split:
    """Random images whose channels differ and whose left half is darker, so that a flip can be seen."""
    channels, _, width = shape
    rng = np.random.default_rng(20_260_401)
    images = rng.integers(0, 128, (samples, *shape), dtype=np.uint8)
    images += np.linspace(0, 90, width).astype(np.uint8)
    images += 15 * np.arange(channels, dtype=np.uint8)[:, None, None]
    scaled = images.reshape(samples, channels, -1).astype(np.float32) / 255
    return Split(
        name="train",
        images=images,
        labels=rng.integers(0, 10, samples),
        classes=tuple(str(label) for label in range(10)),
        mean=scaled.mean(axis=(0, 2), dtype=np.float64).astype(np.float32),
        std=scaled.std(axis=(0, 2), dtype=np.float64).astype(np.float32),
        truth=None,
    )


def same_work(epochs: dict[str, tuple[Epoch, int]], shape: tuple[int, ...]) -> dict[str, float]:
    """Largest deviation of each augmenting loader's statistics from the native loader's.

    Raises
    ------
    ValueError
        If one yields another shape or dtype, another number of images, or statistics further off than chance.
    """
    expected = _statistics("native", *epochs["native"], shape)
    errors = {}
    for name, (epoch, images) in epochs.items():
        if name in ("bound", "noop"):
            continue
        found = _statistics(name, epoch, images, shape)
        errors[name] = float(np.abs(found - expected).max())
        # The averages of two draws of n images, whose parts spread by about 1, differ by a few sqrt(2 / n).
        if errors[name] > 0.02 + 6.0 / np.sqrt(images):
            raise ValueError(
                f"{name} does other work than native: statistics {found.round(3)}, native {expected.round(3)}"
            )
    return errors


def _statistics(name: str, epoch: Epoch, images: int, shape: tuple[int, ...]) -> np.ndarray:
    """Per channel: mean, standard deviation, mean of the left half, of the top rows, of the corner."""
    collected = torch.cat([torch.as_tensor(batch).clone() for batch in epoch()]).numpy()
    if collected.dtype != np.float32 or collected.shape != (images, *shape):
        raise ValueError(f"{name} yields {collected.dtype} {collected.shape}, expected float32 {(images, *shape)}")
    width = shape[-1]
    parts = (collected[..., : width // 2], collected[:, :, :PAD], collected[:, :, :PAD, :PAD])
    averages = [part.mean(axis=(0, 2, 3), dtype=np.float64) for part in (collected, *parts)]
    return np.stack([*averages, collected.std(axis=(0, 2, 3), dtype=np.float64)])


def native(split: Split, threads: int, augment: Augment = AUGMENT) -> Epoch:
    """Ours."""
    loader = Loader(split, augment=augment, batch_size=BATCH, threads=threads)
    number = iter(range(2**31))

    def epoch() -> Iterator[torch.Tensor]:
        for batch in loader.epoch(next(number)):
            yield batch.images

    return epoch


def bound(split: Split, threads: int) -> Epoch:
    """Gather and convert only, into buffers used again: what the memory allows. A thread makes a batch."""
    rows_of_pixels = np.ascontiguousarray(split.images).reshape(len(split), -1)
    rng = np.random.default_rng(0)

    def epoch() -> Iterator[np.ndarray]:
        order = rng.permutation(len(split))
        free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        for buffer in buffers:
            free.put(buffer)

        def fill(start: int) -> np.ndarray:
            out = free.get()
            _gather(rows_of_pixels, order[start : start + BATCH], out)
            return out

        for done in _ahead(pool, fill, range(0, len(order), BATCH), threads + 1):
            yield done
            free.put(done)

    buffers = [np.zeros((BATCH, rows_of_pixels.shape[1]), np.float32) for _ in range(threads + 2)]
    pool = ThreadPoolExecutor(threads)
    return epoch


@nb.njit(nogil=True, cache=True)
def _gather(pixels_nx, rows_b, out_bx):  # type: ignore[no-untyped-def]
    for b in range(rows_b.shape[0]):
        source = pixels_nx[rows_b[b]]
        target = out_bx[b]
        for x in range(target.shape[0]):
            target[x] = np.float32(source[x])


def _ahead(
    pool: ThreadPoolExecutor, make: Callable[[int], np.ndarray], starts: Iterable[int], depth: int
) -> Iterator[np.ndarray]:
    pending = []
    for start in starts:
        pending.append(pool.submit(make, start))
        if len(pending) > depth:
            yield pending.pop(0).result()
    for future in pending:
        yield future.result()


def noop(split: Split) -> Epoch:
    """The cost of the loop itself: the same batch again and again."""
    batch = torch.zeros((BATCH, *split.images.shape[1:]))
    return lambda: (batch for _ in range(0, len(split), BATCH))


def ffcv(split: Split, threads: int, stack: contextlib.ExitStack) -> Epoch:
    """FFCV's own loader on a raw `.beton` in the page cache."""
    # FFCV sets the thread counts of numba and torch for the whole process when it is imported.
    with _torch_threads_kept():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader as FFCVLoader
        from ffcv.loader import OrderOption
        from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor, ToTorchImage
        from ffcv.transforms.normalize import NormalizeImage
        from ffcv.writer import DatasetWriter

        beton = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "train.beton")
        fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        DatasetWriter(beton, fields, num_workers=threads).from_indexed_dataset(ArrayImages(split), chunksize=500)
        loader = FFCVLoader(
            beton,
            batch_size=BATCH,
            num_workers=threads,
            os_cache=True,
            order=OrderOption.RANDOM,
            drop_last=False,
            pipelines={
                "image": [
                    SimpleRGBImageDecoder(),
                    RandomHorizontalFlip(FLIP),
                    RandomTranslate(padding=PAD, fill=(0, 0, 0)),
                    NormalizeImage(split.mean * 255, split.std * 255, np.float32),
                    ToTensor(),
                    ToTorchImage(channels_last=False),
                ],
                "label": [IntDecoder(), ToTensor(), Squeeze()],
            },
        )

    def epoch() -> Iterator[torch.Tensor]:
        with _torch_threads_kept():
            for images, _ in loader:
                yield images

    return epoch


@contextlib.contextmanager
def _torch_threads_kept() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def dali(split: Split, threads: int, stack: contextlib.ExitStack) -> Epoch:
    """DALI on the CPU, fed with batches by index; planar images were faster for it than H x W x C."""
    from nvidia.dali import Pipeline, fn
    from nvidia.dali.types import DALIDataType

    rng = np.random.default_rng(0)

    class Source:
        def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            order = rng.permutation(len(split))
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                yield split.images[rows], split.labels[rows]

    pipeline = Pipeline(batch_size=BATCH, num_threads=threads, device_id=None, seed=1, prefetch_queue_depth=2)
    with pipeline:
        images, labels = fn.external_source(Source(), num_outputs=2, batch=True, cycle="raise", layout=["CHW", ""])
        offsets = [float(offset) for offset in range(-PAD, PAD + 1)]
        cropped = fn.slice(
            images,
            start=fn.random.uniform(values=offsets, shape=(2,), dtype=DALIDataType.INT32),
            shape=split.images.shape[2:],
            axis_names="HW",
            out_of_bounds_policy="pad",
            fill_values=0,
        )
        normalised = fn.crop_mirror_normalize(
            cropped,
            mirror=fn.random.coin_flip(probability=FLIP),
            mean=(split.mean * 255).tolist(),
            std=(split.std * 255).tolist(),
            dtype=DALIDataType.FLOAT,
            output_layout="CHW",
        )
        pipeline.set_outputs(normalised, labels)
    pipeline.build()

    def epoch() -> Iterator[torch.Tensor]:
        with contextlib.suppress(StopIteration):
            while True:
                images, _ = pipeline.run()
                yield torch.from_dlpack(images.as_tensor())
        pipeline.reset()

    return epoch


def torchvision(split: Split, threads: int) -> Epoch:
    """What most people run, the paper's authors among them."""
    loader = torchvision_loader(split, threads, BATCH)

    def epoch() -> Iterator[torch.Tensor]:
        for images, _, _ in loader:
            yield images

    return epoch


def torchvision_loader(split: Split, workers: int, batch_size: int) -> Any:
    """A DataLoader with transforms on PIL images in worker processes; its batches are images, labels, ids."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(split.images.shape[2:], padding=PAD),
            transforms.RandomHorizontalFlip(FLIP),
            transforms.ToTensor(),
            transforms.Normalize(split.mean.tolist(), split.std.tolist()),
        ]
    )
    # Workers that stay: starting them is not what is measured.
    return torch.utils.data.DataLoader(
        PilImages(split, transform),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
    )


class PilImages(torch.utils.data.Dataset[tuple[torch.Tensor, int, int]]):
    """A split as a map-style dataset: transformed image, label, id."""

    def __init__(self, split: Split, transform: Callable[[Any], torch.Tensor]) -> None:
        self.arrays = ArrayImages(split)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        from PIL import Image

        image, label = self.arrays[index]
        return self.transform(Image.fromarray(image)), label, index


class ArrayImages:
    """A split as FFCV's writer and PIL want it: H x W x C arrays and labels."""

    def __init__(self, split: Split) -> None:
        self.images = np.ascontiguousarray(split.images.transpose(0, 2, 3, 1))
        self.labels = split.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


if __name__ == "__main__":
    main()
