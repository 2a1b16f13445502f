"""A user's script, which `scripts/check_package.sh` checks with `mypy --strict` against the installed package.

Every annotation states the type that a user relies on; tests/test_project.py also runs it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, TensorDataset

from hbr_fast import (
    Augment,
    Batch,
    Dataset,
    Evaluation,
    HardnessRecorder,
    HardnessSampler,
    HardnessScores,
    Loader,
    PairedDifference,
    Plan,
    Recipe,
    Sampler,
    Split,
    allocate,
    convert,
    evaluate,
    gaps,
    holm,
    named_recipe,
    paired_difference,
    prune,
    resample,
    uniform_order,
)


def record(train: Split, model: torch.nn.Module, *, epochs: int) -> HardnessScores:
    """Train a model and record the hardness of every sample."""
    recorder: HardnessRecorder = HardnessRecorder(num_samples=len(train), num_classes=train.num_classes)
    order: Sampler = uniform_order(len(train), seed=0)
    loader: Loader = Loader(train, order=order, augment=Augment(flip=0.5), batch_size=8)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    batch: Batch
    for epoch in range(epochs):
        for batch in loader.epoch(epoch):
            logits: torch.Tensor = model(batch.images)
            recorder.record(logits, batch.labels, batch.ids, epoch=epoch)
            optimiser.zero_grad()
            torch.autograd.backward([torch.nn.functional.cross_entropy(logits, batch.labels)])
            optimiser.step()
    return recorder.scores()


def resampled(train: Split, scores: HardnessScores) -> Plan:
    """More rows of the classes with a larger loss."""
    hardness: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = scores.class_means(
        "loss", train.labels, num_classes=train.num_classes
    )
    counts = allocate(hardness, hard_is="high", alpha=0.5, total=len(train)).counts
    return resample(train.labels, counts, scores_n=scores.per_sample("loss"), hard_is="high", seed=0)


def main(folder: Path) -> dict[str, float]:
    """From images to the gaps of a model."""
    dataset: Dataset = convert(
        "synthetic", folder / "toy.hbr", classes=3, train_per_class=8, test_per_class=4, shape=(1, 8, 8)
    )
    train: Split = dataset.train
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    scores: HardnessScores = record(train, model, epochs=2)
    plan: Plan = resampled(train, scores)
    batches: int = len(Loader(train, plan=plan, batch_size=8))
    mine = TensorDataset(torch.tensor(train.images), torch.tensor(train.labels))
    drawn = 0
    as_list: list[int] = train.labels.tolist()  # as `ImageFolder.targets` is
    labels: npt.ArrayLike | torch.Tensor
    for labels in (train.labels, torch.tensor(train.labels), as_list):
        sampler: HardnessSampler = HardnessSampler(labels, scores_n=scores, estimator="loss", alpha=0.5)
        drawn += sum(len(batch) for _, batch in DataLoader(mine, sampler=sampler, batch_size=8))
    loss: list[float] = scores.per_sample("loss").tolist()
    kept: int = len(prune(as_list, 0.5, by="hardness", hard_is="high", scores_n=loss, seed=0).kept)

    test: Batch = next(iter(Loader(dataset.test, batch_size=len(dataset.test))))
    result: Evaluation = evaluate(model(test.images).detach().numpy(), test.labels.numpy(), classes=dataset.classes)
    found: dict[str, float] = gaps(result.recall)
    difference: PairedDifference = paired_difference(np.array([[0.5], [0.6]]), np.array([[0.7], [0.9]]))
    corrected = holm([difference.p_value, 0.5])
    recipe: Recipe = named_recipe("small-cnn", ["epochs=1"])
    return {
        **found,
        "batches": batches,
        "drawn": drawn,
        "kept": kept,
        "p": float(corrected[0]),
        "epochs": recipe.epochs,
    }
