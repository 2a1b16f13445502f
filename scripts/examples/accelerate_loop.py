"""Hardness recorded in a loop of Accelerate; the ranks of a distributed run are merged every epoch.

python scripts/examples/accelerate_loop.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from hbr_fast import HardnessRecorder
from hbr_fast.integrations.ids import WithIds

EPOCHS = 4


def main() -> HardnessRecorder:
    accelerator = Accelerator()
    torch.manual_seed(0)
    inputs, labels = blobs()
    recorder = HardnessRecorder(len(labels), num_classes=3, device=accelerator.device, distributed=True)
    model = torch.nn.Linear(2, 3)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(WithIds(TensorDataset(inputs, labels)), batch_size=25, shuffle=True)
    model, optimiser, loader = accelerator.prepare(model, optimiser, loader)
    for epoch in range(EPOCHS):
        for x, y, ids in loader:
            logits = model(x)
            recorder.record(logits, y, ids, epoch=epoch)
            optimiser.zero_grad()
            accelerator.backward(torch.nn.functional.cross_entropy(logits, y))
            optimiser.step()
        recorder.merge_ranks()
    if accelerator.is_main_process:
        print(recorder.to_frame().sort("aum").head())
    return recorder


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three classes, float32 [300, 2], and their labels; class 2 lies among the others."""
    labels = torch.arange(300) % 3
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.3]])
    return centres[labels] + torch.randn(300, 2), labels


if __name__ == "__main__":
    main()
