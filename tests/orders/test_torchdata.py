"""Orders in torchdata's StatefulDataLoader behave like its own RandomSampler in every case."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from hbr_fast.orders import uniform_order
from hbr_fast.orders.torch_sampler import OrderSampler

EPOCHS = 3


class Rows(torch.utils.data.Dataset[int]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def ours(length: int, **options: Any) -> StatefulDataLoader:
    return StatefulDataLoader(Rows(length), sampler=OrderSampler(uniform_order(length, seed=1)), **options)


def torchdatas(length: int, **options: Any) -> StatefulDataLoader:
    generator = torch.Generator().manual_seed(0)
    return StatefulDataLoader(Rows(length), sampler=RandomSampler(range(length), generator=generator), **options)


def rows_of(batch: Any) -> list[int]:
    return torch.as_tensor(batch).reshape(-1).tolist()


def without_workers(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if "workers" not in name}


def epochs_of(loader: Iterable[Any], count: int) -> Iterator[list[list[int]]]:
    for _ in range(count):
        yield [rows_of(batch) for batch in loader]


CASES = [
    {"batch_size": 5},
    {"batch_size": 5, "drop_last": True},
    {"batch_size": 5, "num_workers": 2},
    {"batch_size": 5, "num_workers": 2, "persistent_workers": True},
    {"batch_size": None},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("length", [47, 50])
def test_stateful_loader_resumes_like_torchdata_sampler(length: int, options: dict[str, Any]) -> None:
    """Saved in epoch 1 after its first batch, in the middle, after the last, and after its end."""
    batches = len(ours(length, **options))
    for stop in (1, batches // 2, batches, batches + 1):
        shapes = []
        for make in (ours, torchdatas):
            without = list(epochs_of(make(length, **without_workers(options)), EPOCHS))
            loader = make(length, **options)
            seen = list(epochs_of(loader, 1))
            state, begun = None, []
            for number, batch in enumerate(loader, 1):
                begun.append(rows_of(batch))
                if number == stop:
                    state = loader.state_dict()
                    break
            state = loader.state_dict() if state is None else state
            resumed = make(length, **options)
            resumed.load_state_dict(state)
            assert len(resumed) == batches
            rest = list(epochs_of(resumed, EPOCHS - 1))
            shapes.append([[len(batch) for batch in epoch] for epoch in rest])
            if make is ours:
                if stop > batches:
                    assert [*seen, begun, *rest[: EPOCHS - 2]] == without
                else:
                    assert [*seen, begun + rest[0], *rest[1:]] == without
        assert shapes[0] == shapes[1], f"after {stop} batches"


def test_stateful_loader_starts_whole_epoch_after_early_break() -> None:
    for workers in (0, 2):
        loader = ours(47, batch_size=5, num_workers=workers)
        without = list(epochs_of(ours(47, batch_size=5), EPOCHS))
        for number, _ in enumerate(loader):
            if number == 6:
                break
        assert list(epochs_of(loader, 2)) == without[1:]


def test_order_sampler_refuses_state_dict_only_with_workers() -> None:
    for workers in (0, 2):
        loader = ours(47, batch_size=5, num_workers=workers)
        next(iter(loader))
        if workers:
            with pytest.raises(ValueError, match="a DataLoader with workers takes indices before they are trained on"):
                loader.sampler.state_dict()
        else:
            assert loader.sampler.state_dict()["position"] == 5


def test_stateful_loader_state_is_json() -> None:
    loader = ours(47, batch_size=5)
    next(iter(loader))
    assert json.loads(json.dumps(loader.state_dict())) == loader.state_dict()


def test_stateful_loader_ranks_resume_elastically() -> None:
    order = uniform_order(60, seed=2)
    seen, states = [], []
    for rank in range(2):
        loader = StatefulDataLoader(Rows(60), sampler=OrderSampler(order, rank=rank, world_size=2), batch_size=5)
        batches = iter(loader)
        seen += [row for _ in range(3) for row in next(batches).tolist()]
        states.append(loader.state_dict())
    for rank in range(3):
        loader = StatefulDataLoader(Rows(60), sampler=OrderSampler(order, rank=rank, world_size=3), batch_size=5)
        loader.load_state_dict(states[0])
        seen += [row for batch in loader for row in batch.tolist()]
    assert sorted(seen) == list(range(60))
