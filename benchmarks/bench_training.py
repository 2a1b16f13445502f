"""How fast training with recording is: over the same step on a constant batch, and over the paper's loop.

Our loop is the trainer's own step with its loader and recorder. The paper's loop trains the same network from
the same weights on the same images in batches of 128; the losses of a first batch are compared beforehand.
A call is one step.

What a step is made of stands beside it: "convolutions" are those of the network alone, forward and backward, and
"matmul" is as many multiplications in products of large matrices, the most that the processor does. On the smallest
network there are also steps that lack one of the things that make ours fast.

    python benchmarks/bench_training.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: `efficiency`, images/s of our loop over those of its step alone on the quickstart
network; by network `over_paper_loop`, images/s of our loop over those of the paper's, `convolution_share`, the time of
the convolutions over that of a step, and `convolutions_over_matmul`, their speed over that of the matrix products.
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
from hbr_fast.training.recipe import Precision, Recipe, named_recipe

QUICKSTART_SHAPE = (1, 28, 28)
SHAPE = (3, 32, 32)
MODELS = ("cnn-16-32-64", "cnn-32-64-128", "resnet18")
MATRIX = 1024  # rows and columns of the matrices multiplied


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
        **{
            name: {model: case.speed_ratio(one, other) for model, case in against_paper.items()}
            for name, one, other in (
                ("over_paper_loop", "ours", "paper_loop"),
                ("convolution_share", "ours", "convolutions"),
                ("convolutions_over_matmul", "convolutions", "matmul"),
            )
        },
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
        *bounds(split, recipe),
        *(lacking(split, recipe) if model == MODELS[0] else ()),
        harness.Variant(harness.NOOP, lambda: None, size.batch),
    ]
    timings = harness.measure(variants, rounds=size.rounds, seconds=size.seconds)
    return harness.Case(model, "images", 5 * split.images[0].size, "paper_loop", timings)


def ours(
    split: Split, recipe: Recipe, *, model: nn.Module | None = None, optimiser: torch.optim.Optimizer | None = None
) -> Callable[[], None]:
    """The native loader, the trainer's step, the fused recorder; with the trainer's model and optimiser or others."""
    loader = trainer.training_loader(split, recipe, seed=0, dtype=trainer.compute_dtype(recipe))
    step = trainer_step(split, recipe, HardnessRecorder(len(split), split.num_classes), model, optimiser)
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


def trainer_step(
    split: Split,
    recipe: Recipe,
    recorder: HardnessRecorder,
    model: nn.Module | None = None,
    optimiser: torch.optim.Optimizer | None = None,
) -> Callable[[Batch, int], None]:
    """The trainer's step, on a fresh model where none is given."""
    model = model or trainer.initial_model(recipe, split, seed=0)
    optimiser = optimiser or trainer.make_optimiser(model, recipe)
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


def lacking(split: Split, recipe: Recipe) -> list[harness.Variant]:
    """Our loop without one of the things that make it fast."""
    unfused = trainer.initial_model(recipe, split, seed=0)
    for module in unfused.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = TorchBatchNorm2d
    plain, ordinary = plain_model(split, recipe), trainer.initial_model(recipe, split, seed=0)
    plain.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))  # the layers go by their images
    loop = torch.optim.SGD(ordinary.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    other: Precision = "float32" if trainer.compute_dtype(recipe) == torch.bfloat16 else "bfloat16"
    without = {
        f"in {other}": ours(split, dataclasses.replace(recipe, precision=other)),
        "no channels-last, no fused norm": ours(split, recipe, model=plain),
        "no fused norm": ours(split, recipe, model=unfused),
        "no fused SGD": ours(split, recipe, model=ordinary, optimiser=loop),
    }
    return [harness.Variant(name, run, recipe.batch_size) for name, run in without.items()]


class TorchBatchNorm2d(nn.BatchNorm2d):
    """What `training/layers.py` does not fuse, because it is a subclass."""


def bounds(split: Split, recipe: Recipe) -> list[harness.Variant]:
    """A step's convolutions alone, and as many multiplications in products of matrices."""
    model, dtype = trainer.initial_model(recipe, split, seed=0), trainer.compute_dtype(recipe)
    calls: list[tuple[nn.Conv2d, torch.Tensor]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda layer, given: calls.append((layer, given[0])))
    batch = next(trainer.training_loader(split, recipe, seed=0, dtype=dtype).epoch(0))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(batch.images)
    passes, products = [], 0
    for number, (layer, given) in enumerate(calls):
        layer = copy.deepcopy(layer).to(dtype)
        layer._forward_pre_hooks.clear()
        x = given.detach().to(dtype).requires_grad_(number > 0)  # nothing learns from the gradient of the images
        y = layer(x)
        wanted = [layer.weight, x] if x.requires_grad else [layer.weight]
        passes.append((layer, x, wanted, torch.randn_like(y)))
        products += (1 + len(wanted)) * y.numel() * layer.weight[0].numel()

    def convolutions() -> None:
        for layer, x, wanted, g in passes:
            torch.autograd.grad(layer(x), wanted, g)

    a, b = (torch.randn(MATRIX, MATRIX, dtype=dtype) for _ in range(2))
    times = max(1, round(products / MATRIX**3))

    def matmul() -> None:
        for _ in range(times):
            torch.mm(a, b)

    images = max(1, round(recipe.batch_size * times * MATRIX**3 / products))
    return [
        harness.Variant("convolutions", convolutions, recipe.batch_size),
        harness.Variant("matmul", matmul, images),
    ]


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
