"""Which way trains several members fastest: in sequence, in processes of one thread, or stacked into one network.

Every way is the trainer's own: its loader, step and recorder, on the same random images. A call trains every member
for some steps. "sequence" is one member after another with all threads, "processes" is a process a thread, of one
thread each, and "stacked" is one network of all members with all threads (groups of channels). "vmap_float32" is
`torch.func.vmap` over stacked parameters instead of groups, which autocast does not reach into: only its step, on
constant batches, recording nothing, so that it is flattered beside "stacked_float32", which is whole. Starting
processes (seconds, once a run) is not counted.

    python benchmarks/bench_members.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: `processes_over_sequence`, `stacked_over_sequence` and `vmap_float32_over_stacked_float32`,
ratios of images/s by network and number of members.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import bench_loading
import bench_training
import harness
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from hbr_fast.data.dataset import Split
from hbr_fast.training import stacked, trainer
from hbr_fast.training.recipe import Recipe, named_recipe

# Network, shape of an image, rows a batch: resnet18 takes fewer rows, so that a run takes minutes.
NETWORKS = (
    ("cnn-16-32-64", (3, 32, 32), 128),
    ("vgg-32-64", (1, 28, 28), 128),
    ("cnn-32-64-128", (3, 32, 32), 128),
    ("resnet18", (3, 32, 32), 16),
)


@dataclass(frozen=True)
class Size:
    """How much is timed; small batches are for the tests only."""

    networks: int  # the first so many
    members: tuple[int, ...]
    rows: int  # of a batch, at most
    images: int
    work: float  # of a member in a call: steps of the smallest network, and fewer of the others
    rounds: int
    seconds: float


SIZES = {
    "full": Size(networks=4, members=(2, 4), rows=128, images=12_800, work=12, rounds=5, seconds=0.5),
    "quick": Size(networks=4, members=(2, 4), rows=128, images=1_280, work=3, rounds=2, seconds=0.0),
    "tiny": Size(networks=1, members=(2,), rows=4, images=16, work=1, rounds=2, seconds=0.0),
}
COST = {"cnn-16-32-64": 1, "vgg-32-64": 1, "cnn-32-64-128": 2.5, "resnet18": 15}  # of a step, to share out the work

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
        f"{ours}_over_{theirs}": {
            f"{network} x{members}": case.speed_ratio(ours, theirs) for (network, members), case in cases.items()
        }
        for ours, theirs in (
            ("processes", "sequence"),
            ("stacked", "sequence"),
            ("vmap_float32", "stacked_float32"),
        )
    }
    harness.finish(chosen, list(cases.values()), ratios, cache="images in memory")


def measure(
    network: str, shape: tuple[int, int, int], batch: int, members: int, size: Size, workers: Sequence[Connection]
) -> harness.Case:
    """All ways for one network and number of members."""
    recipe = dataclasses.replace(named_recipe("small-cnn"), model=network, batch_size=batch, lr=0.01)
    wide = dataclasses.replace(recipe, precision="float32")
    split = bench_loading.random_split(size.images, shape)
    steps = math.ceil(size.work / COST[network])
    items = members * steps * batch
    few = math.ceil(steps / 3)  # float32 is slow, and only compared with itself
    variants = [
        harness.Variant("sequence", repeated(in_sequence(split, recipe, members), steps), items),
        harness.Variant("processes", in_processes(workers, (size.images, shape), recipe, members, steps), items),
        harness.Variant("stacked", repeated(in_a_stack(split, recipe, members), steps), items),
        harness.Variant("stacked_float32", repeated(in_a_stack(split, wide, members), few), members * few * batch),
        harness.Variant("vmap_float32", repeated(mapped(split, wide, members), few), members * few * batch),
        harness.Variant(harness.NOOP, lambda: None, items),
    ]
    timings = harness.measure(variants, rounds=size.rounds, seconds=size.seconds)
    return harness.Case(f"{network} x{members}", "images", 5 * split.images[0].size, "sequence", timings)


def repeated(step: Work, steps: int) -> Work:
    """So many calls of `step`."""

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


def in_a_stack(split: Split, recipe: Recipe, members: int) -> Work:
    """A step of all members as one network."""
    dtype = trainer.compute_dtype(recipe)
    runs = [stacked.begin(split, stacked.StackedMember(recipe, seed), dtype) for seed in range(members)]
    network = stacked.StackedNetwork([run.state.model for run in runs])
    batches = (together for _ in itertools.count() for together in zip(*(epoch_of(run) for run in runs), strict=True))

    def step() -> None:
        stacked.step(network, runs, next(batches), dtype)

    return step


def epoch_of(run: stacked.Run) -> Iterator[stacked.Batch]:
    return (batch for batch, _ in run.batches.epoch(0))


def mapped(split: Split, recipe: Recipe, members: int) -> Work:
    """A step of `torch.func.vmap` over the members' parameters, on one constant batch each."""
    models = [trainer.initial_model(recipe, split, seed=seed) for seed in range(members)]
    batch = next(trainer.training_loader(split, recipe, seed=0, dtype=torch.float32).epoch(0))
    images, labels = (torch.stack([tensor] * members) for tensor in (batch.images, batch.labels))
    parameters, buffers = stack_module_state(models)
    buffers = {name: tensor for name, tensor in buffers.items() if "num_batches" not in name}
    shell = copy.deepcopy(models[0]).to("meta")
    for module in shell.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.num_batches_tracked = None
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    optimiser = torch.optim.SGD(
        list(parameters.values()), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )

    def losses(own: dict, statistics: dict, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional_call(shell, (own, statistics), (images,)), labels)

    def step() -> None:
        loss = vmap(losses)(parameters, buffers, images, labels).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


@contextlib.contextmanager
def processes(count: int) -> Iterator[list[Connection]]:
    """So many workers, by their pipes."""
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
    """So many steps of every member, each member in one of the workers; the order of members makes no difference."""
    busy = workers[:members]
    jobs = [(images, recipe, steps * len(range(number, members, len(busy)))) for number in range(len(busy))]

    def run() -> None:
        for worker, job in zip(busy, jobs, strict=True):
            worker.send(job)
        for worker in busy:
            worker.recv()

    return run


def work(connection: Connection) -> None:
    """In a worker, on one thread: go on with the training it is told, or begin it where it is another one."""
    torch.set_num_threads(1)
    job = None
    while True:
        if (told := connection.recv()) != job:
            images, recipe, steps = job = told
            run = repeated(bench_training.ours(bench_loading.random_split(*images), recipe), steps)
        run()
        connection.send(None)


if __name__ == "__main__":
    main()
