"""How fast training with recording is, relative to the same step on a constant batch and to the paper's loop.

Our loop is the trainer's own step with its loader and recorder. The paper's loop trains the same network from
the same weights on the same images in batches of 128; the losses of a first batch are compared first.
A call is one step.

The parts of a step are timed beside it: "convolutions" are those of the network alone, forward and backward, and
"matmul" is as many multiplications in products of large matrices, the processor's limit. On the smallest network there
are also steps that lack one of our optimisations.

    python benchmarks/bench_training.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: `efficiency`, images/s of our loop over those of its step alone on the quickstart network;
`efficiency_by_side`, the same for torchvision's ResNet-18 by the pictures' side; by network `over_paper_loop`, images/s
of our loop over those of the paper's, `convolution_share`, the time of the convolutions over that of a step, and
`convolutions_over_matmul`, their speed over that of the matrix products; by number of classes `one_pass_over_separate`,
the speed of loss, gradient and recording in one pass over the logits, relative to cross-entropy followed by recording.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
from hbr_fast.training.build import initial_model, make_loss, make_optimizer
from hbr_fast.training.components import component
from hbr_fast.training.device import compute_dtype
from hbr_fast.training.recipe import Precision, Recipe
from hbr_fast.training.step import set_learning_rate, train_step

QUICKSTART_SHAPE = (1, 28, 28)
SHAPE = (3, 32, 32)
SIDES = (32, 96)  # of the pictures for torchvision's ResNet-18
MODELS = ("cnn-16-32-64", "cnn-32-64-128", "resnet18")
CLASSES = (10, 100, 1000, 10_000)  # of the timed losses
MATRIX = 1024  # rows and columns of the multiplied matrices


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
    quickstart = measure_efficiency("quickstart", QUICKSTART_SHAPE, size)
    of_torchvision = {side: measure_torchvision(side, size) for side in SIDES}
    against_paper = {model: measure_against_paper(model, size, chosen.threads) for model in MODELS}
    losses = {classes: measure_loss(classes, size) for classes in CLASSES}
    ratios = {
        "one_pass_over_separate": {
            str(classes): case.speed_ratio("one_pass", "separate") for classes, case in losses.items()
        },
        "efficiency": quickstart.speed_ratio("ours", "constant_batch"),
        "efficiency_by_side": {
            str(side): case.speed_ratio("ours", "constant_batch") for side, case in of_torchvision.items()
        },
        **{
            name: {model: case.speed_ratio(one, other) for model, case in against_paper.items()}
            for name, one, other in (
                ("over_paper_loop", "ours", "paper_loop"),
                ("convolution_share", "ours", "convolutions"),
                ("convolutions_over_matmul", "convolutions", "matmul"),
            )
        },
    }
    cases = [quickstart, *of_torchvision.values(), *against_paper.values(), *losses.values()]
    harness.finish(chosen, cases, ratios, cache="images in memory")


def measure_torchvision(side: int, size: Size) -> harness.Case:
    """The efficiency of a user's network, on pictures of a side."""
    images = max(2 * size.batch, size.images * 32**2 // side**2)  # as many bytes for each side
    fewer = dataclasses.replace(size, images=images, rounds=-(-size.rounds // 3))
    return measure_efficiency(f"resnet18 of {side} pixels", (3, side, side), fewer, model="torchvision:resnet18")


def measure_efficiency(name: str, shape: tuple[int, int, int], size: Size, **changes: str) -> harness.Case:
    """Our loop against its own step on a constant batch, nothing loaded, nothing recorded."""
    recipe = bench_loading.recipe_on_cpu("quickstart", batch_size=size.batch, **changes)
    split = bench_loading.random_split(size.images, shape)
    variants = [
        harness.Variant("constant_batch", constant_batch(split, recipe), size.batch),
        harness.Variant("ours", ours(split, recipe), size.batch),
        harness.Variant(harness.NOOP, lambda: None, size.batch),
    ]
    # One step is short compared with the machine's hiccups: more rounds than for the large networks.
    timings = harness.measure(variants, rounds=3 * size.rounds, seconds=size.seconds)
    return harness.Case(name, "images", 5 * split.images[0].size, "constant_batch", timings)


def measure_against_paper(model: str, size: Size, threads: int) -> harness.Case:
    """Our loop against the paper's on one network."""
    recipe = bench_loading.recipe_on_cpu("paper-resnet18", model=model, batch_size=size.batch, lr=0.01)
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
    split: Split, recipe: Recipe, *, model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], None]:
    """The native loader, the trainer's step, the fused recorder; with the trainer's model and optimiser or others."""
    loader = trainer.training_loader(split, recipe, seed=0)
    step = trainer_step(split, recipe, HardnessRecorder(len(split), split.num_classes), model, optimizer)
    batches = ((batch, epoch) for epoch in itertools.count() for batch in loader.epoch(epoch))
    return lambda: step(*next(batches))


def constant_batch(split: Split, recipe: Recipe) -> Callable[[], None]:
    """The same step, always on the same batch, nothing recorded."""
    batch = next(trainer.training_loader(split, recipe, seed=0).epoch(0))
    step = trainer_step(split, recipe, None)
    return lambda: step(batch, 0)


def trainer_step(
    split: Split,
    recipe: Recipe,
    recorder: HardnessRecorder | None,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Callable[[Batch, int], None]:
    """The trainer's step, on a new model by default."""
    model = model or initial_model(recipe, split, seed=0)
    optimizer = optimizer or make_optimizer(recipe, model)
    loss, factor, dtype = make_loss(recipe), component("schedule", recipe)(0, 1), compute_dtype(recipe)
    mean, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)

    def step(batch: Batch, epoch: int) -> None:
        set_learning_rate(optimizer, factor)
        train_step(
            model,
            optimizer,
            recorder,
            batch,
            loss=loss,
            epoch=epoch,
            dtype=dtype,
            loss_out=mean,
            right_out=right,
        )

    return step


def measure_loss(classes: int, size: Size) -> harness.Case:
    """Loss, gradient and recording of a step's logits: in one pass or one after the other."""
    recipe = bench_loading.recipe_on_cpu("quickstart")
    loss = make_loss(recipe)
    assert loss.recording is not None
    logits = torch.randn(size.batch, classes, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels, ids = torch.arange(size.batch) % classes, torch.arange(size.batch)
    recorders = [HardnessRecorder(size.batch, classes) for _ in range(2)]
    one_pass = loss.recording

    def separate() -> torch.Tensor:
        logits.grad = None
        recorders[0].record(logits, labels, ids, epoch=0)
        mean = loss.mean(logits, labels)
        mean.backward()
        return mean.detach()

    def together() -> torch.Tensor:
        logits.grad = None
        mean = one_pass(logits, labels, ids, recorders[1], epoch=0)
        mean.backward()
        return mean.detach()

    error = abs(separate() - together()).item()
    variants = [
        harness.Variant("separate", separate, size.batch),
        harness.Variant("one_pass", together, size.batch, error=error),
        harness.Variant(harness.NOOP, lambda: None, size.batch),
    ]
    timings = harness.measure(variants, rounds=3 * size.rounds, seconds=size.seconds / 4)
    return harness.Case(f"loss of {classes} classes", "rows", 12 * classes, "separate", timings)


def lacking(split: Split, recipe: Recipe) -> list[harness.Variant]:
    """Our loop without one of its optimisations."""
    unfused = initial_model(recipe, split, seed=0)
    for module in unfused.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = TorchBatchNorm2d
    plain, ordinary = plain_model(split, recipe), initial_model(recipe, split, seed=0)
    plain.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))  # layers follow their input
    unfused_sgd = dataclasses.replace(recipe, optimizer="torch.optim:SGD", optimizer_args={"nesterov": True})
    other: Precision = "float32" if compute_dtype(recipe) == torch.bfloat16 else "bfloat16"
    without = {
        f"in {other}": ours(split, dataclasses.replace(recipe, precision=other)),
        "no channels-last, no fused norm": ours(split, recipe, model=plain),
        "no fused norm": ours(split, recipe, model=unfused),
        "no fused SGD": ours(split, recipe, model=ordinary, optimizer=make_optimizer(unfused_sgd, ordinary)),
    }
    return [harness.Variant(name, run, recipe.batch_size) for name, run in without.items()]


class TorchBatchNorm2d(nn.BatchNorm2d):
    """Not fused by `training/models/layers.py`, because it is a subclass."""


def bounds(split: Split, recipe: Recipe) -> list[harness.Variant]:
    """A step's convolutions alone, and as many multiplications in products of matrices."""
    model, dtype = initial_model(recipe, split, seed=0), compute_dtype(recipe)
    calls: list[tuple[nn.Conv2d, torch.Tensor]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda layer, given: calls.append((layer, given[0])))
    batch = next(trainer.training_loader(split, recipe, seed=0).epoch(0))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(batch.images)
    passes, products = [], 0
    for number, (layer, given) in enumerate(calls):
        layer = copy.deepcopy(layer).to(dtype)
        layer._forward_pre_hooks.clear()
        x = given.detach().to(dtype).requires_grad_(number > 0)  # the gradient of the images is not needed
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
    return copy.deepcopy(initial_model(recipe, split, seed=0)).to(memory_format=torch.contiguous_format)


def loss_difference(split: Split, recipe: Recipe) -> float:
    """Difference between our loop's first loss and the paper's, on the same batch.

    Raises
    ------
    ValueError
        If it is larger than bfloat16 explains.
    """
    batch = next(trainer.training_loader(split, recipe, seed=0).epoch(0))
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
    optimizer = torch.optim.SGD(
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
        optimizer.zero_grad()
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
        record(logits.detach(), labels, ids)
        loss.backward()
        optimizer.step()
        totals["loss"] += loss.item()
        totals["right"] += (logits.argmax(dim=1) == labels).sum().item()

    return run


if __name__ == "__main__":
    main()
