"""A folder of photographs in Lightning: hardness in one training, then with and without resampling, and a page.

    hbr-fast convert folder photos.hbr --root ~/photos --store encoded --shortest 128
    python scripts/examples/photographs_lightning.py photos.hbr photo-runs

docs/photographs-study.md does the same without a loop of one's own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from torchvision import models

from hbr_fast import (
    Augment,
    Batch,
    HardnessRecorder,
    ImportedRun,
    Loader,
    Plan,
    Split,
    import_runs,
    open_dataset,
    resample_by_hardness,
    sequential_order,
    write_report,
)
from hbr_fast.integrations.lightning import HardnessCallback

AUGMENT = Augment(flip=0.5, resized_crop=(0.35, 1.0))


class Model(lightning.LightningModule):
    def __init__(self, network: str, classes: int, steps: int) -> None:
        super().__init__()
        self.network = models.get_model(network, weights=None, num_classes=classes)
        self.steps = steps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        logits = self(batch.images)
        return {"loss": torch.nn.functional.cross_entropy(logits, batch.labels), "logits": logits}

    def configure_optimizers(self) -> dict[str, object]:
        optimiser = torch.optim.AdamW(self.parameters(), lr=0.001, weight_decay=0.05)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def main(
    data: Path, out: Path, *, network: str = "resnet18", size: int = 96, epochs: int = 60, seeds: int = 6
) -> HardnessRecorder:
    dataset = open_dataset(data).at_size(size)
    train, test = dataset.train, dataset.test
    recorder = HardnessRecorder(len(train), train.num_classes, provenance={"dataset": dataset.fingerprint})
    fit(train, network, epochs, seed=0, recorder=recorder)
    scores, runs = recorder.scores(), []
    for seed in range(seeds):
        plan = resample_by_hardness(dataset, scores, "loss", seed=seed).plan
        arms = {"baseline": None, "resampled": plan}
        for arm in arms:  # from the same initial weights
            model = fit(train, network, epochs, seed=seed, plan=arms[arm])
            runs.append(ImportedRun(arm, logits_of(model, test).numpy(), variant=seed))
    study = import_runs(
        runs,
        test.labels,
        out=out,
        classes=dataset.classes,
        scores=scores.to_frame(train.labels, dataset.classes),
        estimator="loss",
    )
    print(write_report(study))
    return recorder


def fit(
    train: Split,
    network: str,
    epochs: int,
    *,
    seed: int,
    plan: Plan | None = None,
    recorder: HardnessRecorder | None = None,
) -> Model:
    loader = Loader(train, plan=plan, augment=AUGMENT, batch_size=min(64, len(train)), seed=seed)
    torch.manual_seed(seed)
    model = Model(network, train.num_classes, epochs * len(loader))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[HardnessCallback(recorder)] if recorder is not None else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    return model.eval()


def logits_of(model: Model, split: Split) -> torch.Tensor:
    loader = Loader(split, order=sequential_order(len(split)), batch_size=min(256, len(split)))
    with torch.inference_mode():
        return torch.cat([model(batch.images) for batch in loader])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=6)
    chosen = parser.parse_args()
    main(chosen.data, chosen.out, size=chosen.size, epochs=chosen.epochs, seeds=chosen.seeds)
