"""What recording hardness costs: every estimator of a batch, against the loss that the step computes anyway.

The variants take the same logits, labels and ids and add to the state of 50,000 samples; each is first checked
against the definitions in float64.

    python benchmarks/bench_recording.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: time of the fused pass over cross-entropy forward alone, by number of classes; time of the
per-sample loop over the fused pass; by number of classes, time of the loss that records, forward and backward,
over torch's cross-entropy, forward and backward; and the share of a training step of the CNN 16-32-64, batch 128, that
recording takes (`epoch_share`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import bench_loading
import harness
import numpy as np
import torch
from torch.nn import functional

from hbr_fast import HardnessRecorder, hardness_cross_entropy
from hbr_fast.training import trainer
from hbr_fast.training.build import initial_model, make_loss, make_optimizer
from hbr_fast.training.device import compute_dtype
from hbr_fast.training.step import train_step

SAMPLES = 50_000
NAMES = ("aum", "confidence", "dataiq", "loss", "el2n", "correctness")
SHAPES = ((128, 10), (1024, 10), (1024, 100), (1024, 1000))  # batch, classes
LOOPED = (128, 10)  # the only case where the per-sample loop is bearable


@dataclass(frozen=True)
class Size:
    """How much is timed."""

    rounds: int
    seconds: float


SIZES = {"full": Size(51, 0.05), "quick": Size(15, 0.02), "tiny": Size(2, 0.0)}

Record = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]  # of logits_bc, labels_b, ids_b
Means = Callable[[], Mapping[str, np.ndarray]]  # estimator -> mean over the observations of each sample


def main(argv: Sequence[str] | None = None) -> None:
    chosen = harness.settings("bench_recording", str(__doc__), argv)
    torch.set_num_threads(chosen.threads)
    cases = {shape: measure_case(*shape, SIZES[chosen.size]) for shape in SHAPES}
    training = measure_training(SIZES[chosen.size])
    ratios = {
        "time_over_cross_entropy": {
            str(classes): case.speed_ratio("cross_entropy", "fused")
            for (batch, classes), case in cases.items()
            if batch == 1024
        },
        "loop_over_fused_128x10": cases[LOOPED].speed_ratio("fused", "loop"),
        "fused_loss_time_over_torch": {
            str(classes): case.speed_ratio("loss_torch", "loss_recording")
            for (batch, classes), case in cases.items()
            if batch == 1024
        },
        "epoch_share": training.speed_ratio("step", "recording"),
    }
    harness.finish(
        chosen, [*cases.values(), training], ratios, cache="logits just written, state of 50,000 samples at random"
    )


def measure_case(batch: int, classes: int, size: Size) -> harness.Case:
    """Measure every variant on logits of one shape."""
    generator = torch.Generator().manual_seed(0)
    logits_bc = 3 * torch.randn(batch, classes, generator=generator)
    labels_b = torch.randint(classes, (batch,), generator=generator)
    # An epoch's worth of ids: a repeated batch would keep its state in the cache.
    ids = torch.randperm(SAMPLES, generator=generator).split(batch)[: SAMPLES // batch]

    recorders = {"fused": fused(classes), "vectorised": vectorised()}
    if (batch, classes) == LOOPED:
        recorders["loop"] = loop()
    variants = [
        harness.Variant("cross_entropy", lambda: functional.cross_entropy(logits_bc, labels_b), batch),
        harness.Variant(harness.NOOP, lambda: None, batch),
    ]
    variants += [
        harness.Variant("loss_torch", _training_loss(logits_bc, labels_b, None, ids), batch),
        harness.Variant("loss_recording", _training_loss(logits_bc, labels_b, classes, ids), batch),
    ]
    for name, (record, means) in recorders.items():
        record(logits_bc, labels_b, ids[0])
        error = _error(means(), logits_bc, labels_b, ids[0])
        variants.append(harness.Variant(name, _again(record, logits_bc, labels_b, itertools.cycle(ids)), batch, error))
    return harness.Case(
        f"{batch}x{classes}",
        "rows",
        bytes_per_item=4 * classes,
        reference="cross_entropy",
        timings=harness.measure(variants, rounds=size.rounds, seconds=size.seconds),
    )


def measure_training(size: Size) -> harness.Case:
    """Measure a training step of the CNN 16-32-64 that records, and the recording of its logits alone."""
    batch, classes = LOOPED
    recipe = bench_loading.recipe_on_cpu("quickstart", model="cnn-16-32-64", batch_size=batch, lr=0.01)
    split = bench_loading.random_split(batch, (3, 32, 32))
    dtype = compute_dtype(recipe)
    one = next(trainer.training_loader(split, recipe, seed=0).epoch(0))
    model = initial_model(recipe, split, seed=0)
    optimizer = make_optimizer(recipe, model)
    recorder = HardnessRecorder(batch, classes)
    loss, mean, right = make_loss(recipe), torch.zeros(()), torch.zeros((), dtype=torch.int64)
    logits = torch.randn(batch, classes, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        train_step(model, optimizer, recorder, one, loss=loss, epoch=0, dtype=dtype, loss_out=mean, right_out=right)

    variants = [
        harness.Variant("step", step, batch),
        harness.Variant("recording", lambda: recorder.record(logits, one.labels, one.ids, epoch=0), batch),
    ]
    timings = harness.measure(variants, rounds=size.rounds, seconds=4 * size.seconds)
    return harness.Case("training step, cnn-16-32-64", "rows", 4 * classes, reference="step", timings=timings)


def _training_loss(
    logits_bc: torch.Tensor, labels_b: torch.Tensor, recorded_classes: int | None, ids: Sequence[torch.Tensor]
) -> Callable[[], object]:
    """Loss and gradient: torch's where `recorded_classes` is None, else the loss that records."""
    leaf = logits_bc.clone().requires_grad_()
    recorder = HardnessRecorder(SAMPLES, recorded_classes) if recorded_classes else None
    batches = itertools.cycle(ids)

    def run() -> None:
        if recorder is None:
            loss = functional.cross_entropy(leaf, labels_b)
        else:
            loss = hardness_cross_entropy(leaf, labels_b, next(batches), recorder, epoch=0)
        loss.backward()
        leaf.grad = None

    return run


def _again(
    record: Record, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids: Iterator[torch.Tensor]
) -> Callable[[], object]:
    return lambda: record(logits_bc, labels_b, next(ids))


def _error(
    means: Mapping[str, np.ndarray], logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor
) -> float:
    """Largest difference from the definitions, after one observation a sample.

    Raises
    ------
    ValueError
        If it is larger than rounding in float32 explains.
    """
    logits, labels = logits_bc.double().numpy(), labels_b.numpy()
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    own = probabilities[rows, labels]
    onehot = np.eye(logits.shape[1])[labels]
    expected = {
        "aum": logits[rows, labels] - others.max(axis=1),
        "confidence": own,
        "dataiq": own * (1 - own),
        "loss": -np.log(own),
        "el2n": np.linalg.norm(probabilities - onehot, axis=1),
        "correctness": logits.argmax(axis=1) == labels,
    }
    error = max(float(np.abs(means[name][ids_b.numpy()] - expected[name]).max()) for name in NAMES)
    if not error < 1e-4:
        raise ValueError(f"a variant records something else: it is {error} off the definitions")
    return error


def fused(classes: int) -> tuple[Record, Means]:
    """Ours: one pass over the logits."""
    recorder = HardnessRecorder(SAMPLES, classes)

    def record(logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor) -> None:
        recorder.record(logits_bc, labels_b, ids_b, epoch=0)

    def means() -> dict[str, np.ndarray]:
        scores = recorder.scores()
        return {name: scores.per_sample(name) for name in NAMES}

    return record, means


def vectorised() -> tuple[Record, Means]:
    """The same quantities, each by torch operations."""
    sums = torch.zeros(SAMPLES, len(NAMES))
    counts = torch.zeros(SAMPLES)

    def record(logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor) -> None:
        column = labels_b[:, None]
        log_probabilities = functional.log_softmax(logits_bc, dim=1)
        probabilities = log_probabilities.exp()
        own = probabilities.gather(1, column)
        rival = logits_bc.scatter(1, column, -torch.inf).amax(dim=1, keepdim=True)
        observed = (
            logits_bc.gather(1, column) - rival,
            own,
            own * (1 - own),
            -log_probabilities.gather(1, column),
            probabilities.scatter_add(1, column, -torch.ones_like(own)).norm(dim=1, keepdim=True),
            (logits_bc.argmax(dim=1, keepdim=True) == column).float(),
        )
        sums.index_add_(0, ids_b, torch.cat(observed, dim=1))
        counts.index_add_(0, ids_b, torch.ones(len(ids_b)))

    def means() -> dict[str, np.ndarray]:
        return dict(zip(NAMES, (sums / counts[:, None]).T.numpy(), strict=True))

    return record, means


def loop() -> tuple[Record, Means]:
    """What the paper's code does: a Python loop over the samples that reads every number back."""
    history: dict[str, dict[int, list[float]]] = {name: {} for name in NAMES}

    def record(logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor) -> None:
        for logits_c, label_, id_ in zip(logits_bc, labels_b, ids_b, strict=True):
            label, sample = label_.item(), id_.item()
            probabilities = functional.softmax(logits_c, dim=0)
            own = probabilities[label].item()
            order = logits_c.argsort(descending=True)
            rival = order[1] if order[0] == label else order[0]
            onehot = torch.zeros_like(probabilities)
            onehot[label] = 1
            observed = (
                logits_c[label].item() - logits_c[rival].item(),
                own,
                own * (1 - own),
                -torch.log(probabilities[label]).item(),
                torch.norm(probabilities - onehot).item(),
                float(order[0].item() == label),
            )
            for name, value in zip(NAMES, observed, strict=True):
                history[name].setdefault(sample, []).append(value)

    def means() -> dict[str, np.ndarray]:
        result = {name: np.full(SAMPLES, np.nan) for name in NAMES}
        for name, samples in history.items():
            for sample, values in samples.items():
                result[name][sample] = np.mean(values)
        return result

    return record, means


if __name__ == "__main__":
    main()
