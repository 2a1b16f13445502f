"""Hardness recorded in an Accelerate loop; the ranks of a distributed run are merged every epoch.

Then trainings with and without resampling, compared on a page.

python scripts/examples/accelerate_loop.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from hbr_fast import (
    HardnessRecorder,
    HardnessSampler,
    ImportedRun,
    OrderSampler,
    import_runs,
    uniform_order,
    write_report,
)
from hbr_fast.integrations.ids import WithIds

EPOCHS, SEEDS = 4, 3


def main(out: Path | None = None) -> HardnessRecorder:
    accelerator = Accelerator()
    torch.manual_seed(0)
    train = blobs()
    recorder = HardnessRecorder(len(train[1]), num_classes=3, device=accelerator.device, distributed=True)
    fit(accelerator, train, OrderSampler(uniform_order(len(train[1]), seed=0)), recorder)
    runs, test = [], blobs()
    for seed in range(SEEDS if out is not None else 0):
        arms = {
            "baseline": OrderSampler(uniform_order(len(train[1]), seed=seed)),
            "resampled": HardnessSampler(train[1].numpy(), scores_n=recorder.scores(), estimator="loss", seed=seed),
        }
        for arm, sampler in arms.items():  # from the same initial weights
            torch.manual_seed(seed)
            model = fit(accelerator, train, sampler)
            with torch.inference_mode():
                logits = model(test[0].to(accelerator.device)).cpu()
            runs.append(ImportedRun(arm, logits.numpy(), variant=seed))
    if accelerator.is_main_process:
        print(recorder.to_frame().sort("aum").head())
        if out is not None:
            print(write_report(import_runs(runs, test[1].numpy(), out=out)))
    return recorder


def fit(
    accelerator: Accelerator,
    data: tuple[torch.Tensor, torch.Tensor],
    sampler: OrderSampler | HardnessSampler,
    recorder: HardnessRecorder | None = None,
) -> torch.nn.Module:
    model: torch.nn.Module = torch.nn.Linear(2, 3)
    optimiser: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(WithIds(TensorDataset(*data)), batch_size=25, sampler=sampler)
    model, optimiser, loader = accelerator.prepare(model, optimiser, loader)
    for epoch in range(EPOCHS):
        for x, y, ids in loader:
            logits = model(x)
            if recorder is not None:
                recorder.record(logits, y, ids, epoch=epoch)
            optimiser.zero_grad()
            accelerator.backward(torch.nn.functional.cross_entropy(logits, y))
            optimiser.step()
        if recorder is not None:
            recorder.merge_ranks()
    return model


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three classes, float32 [300, 2], and their labels; class 2 lies among the others."""
    labels = torch.arange(300) % 3
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.3]])
    return centres[labels] + torch.randn(300, 2), labels


if __name__ == "__main__":
    main(Path("accelerate-runs"))
