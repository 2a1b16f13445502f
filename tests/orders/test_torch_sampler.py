"""Orders inside torch's own DataLoader: epochs, ranks, resuming."""

import copy
import itertools
import json
import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from hbr_fast.orders import Sampler, quota_order, uniform_order, weighted_order
from hbr_fast.orders.torch_sampler import OrderSampler, process_place

LABELS = np.repeat([0, 1, 2], [5, 7, 8])


def whole(order: Sampler, epoch: int) -> list[int]:
    return order.rows(0, len(order), epoch=epoch).tolist()


@pytest.mark.parametrize(
    "order",
    [
        uniform_order(5000, seed=3),
        quota_order(np.arange(5000) % 7, [100, 2000, 714, 5, 1000, 0, 1300], seed=3),
        weighted_order(np.arange(5000.0), seed=3),
    ],
)
def test_order_sampler_iterations_are_successive_epochs(order: Sampler) -> None:
    sampler = OrderSampler(order)
    assert len(sampler) == len(order)
    for epoch in range(3):
        assert sampler.epoch == epoch
        assert list(sampler) == whole(order, epoch)
    sampler.set_epoch(1)
    assert list(sampler) == whole(order, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_order_sampler_in_data_loader(workers: int) -> None:
    order = quota_order(LABELS, [3, 4, 16], seed=1)
    dataset = TensorDataset(torch.arange(20))
    loader = DataLoader(dataset, sampler=OrderSampler(order), batch_size=5, num_workers=workers)
    assert len(loader) == 5
    for epoch in range(2):
        assert torch.cat([ids for (ids,) in loader]).tolist() == whole(order, epoch)


@pytest.mark.parametrize("order", [np.arange(20), [1, 2], OrderSampler(uniform_order(20, seed=0)), None])
def test_order_sampler_refuses_what_is_no_order(order: Any) -> None:
    message = rf"order must be e\.g\. uniform_order.*, got {type(order).__name__}$"
    with pytest.raises(ValueError, match=message):
        OrderSampler(order)
    with pytest.raises(ValueError, match=message):
        OrderSampler(uniform_order(20, seed=0)).set_order(order)


def test_order_sampler_in_batch_sampler() -> None:
    order = uniform_order(20, seed=0)
    batches = list(BatchSampler(OrderSampler(order), batch_size=8, drop_last=False))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert [row for batch in batches for row in batch] == whole(order, 0)


@pytest.mark.parametrize("stop", [0, 1, 7, 19, 20])
def test_order_sampler_resumes_from_state(stop: int) -> None:
    order = uniform_order(20, seed=5)
    sampler = OrderSampler(order)
    list(sampler)  # an epoch before
    indices = iter(sampler)
    first = [next(indices) for _ in range(stop)]
    fresh = OrderSampler(order)
    fresh.load_state_dict(sampler.state_dict())
    assert len(fresh) == 20
    assert first + list(fresh) == whole(order, 1)
    assert list(fresh) == whole(order, 2)


def test_order_sampler_of_processes_that_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = OrderSampler(uniform_order(10, seed=0))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="WORLD_SIZE says that 2 processes were launched"):
        assert len(list(sampler)) == 10
    monkeypatch.setenv("WORLD_SIZE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(sampler)) == 10


def test_order_sampler_resumes_with_another_number_of_ranks() -> None:
    order = quota_order(LABELS, [10, 20, 33], seed=2)
    seen: list[int] = []
    for rank in range(3):
        sampler = OrderSampler(order, rank=rank, world_size=3)
        indices = iter(sampler)
        seen += [next(indices) for _ in range(8)]
        state = sampler.state_dict()
        assert state["position"] == 24
    for rank in range(5):
        sampler = OrderSampler(order, rank=rank, world_size=5, uneven="drop")
        sampler.load_state_dict(state)
        seen += list(sampler)
        assert list(sampler) == whole(order, 1)[rank:60:5]  # the next epoch is whole again
    # 63 positions: 24 by three ranks, 35 by five, and the 4 that five ranks cannot share are dropped.
    assert sorted(seen) == sorted(whole(order, 0)[:59])


def test_order_sampler_refuses_state_of_another_order() -> None:
    sampler = OrderSampler(uniform_order(20, seed=0))
    for other, name in ((uniform_order(20, seed=1), "seed"), (uniform_order(21, seed=0), "length")):
        with pytest.raises(ValueError, match=f"its {name} is"):
            sampler.load_state_dict(OrderSampler(other).state_dict())


def loader_of(sampler: OrderSampler, *, size: int = 5, workers: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(Rows(sampler.order.num_rows), sampler=sampler, batch_size=size, num_workers=workers, **options)


class Rows(torch.utils.data.Dataset[int]):
    """A data set whose sample is its own index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def rows_in(batches: Iterable[Any]) -> list[int]:
    return [row for batch in batches for row in batch.tolist()]


WORKERS = [
    pytest.param({}, id="no workers"),
    pytest.param({"workers": 2}, id="workers"),
    pytest.param({"workers": 2, "persistent_workers": True}, id="persistent workers"),
]


@pytest.mark.parametrize("options", WORKERS)
def test_order_sampler_loops_over_one_loader_are_independent(options: dict[str, Any]) -> None:
    order = uniform_order(47, seed=0)
    loader = loader_of(OrderSampler(order), **options)
    assert len(loader) == 10
    assert next(iter(loader)).tolist() == whole(order, 0)[:5]
    assert len(loader) == 10  # an iterator lives, or did
    assert rows_in(itertools.islice(loader, 7)) == whole(order, 1)[:35]  # left early
    assert rows_in(loader) == whole(order, 2)
    if "persistent_workers" in options:
        return  # torch restarts the only iterator of such a loader
    outer = iter(loader)
    seen = rows_in(itertools.islice(outer, 4))
    assert rows_in(loader) == whole(order, 4)  # an evaluation in the middle of epoch 3
    assert seen + rows_in(outer) == whole(order, 3)
    pairs = list(zip(loader, loader, strict=True))
    assert rows_in(one for one, _ in pairs) == whole(order, 5)
    assert rows_in(other for _, other in pairs) == whole(order, 6)


@pytest.mark.parametrize("length", [47, 50])
@pytest.mark.parametrize("stop", [0, 1, 5, 10, 11])
@pytest.mark.parametrize("says_epoch", [False, True])
def test_order_sampler_state_resumes_loop(length: int, stop: int, says_epoch: bool) -> None:
    """`stop` batches into epoch 1 of 10 batches; 11 is after its end."""
    order = uniform_order(length, seed=3)
    sampler = OrderSampler(order)
    loader = loader_of(sampler)
    seen, state, epoch = rows_in(loader), {}, 1
    if stop == 0:
        state = sampler.state_dict()
    for number, batch in enumerate(loader, 1):
        if stop:
            seen += batch.tolist()
        if number == stop:
            state = json.loads(json.dumps(sampler.state_dict()))
            assert state == sampler.state_dict(consumed=min(5 * stop, length))
        if number >= stop and stop < 11:
            break
    if stop == 11:
        state, epoch = sampler.state_dict(), 2
    resumed = OrderSampler(order)
    resumed.load_state_dict(state)
    assert len(resumed) == length
    loader = loader_of(resumed)
    for e in range(epoch, 4):
        if says_epoch:
            resumed.set_epoch(e)
        seen += rows_in(loader)
    assert seen == [row for e in range(4) for row in whole(order, e)]


def test_order_sampler_set_epoch_of_another_epoch_discards_loaded_place() -> None:
    order = uniform_order(20, seed=5)
    sampler = OrderSampler(order)
    sampler.load_state_dict(order.state(epoch=3, position=8))
    sampler.set_epoch(3)
    assert list(sampler) == whole(order, 3)[8:]
    sampler.load_state_dict(order.state(epoch=3, position=8))
    sampler.set_epoch(4)
    assert list(sampler) == whole(order, 4)
    sampler.set_epoch(4)  # the place belonged to an iteration, not to a loaded state
    assert list(sampler) == whole(order, 4)


@pytest.mark.parametrize("options", WORKERS[1:])
def test_order_sampler_state_with_workers_counts_consumed_samples(options: dict[str, Any]) -> None:
    order = uniform_order(47, seed=4)
    sampler = OrderSampler(order)
    loader, seen = loader_of(sampler, **options), []
    for batch in loader:
        seen += batch.tolist()
        with pytest.raises(
            ValueError, match=r"a DataLoader with workers takes indices before .* state_dict\(consumed="
        ):
            sampler.state_dict()
        if len(seen) == 15:
            break
    state = sampler.state_dict(consumed=len(seen))
    with pytest.raises(ValueError, match=r"consumed must be in \[0, \d+\], the indices handed out, got 48"):
        sampler.state_dict(consumed=48)
    resumed = OrderSampler(order)
    resumed.load_state_dict(state)
    again = loader_of(resumed, **options)
    assert seen + rows_in(again) == whole(order, 0)
    assert resumed.state_dict(consumed=32)["position"] == 47
    resumed.set_epoch(1)  # epoch 0 is over
    assert resumed.state_dict() == order.state(epoch=1, position=0)
    assert rows_in(again) == whole(order, 1)


def test_order_sampler_consumed_before_first_iteration() -> None:
    sampler = OrderSampler(uniform_order(10, seed=0))
    assert sampler.state_dict(consumed=0)["position"] == 0
    with pytest.raises(ValueError, match="no iteration has begun, so none of its indices can be consumed, got 3"):
        sampler.state_dict(consumed=3)


def test_order_sampler_state_after_dropped_rest_is_end_of_epoch() -> None:
    order = uniform_order(63, seed=0)
    sampler = OrderSampler(order, rank=1, world_size=5, uneven="drop")
    indices = iter(sampler)
    for _ in range(12):
        next(indices)
    assert sampler.state_dict()["position"] == 63
    other = OrderSampler(order, rank=0, world_size=3)
    other.load_state_dict(sampler.state_dict())
    assert list(other) == []


def test_order_sampler_set_order_changes_only_next_epoch() -> None:
    order = weighted_order(np.arange(20.0), seed=0)
    sampler = OrderSampler(order)
    indices = iter(sampler)
    first = [next(indices) for _ in range(5)]
    other = order.with_weights(np.arange(20.0)[::-1])
    sampler.set_order(other)
    assert first + list(indices) == whole(order, 0)
    assert list(sampler) == whole(other, 1)
    assert sampler.state_dict() == other.state(epoch=2, position=0)
    longer = weighted_order(np.ones(20), seed=0, length=33)
    sampler.set_order(longer)
    assert len(sampler) == 33
    with pytest.raises(ValueError, match="the sampler draws from 20 rows, the order from 21"):
        sampler.set_order(uniform_order(21, seed=0))
    sampler.load_state_dict(longer.state(epoch=0, position=3))
    with pytest.raises(ValueError, match="set the order first, then load its state"):
        sampler.set_order(order)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
def test_order_sampler_copy_starts_at_same_place(copied: Callable[[OrderSampler], OrderSampler]) -> None:
    order = uniform_order(20, seed=5)
    sampler = OrderSampler(order)
    next(iter(sampler))
    assert list(copied(sampler)) == whole(order, 1)
    sampler.load_state_dict(order.state(epoch=3, position=8))
    assert list(copied(sampler)) == whole(order, 3)[8:]


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_order_sampler_refuses_invalid_rank(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(ValueError, match=r"rank|world_size"):
        OrderSampler(uniform_order(10, seed=0), rank=rank, world_size=world_size)


def test_order_sampler_without_process_group_has_one_rank() -> None:
    assert process_place() == (0, 1)


@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_order_sampler_refuses_epoch_out_of_range(epoch: int) -> None:
    with pytest.raises(ValueError, match=r"epoch must be in \[0, 2\*\*32\)"):
        OrderSampler(uniform_order(10, seed=0)).set_epoch(epoch)


def _in_a_group(rank: int, world_size: int, address: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    sampler = OrderSampler(quota_order(LABELS, [10, 20, 33], seed=2))
    np.save(f"{folder}/rank-{rank}.npy", np.array(list(sampler)))
    torch.distributed.destroy_process_group()


def test_order_sampler_shares_order_between_ranks(tmp_path: Path) -> None:
    address = f"file://{tmp_path / 'rendezvous'}"
    torch.multiprocessing.spawn(_in_a_group, args=(2, address, str(tmp_path)), nprocs=2)
    even, odd = (np.load(tmp_path / f"rank-{rank}.npy", allow_pickle=False).tolist() for rank in range(2))
    rows = whole(quota_order(LABELS, [10, 20, 33], seed=2), 0)
    assert even == rows[::2]
    assert odd == [*rows[1::2], rows[0]]  # 63 positions: the second rank pads from the beginning
