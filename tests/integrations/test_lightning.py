import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaders.contracts import coded_split
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from hbr_fast import HardnessRecorder, Loader, Plan
from hbr_fast.integrations.ids import WithIds
from hbr_fast.kernels.hardness.layout import OBSERVATIONS

lightning = pytest.importorskip("lightning")

from hbr_fast.integrations.lightning import HardnessCallback  # noqa: E402

N = 24
Module: Any = lightning.LightningModule


class Model(Module):
    def __init__(self, gives: str = "logits", *, skips: int = -1, fails_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(4, 3)
        self.gives, self.skips, self.fails_at, self.steps = gives, skips, fails_at, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.layer(batch[0])
        loss = torch.nn.functional.cross_entropy(logits, batch[1])
        if self.steps == self.fails_at:
            self.fails_at = -1
            raise RuntimeError("no more")
        self.steps += 1
        if batch_idx == self.skips:
            return None
        return loss if self.gives == "loss" else {"loss": loss, self.gives: logits}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(
    recorder: HardnessRecorder | HardnessCallback, *, epochs: int, folder: Path, model: Any = None, **options: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(N, 4, generator=generator), options.pop("labels", torch.arange(N) % 3)
    data = options.pop("data", WithIds(TensorDataset(inputs, labels)))
    checkpoint = options.pop("checkpoint", None)
    callback = recorder if isinstance(recorder, HardnessCallback) else HardnessCallback(recorder)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(model or Model(), DataLoader(data, batch_size=6), ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / f"after-{epochs}.ckpt")


@pytest.mark.parametrize("distributed", [False, True])
def test_callback_resumes_with_the_checkpoint(tmp_path: Path, distributed: bool) -> None:
    whole, first, second = (HardnessRecorder(N, 3, distributed=distributed) for _ in range(3))
    fit(whole, epochs=4, folder=tmp_path / "whole")
    fit(first, epochs=2, folder=tmp_path / "split")
    assert (first.scores().observations == 2).all()
    fit(second, epochs=4, folder=tmp_path / "split", checkpoint=tmp_path / "split" / "after-2.ckpt")
    for name, values in whole.scores().values.items():
        np.testing.assert_allclose(second.scores().values[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
    assert (second.scores().observations == 4).all()


def test_callback_with_accumulated_gradients(tmp_path: Path) -> None:
    recorder = HardnessRecorder(N, 3)
    fit(recorder, epochs=3, folder=tmp_path, accumulate_grad_batches=4)
    assert (recorder.scores().observations == 3).all()


@pytest.mark.parametrize(("gives", "found"), [("loss", "loss"), ("output", "loss, output")])
def test_callback_step_without_logits(gives: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"must return a dict with 'loss' and 'logits' to be recorded, got a dict with {found}$"
    ):
        fit(HardnessRecorder(N, 3), epochs=1, folder=tmp_path, model=Model(gives))


def test_callback_resumes_recorder_with_numpy_sizes(tmp_path: Path) -> None:
    # Lightning reads checkpoints without unpickling: NumPy numbers in the state could not be loaded.
    sizes = {"num_samples": np.int64(N), "num_classes": np.int32(3), "el2n_epochs": np.int64(2)}
    provenance = {"dataset": np.str_("abc"), "rate": np.float64(0.5), "seeds": (1, 2)}
    first, second = (HardnessRecorder(**sizes, provenance=provenance) for _ in range(2))  # type: ignore[arg-type]
    fit(first, epochs=1, folder=tmp_path)
    fit(second, epochs=2, folder=tmp_path, checkpoint=tmp_path / "after-1.ckpt")
    assert (second.scores().observations == 2).all()
    assert second.provenance == {"dataset": "abc", "rate": 0.5, "seeds": [1, 2]}


def test_callback_step_that_skips_a_batch(tmp_path: Path) -> None:
    recorder = HardnessRecorder(N, 3)
    fit(recorder, epochs=2, folder=tmp_path, model=Model(skips=1))
    assert recorder.scores().observations[0].tolist() == [2] * 6 + [0] * 6 + [2] * 12


def test_callback_discards_failed_attempt(tmp_path: Path) -> None:
    callback, whole, model = HardnessCallback(HardnessRecorder(N, 3)), HardnessRecorder(N, 3), Model(fails_at=6)
    with pytest.raises(RuntimeError, match="no more"):
        fit(callback, epochs=2, folder=tmp_path, model=model)
    assert callback.recorder.counters[:, OBSERVATIONS].sum() == 6 * 6
    fit(callback, epochs=2, folder=tmp_path)
    fit(whole, epochs=2, folder=tmp_path)
    for name, values in whole.scores().values.items():
        np.testing.assert_array_equal(callback.recorder.scores().values[name], values, err_msg=name)


def test_callback_counts_epochs_of_a_second_fit_on_from_the_first(tmp_path: Path) -> None:
    recorder, resumed, model = HardnessRecorder(N, 3), HardnessRecorder(N, 3), Model()
    fit(recorder, epochs=2, folder=tmp_path, model=model)
    callback = HardnessCallback(resumed)
    resumed.load_state_dict(recorder.state_dict())
    fit(recorder, epochs=2, folder=tmp_path, model=copy.deepcopy(model))
    assert (recorder.epochs, recorder.scores().provenance["epochs"]) == (4, 4)
    fit(callback, epochs=1, folder=tmp_path, model=model)
    fit(callback, epochs=2, folder=tmp_path, model=model, checkpoint=tmp_path / "after-1.ckpt")
    assert resumed.epochs == 4
    for name, values in recorder.scores().values.items():
        np.testing.assert_allclose(resumed.scores().values[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


def test_callback_records_a_loaders_batches_by_sample_id(tmp_path: Path) -> None:
    split = coded_split(N)
    plan = Plan.of_rows(np.array([5, 5, 7, 20, 20, 20]))

    class Flat(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self.layer(batch.images[:, :1].flatten(1)[:, :4])
            return {"loss": logits.square().mean(), "logits": logits}

    recorder = HardnessRecorder(N, split.num_classes)
    model = Flat()
    model.layer = torch.nn.Linear(4, split.num_classes)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", callbacks=[HardnessCallback(recorder)], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(model, Loader(split, plan=plan, batch_size=4))
    assert dict(enumerate(recorder.scores().observations[0])) == {
        **dict.fromkeys(range(N), 0), 5: 2, 7: 1, 20: 3
    }  # fmt: skip


@pytest.mark.parametrize("case", ["parts numbered apart", "groups for ids"])
def test_callback_warns_of_ids_that_are_not_those_of_samples(case: str, tmp_path: Path) -> None:
    inputs, labels = torch.randn(N, 4), torch.arange(N) % 3
    if case == "groups for ids":
        data: Any = TensorDataset(inputs, labels, torch.arange(N) % 2)
    else:
        parts = (slice(0, 10), slice(10, N))
        data = ConcatDataset([WithIds(TensorDataset(inputs[rows], labels[rows])) for rows in parts])
    with pytest.warns(UserWarning, match=r"sample id 0 came with different labels: .*WithIds around a ConcatDataset"):
        fit(HardnessRecorder(N, 3), epochs=1, folder=tmp_path, data=data)


def test_callback_soft_labels(tmp_path: Path) -> None:
    hard = torch.arange(N) % 3
    soft = 0.4 * torch.eye(3)[hard] + 0.6 * torch.eye(3)[0]
    with pytest.raises(ValueError, match=r"the labels \[6, 3\] are soft, .*: give labels_n"):
        fit(HardnessRecorder(N, 3), epochs=1, folder=tmp_path, labels=soft)
    callback = HardnessCallback(HardnessRecorder(N, 3), labels_n=hard)
    inputs = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    logits = Model().layer(inputs).detach()
    fit(callback, epochs=1, folder=tmp_path, labels=soft)
    scores = callback.recorder.scores()
    assert (scores.observations == 1).all()
    first = torch.nn.functional.cross_entropy(logits, hard, reduction="none")[:6]  # the batch before any update
    np.testing.assert_allclose(scores.per_sample("loss")[:6], first.numpy(), rtol=1e-6)
