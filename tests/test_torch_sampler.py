"""Orders inside torch's own DataLoader: epochs, ranks, resuming."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from hbr_fast.sampler import Sampler, quota_order, uniform_order, weighted_order
from hbr_fast.torch_sampler import HardnessSampler, OrderSampler, process_place

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
def test_each_iteration_is_the_next_epoch_of_the_order(order: Sampler) -> None:
    sampler = OrderSampler(order)
    assert len(sampler) == len(order)
    for epoch in range(3):
        assert sampler.epoch == epoch
        assert list(sampler) == whole(order, epoch)
    sampler.set_epoch(1)
    assert list(sampler) == whole(order, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_the_order_in_batches(workers: int) -> None:
    order = quota_order(LABELS, [3, 4, 16], seed=1)
    dataset = TensorDataset(torch.arange(20))
    loader = DataLoader(dataset, sampler=OrderSampler(order), batch_size=5, num_workers=workers)
    assert len(loader) == 5
    for epoch in range(2):
        assert torch.cat([ids for (ids,) in loader]).tolist() == whole(order, epoch)


def test_inside_torchs_batch_sampler() -> None:
    order = uniform_order(20, seed=0)
    batches = list(BatchSampler(OrderSampler(order), batch_size=8, drop_last=False))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert [row for batch in batches for row in batch] == whole(order, 0)


@pytest.mark.parametrize("stop", [0, 1, 7, 19, 20])
def test_a_state_goes_on_where_it_was_taken(stop: int) -> None:
    order = uniform_order(20, seed=5)
    sampler = OrderSampler(order)
    list(sampler)  # an epoch before
    indices = iter(sampler)
    first = [next(indices) for _ in range(stop)]
    fresh = OrderSampler(order)
    fresh.load_state_dict(sampler.state_dict())
    assert len(fresh) == 20 - stop
    assert first + list(fresh) == whole(order, 1)
    assert list(fresh) == whole(order, 2)


def test_a_state_goes_on_with_another_number_of_ranks() -> None:
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


def test_a_state_of_another_order_is_refused() -> None:
    sampler = OrderSampler(uniform_order(20, seed=0))
    for other, name in ((uniform_order(20, seed=1), "seed"), (uniform_order(21, seed=0), "length")):
        with pytest.raises(ValueError, match=f"its {name} is"):
            sampler.load_state_dict(OrderSampler(other).state_dict())


def test_iterating_anew_in_the_middle_goes_on() -> None:
    # As with a loaded state: what was given out does not come again.
    sampler = OrderSampler(uniform_order(10, seed=0))
    first = [index for index, _ in zip(sampler, range(4), strict=False)]
    assert len(first) == 4
    assert len(sampler) == 6 - 1  # zip takes a fifth index before it sees that the range is over


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_does_not_fit_is_refused(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(ValueError, match=r"rank|world_size"):
        OrderSampler(uniform_order(10, seed=0), rank=rank, world_size=world_size)


def test_without_a_process_group_there_is_one_rank() -> None:
    assert process_place() == (0, 1)


def test_hardness_sampler_draws_hard_classes_more() -> None:
    scores = np.array([4.0, 2.0, 1.0])[LABELS]  # low is hard: class 2 is
    sampler = HardnessSampler(LABELS, scores_n=scores, alpha=1.0, seed=0)
    counts = np.bincount(LABELS[list(sampler)], minlength=3)
    # Ratios 1/4, 1/2, 1 of 20 samples: 2.86, 5.71, 11.43 by largest remainders.
    assert counts.tolist() == [3, 6, 11]
    high = HardnessSampler(LABELS, scores_n=scores, hard_is="high", seed=0)
    assert np.bincount(LABELS[list(high)], minlength=3).tolist() == [11, 6, 3]


def test_hardness_sampler_leaves_unobserved_samples_out_of_the_class_means() -> None:
    scores = np.array([4.0, 2.0, 1.0])[LABELS]
    scores[[0, 5]] = np.nan
    assert len(HardnessSampler(LABELS, scores_n=scores)) == 20
    scores[LABELS == 1] = np.nan
    with pytest.raises(ValueError, match="class 1 has no sample with a score"):
        HardnessSampler(LABELS, scores_n=scores)


def test_hardness_sampler_shifts_and_clips_where_told_to() -> None:
    scores = np.array([-1.0, 0.5, 4.0])[LABELS]
    with pytest.raises(ValueError, match="nonpositive="):
        HardnessSampler(LABELS, scores_n=scores)
    with pytest.raises(ValueError, match="clip=True"):
        HardnessSampler(LABELS, scores_n=scores, nonpositive="shift", alpha=9)
    sampler = HardnessSampler(LABELS, scores_n=scores, nonpositive="shift", alpha=9, clip=True)
    assert np.bincount(LABELS[list(sampler)]).tolist() == [18, 1, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.astype(float), "labels must be whole numbers, one a sample, got float64"),
        (LABELS[:, None], "labels must be whole numbers, one a sample"),
        (LABELS[:0], "labels must be whole numbers, one a sample"),
        (LABELS - 1, "labels must not be negative, got -1"),
        (LABELS * 2, "class 1 has no sample with a score"),
    ],
)
def test_hardness_sampler_refuses_labels_that_are_none(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardnessSampler(labels, scores_n=np.ones(len(labels)))


@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_an_epoch_out_of_range_is_refused_at_once(epoch: int) -> None:
    with pytest.raises(ValueError, match=r"epoch must be in \[0, 2\*\*32\)"):
        OrderSampler(uniform_order(10, seed=0)).set_epoch(epoch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either scores_n or counts_c"),
        ({"scores_n": np.ones(20), "counts_c": [1, 1, 1]}, "either scores_n or counts_c"),
        ({"scores_n": np.ones(19)}, "20 labels but 19 scores"),
        ({"counts_c": [1, 1]}, "labels go up to 2, but there are counts for 2 classes"),
    ],
)
def test_hardness_sampler_refuses_what_does_not_fit(arguments: dict[str, Sequence[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardnessSampler(LABELS, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_torchdatas_stateful_loader_goes_on_in_the_middle_of_an_epoch(workers: int, stop: int) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    order = quota_order(LABELS, [4, 6, 13], seed=6)

    def make_loader() -> StatefulDataLoader:
        dataset = TensorDataset(torch.arange(20))
        return StatefulDataLoader(dataset, sampler=OrderSampler(order), batch_size=5, num_workers=workers)

    loader = make_loader()
    batches = iter(loader)
    before = [next(batches)[0] for _ in range(stop)]
    fresh = make_loader()
    fresh.load_state_dict(loader.state_dict())
    after = [ids for (ids,) in fresh]
    assert torch.cat([*before, *after]).tolist() == whole(order, 0)
    assert torch.cat([ids for (ids,) in fresh]).tolist() == whole(order, 1)


def _in_a_group(rank: int, world_size: int, address: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    sampler = OrderSampler(quota_order(LABELS, [10, 20, 33], seed=2))
    np.save(f"{folder}/rank-{rank}.npy", np.array(list(sampler)))
    torch.distributed.destroy_process_group()


def test_the_ranks_of_a_process_group_share_the_order(tmp_path: Path) -> None:
    address = f"file://{tmp_path / 'rendezvous'}"
    torch.multiprocessing.spawn(_in_a_group, args=(2, address, str(tmp_path)), nprocs=2)
    even, odd = (np.load(tmp_path / f"rank-{rank}.npy", allow_pickle=False).tolist() for rank in range(2))
    rows = whole(quota_order(LABELS, [10, 20, 33], seed=2), 0)
    assert even == rows[::2]
    assert odd == [*rows[1::2], rows[0]]  # 63 positions: the second rank pads from the beginning
