from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hbr_fast import HardnessRecorder
from hbr_fast.integrations.ids import WithIds

lightning = pytest.importorskip("lightning")

from hbr_fast.integrations.lightning import HardnessCallback  # noqa: E402

N = 24
Module: Any = lightning.LightningModule


class Model(Module):
    def __init__(self, gives: str = "logits") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(4, 3)
        self.gives = gives

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.layer(batch[0])
        loss = torch.nn.functional.cross_entropy(logits, batch[1])
        return loss if self.gives == "loss" else {"loss": loss, self.gives: logits}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(recorder: HardnessRecorder, *, epochs: int, folder: Path, model: Any = None, **options: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    data = WithIds(TensorDataset(torch.randn(N, 4, generator=generator), torch.arange(N) % 3))
    checkpoint = options.pop("checkpoint", None)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[HardnessCallback(recorder)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(model or Model(), DataLoader(data, batch_size=6), ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / f"after-{epochs}.ckpt")


@pytest.mark.parametrize("distributed", [False, True])
def test_a_recording_goes_on_from_lightnings_checkpoint(tmp_path: Path, distributed: bool) -> None:
    whole, first, second = (HardnessRecorder(N, 3, distributed=distributed) for _ in range(3))
    fit(whole, epochs=4, folder=tmp_path / "whole")
    fit(first, epochs=2, folder=tmp_path / "split")
    assert (first.scores().observations == 2).all()
    fit(second, epochs=4, folder=tmp_path / "split", checkpoint=tmp_path / "split" / "after-2.ckpt")
    for name, values in whole.scores().values.items():
        np.testing.assert_allclose(second.scores().values[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
    assert (second.scores().observations == 4).all()


def test_accumulated_gradients_are_recorded_batch_by_batch(tmp_path: Path) -> None:
    recorder = HardnessRecorder(N, 3)
    fit(recorder, epochs=3, folder=tmp_path, accumulate_grad_batches=4)
    assert (recorder.scores().observations == 3).all()


@pytest.mark.parametrize(("gives", "found"), [("loss", "loss"), ("output", "loss, output")])
def test_a_step_that_gives_no_logits_says_what_to_return(gives: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"must return a dict with 'loss' and 'logits' to be recorded, got a dict with {found}$"
    ):
        fit(HardnessRecorder(N, 3), epochs=1, folder=tmp_path, model=Model(gives))
