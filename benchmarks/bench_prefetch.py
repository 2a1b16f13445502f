"""How many threads a loader should have and how many batches it should make ahead, while a network trains.

Each backend, with the crops and flips of `hbr_fast`, feeds the training of the CNN 16-32-64 on 3x32x32 images: with one
thread and with all, and with 0 to 4 batches made ahead. The reference is the same step on a constant batch.
The defaults of `Loader` are based on this.

    python benchmarks/bench_prefetch.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: for each installed backend, the speed with the default over that of the best setting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import bench_loading
import harness
import torch
from loading_rivals import BATCH

from hbr_fast.loaders.backends import BACKENDS
from hbr_fast.loaders.loader import Loader
from hbr_fast.training.device import compute_dtype

AHEAD = range(5)


@dataclass(frozen=True)
class Size:
    """How much is timed."""

    images: int
    steps: int  # training steps a round
    rounds: int


SIZES = {"full": Size(12_800, 20, 7), "quick": Size(12_800, 8, 3), "tiny": Size(256, 1, 1)}


def main(argv: Sequence[str] | None = None) -> None:
    chosen = harness.settings("bench_prefetch", str(__doc__), argv)
    torch.set_num_threads(chosen.threads)
    cases, ratios, missing = [], {}, []
    for backend in [name for name, entry in BACKENDS.items() if "cpu" in entry.classes]:
        try:
            case = measure_backend(backend, SIZES[chosen.size], chosen.threads)
        except ImportError as error:
            missing.append(str(error))
            continue
        cases.append(case)
        default = setting(chosen.threads, BACKENDS[backend].prefetch)
        speeds = [case.speed_ratio(default, name) for name in case.timings if "thread" in name]
        ratios[backend] = min(speed for speed in speeds if speed is not None)
    harness.finish(
        chosen, cases, {"default_over_best": ratios}, cache="uint8 in memory; .beton in the page cache",
        notes="\n".join(missing),
    )  # fmt: skip


def measure_backend(backend: str, size: Size, threads: int) -> harness.Case:
    """Training fed by one backend, for each setting."""
    split = bench_loading.random_split(size.images, bench_loading.SHAPES["3x32x32"])
    dtype = compute_dtype(bench_loading.RECIPE)

    def loader(threads: int, ahead: int) -> Loader:
        return Loader(
            split,
            augment=bench_loading.AUGMENT,
            batch_size=BATCH,
            dtype=dtype,
            channels_last=True,
            threads=threads,
            prefetch=ahead,
            backend=backend,
        )

    with contextlib.ExitStack() as stack:
        batches = {"constant_batch": bench_loading.constant(loader(threads, 0))}
        for count in sorted({1, threads}):
            for ahead in AHEAD:
                batches[setting(count, ahead)] = bench_loading.endless(loader(count, ahead))
        for each in batches.values():
            stack.callback(each.close)  # ends its threads
        variants = [
            *(
                harness.Variant(name, bench_loading.steps(split, each, size.steps), BATCH * size.steps)
                for name, each in batches.items()
            ),
            harness.Variant(harness.NOOP, lambda: None, BATCH * size.steps),
        ]
        timings = harness.measure(variants, rounds=size.rounds, seconds=0.0)
    return harness.Case(
        f"training cnn-16-32-64, {backend}", "images", 5 * split.images[0].size, "constant_batch", timings
    )


def setting(threads: int, ahead: int) -> str:
    """The name of a variant."""
    return f"{threads} thread{'s' if threads > 1 else ''}, {ahead} ahead"


if __name__ == "__main__":
    main()
