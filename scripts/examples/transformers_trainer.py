"""Hardness recorded in Hugging Face's Trainer by a callback.

python scripts/examples/transformers_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hbr_fast import HardnessRecorder
from hbr_fast.integrations.ids import WithIds
from hbr_fast.integrations.transformers import HardnessCallback

EPOCHS = 4


class Model(nn.Module):
    """What the Trainer needs of a model; one from the hub works the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.layer(inputs)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def main() -> HardnessRecorder:
    torch.manual_seed(0)
    inputs, labels = blobs()
    recorder = HardnessRecorder(len(labels), num_classes=3)
    items = [{"inputs": x, "labels": y} for x, y in zip(inputs, labels.tolist(), strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=25,
            learning_rate=0.1,
            gradient_accumulation_steps=2,
            remove_unused_columns=False,  # lets sample_id through
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(Model(), arguments, train_dataset=WithIds(items), callbacks=[HardnessCallback(recorder)]).train()
    print(recorder.to_frame().sort("aum").head())
    return recorder


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three classes, float32 [300, 2], and their labels; class 2 lies among the others."""
    labels = torch.arange(300) % 3
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.3]])
    return centres[labels] + torch.randn(300, 2), labels


if __name__ == "__main__":
    main()
