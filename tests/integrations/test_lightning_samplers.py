"""The rows each rank trains on with Lightning's ddp in two processes, with and without `use_distributed_sampler`."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from two_processes import join_group, run_by_two

from hbr_fast.orders import sequential_order, uniform_order
from hbr_fast.orders.torch_sampler import OrderSampler
from integrations.trained_rows import (
    BATCH,
    BATCHES,
    EPOCHS,
    LABELS,
    STOPS,
    WORLD,
    Rows,
    part_of,
    rows_of,
    the_order,
)

lightning: Any = pytest.importorskip("lightning")

CASES: dict[str, tuple[type[DataLoader[Any]], dict[str, Any], dict[str, Any]]] = {
    "default": (DataLoader, {}, {}),
    "default, workers": (DataLoader, {"num_workers": 2}, {}),
    "not use_distributed_sampler": (DataLoader, {}, {"use_distributed_sampler": False}),
    "stateful": (StatefulDataLoader, {}, {}),
    "stateful, workers": (StatefulDataLoader, {"num_workers": 2}, {}),
}


class Model(lightning.LightningModule):
    """Record the rows of every step by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 4)
        self.trained: dict[int, list[int]] = defaultdict(list)
        self.evaluated: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.trained[self.current_epoch] += rows_of(batch)
        return self.layer(batch["x"]).square().mean()

    def on_validation_start(self) -> None:
        self.evaluated.append([])

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.evaluated[-1].extend(rows_of(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class SaveAt(lightning.Callback):
    """Save after some batches of the second epoch, and after its end."""

    def __init__(self, folder: Path, stops: Sequence[int] = STOPS) -> None:
        self.folder, self.stops = folder, stops

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx + 1 in self.stops:
            trainer.save_checkpoint(self.folder / f"{batch_idx + 1}.ckpt")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.folder / "end.ckpt")


def trainer_of(epochs: int, **options: Any) -> Any:
    return lightning.Trainer(
        **{
            "accelerator": "cpu",
            "devices": WORLD,
            "strategy": "ddp",
            "max_epochs": epochs,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **options,
        }
    )


def loops(folder: Path) -> dict[str, Any]:
    samplers = {name: OrderSampler(the_order()) for name in CASES}
    join_group(folder)
    return {name: fits(samplers[name], folder / name, *case) for name, case in CASES.items()}


def fits(
    sampler: OrderSampler, folder: Path, kind: type[DataLoader[Any]], loader: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    def make(sampler: OrderSampler) -> DataLoader[Any]:
        return kind(Rows(), sampler=sampler, batch_size=BATCH, **loader)

    folder.mkdir(exist_ok=True)
    tests = make(OrderSampler(sequential_order(len(Rows()))))
    model = Model()
    trainer = trainer_of(EPOCHS, callbacks=[SaveAt(folder)], val_check_interval=4, **options)
    trainer.fit(model, make(sampler), tests)
    resumed = {}
    # The last test has the state of an epoch's last batch.
    stops = ("end", *(STOPS[:-1] if kind is StatefulDataLoader else ()))
    for stop in stops:
        again = Model()
        trainer_of(EPOCHS + 1, **options).fit(
            again, make(OrderSampler(the_order())), ckpt_path=folder / f"{stop}.ckpt", weights_only=False
        )
        resumed[str(stop)] = again.trained
    short = Model()
    trainer_of(EPOCHS, limit_train_batches=7, **options).fit(short, make(OrderSampler(the_order())))
    return {
        "trained": model.trained,
        "evaluated": model.evaluated,
        "length": trainer.num_training_batches,
        "resumed": resumed,
        "short": short.trained,
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_by_two(loops, tmp_path_factory.mktemp("lightning"))


@pytest.mark.parametrize("name", CASES)
def test_lightning_trains_every_rank_on_its_shard(name: str, results: list[Any]) -> None:
    for rank in range(WORLD):
        result = results[rank][name]
        assert result["trained"] == {str(epoch): part_of(rank, epoch) for epoch in range(EPOCHS)}
        assert result["length"] == BATCHES
        assert result["evaluated"] == [list(range(200))[rank::WORLD]] * (EPOCHS * 2)
        assert result["short"] == {str(epoch): part_of(rank, epoch)[: 7 * BATCH] for epoch in range(EPOCHS)}
        assert result["resumed"].pop("end") == {"2": part_of(rank, 2)}
        for stop, resumed in result["resumed"].items():
            rest = {"1": part_of(rank, 1)[int(stop) * BATCH :], "2": part_of(rank, 2)}
            assert resumed == {epoch: rows for epoch, rows in rest.items() if rows}, f"after batch {stop}"


@pytest.mark.parametrize("ours", [True, False])
def test_lightning_skips_the_epoch_after_a_state_of_the_last_batch(ours: bool, tmp_path: Path) -> None:
    """Lightning takes the restored, exhausted loader for the next epoch: also with torchdata's own sampler."""

    def make() -> Any:
        order = {"sampler": OrderSampler(uniform_order(len(LABELS), seed=1))} if ours else {"shuffle": True}
        return StatefulDataLoader(Rows(), batch_size=len(LABELS) // 2, **order)

    alone = {"devices": 1, "strategy": "auto"}
    trainer_of(2, callbacks=[SaveAt(tmp_path, [2])], **alone).fit(Model(), make())
    lengths = {}
    for place in ("2", "end"):
        again = Model()
        trainer_of(4, **alone).fit(again, make(), ckpt_path=tmp_path / f"{place}.ckpt", weights_only=False)
        lengths[place] = {epoch: len(rows) for epoch, rows in again.trained.items()}
    assert lengths == {"2": {3: 200}, "end": {2: 200, 3: 200}}
