"""The rows each rank trains on in plain loops over torch's and torchdata's loaders, in two processes."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from two_processes import join_group, run_by_two

from hbr_fast.orders import sequential_order
from hbr_fast.orders.torch_sampler import OrderSampler
from integrations.trained_rows import (
    BATCH,
    BATCHES,
    EPOCHS,
    STOPS,
    WORLD,
    Rows,
    as_rows,
    part_of,
    rows_of,
    the_order,
    whole,
)

LOADERS: dict[str, tuple[type[DataLoader[Any]], dict[str, Any]]] = {
    "plain": (DataLoader, {}),
    "plain, workers": (DataLoader, {"num_workers": 2}),
    "plain, persistent workers": (DataLoader, {"num_workers": 2, "persistent_workers": True}),
    "stateful": (StatefulDataLoader, {}),
    "stateful, workers": (StatefulDataLoader, {"num_workers": 2}),
}


def loops(folder: Path) -> dict[str, Any]:
    samplers = {name: OrderSampler(the_order()) for name in LOADERS}  # before the group exists
    join_group(folder)
    return {name: loops_over(samplers[name], *kind) for name, kind in LOADERS.items()}


def loops_over(sampler: OrderSampler, kind: type[DataLoader[Any]], options: dict[str, Any]) -> dict[str, Any]:
    def make(sampler: OrderSampler) -> Any:
        return kind(Rows(), sampler=sampler, batch_size=BATCH, collate_fn=as_rows, **options)

    loader, tests = make(sampler), make(OrderSampler(sequential_order(len(Rows()))))
    trained, evaluated, states, lengths = [], [], [], [len(loader)]
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        rows: list[int] = []
        for number, batch in enumerate(loader, 1):
            rows += rows_of(batch)
            if number == 4:
                evaluated.append(rows_in(tests))
            if epoch == 1 and number in STOPS:
                states.append(
                    loader.state_dict() if kind is StatefulDataLoader else sampler.state_dict(consumed=len(rows))
                )
                lengths.append(len(loader))
        trained.append(rows)
    sampler.set_epoch(EPOCHS)
    states.append(loader.state_dict() if kind is StatefulDataLoader else sampler.state_dict())
    resumed = []
    for state in states:
        fresh = OrderSampler(the_order())
        again = make(fresh)
        (again if kind is StatefulDataLoader else fresh).load_state_dict(state)
        lengths.append(len(again))
        resumed.append(rows_in(again))
    left_early = rows_in(itertools.islice(make(sampler), 7))
    return {
        "trained": trained,
        "evaluated": evaluated,
        "lengths": lengths,
        "resumed": resumed,
        "left early": left_early,
        "after leaving": rows_in(loader),
    }


def rows_in(batches: Iterable[Any]) -> list[int]:
    return [row for batch in batches for row in rows_of(batch)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_by_two(loops, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", LOADERS)
def test_plain_loops_train_every_rank_on_its_shard(name: str, results: list[Any]) -> None:
    for rank in range(WORLD):
        result = results[rank][name]
        assert result["trained"] == [part_of(rank, epoch) for epoch in range(EPOCHS)]
        assert result["evaluated"] == [list(range(200))[rank::WORLD]] * EPOCHS
        assert set(result["lengths"]) == {BATCHES}
        for stop, resumed in zip(STOPS, result["resumed"][:-1], strict=True):
            assert result["trained"][1][: stop * BATCH] + resumed == part_of(rank, 1), f"after batch {stop}"
        assert result["resumed"][-1] == part_of(rank, EPOCHS), "after the end"
        assert result["left early"] == part_of(rank, EPOCHS)[: 7 * BATCH]
        assert result["after leaving"] == part_of(rank, EPOCHS + 1)
    assert sorted(results[0][name]["trained"][0] + results[1][name]["trained"][0]) == sorted(whole(0))
