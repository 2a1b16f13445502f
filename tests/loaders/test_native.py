from collections.abc import Callable

import numpy as np
import pytest
import torch

from hbr_fast.loaders import native
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.loader import Loader
from hbr_fast.orders import Sampler, quota_order, uniform_order
from loaders.contracts import MakeLoader, checks_of, checks_of_pictures, coded_split, textured_split, wait_until


@pytest.mark.parametrize("check", checks_of("native"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("block_bytes", [1, 100_000, native.BLOCK_BYTES])
def test_native_contract(
    check: Callable[[MakeLoader], None], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One batch a block, a few of them (not a divisor of the epoch), and the whole of a small epoch at once.
    monkeypatch.setattr(native, "BLOCK_BYTES", block_bytes)
    check(MakeLoader("native"))


@pytest.mark.parametrize("check", checks_of_pictures("native"), ids=lambda check: check.__name__)
def test_native_contract_of_pictures(check: Callable[[MakeLoader], None]) -> None:
    check(MakeLoader("native", encoded=True))


def test_native_aligns_batches_to_cache_lines() -> None:
    loader = Loader(textured_split(64, size=32), batch_size=16)
    assert all(batch.images.data_ptr() % 64 == 0 for batch in loader.epoch(0))


def test_native_reuses_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # Addresses alone prove nothing: the system's allocator also reuses them.
    allocations = []
    allocate = native._aligned

    def counted(size: int, dtype: type) -> np.ndarray:
        allocations.append(size)
        return allocate(size, dtype)

    monkeypatch.setattr(native, "_aligned", counted)
    monkeypatch.setattr(native, "BLOCK_BYTES", 1)
    for prefetch in (0, 2):
        allocations.clear()
        loader = Loader(textured_split(256), batch_size=8, threads=1, prefetch=prefetch)
        for epoch in range(4):
            for batch in loader.epoch(epoch):
                assert batch.images.shape[0] == 8
        assert 0 < len(allocations) <= 6  # of 128 batches


def test_native_prefetches_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    # With threads, requesting the first batch starts `prefetch` more; without, each batch is made on request.
    monkeypatch.setattr(native, "BLOCK_BYTES", 1)
    monkeypatch.setattr(native, "ROWS_AT_ONCE", 1)
    asked: list[int] = []

    class Order(Sampler):
        def __len__(self) -> int:
            return 64

        def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
            asked.append(start)
            return np.arange(start, start + count)

    split = textured_split(64, size=32)
    for threads, prefetch, batches_made in ((1, 0, 1), (1, 3, 4)):
        asked.clear()
        loader = Loader(split, order=Order(), batch_size=1, threads=threads, prefetch=prefetch)
        batches = loader.epoch(0)
        next(batches)
        wait_until(lambda: len(asked) >= batches_made, f"{batches_made} batches are made")  # noqa: B023
        assert sorted(asked) == list(range(batches_made))


def test_native_with_order_changes_only_order() -> None:
    labels = np.arange(12) % 3
    order = quota_order(labels, [4, 4, 4], seed=0)
    loader = Loader(coded_split(12), order=order, batch_size=5, drop_last=True, channels_last=True)
    other = loader.with_order(order.with_counts([0, 3, 9]))
    assert (len(loader), len(other)) == (2, 2)
    longer = loader.with_order(order.with_counts([10, 3, 9]))
    assert (len(longer), longer.samples) == (4, 20)
    ids = torch.cat([batch.ids for batch in other.epoch(0)]).tolist()
    assert ids == order.with_counts([0, 3, 9]).rows(0, 10, epoch=0).tolist()
    assert 0 not in labels[ids]
    with pytest.raises(ValueError, match="draws from 13 rows but the plan has 12"):
        loader.with_order(uniform_order(13, seed=0))


def test_native_shard_augments_like_whole_order() -> None:
    split = textured_split(23)
    order = uniform_order(23, seed=4)
    augment = Augment(flip=0.5, pad=2)
    loader = Loader(split, order=order, augment=augment, batch_size=4, seed=9)
    whole = torch.cat([batch.images for batch in loader.epoch(1)])
    for rank in range(3):
        shard = loader.with_order(order.shard(rank, 3, uneven="drop"))
        own = torch.cat([batch.images for batch in shard.epoch(1)])
        assert torch.equal(own, whole[rank:21:3])
