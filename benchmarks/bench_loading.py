"""How fast each loader makes batches when all do the same work, in memory.

Work: gather in random order, flip (p 0.5), random crop (zero padding of 4), float32, normalise, NCHW,
batches of 128. Every variant is checked first: means and spreads of the channels, and the averages that a
missing flip or crop would shift, must agree with the native loader's. The rivals run in their own fastest
form, with their own random numbers (`hbr_fast.loaders` has backends that use them with ours).

    python benchmarks/bench_loading.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON, for 3x32x32 in float32: speed of the native loader over FFCV, DALI (CPU), torchvision's
DataLoader, and its bound, which gathers and converts without augmenting, on the same threads and into equally
reused buffers; `efficiency`, images/s of training the CNN 16-32-64 with the loader over the same step on a
constant batch; `scaling`, two threads over one; and for a process that loads one epoch: seconds from importing
the loader to its first batch, with and without numba's cache, and the peak memory in megabytes that it adds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numba as nb
import numpy as np
import torch
from loading_rivals import BATCH, FLIP, PAD, Epoch, dali, ffcv, torchvision

from hbr_fast.data.dataset import Split
from hbr_fast.data.images import RawImages
from hbr_fast.kernels import team
from hbr_fast.loaders import native as native_backend
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.loader import Loader
from hbr_fast.training import trainer
from hbr_fast.training.build import initial_model, make_optimizer
from hbr_fast.training.device import compute_dtype, resolve_precision
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.recipes import named_recipe
from hbr_fast.training.step import set_learning_rate

AUGMENT = Augment(flip=FLIP, pad=PAD)


def recipe_on_cpu(name: str, **changes: Any) -> Recipe:
    """A named recipe with fields changed, in the number format that is fastest on this processor."""
    return resolve_precision(dataclasses.replace(named_recipe(name), **changes), torch.device("cpu"))


RECIPE = recipe_on_cpu("small-cnn", model="cnn-16-32-64", batch_size=BATCH, augment=AUGMENT)
KEYS = {
    "native_over_ffcv": "ffcv",
    "native_over_dali": "dali",
    "native_over_torchvision": "torchvision",
}
BUFFERS = 3  # the bound fills them in rotation


@dataclass(frozen=True)
class Size:
    """How much is timed: images of a case, of which the slow torchvision takes `slow_images`."""

    images: dict[str, int]
    slow_images: dict[str, int]
    rounds: dict[str, int]
    seconds: float
    steps: int  # training steps a round


SHAPES = {"3x32x32": (3, 32, 32), "1x28x28": (1, 28, 28), "3x64x64": (3, 64, 64), "3x224x224": (3, 224, 224)}
SIZES = {
    "full": Size(
        images=dict(zip(SHAPES, (50_000, 25_000, 6_400, 640), strict=True)),
        slow_images=dict(zip(SHAPES, (3_840, 1_280, 640, 128), strict=True)),
        rounds=dict(zip(SHAPES, (11, 3, 3, 3), strict=True)),
        seconds=0.2,
        steps=5,
    ),
    "quick": Size(
        images=dict(zip(SHAPES, (12_800, 12_800, 2_560, 256), strict=True)),
        slow_images=dict(zip(SHAPES, (1_280, 1_280, 256, 128), strict=True)),
        rounds=dict(zip(SHAPES, (5, 1, 1, 1), strict=True)),
        seconds=0.1,
        steps=5,
    ),
    "tiny": Size(
        images={"3x32x32": 700, "1x28x28": 400},  # FFCV compiles anew for each shape
        slow_images={"3x32x32": 700, "1x28x28": 400},
        rounds={"3x32x32": 2, "1x28x28": 1},
        seconds=0.0,
        steps=1,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    chosen = harness.settings("bench_loading", str(__doc__), argv)
    torch.set_num_threads(chosen.threads)
    size = SIZES[chosen.size]
    cases, missing = [], set()
    for name in size.images:
        case, without = measure_case(name, size, chosen.threads)
        cases.append(case)
        missing |= without
    against_bound, training = measure_bound(size, chosen.threads), measure_training(size)
    ratios = {
        **{key: cases[0].speed_ratio("native", theirs) for key, theirs in KEYS.items()},
        "native_over_bound": against_bound.speed_ratio("native", "bound"),
        "efficiency": training.speed_ratio("native", "constant_batch"),
        "scaling": against_bound.speed_ratio("native", "native, 1 thread"),
        **probe(chosen.threads),
    }
    harness.finish(
        chosen, [*cases, against_bound, training], ratios, cache="uint8 in memory; .beton in the page cache",
        notes="\n".join(sorted(missing)),
    )  # fmt: skip


def measure_case(name: str, size: Size, threads: int) -> tuple[harness.Case, set[str]]:
    """Measure every installed loader on images of one shape; also report which are not installed."""
    shape, images, slow_images = SHAPES[name], size.images[name], size.slow_images[name]
    split, slow_split = random_split(images, shape), random_split(slow_images, shape)
    missing = set()
    with contextlib.ExitStack() as stack:
        epochs: dict[str, tuple[Epoch, int]] = {
            "native": (native(split, threads), images),
            "native, bfloat16": (native(split, threads, dtype=torch.bfloat16), images),
            "bound": (bound(split, threads), images),
        }
        rivals = [("dali", dali)] if shape[0] == 1 else [("ffcv", ffcv), ("dali", dali)]  # FFCV's images have colours
        for other, make in rivals:
            try:
                epochs[other] = (make(split, threads, stack), images)
            except ImportError as error:
                missing.add(f"{other} is not installed, its ratio is null: pip install 'hbr-fast[{other}]' ({error})")
        epochs["torchvision"] = (torchvision(slow_split, threads), slow_images)
        epochs["noop"] = (noop(split), images)
        errors = same_work(epochs, shape)
        variants = [
            harness.Variant(variant, _exhaust(epoch), count, error=errors.get(variant))
            for variant, (epoch, count) in epochs.items()
        ]
        timings = harness.measure(variants, rounds=size.rounds[name], seconds=size.seconds)
    pixels = int(np.prod(shape))
    return harness.Case(name, "images", bytes_per_item=pixels * (1 + 4), reference="bound", timings=timings), missing


def measure_bound(size: Size, threads: int) -> harness.Case:
    """The native loader and its bound in turn, on all threads and on one."""
    name = "3x32x32"
    split, images = random_split(size.images[name], SHAPES[name]), size.images[name]
    epochs = {
        "bound": bound(split, threads),
        "native": native(split, threads),
        "bound, 1 thread": bound(split, 1),
        "native, 1 thread": native(split, 1),
        "noop": noop(split),
    }
    variants = [harness.Variant(variant, _exhaust(epoch), images) for variant, epoch in epochs.items()]
    # Many short rounds, and nothing slow between the two: they differ by less than the machine's fluctuations.
    timings = harness.measure(variants, rounds=4 * size.rounds[name], seconds=0.0)
    return harness.Case(f"{name}, its bound", "images", 5 * split.images[0].size, "bound", timings)


def measure_training(size: Size) -> harness.Case:
    """Training the CNN 16-32-64 with the loader, and the same step on a constant batch."""
    split = random_split(min(12_800, size.images["3x32x32"]), SHAPES["3x32x32"])
    loader = trainer.training_loader(split, RECIPE, seed=0)
    batches = {"constant_batch": constant(loader), "native": endless(loader)}
    variants = [
        *(harness.Variant(name, steps(split, each, size.steps), BATCH * size.steps) for name, each in batches.items()),
        harness.Variant(harness.NOOP, lambda: None, BATCH * size.steps),
    ]
    # Many short rounds: a loader's share of a step is far smaller than the machine's fluctuations.
    timings = harness.measure(variants, rounds=4 * size.rounds["3x32x32"], seconds=0.0)
    return harness.Case("training cnn-16-32-64", "images", 5 * split.images[0].size, "constant_batch", timings)


def steps(split: Split, batches: Iterator[Any], count: int) -> Callable[[], None]:
    """Trains the CNN for `count` steps a call."""
    model = initial_model(RECIPE, split, seed=0)
    optimizer = make_optimizer(RECIPE, model)
    set_learning_rate(optimizer, 0.1)
    bfloat16 = compute_dtype(RECIPE) == torch.bfloat16

    def run() -> None:
        for _ in range(count):
            batch = next(batches)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                logits = model(batch.images)
            loss = torch.nn.functional.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def endless(loader: Loader) -> Generator[Any, None, None]:
    """The full batches of epoch after epoch."""
    for epoch in range(2**31):
        yield from (batch for batch in loader.epoch(epoch) if len(batch.ids) == BATCH)


def constant(loader: Loader) -> Generator[Any, None, None]:
    """One batch again and again."""
    first = next(iter(loader.epoch(0)))
    while True:
        yield first


PROBE = """
import json, sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import bench_loading
split = bench_loading.random_split(12_800, (3, 32, 32))

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = kilobytes("VmRSS")
start = time.perf_counter()
batches = bench_loading.native(split, int(sys.argv[2]))()
next(iter(batches))
first = time.perf_counter() - start
for _ in batches:
    pass
print(json.dumps([first, (kilobytes("VmHWM") - before) / 1024]))
"""


def probe(threads: int) -> dict[str, float]:
    """Time to a process's first batch, without and with numba's cache, and the memory that its loader adds."""
    with tempfile.TemporaryDirectory() as cache:
        results = []
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", PROBE, str(Path(__file__).parent), str(threads)],
                env={**os.environ, "NUMBA_CACHE_DIR": cache}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            results.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "first_batch_seconds_cold": harness.rounded(results[0][0], 3),
        "first_batch_seconds_cached": harness.rounded(results[1][0], 3),
        "peak_memory_mb": harness.rounded(results[1][1], 3),
    }


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
        store=RawImages(images),
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
        If a loader yields another shape, dtype or number of images, or statistics that differ by more than chance.
    """
    expected = _statistics("native", *epochs["native"], shape)
    errors = {}
    for name, (epoch, images) in epochs.items():
        if name.startswith("bound") or name == "noop":
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
    batches = torch.cat([torch.as_tensor(batch).clone() for batch in epoch()])
    collected = (batches.float() if name.endswith("bfloat16") else batches).numpy()
    if collected.dtype != np.float32 or collected.shape != (images, *shape):
        raise ValueError(f"{name} yields {collected.dtype} {collected.shape}, expected float32 {(images, *shape)}")
    width = shape[-1]
    parts = (collected[..., : width // 2], collected[:, :, :PAD], collected[:, :, :PAD, :PAD])
    averages = [part.mean(axis=(0, 2, 3), dtype=np.float64) for part in (collected, *parts)]
    return np.stack([*averages, collected.std(axis=(0, 2, 3), dtype=np.float64)])


def native(split: Split, threads: int, augment: Augment = AUGMENT, dtype: torch.dtype = torch.float32) -> Epoch:
    """Ours."""
    loader = Loader(split, augment=augment, batch_size=BATCH, threads=threads, dtype=dtype)
    number = iter(range(2**31))

    def epoch() -> Iterator[torch.Tensor]:
        for batch in loader.epoch(next(number)):
            yield batch.images

    return epoch


def bound(split: Split, threads: int) -> Epoch:
    """Gather and convert only: what memory bandwidth allows.

    Threads, block size and buffer rotation are those of the native loader.
    """
    pixels_nx = np.ascontiguousarray(split.images).reshape(len(split), -1)
    order = np.random.default_rng(0).permutation(len(split))
    block = BATCH * max(1, native_backend.BLOCK_BYTES // (BATCH * pixels_nx.shape[1] * 4))
    buffers = [np.zeros((block, pixels_nx.shape[1]), np.float32) for _ in range(BUFFERS)]

    def epoch() -> Iterator[np.ndarray]:
        for number, start in enumerate(range(0, len(order), block)):
            rows, out = order[start : start + block], buffers[number % BUFFERS]
            words = (pixels_nx.ctypes.data, pixels_nx.shape[1], rows.ctypes.data, out.ctypes.data)
            team.run(_gather, len(rows), words, threads=threads)
            for first in range(0, len(rows), BATCH):
                yield out[first : min(first + BATCH, len(rows))]

    return epoch


@nb.cfunc(team.KERNEL, cache=True)
def _gather(first, last, words):  # type: ignore[no-untyped-def]
    size = words[1]
    rows = team.array_at(words[2], (last,), np.int64)
    for b in range(first, last):
        source = team.array_at(words[0] + rows[b] * size, (size,), np.uint8)
        target = team.array_at(words[3] + b * size * 4, (size,), np.float32)
        for x in range(size):
            target[x] = np.float32(source[x])


def noop(split: Split) -> Epoch:
    """The cost of the loop itself: the same batch again and again."""
    batch = torch.zeros((BATCH, *split.images.shape[1:]))
    return lambda: (batch for _ in range(0, len(split), BATCH))


if __name__ == "__main__":
    main()
