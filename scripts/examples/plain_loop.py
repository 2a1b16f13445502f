"""Hardness recorded in a plain PyTorch loop, with mixup, smoothed labels and accumulated gradients.

    python scripts/examples/plain_loop.py

Prints the mean of each estimator by class. Class 2 is hard: its samples lie among the others'.
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

from hbr_fast import HardnessRecorder, OrderSampler, uniform_order
from hbr_fast.integrations.ids import WithIds

EPOCHS, ACCUMULATE = 4, 2


def main() -> HardnessRecorder:
    torch.manual_seed(0)
    inputs, labels = blobs()
    recorder = HardnessRecorder(len(labels), num_classes=3)
    model = torch.nn.Linear(2, 3)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    sampler = OrderSampler(uniform_order(len(labels), seed=0))
    loader = DataLoader(WithIds(TensorDataset(inputs, labels)), batch_size=25, sampler=sampler)
    for epoch in range(EPOCHS):
        for step, (x, y, ids) in enumerate(loader):
            share, partner = 0.9, torch.randperm(len(y))
            logits = model(share * x + (1 - share) * x[partner])
            # Use the hard label and the id of the sample with the larger share.
            recorder.record(logits, y, ids, epoch=epoch)
            loss = share * cross_entropy(logits, y) + (1 - share) * cross_entropy(logits, y[partner])
            (loss / ACCUMULATE).backward()
            if (step + 1) % ACCUMULATE == 0:
                optimiser.step()
                optimiser.zero_grad()
    scores = recorder.scores()
    for name in scores.values:
        print(f"{name:<18}", scores.class_means(name, labels.numpy(), 3).round(3))
    return recorder


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three classes, float32 [300, 2], and their labels."""
    labels = torch.arange(300) % 3
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.3]])
    return centres[labels] + torch.randn(300, 2), labels


if __name__ == "__main__":
    main()
