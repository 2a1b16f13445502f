"""A `Loader` in Accelerate's, Lightning's and Hugging Face's loops, in two processes: each trains on its rows, once."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from loaders.contracts import coded_split
from two_processes import join_group, run_by_two

from hbr_fast.loaders.batch import Batch
from hbr_fast.loaders.loader import Loader
from hbr_fast.orders import Sampler, sequential_order
from integrations.trained_rows import BATCH, BATCHES, EPOCHS, LABELS, STOPS, WORLD, part_of, the_order


def make_loader(order: Sampler | None = None) -> Loader:
    """The order of the samplers' tests, in batches of 5 rows on each of the two ranks."""
    return Loader(coded_split(len(LABELS)), order=order or the_order(), batch_size=BATCH * WORLD)


def model_output(layer: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return layer(images[:, :, 0, 0]).square().mean()


def expected(rank: int, *, after: int) -> dict[str, list[int]]:
    """Rows by epoch where a run that stopped after some batches of epoch 1 goes on up to epoch 2."""
    rest = {"1": part_of(rank, 1)[after * BATCH :], "2": part_of(rank, 2)}
    return {epoch: rows for epoch, rows in rest.items() if rows}


@pytest.mark.parametrize("name", ["accelerate", "lightning", "transformers"])
def test_loader_trains_each_rank_on_its_rows_once(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    run = {"accelerate": accelerate, "lightning": lightning, "transformers": transformers}[name]
    results = run_by_two(run, tmp_path)
    for rank in range(WORLD):
        result = results[rank]
        assert result["length"] == BATCHES
        assert result["trained"] == {str(epoch): part_of(rank, epoch) for epoch in range(EPOCHS)}
        for stop, resumed in result["resumed"].items():
            after = BATCHES if stop == "end" else int(stop)
            assert resumed == expected(rank, after=after), f"after {stop}"
        if name != "lightning":  # which skips no batches, but loads the loader's state
            assert result["refused"].startswith(
                "a Loader has no dataset whose batches could be skipped: call loader.load"
            )


def accelerate(folder: Path) -> dict[str, Any]:
    import accelerate

    join_group(folder)
    accelerator = accelerate.Accelerator()
    loader = accelerator.prepare(make_loader())
    trained: dict[int, list[int]] = defaultdict(list)
    states: dict[Any, str] = {}
    for epoch in range(EPOCHS):
        for number, batch in enumerate(loader, 1):
            trained[epoch] += batch.rows.tolist()
            if epoch == 1 and number in STOPS:
                states[number] = json.dumps(loader.state_dict())
    states["end"] = json.dumps(loader.state_dict())
    resumed: dict[Any, Any] = {}
    for stop, state in states.items():
        again = accelerator.prepare(make_loader())
        rows: dict[int, list[int]] = defaultdict(list)
        again.load_state_dict(json.loads(state))
        for epoch in range(1 if stop in STOPS[:-1] else 2, EPOCHS + 1):
            again.set_epoch(epoch)
            for batch in again:
                rows[epoch] += batch.rows.tolist()
        resumed[stop] = rows
    result = {"length": len(loader), "trained": trained, "resumed": resumed}
    try:
        accelerator.skip_first_batches(loader, 3)
    except AttributeError as error:
        result["refused"] = str(error)
    return result


def lightning(folder: Path) -> dict[str, Any]:
    from integrations.test_lightning_samplers import Model, SaveAt, trainer_of

    class ImageModel(Model):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.trained[self.current_epoch] += batch.rows.tolist()
            return model_output(self.layer, batch.images)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.evaluated[-1].extend(batch.rows.tolist())

    join_group(folder)
    model = ImageModel()
    trainer = trainer_of(EPOCHS, callbacks=[SaveAt(folder)], val_check_interval=4)
    trainer.fit(model, make_loader(), make_loader(sequential_order(len(LABELS))))
    assert model.evaluated == [list(range(len(LABELS)))[torch.distributed.get_rank() :: WORLD]] * (EPOCHS * 2)
    resumed = {}
    for stop in ("end", *STOPS[:-1]):
        again = ImageModel()
        trainer_of(EPOCHS + 1).fit(again, make_loader(), ckpt_path=folder / f"{stop}.ckpt", weights_only=False)
        resumed[stop] = again.trained
    return {"length": trainer.num_training_batches, "trained": model.trained, "resumed": resumed}


def transformers(folder: Path) -> dict[str, Any]:
    import transformers as package

    hf: Any = package

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 4)
            self.steps: list[list[int]] = []

        def forward(self, images: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            self.steps.append(rows.tolist())
            return {"loss": model_output(self.layer, images)}

    class SaveState(hf.TrainerCallback):
        def __init__(self, loader: Loader) -> None:
            self.loader = loader

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_save = state.global_step - BATCHES in STOPS

        def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            file = folder / f"loader-{state.global_step - BATCHES}-{torch.distributed.get_rank()}.json"
            file.write_text(json.dumps(self.loader.state_dict()))

    class LoaderTrainer(hf.Trainer):
        """As docs/loading.md has it."""

        loader: Loader

        def get_train_dataloader(self) -> Loader:
            return self.loader

        def _prepare_inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"images": batch.images, "rows": batch.rows}

    def train(loader: Loader, epochs: int, *, resume: str | None = None, ignore_data_skip: bool = True) -> Model:
        arguments = hf.TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            ddp_backend="gloo",
            ddp_find_unused_parameters=False,
            ignore_data_skip=ignore_data_skip,
        )
        model = Model()
        trainer = LoaderTrainer(model, arguments, callbacks=[SaveState(loader)], train_dataset=None)
        trainer.loader = loader
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == epochs * BATCHES
        return model

    def by_epoch(steps: list[list[int]], *, before: int = 0) -> dict[int, list[int]]:
        epochs: dict[int, list[int]] = defaultdict(list)
        for step, rows in enumerate(steps, before):
            epochs[step // BATCHES] += rows
        return epochs

    join_group(folder)
    loader = make_loader()
    model = train(loader, EPOCHS)
    resumed = {}
    for stop in STOPS:
        again, checkpoint = make_loader(), str(folder / f"checkpoint-{BATCHES + stop}")
        state = (folder / f"loader-{stop}-{torch.distributed.get_rank()}.json").read_text()
        again.load_state_dict(json.loads(state))
        resumed[stop] = by_epoch(train(again, EPOCHS + 1, resume=checkpoint).steps, before=BATCHES + stop)
    result = {"length": len(loader), "trained": by_epoch(model.steps), "resumed": resumed}
    try:
        train(make_loader(), EPOCHS, resume=str(folder / f"checkpoint-{BATCHES + 1}"), ignore_data_skip=False)
    except AttributeError as error:
        result["refused"] = str(error)
    return result
