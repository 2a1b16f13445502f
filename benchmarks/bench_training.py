"""How fast training with recording is: over the same step on a constant batch, and over the paper's loop.

Our loop is the trainer's own step with its loader and recorder. The paper's loop trains the same network from
the same weights on the same images in batches of 128; the losses of a first batch are compared beforehand.
A call is one step.

    python benchmarks/bench_training.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: `efficiency`, images/s of our loop over those of its step alone on the quickstart
network, and `over_paper_loop`, images/s of our loop over those of the paper's, by network.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import bench_loading
import bench_recording
import harness
import loading_rivals
import torch
from torch import nn
from torch.nn import functional

from hbr_fast.data.dataset import Split
from hbr_fast.hardness import HardnessRecorder
from hbr_fast.loaders.batch import Batch
from hbr_fast.training import trainer
from hbr_fast.training.recipe import Recipe, named_recipe

QUICKSTART_SHAPE = (1, 28, 28)
SHAPE = (3, 32, 32)
MODELS = ("cnn-16-32-64", "cnn-32-64-128", "resnet18")


@dataclass(frozen=True)
class Size:
    """How much is timed; small batches are for the tests only."""

    images: int
    batch: int
    rounds: int
    seconds: float


SIZES = {
    "full": Size(images=12_800, batch=128, rounds=5, seconds=1.0),
    "quick": Size(images=6_400, batch=128, rounds=2, seconds=0.5),
    "tiny": Size(images=64, batch=8, rounds=2, seconds=0.0),
}


def main(argv: Sequence[str] | None = None) -> None:
    chosen = harness.settings("bench_training", str(__doc__), argv)
    torch.set_num_threads(chosen.threads)
    size = SIZES[chosen.size]
    quickstart = measure_efficiency(size)
    against_paper = {model: measure_against_paper(model, size, chosen.threads) for model in MODELS}
    ratios = {
        "efficiency": quickstart.speed_ratio("ours", "constant_batch"),
        "over_paper_loop": {model: case.speed_ratio("ours", "paper_loop") for model, case in against_paper.items()},
    }
    harness.finish(chosen, [quickstart, *against_paper.values()], ratios, cache="images in memory")


def measure_efficiency(size: Size) -> harness.Case:
    """Our loop against its own step on a constant batch, nothing loaded, nothing recorded."""
    recipe = dataclasses.replace(named_recipe("quickstart"), batch_size=size.batch)
    split = bench_loading.random_split(size.images, QUICKSTART_SHAPE)
    variants = [
        harness.Variant("constant_batch", constant_batch(split, recipe), size.batch),
        harness.Variant("ours", ours(split, recipe), size.batch),
        harness.Variant(harness.NOOP, lambda: None, size.batch),
    ]
    # One step is short beside the machine's hiccups: more rounds than for the large networks.
    timings = harness.measure(variants, rounds=3 * size.rounds, seconds=size.seconds)
    return harness.Case("quickstart", "images", 5 * split.images[0].size, "constant_batch", timings)


def measure_against_paper(model: str, size: Size, threads: int) -> harness.Case:
    """Our loop against the paper's on one network."""
    recipe = dataclasses.replace(named_recipe("paper-resnet18"), model=model, batch_size=size.batch, lr=0.01)
    split = bench_loading.random_split(size.images, SHAPE)
    error = loss_difference(split, recipe)
    variants = [
        harness.Variant("paper_loop", paper_loop(split, recipe, threads), size.batch),
        harness.Variant("ours", ours(split, recipe), size.batch, error=error),
        harness.Variant(harness.NOOP, lambda: None, size.batch),
    ]
    timings = harness.measure(variants, rounds=size.rounds, seconds=size.seconds)
    return harness.Case(model, "images", 5 * split.images[0].size, "paper_loop", timings)


def ours(split: Split, recipe: Recipe) -> Callable[[], None]:
    """The native loader, the trainer's step, the fused recorder."""
    loader = trainer.training_loader(split, recipe, seed=0, dtype=trainer.compute_dtype(recipe))
    step = trainer_step(split, recipe, HardnessRecorder(len(split), split.num_classes))
    batches = ((batch, epoch) for epoch in itertools.count() for batch in loader.epoch(epoch))
    return lambda: step(*next(batches))


def constant_batch(split: Split, recipe: Recipe) -> Callable[[], None]:
    """The same step, always on the same batch, nothing recorded."""
    batch = next(trainer.training_loader(split, recipe, seed=0, dtype=trainer.compute_dtype(recipe)).epoch(0))
    step = trainer_step(split, recipe, cast(HardnessRecorder, NoRecorder()))
    return lambda: step(batch, 0)


class NoRecorder:
    """Stands in for a recorder and records nothing."""

    def record(self, *_: torch.Tensor, epoch: int) -> None:
        pass


def trainer_step(split: Split, recipe: Recipe, recorder: HardnessRecorder) -> Callable[[Batch, int], None]:
    """The trainer's step on a fresh model."""
    model = trainer.initial_model(recipe, split, seed=0)
    optimiser = trainer.make_optimiser(model, recipe)
    dtype = trainer.compute_dtype(recipe)
    loss, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)

    def step(batch: Batch, epoch: int) -> None:
        trainer.set_learning_rate(optimiser, recipe.learning_rate(0, 1))
        trainer.train_step(
            model,
            optimiser,
            recorder,
            batch,
            epoch=epoch,
            recipe=recipe,
            dtype=dtype,
            loss_out=loss,
            right_out=right,
        )

    return step


def plain_model(split: Split, recipe: Recipe) -> nn.Module:
    """The same initial weights in PyTorch's default memory format."""
    return copy.deepcopy(trainer.initial_model(recipe, split, seed=0)).to(memory_format=torch.contiguous_format)


def loss_difference(split: Split, recipe: Recipe) -> float:
    """Difference between the first loss as our loop computes it and as the paper's does, on the same batch.

    Raises
    ------
    ValueError
        If it is more than bfloat16 explains.
    """
    batch = next(trainer.training_loader(split, recipe, seed=0, dtype=trainer.compute_dtype(recipe)).epoch(0))
    recorder = HardnessRecorder(len(split), split.num_classes)
    trainer_step(split, recipe, recorder)(batch, 0)
    recorded = recorder.scores().per_sample("loss")[batch.ids.numpy()].mean()
    logits = plain_model(split, recipe)(batch.images.float().contiguous())
    difference = abs(float(recorded) - functional.cross_entropy(logits, batch.labels).item())
    if not difference < 0.05:
        raise ValueError(f"the two loops do not train the same network: their first losses differ by {difference}")
    return difference


def paper_loop(split: Split, recipe: Recipe, workers: int) -> Callable[[], None]:
    """The paper's training as described: PIL transforms in workers, float32, recording sample by sample."""
    loader = loading_rivals.torchvision_loader(split, workers, recipe.batch_size)
    model = plain_model(split, recipe)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    record, _ = bench_recording.loop()

    def endless() -> Iterator[list[torch.Tensor]]:
        while True:
            yield from loader

    batches = endless()
    totals = {"loss": 0.0, "right": 0.0}

    def run() -> None:
        images, labels, ids = next(batches)
        optimiser.zero_grad()
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
        record(logits.detach(), labels, ids)
        loss.backward()
        optimiser.step()
        totals["loss"] += loss.item()
        totals["right"] += (logits.argmax(dim=1) == labels).sum().item()

    return run


if __name__ == "__main__":
    main()
