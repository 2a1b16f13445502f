"""The GPU kernels against their bounds: copies of as many bytes, and the loss that the step computes anyway.

    python benchmarks/bench_gpu.py [--quick] [--out FILE.csv]

The last line is JSON: speed of making a batch over a device-to-device copy of the bytes it moves, by image shape; time
of recording over cross-entropy forward, by number of classes; speed of loading JPEGs that nvJPEG decodes over that
of the CPU's decoding, and over copying their bytes to the GPU. docs/roofline.md says what to expect.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import numpy as np
import torch
from bench_convert import photographs
from roofline import image_bytes
from torch.nn import functional

from hbr_fast import Augment, HardnessRecorder, Loader, Split, convert
from hbr_fast.data.images import RawImages

BATCH = 1024
SAMPLES = 50_000
SIZES = {"full": (31, 0.05), "quick": (11, 0.02), "tiny": (2, 0.0)}  # rounds, seconds a variant
PICTURES = {"full": 1000, "quick": 200, "tiny": 4}  # for each class and split
SHAPES = ((1, 28, 28), (3, 32, 32), (3, 64, 64))


def main(argv: Sequence[str] | None = None) -> None:
    """Run all cases; without a GPU exit with a message."""
    chosen = harness.settings("bench_gpu", str(__doc__), argv)
    if not torch.cuda.is_available():
        sys.exit("bench_gpu: no GPU here: python benchmarks/roofline.py prints what one could reach")
    rounds, seconds = SIZES[chosen.size]
    loading = {"x".join(map(str, shape)): loading_case(shape, rounds, seconds) for shape in SHAPES}
    recording = {str(classes): recording_case(classes, rounds, seconds) for classes in (10, 100, 1000)}
    pictures = pictures_case(PICTURES[chosen.size], rounds)
    ratios = {
        "batch_over_copy": {name: case.speed_ratio("batch", "copy") for name, case in loading.items()},
        "time_over_cross_entropy": {
            name: case.speed_ratio("cross_entropy", "record") for name, case in recording.items()
        },
        "nvjpeg_over_native": pictures.speed_ratio("nvjpeg", "native"),
        "pictures_over_copy": pictures.speed_ratio("nvjpeg", "copy"),
    }
    harness.finish(
        chosen, [*loading.values(), *recording.values(), pictures], ratios, cache="images and logits in device memory"
    )


def loading_case(shape: tuple[int, int, int], rounds: int, seconds: float) -> harness.Case:
    """Batches of crops and flips from a resident split, against a copy that moves the same bytes."""
    rng = np.random.default_rng(0)
    channels = shape[0]
    split = Split(
        name="train",
        store=RawImages(rng.integers(0, 256, (SAMPLES, *shape), dtype=np.uint8)),
        labels=rng.integers(0, 10, SAMPLES),
        classes=tuple("0123456789"),
        mean=np.full(channels, 0.5, np.float32),
        std=np.full(channels, 0.25, np.float32),
    )
    loader = Loader(split, augment=Augment(flip=0.5, pad=4), batch_size=BATCH, device="cuda", drop_last=True)
    size = BATCH * image_bytes(int(np.prod(shape)), "float32")
    source = torch.empty(size // 2, dtype=torch.uint8, device="cuda")  # a copy reads and writes
    target = torch.empty_like(source)

    def epoch() -> None:
        for _ in loader.epoch(0):
            pass
        torch.cuda.synchronize()

    def copies() -> None:
        for _ in range(len(loader)):
            target.copy_(source)
        torch.cuda.synchronize()

    items = len(loader) * BATCH
    variants = [harness.Variant("batch", epoch, items), harness.Variant("copy", copies, items)]
    timings = harness.measure(variants, rounds=rounds, seconds=seconds)
    return harness.Case(f"batch {'x'.join(map(str, shape))}", "images", size // BATCH, "batch", timings)


def pictures_case(count: int, rounds: int) -> harness.Case:
    """Epochs of random-resized crops of JPEGs, decoded on the GPU, against decoding on all CPU threads and copying."""
    with tempfile.TemporaryDirectory() as scratch:
        root = photographs(Path(scratch) / "photographs", count)
        split = convert("folder", Path(scratch) / "photographs.hbr", root=root, store="encoded").train
    augment, batch = Augment(flip=0.5, resized_crop=(0.08, 1.0)), min(256, len(split))
    encoded = torch.empty(split.store.nbytes, dtype=torch.uint8, pin_memory=True)

    def epochs(backend: str) -> Callable[[], None]:
        loader = Loader(split, size=224, augment=augment, batch_size=batch, device="cuda", backend=backend)

        def run() -> None:
            for _ in loader:
                pass
            torch.cuda.synchronize()

        return run

    def copy() -> None:
        encoded.to("cuda", non_blocking=True)
        torch.cuda.synchronize()

    runs = {"native": epochs("native"), "copy": copy}
    with contextlib.suppress(ImportError):  # DALI is an extra
        runs["nvjpeg"] = epochs("nvjpeg")
    variants = [harness.Variant(name, run, len(split)) for name, run in runs.items()]
    timings = harness.measure(variants, rounds=rounds, seconds=0.0)
    return harness.Case("JPEGs to 224", "images", split.store.nbytes // len(split), "native", timings)


def recording_case(classes: int, rounds: int, seconds: float) -> harness.Case:
    """Recording a batch against computing its loss, many calls at a time."""
    logits = torch.randn(BATCH, classes, device="cuda")
    labels = torch.randint(0, classes, (BATCH,), device="cuda")
    ids = torch.randperm(SAMPLES, device="cuda")[:BATCH]
    recorder = HardnessRecorder(SAMPLES, classes, device="cuda")
    calls = 50

    def record() -> None:
        for _ in range(calls):
            recorder.record(logits, labels, ids, epoch=0)
        torch.cuda.synchronize()

    def loss() -> None:
        for _ in range(calls):
            functional.cross_entropy(logits, labels)
        torch.cuda.synchronize()

    variants = [harness.Variant("record", record, calls * BATCH), harness.Variant("cross_entropy", loss, calls * BATCH)]
    timings = harness.measure(variants, rounds=rounds, seconds=seconds)
    return harness.Case(f"record {BATCH}x{classes}", "rows", 4 * classes, "record", timings)


if __name__ == "__main__":
    main()
