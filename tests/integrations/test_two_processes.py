"""In each trainer, two gloo processes record the same as a plain loop over both ranks' batches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from two_processes import WORLD, join_group, run_by_two

from hbr_fast import HardnessRecorder
from hbr_fast.hardness import HardnessScores
from hbr_fast.integrations.ids import WithIds

accelerate = pytest.importorskip("accelerate")
lightning = pytest.importorskip("lightning")
transformers = pytest.importorskip("transformers")

from hbr_fast.integrations import lightning as for_lightning  # noqa: E402
from hbr_fast.integrations import transformers as for_transformers  # noqa: E402

N, EPOCHS, BATCH = 24, 3, 3  # 4 batches a rank and epoch
LABELS = torch.arange(N) % 3
INPUTS = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Module: Any = lightning.LightningModule


class Samples(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": INPUTS[index], "labels": int(LABELS[index])}


class Stream(IterableDataset[Any]):
    """All samples, or the process's own share, in order."""

    def __init__(self, first: int = 0, step: int = 1) -> None:
        self.own = range(first, N, step)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({**Samples()[i], "number": i} for i in self.own)


class Model(torch.nn.Module):
    """Keep the train-mode logits. Raise once, where configured."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.config = transformers.PretrainedConfig()
        self.layer = torch.nn.Linear(4, 3)
        self.gave: list[torch.Tensor] = []
        self.fails_at = fails_at

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        if len(self.gave) == self.fails_at:
            self.fails_at = -1
            raise RuntimeError("no more")
        logits = self.layer(inputs)
        if self.training:
            self.gave.append(torch.cat([inputs, logits], dim=1).detach())
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class LightningModel(Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, torch.Tensor]:
        return self.model(batch["inputs"], batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def new_recorder() -> HardnessRecorder:
    return HardnessRecorder(N, 3, el2n_epochs=2, distributed=True)


def fit(recorder: Any, model: Model, folder: Path, data: Any, *, epochs: int = EPOCHS, **options: Any) -> None:
    callback = recorder if isinstance(recorder, lightning.Callback) else for_lightning.HardnessCallback(recorder)
    checkpoint = options.pop("resume", None)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", strategy="ddp", devices=WORLD, callbacks=[callback], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(LightningModel(model), DataLoader(data, batch_size=BATCH), ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "last.ckpt")


def lightning_accumulates(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    recorder, model = new_recorder(), Model()
    fit(recorder, model, folder, WithIds(Samples()), accumulate_grad_batches=2)
    return recorder, model.gave


def lightning_resumes(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    first, second = Model(), Model()
    fit(new_recorder(), first, folder, WithIds(Samples()), epochs=2)
    recorder = new_recorder()
    fit(recorder, second, folder, WithIds(Samples()), resume=folder / "last.ckpt")
    return recorder, first.gave + second.gave


def lightning_stream(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    recorder, model = new_recorder(), Model()
    fit(recorder, model, folder, WithIds(Stream(rank, WORLD), id_of=lambda item: item["number"]))
    return recorder, model.gave


def lightning_fails(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    recorder, model = new_recorder(), Model(fails_at=6)
    callback = for_lightning.HardnessCallback(recorder)
    with pytest.raises(RuntimeError, match="no more"):
        fit(callback, model, folder, WithIds(Samples()))
    again = Model()
    fit(callback, again, folder, WithIds(Samples()))
    return recorder, again.gave


def train(callback: Any, model: Model, folder: Path, data: Any, *, resume: Any = None, **options: Any) -> None:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, use_cpu=True, report_to=[],
        disable_tqdm=True, remove_unused_columns=False, learning_rate=0.1, **{"save_strategy": "no", **options},
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train(
        resume_from_checkpoint=resume
    )


def trainer_resumes(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    first, second, options = Model(), Model(), {"save_strategy": "steps", "save_steps": 3}
    options |= {"gradient_accumulation_steps": 2}  # 2 steps an epoch: saved in the middle of the second
    train(for_transformers.HardnessCallback(new_recorder()), first, folder, WithIds(Samples()), **options)
    recorder = new_recorder()
    train(
        for_transformers.HardnessCallback(recorder), second, folder, WithIds(Samples()),
        resume=str(folder / "checkpoint-3"), **options,
    )  # fmt: skip
    return recorder, first.gave[:6] + second.gave


def trainer_stream(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    recorder, model = new_recorder(), Model()
    train(for_transformers.HardnessCallback(recorder), model, folder, WithIds(Stream()), max_steps=4 * EPOCHS)
    return recorder, model.gave


def trainer_fails(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    recorder, model = new_recorder(), Model(fails_at=6)
    callback = for_transformers.HardnessCallback(recorder)
    with pytest.raises(RuntimeError, match="no more"):
        train(callback, model, folder, WithIds(Samples()))
    again = Model()
    train(callback, again, folder, WithIds(Samples()))
    return recorder, again.gave


def accelerate_loop(data: Any, folder: Path, *, fails: bool = False) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    """Two micro-batches per step; after the second epoch, resume from a checkpoint."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    recorder, model = new_recorder(), Model(6 if fails else -1)
    prepared, optimiser, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.5), DataLoader(data, batch_size=BATCH)
    )
    epoch, state = 0, recorder.state_dict()
    while epoch < EPOCHS:
        try:
            for batch in loader:
                with accelerator.accumulate(prepared):
                    ids = batch.pop("sample_id")
                    output = prepared(**batch)
                    recorder.record(output["logits"], batch["labels"], ids, epoch=epoch)
                    accelerator.backward(output["loss"])
                    optimiser.step()
                    optimiser.zero_grad()
            recorder.merge_ranks()
            epoch, state = epoch + 1, recorder.state_dict()
        except RuntimeError:  # the epoch restarts from the state after the previous one
            del model.gave[4 * epoch :]
        recorder = new_recorder()
        recorder.load_state_dict(state)
    return recorder, model.gave


def accelerate_resumes(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    return accelerate_loop(WithIds(Samples()), folder)


def accelerate_stream(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    return accelerate_loop(WithIds(Stream()), folder)


def accelerate_fails(rank: int, folder: Path) -> tuple[HardnessRecorder, list[torch.Tensor]]:
    return accelerate_loop(WithIds(Samples()), folder, fails=True)


SCENARIOS: dict[str, Callable[[int, Path], tuple[HardnessRecorder, list[torch.Tensor]]]] = {
    run.__name__: run
    for run in (
        lightning_accumulates, lightning_resumes, lightning_stream, lightning_fails,
        trainer_resumes, trainer_stream, trainer_fails,
        accelerate_resumes, accelerate_stream, accelerate_fails,
    )
}  # fmt: skip


def run_scenarios(folder: Path) -> None:
    join_group(folder)
    rank = torch.distributed.get_rank()
    for name, run in SCENARIOS.items():
        recorder, gave = run(rank, folder / name)
        recorder.scores().save(folder / f"{name} {rank}")
        np.save(folder / f"{name} {rank}.npy", torch.stack(gave).numpy())
        torch.distributed.barrier()


@pytest.fixture(scope="module")
def folder_of_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saved: scores, inputs and logits of all steps, per scenario and rank."""
    folder = tmp_path_factory.mktemp("ranks")
    run_by_two(run_scenarios, folder)
    return folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_match_plain_loop(name: str, folder_of_ranks: Path) -> None:
    gave = [torch.from_numpy(np.load(folder_of_ranks / f"{name} {rank}.npy")) for rank in range(WORLD)]
    assert [len(one) for one in gave] == [4 * EPOCHS] * WORLD
    expected = HardnessRecorder(N, 3, el2n_epochs=2)
    for step in range(4 * EPOCHS):
        # The order of a single process: row by row, rank after rank.
        rows = torch.stack([one[step] for one in gave], dim=1).flatten(0, 1)
        ids = (rows[:, None, :4] == INPUTS).all(2).long().argmax(1)
        expected.record(rows[:, 4:], LABELS[ids], ids, epoch=step // 4)
    assert (expected.scores().observations == EPOCHS).all()
    for rank in range(WORLD):
        scores = HardnessScores.load(folder_of_ranks / f"{name} {rank}")
        np.testing.assert_array_equal(scores.observations, expected.scores().observations)
        for estimator, values in expected.scores().values.items():
            np.testing.assert_allclose(scores.values[estimator], values, rtol=1e-6, atol=1e-7, err_msg=estimator)
