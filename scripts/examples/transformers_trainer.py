"""Hardness recorded in Hugging Face's Trainer by a callback; then trainings with and without resampling, compared.

python scripts/examples/transformers_trainer.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

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
from hbr_fast.integrations.transformers import HardnessCallback

EPOCHS, SEEDS = 4, 3


class OrderedTrainer(Trainer):
    """A Trainer that draws by a sampler of ours."""

    sampler: OrderSampler | HardnessSampler

    def _get_train_sampler(self, train_dataset: Any = None) -> OrderSampler | HardnessSampler:
        return self.sampler


class Model(nn.Module):
    """What the Trainer needs of a model; one from the hub works the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.layer(inputs)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def main(out: Path | None = None) -> HardnessRecorder:
    torch.manual_seed(0)
    train = blobs()
    recorder = HardnessRecorder(len(train[1]), num_classes=3)
    fit(train, OrderSampler(uniform_order(len(train[1]), seed=0)), recorder)
    print(recorder.to_frame().sort("aum").head())
    runs, test = [], blobs()
    for seed in range(SEEDS if out is not None else 0):
        arms = {
            "baseline": OrderSampler(uniform_order(len(train[1]), seed=seed)),
            "resampled": HardnessSampler(train[1].numpy(), scores_n=recorder.scores(), estimator="loss", seed=seed),
        }
        for arm, sampler in arms.items():  # from the same initial weights
            torch.manual_seed(seed)
            model = fit(train, sampler)
            with torch.inference_mode():
                logits = model(test[0])["logits"]
            runs.append(ImportedRun(arm, logits.numpy(), variant=seed))
    if out is not None:
        print(write_report(import_runs(runs, test[1].numpy(), out=out)))
    return recorder


def fit(
    data: tuple[torch.Tensor, torch.Tensor],
    sampler: OrderSampler | HardnessSampler,
    recorder: HardnessRecorder | None = None,
) -> Model:
    items = [{"inputs": x, "labels": y} for x, y in zip(data[0], data[1].tolist(), strict=True)]
    model = Model()
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
        if recorder is None:
            trainer = OrderedTrainer(model, arguments, train_dataset=items)
        else:
            callbacks = [HardnessCallback(recorder)]
            trainer = OrderedTrainer(model, arguments, train_dataset=WithIds(items), callbacks=callbacks)
        trainer.sampler = sampler
        trainer.train()
    return model.eval()


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Points of three classes, float32 [300, 2], and their labels; class 2 lies among the others."""
    labels = torch.arange(300) % 3
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.3]])
    return centres[labels] + torch.randn(300, 2), labels


if __name__ == "__main__":
    main(Path("transformers-runs"))
