"""Accelerate in two processes: it distributes batches itself, and rows are sharded once."""

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader
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
    assert_counts_are_exact,
    dealt_batches,
    part_of,
    rows_of,
    the_order,
    whole,
)

pytest.importorskip("accelerate")


def loader_of(sampler: OrderSampler, **options: Any) -> DataLoader[Any]:
    return DataLoader(Rows(), sampler=sampler, **{"batch_size": BATCH, **options})


def loops(folder: Path) -> dict[str, Any]:
    import accelerate

    made_before = OrderSampler(the_order())
    join_group(folder)
    accelerator = accelerate.Accelerator()
    assert accelerator.num_processes == WORLD
    made_after = OrderSampler(the_order())
    result: dict[str, Any] = {}
    for name, sampler, options in (
        ("made before", made_before, {}),
        ("made after", made_after, {}),
        ("workers", OrderSampler(the_order()), {"num_workers": 2, "collate_fn": as_rows}),
    ):
        result[name] = loops_over(accelerator, accelerator.prepare(loader_of(sampler, **options)), sampler)
    result["split"] = split_batches(accelerate)
    result["dispatched"] = dispatched(accelerate)
    result["stateful"] = stateful(accelerate)
    result["refused"] = refused(accelerator)
    result["not prepared"] = [row for batch in loader_of(OrderSampler(the_order())) for row in rows_of(batch)]
    return result


def loops_over(accelerator: Any, loader: Any, sampler: OrderSampler) -> dict[str, Any]:
    tests = accelerator.prepare(loader_of(OrderSampler(sequential_order(len(Rows())))))
    trained, evaluated, lengths = [], [], [len(loader)]
    for _ in range(EPOCHS):
        rows: list[int] = []
        for number, batch in enumerate(loader, 1):
            rows += rows_of(batch)
            if number == 4:
                evaluated.append([row for test in tests for row in rows_of(test)])
                lengths.append(len(loader))
        trained.append(rows)
    resumed = []
    for stop in STOPS:
        again = accelerator.prepare(loader_of(OrderSampler(the_order())))
        again.set_epoch(1)
        skipped = accelerator.skip_first_batches(again, stop)
        resumed.append([[row for batch in skipped for row in rows_of(batch)]])
        again.set_epoch(2)
        resumed[-1].append([row for batch in again for row in rows_of(batch)])
    return {"trained": trained, "evaluated": evaluated, "lengths": lengths, "resumed": resumed}


def split_batches(accelerate: Any) -> list[int]:
    config = accelerate.DataLoaderConfiguration(split_batches=True)
    loader = accelerate.Accelerator(dataloader_config=config).prepare(
        loader_of(OrderSampler(the_order()), batch_size=10)
    )
    return [row for batch in loader for row in rows_of(batch)]


def dispatched(accelerate: Any) -> list[int]:
    config = accelerate.DataLoaderConfiguration(dispatch_batches=True)
    loader = accelerate.Accelerator(dataloader_config=config).prepare(loader_of(OrderSampler(the_order())))
    return [row for batch in loader for row in rows_of(batch)]


def stateful(accelerate: Any) -> list[Any]:
    """Rows after some batches of epoch 1, from the loader's state; after the last batch the next epoch begins."""
    config = accelerate.DataLoaderConfiguration(use_stateful_dataloader=True)
    accelerator = accelerate.Accelerator(dataloader_config=config)
    loader, states = accelerator.prepare(loader_of(OrderSampler(the_order()))), []
    for epoch in range(EPOCHS):
        for number, _ in enumerate(loader, 1):
            if epoch == 1 and number in STOPS:
                states.append(loader.state_dict())
    resumed = []
    for stop, state in zip(STOPS, states, strict=True):
        again = accelerator.prepare(loader_of(OrderSampler(the_order())))
        again.load_state_dict(state)
        again.set_epoch(1 if stop < BATCHES else 2)
        resumed.append([row for batch in again for row in rows_of(batch)])
    return resumed


def refused(accelerator: Any) -> list[str]:
    said = []
    part = OrderSampler(the_order(), rank=accelerator.process_index, world_size=accelerator.num_processes)
    for ask in (len, lambda loader: next(iter(loader))):
        try:
            ask(accelerator.prepare(loader_of(part)))
        except ValueError as error:
            said.append(str(error))
    sampler = OrderSampler(the_order())
    next(iter(accelerator.prepare(loader_of(sampler))))
    for arguments in ({}, {"consumed": 5}):
        try:
            sampler.state_dict(**arguments)
        except ValueError as error:
            said.append(str(error))
    return said


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_by_two(loops, tmp_path_factory.mktemp("accelerate"))


@pytest.mark.parametrize("name", ["made before", "made after", "workers"])
def test_accelerate_prepared_loader_trains_on_every_row_once(name: str, results: list[Any]) -> None:
    for rank in range(WORLD):
        result = results[rank][name]
        assert result["trained"] == [dealt_batches(rank, epoch) for epoch in range(EPOCHS)]
        assert result["evaluated"] == [result["evaluated"][0]] * EPOCHS
        assert set(result["lengths"]) == {BATCHES}
        for stop, (rest, after) in zip(STOPS, result["resumed"], strict=True):
            assert rest == dealt_batches(rank, 1)[stop * BATCH :], f"skipped {stop} batches"
            assert after == dealt_batches(rank, 2)
    for epoch in range(EPOCHS):
        rows = [row for rank in range(WORLD) for row in results[rank][name]["trained"][epoch]]
        filled = whole(epoch)[: len(rows) - len(whole(epoch))]
        for row in filled:
            rows.remove(row)
        assert_counts_are_exact(rows)
    assert sorted(row for rank in range(WORLD) for row in results[rank][name]["evaluated"][0]) == list(range(200))


def test_accelerate_split_and_dispatched_batches_use_every_row_once(results: list[Any]) -> None:
    for name in ("split", "dispatched"):
        rows = [row for rank in range(WORLD) for row in results[rank][name]]
        assert set(rows) == set(whole(0)), name
        assert len(rows) - 94 < 10, name


def test_accelerate_stateful_loader_resumes(results: list[Any]) -> None:
    for rank in range(WORLD):
        for stop, rest in zip(STOPS, results[rank]["stateful"], strict=True):
            expected = dealt_batches(rank, 1)[stop * BATCH :] if stop < BATCHES else dealt_batches(rank, 2)
            assert rest == expected, f"after batch {stop}"


def test_accelerate_unprepared_loader_is_sharded_by_sampler(results: list[Any]) -> None:
    assert [results[rank]["not prepared"] for rank in range(WORLD)] == [part_of(rank, 0) for rank in range(WORLD)]


def test_accelerate_rejects_double_sharding_and_unknown_positions(results: list[Any]) -> None:
    for rank in range(WORLD):
        length, rows, state, consumed = results[rank]["refused"]
        for message in (length, rows):
            assert (
                f"BatchSamplerShard gives each process its part, and this sampler is a part already, with rank={rank}"
                in (message)
            )
        assert "Accelerate's DataLoaderShard takes indices before they are trained on" in state
        assert "resume as the trainer does, e.g. with Accelerate's skip_first_batches" in consumed
