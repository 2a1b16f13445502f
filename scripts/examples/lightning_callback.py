"""Hardness recorded in Lightning by a callback.

python scripts/examples/lightning_callback.py
"""

from __future__ import annotations

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from hbr_fast import HardnessRecorder
from hbr_fast.integrations.ids import WithIds
from hbr_fast.integrations.lightning import HardnessCallback

EPOCHS = 4


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


def main() -> HardnessRecorder:
    torch.manual_seed(0)
    inputs, labels = blobs()
    recorder = HardnessRecorder(len(labels), num_classes=3)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[HardnessCallback(recorder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(WithIds(TensorDataset(inputs, labels)), batch_size=25, shuffle=True))
    print(recorder.to_frame().sort("aum").head())
    return recorder


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three classes, float32 [300, 2], and their labels; class 2 lies among the others."""
    labels = torch.arange(300) % 3
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.3]])
    return centres[labels] + torch.randn(300, 2), labels


if __name__ == "__main__":
    main()
