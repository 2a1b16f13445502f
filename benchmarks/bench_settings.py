"""Process settings, and whether they make training or evaluation faster.

Each variant of the training cases is a separate process that takes a step of the trainer on request: "plain" has
default settings; "pinned" binds the threads to cores (`OMP_PROC_BIND`); "kept" makes the C library keep freed memory
(`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_MAX_`); "jemalloc" and "tcmalloc" use those allocators, where the machine has
them; "inductor" compiles the network with `torch.compile`. Evaluation is in batches of several sizes.

    python benchmarks/bench_settings.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: `setting_over_plain`, by setting and network its speed over "plain"'s, and
`evaluation_over_default`, by size the speed of such batches over that of the default size.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import bench_loading
import bench_training
import harness
import torch

from hbr_fast.training import predict
from hbr_fast.training.build import initial_model, make_optimizer
from hbr_fast.training.device import compute_dtype
from hbr_fast.training.recipe import Recipe

MODELS = ("cnn-16-32-64", "cnn-32-64-128")
EVALUATED = "cnn-16-32-64"
SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Size:
    """How much is timed; small batches are for the tests only."""

    models: tuple[str, ...]
    settings: tuple[str, ...]
    batch: int
    rounds: int
    seconds: float
    evaluated: int
    evaluation_batches: tuple[int, ...]


EVERY = ("pinned", "kept", "jemalloc", "tcmalloc", "inductor")
SIZES = {
    "full": Size(MODELS, EVERY, 128, 11, 1.0, 10_000, (125, 250, 500, 1000, 2000, 5000)),
    "quick": Size(MODELS[:1], EVERY, 128, 3, 0.5, 4_000, (125, 1000, 4000)),
    "tiny": Size(MODELS[:1], ("pinned",), 8, 2, 0.0, 40, (20, 125)),
}


def main(argv: Sequence[str] | None = None) -> None:
    chosen = harness.settings("bench_settings", str(__doc__), argv)
    torch.set_num_threads(chosen.threads)
    size = SIZES[chosen.size]
    training = {model: measure_training(model, size, chosen) for model in size.models}
    evaluation = measure_evaluation(size)
    ratios = {
        "setting_over_plain": {
            f"{setting}, {model}": case.speed_ratio(setting, "plain")
            for model, case in training.items()
            for setting in size.settings
        },
        "evaluation_over_default": {
            str(batch): evaluation.speed_ratio(f"batch {batch}", evaluation.reference)
            for batch in size.evaluation_batches
        },
    }
    missing = [name for name in EVERY if name in size.settings and environment_of(name) is None]
    notes = f"not on this machine: {', '.join(missing)}" if missing else ""
    harness.finish(chosen, [*training.values(), evaluation], ratios, cache="images in memory", notes=notes)


def environment_of(setting: str) -> dict[str, str] | None:
    """Environment variables of a process with a setting; None if the machine does not support it."""
    if setting == "pinned":
        return {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    if setting == "kept":
        return {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0"}
    if setting in ("jemalloc", "tcmalloc"):
        library = ctypes.util.find_library(setting if setting == "jemalloc" else "tcmalloc_minimal")
        return {"LD_PRELOAD": library} if library else None
    return {}


def measure_training(model: str, size: Size, chosen: argparse.Namespace) -> harness.Case:
    """A step of the trainer in processes with different settings."""
    with contextlib.ExitStack() as stack:
        variants = []
        for setting in ("plain", *size.settings):
            environment = environment_of(setting)
            if environment is not None:
                step = stack.enter_context(stepping(model, setting, environment, size, chosen.threads))
                variants.append(harness.Variant(setting, step, size.batch))
        variants.append(harness.Variant(harness.NOOP, lambda: None, size.batch))
        timings = harness.measure(variants, rounds=size.rounds, seconds=size.seconds)
    return harness.Case(f"training {model}", "images", 5 * 3 * 32 * 32, "plain", timings)


@contextlib.contextmanager
def stepping(model: str, setting: str, environment: Mapping[str, str], size: Size, threads: int):  # type: ignore[no-untyped-def]
    """A process that takes a step of training at each call of what is yielded."""
    command = [sys.executable, __file__, "--steps-of", model, setting, str(size.batch), str(threads)]
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )

    def step() -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        if process.stdout.read(1) != b"\n":
            raise RuntimeError(f"the process that trains {model}, {setting}, has ended")

    try:
        step()  # warm-up: starts, and compiles
        yield step
    finally:
        process.communicate()


def take_steps(model: str, setting: str, batch: int, threads: int) -> None:
    """What such a process does: a step for each byte it reads."""
    torch.set_num_threads(threads)
    recipe = recipe_of(model, batch)
    split = bench_loading.random_split(max(64, 50 * batch), SHAPE)
    network = initial_model(recipe, split, seed=0)
    optimizer = make_optimizer(recipe, network)
    if setting == "inductor":
        network.compile()
    step = bench_training.ours(split, recipe, model=network, optimizer=optimizer)
    while os.read(0, 1):
        step()
        os.write(1, b"\n")


def recipe_of(model: str, batch: int) -> Recipe:
    return bench_loading.recipe_on_cpu("small-cnn", model=model, batch_size=batch, lr=0.01)


def measure_evaluation(size: Size) -> harness.Case:
    """One pass over a test split, in batches of several sizes."""
    recipe = recipe_of(EVALUATED, 128)
    split = bench_loading.random_split(size.evaluated, SHAPE)
    model = initial_model(recipe, split, seed=0)
    dtype = compute_dtype(recipe)

    def passing(batch: int) -> Callable[[], None]:
        def run() -> None:
            predict.EVALUATION_BATCH = batch
            predict.predict(model, split, dtype=dtype)

        return run

    default = predict.EVALUATION_BATCH
    variants = [harness.Variant(f"batch {batch}", passing(batch), size.evaluated) for batch in size.evaluation_batches]
    variants.append(harness.Variant(harness.NOOP, lambda: None, size.evaluated))
    timings = harness.measure(variants, rounds=size.rounds, seconds=size.seconds)
    predict.EVALUATION_BATCH = default
    return harness.Case(f"evaluation {EVALUATED}", "images", 5 * 3 * 32 * 32, f"batch {default}", timings)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--steps-of"]:
        take_steps(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
