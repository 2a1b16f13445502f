"""Hardness-based resampling in a loop that uses plain torch: DataLoader, your dataset, your step.

    python scripts/hardness_sampler.py

Trains a linear model on a synthetic dataset whose classes are not equally hard: first on every sample while recording
hardness, then with `HardnessSampler`, and prints the recall of each class.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from hbr_fast import Dataset, HardnessRecorder, HardnessSampler, convert, evaluate

EPOCHS = 4


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = convert("synthetic", Path(folder) / "toy.hbr", classes=5, train_per_class=400, test_per_class=200)
        recorder = HardnessRecorder(len(data.train), data.train.num_classes)
        before = train(data, sampler=None, recorder=recorder)
        scores = recorder.scores()

        # Scores make a sampler, which any DataLoader takes.
        labels = np.asarray(data.train.labels)
        sampler = HardnessSampler(labels, scores_n=scores, estimator="loss", alpha=0.5)
        after = train(data, sampler=sampler, recorder=None)

        print("class    loss  recall  recall with HardnessSampler")
        hardness = scores.class_means("loss", labels, data.train.num_classes)
        for name, loss, *recalls in zip(data.classes, hardness, before, after, strict=True):
            print(f"{name:<8} {loss:4.2f}  {recalls[0]:.3f}  {recalls[1]:.3f}")


def train(data: Dataset, *, sampler: HardnessSampler | None, recorder: HardnessRecorder | None) -> np.ndarray:
    """Recall of each class on the test split, float64 [C], of a linear model trained from fixed initial weights."""
    torch.manual_seed(0)
    images, labels = as_tensors(data.train.images), torch.from_numpy(np.asarray(data.train.labels))
    dataset = TensorDataset(images, labels, torch.arange(len(labels)))
    loader = DataLoader(dataset, batch_size=64, sampler=sampler, shuffle=sampler is None)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images[0].numel(), data.train.num_classes))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(EPOCHS):
        for batch_images, batch_labels, ids in loader:
            logits = model(batch_images)
            if recorder is not None:
                recorder.record(logits, batch_labels, ids, epoch=epoch)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(logits, batch_labels).backward()
            optimiser.step()
    with torch.inference_mode():
        return evaluate(model(as_tensors(data.test.images)).numpy(), data.test.labels).recall


def as_tensors(images_nchw: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(images_nchw)).float().div_(255).sub_(0.5)


if __name__ == "__main__":
    main()
