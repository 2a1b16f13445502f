"""Hugging Face's Trainer in two processes: Accelerate distributes the batches, also in a resumed training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import join_group, run_by_two

from hbr_fast.orders.torch_sampler import OrderSampler
from integrations.trained_rows import BATCH, BATCHES, EPOCHS, STOPS, WORLD, Rows, dealt_batches, the_order

transformers: Any = pytest.importorskip("transformers")


class Model(torch.nn.Module):
    """Record the rows of every training step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 4)
        self.rows: list[list[int]] = []
        self.evaluated: list[int] = []

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.rows.append(row.tolist())
        else:
            self.evaluated += row.tolist()
        return {"loss": self.layer(x).square().mean(), "logits": row}


class SaveAndStop(transformers.TrainerCallback):
    """Save after some steps of the second epoch; stop the first epoch of a short training after 7 batches."""

    def __init__(self, *, stop_first: bool = False) -> None:
        self.stop_first = stop_first

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_save = state.global_step - BATCHES in STOPS
        control.should_evaluate = state.global_step == 4
        if self.stop_first and state.global_step == 7:
            control.should_epoch_stop = True


class SamplerTrainer(transformers.Trainer):
    """Pass the sampler as docs/sampling.md describes."""

    sampler: OrderSampler

    def _get_train_sampler(self, *_: Any) -> OrderSampler:
        return self.sampler


def train(folder: Path, sampler: OrderSampler, epochs: int, *, resume: str | None = None, **options: Any) -> Model:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=options.pop("workers", 0),
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
    )
    model = Model()
    trainer = SamplerTrainer(
        model, arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[SaveAndStop(**options)]
    )
    assert trainer.args.world_size == WORLD
    trainer.sampler = sampler
    trainer.train(resume_from_checkpoint=resume)
    return model


def loops(folder: Path) -> dict[str, Any]:
    before = OrderSampler(the_order())
    join_group(folder)
    result: dict[str, Any] = {}
    for workers, sampler in ((0, before), (2, OrderSampler(the_order()))):
        place = folder / f"workers {workers}"
        model = train(place, sampler, EPOCHS, workers=workers)
        resumed = {}
        for stop in STOPS:
            checkpoint = str(place / f"checkpoint-{BATCHES + stop}")
            resumed[stop] = train(place, OrderSampler(the_order()), EPOCHS + 1, resume=checkpoint, workers=workers).rows
        result[f"{workers} workers"] = {"rows": model.rows, "evaluated": model.evaluated, "resumed": resumed}
    result["short"] = train(folder / "short", OrderSampler(the_order()), EPOCHS, stop_first=True).rows
    part = OrderSampler(the_order(), rank=torch.distributed.get_rank(), world_size=WORLD)
    try:
        train(folder / "refused", part, 1)
    except ValueError as error:
        result["refused"] = str(error)
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_by_two(loops, tmp_path_factory.mktemp("transformers"))


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_trainer_trains_on_every_row_once(workers: int, results: list[Any]) -> None:
    for rank in range(WORLD):
        result = results[rank][f"{workers} workers"]
        assert len(result["rows"]) == EPOCHS * BATCHES
        assert flat(result["rows"]) == [row for epoch in range(EPOCHS) for row in dealt_batches(rank, epoch)]
        for stop in STOPS:
            rest = dealt_batches(rank, 1)[stop * BATCH :] + dealt_batches(rank, 2)
            assert flat(result["resumed"][str(stop)]) == rest, f"after batch {stop}"
    assert set(results[0][f"{workers} workers"]["evaluated"] + results[1][f"{workers} workers"]["evaluated"]) == set(
        range(len(Rows()))
    )


def test_trainer_runs_full_epoch_after_a_stopped_one(results: list[Any]) -> None:
    for rank in range(WORLD):
        assert flat(results[rank]["short"]) == dealt_batches(rank, 0)[: 7 * BATCH] + dealt_batches(rank, 1)


def test_trainer_rejects_double_sharding(results: list[Any]) -> None:
    for rank in range(WORLD):
        assert (
            f"this sampler is a part already, with rank={rank} and world_size=2: leave both out"
            in results[rank]["refused"]
        )
