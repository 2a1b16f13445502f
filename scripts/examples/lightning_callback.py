"""Hardness recorded in Lightning by a callback; then trainings with and without resampling, compared on a page.

python scripts/examples/lightning_callback.py
"""

from __future__ import annotations

from pathlib import Path

import lightning
import torch
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
from hbr_fast.integrations.lightning import HardnessCallback

EPOCHS, SEEDS = 4, 3


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        inputs, labels, _ = batch
        logits = self.layer(inputs)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def main(out: Path | None = None) -> HardnessRecorder:
    torch.manual_seed(0)
    train = blobs()
    recorder = HardnessRecorder(len(train[1]), num_classes=3)
    fit(train, OrderSampler(uniform_order(len(train[1]), seed=0)), recorder)
    print(recorder.to_frame().sort("aum").head())
    if out is not None:
        print(write_report(compare(train, blobs(), recorder, out)))
    return recorder


def fit(
    data: tuple[torch.Tensor, torch.Tensor],
    sampler: OrderSampler | HardnessSampler,
    recorder: HardnessRecorder | None = None,
) -> Model:
    model = Model()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[HardnessCallback(recorder)] if recorder is not None else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(WithIds(TensorDataset(*data)), batch_size=25, sampler=sampler))
    return model.eval()


def compare(
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    recorder: HardnessRecorder,
    out: Path,
) -> Path:
    """Trainings with and without resampling by hardness, from the same initial weights, imported into `out`."""
    runs = []
    for seed in range(SEEDS):
        arms = {
            "baseline": OrderSampler(uniform_order(len(train[1]), seed=seed)),
            "resampled": HardnessSampler(train[1].numpy(), scores_n=recorder.scores(), estimator="loss", seed=seed),
        }
        for arm, sampler in arms.items():
            torch.manual_seed(seed)
            model = fit(train, sampler)
            with torch.inference_mode():
                logits = model.layer(test[0])
            runs.append(ImportedRun(arm, logits.numpy(), variant=seed))
    return import_runs(runs, test[1].numpy(), out=out)


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three classes, float32 [300, 2], and their labels; class 2 lies among the others."""
    labels = torch.arange(300) % 3
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.3]])
    return centres[labels] + torch.randn(300, 2), labels


if __name__ == "__main__":
    main(Path("lightning-runs"))
