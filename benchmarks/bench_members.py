"""What trains several members fastest: in sequence, or in single-threaded processes.

Both are the trainer's own: its loader, step and recorder, on the same random images. A call trains every member for
some steps. "sequence" is one member after another with all threads, "processes" is one single-threaded process per
thread. Starting processes (seconds, once a run) is not counted.

    python benchmarks/bench_members.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: `processes_over_sequence`, ratios of images/s by network and number of members.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import bench_loading
import bench_training
import harness
import torch

from hbr_fast.data.dataset import Split
from hbr_fast.training.recipe import Recipe

# Network, image shape, batch size: resnet18 uses smaller batches, so that a run takes minutes.
NETWORKS = (
    ("cnn-16-32-64", (3, 32, 32), 128),
    ("vgg-32-64", (1, 28, 28), 128),
    ("cnn-32-64-128", (3, 32, 32), 128),
    ("resnet18", (3, 32, 32), 16),
)


@dataclass(frozen=True)
class Size:
    """How much is timed; small batches are for the tests only."""

    networks: int  # the first of `NETWORKS`
    members: tuple[int, ...]
    rows: int  # maximum batch size
    images: int
    work: float  # per member and call: steps of the smallest network, fewer of the others
    rounds: int
    seconds: float


SIZES = {
    "full": Size(networks=4, members=(2, 4), rows=128, images=12_800, work=12, rounds=5, seconds=0.5),
    "quick": Size(networks=4, members=(2, 4), rows=128, images=1_280, work=3, rounds=2, seconds=0.0),
    "tiny": Size(networks=1, members=(2,), rows=4, images=16, work=1, rounds=2, seconds=0.0),
}
COST = {"cnn-16-32-64": 1, "vgg-32-64": 1, "cnn-32-64-128": 2.5, "resnet18": 15}  # of a step, to balance the work

Work = Callable[[], None]


def main(argv: Sequence[str] | None = None) -> None:
    chosen = harness.settings("bench_members", str(__doc__), argv)
    torch.set_num_threads(chosen.threads)
    size = SIZES[chosen.size]
    with processes(chosen.threads) as workers:
        cases = {
            (network, members): measure(network, shape, min(batch, size.rows), members, size, workers)
            for network, shape, batch in NETWORKS[: size.networks]
            for members in size.members
        }
    ratios = {
        "processes_over_sequence": {
            f"{network} x{members}": case.speed_ratio("processes", "sequence")
            for (network, members), case in cases.items()
        }
    }
    harness.finish(chosen, list(cases.values()), ratios, cache="images in memory")


def measure(
    network: str, shape: tuple[int, int, int], batch: int, members: int, size: Size, workers: Sequence[Connection]
) -> harness.Case:
    """Both variants for one network and number of members."""
    recipe = bench_loading.recipe_on_cpu("small-cnn", model=network, batch_size=batch, lr=0.01)
    split = bench_loading.random_split(size.images, shape)
    steps = math.ceil(size.work / COST[network])
    items = members * steps * batch
    variants = [
        harness.Variant("sequence", repeated(in_sequence(split, recipe, members), steps), items),
        harness.Variant("processes", in_processes(workers, (size.images, shape), recipe, members, steps), items),
        harness.Variant(harness.NOOP, lambda: None, items),
    ]
    timings = harness.measure(variants, rounds=size.rounds, seconds=size.seconds)
    return harness.Case(f"{network} x{members}", "images", 5 * split.images[0].size, "sequence", timings)


def repeated(step: Work, steps: int) -> Work:
    """`steps` calls of `step`."""

    def run() -> None:
        for _ in range(steps):
            step()

    return run


def in_sequence(split: Split, recipe: Recipe, members: int) -> Work:
    """A step of one member after another."""
    ways = [bench_training.ours(split, recipe) for _ in range(members)]

    def step() -> None:
        for way in ways:
            way()

    return step


@contextlib.contextmanager
def processes(count: int) -> Iterator[list[Connection]]:
    """`count` workers, as their pipes."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(count)]
    workers = [context.Process(target=work, args=(there,), daemon=True) for _, there in pairs]
    for worker in workers:
        worker.start()
    try:
        yield [here for here, _ in pairs]
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def in_processes(
    workers: Sequence[Connection], images: tuple[int, tuple[int, ...]], recipe: Recipe, members: int, steps: int
) -> Work:
    """`steps` steps of every member, each member in one of the workers; their order does not matter."""
    busy = workers[:members]
    jobs = [(images, recipe, steps * len(range(number, members, len(busy)))) for number in range(len(busy))]

    def run() -> None:
        for worker, job in zip(busy, jobs, strict=True):
            worker.send(job)
        for worker in busy:
            worker.recv()

    return run


def work(connection: Connection) -> None:
    """In a worker, on one thread: continue the training it was sent, or begin a new one."""
    torch.set_num_threads(1)
    job = None
    while True:
        if (received := connection.recv()) != job:
            images, recipe, steps = job = received
            run = repeated(bench_training.ours(bench_loading.random_split(*images), recipe), steps)
        run()
        connection.send(None)


if __name__ == "__main__":
    main()
