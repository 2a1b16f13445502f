"""A loader as an iterable: epochs, places, ranks, and copies of it in other processes."""

import copy
import itertools
import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast.data.images import RawImages
from hbr_fast.loaders.batch import Augment, Batch
from hbr_fast.loaders.loader import Loader
from hbr_fast.orders import uniform_order
from loaders.contracts import coded_split, textured_split


def make(samples: int = 47, **options: Any) -> Loader:
    return Loader(coded_split(samples), **{"batch_size": 5, "seed": 3, "backend": "native", **options})


def rows_in(batches: Iterable[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist()]


def whole(loader: Loader, epoch: int) -> list[int]:
    return rows_in(loader.epoch(epoch))


@pytest.mark.parametrize("prefetch", [0, 3])
def test_loader_loops_are_successive_epochs(prefetch: int) -> None:
    loader = make(prefetch=prefetch)
    assert next(iter(loader)).rows.tolist() == whole(loader, 0)[:5]
    assert rows_in(itertools.islice(loader, 7)) == whole(loader, 1)[:35]
    outer = iter(loader)
    seen = rows_in(itertools.islice(outer, 4))
    assert rows_in(loader) == whole(loader, 3)  # an evaluation in the middle of epoch 2
    assert seen + rows_in(outer) == whole(loader, 2)
    pairs = list(zip(loader, loader, strict=True))
    assert rows_in(one for one, _ in pairs) == whole(loader, 4)
    assert rows_in(other for _, other in pairs) == whole(loader, 5)
    assert len(loader) == 10


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("samples", [47, 50])
@pytest.mark.parametrize("stop", [0, 1, 5, 10, 11])
def test_loader_state_resumes_at_its_batch(samples: int, stop: int, prefetch: int) -> None:
    """`stop` batches into epoch 1 of 10 batches; 11 is after its end."""
    loader, seen = make(samples, prefetch=prefetch), []
    seen += rows_in(loader)
    state = loader.state_dict()
    for number, batch in enumerate(loader, 1):
        if stop == 0:
            break
        seen += batch.rows.tolist()
        state = json.loads(json.dumps(loader.state_dict()))
        if number == stop:
            break
    if stop == 11:
        state = loader.state_dict()
    for says_epoch in (False, True):
        resumed, rest = make(samples), []
        resumed.load_state_dict(state)
        assert len(resumed) == 10
        for epoch in range(state["epoch"], 4):
            if says_epoch:
                resumed.set_epoch(epoch)
            rest += rows_in(resumed)
        assert seen + rest == [row for epoch in range(4) for row in whole(loader, epoch)]


def test_loader_set_epoch_of_another_epoch_discards_loaded_place() -> None:
    loader = make()
    state = uniform_order(47, seed=3).state(epoch=3, position=10)
    loader.load_state_dict(state)
    loader.set_epoch(4)
    assert rows_in(loader) == whole(loader, 4)
    with pytest.raises(ValueError, match=r"this state is at position 12, within a batch of 5 rows: .* batch size"):
        loader.load_state_dict({**state, "position": 12})
    with pytest.raises(ValueError, match="its seed is 4, this order's is 3"):
        loader.load_state_dict(uniform_order(47, seed=4).state(epoch=3, position=10))


@pytest.mark.parametrize("samples", [211, 209, 208, 213])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_loader_shards_have_equal_batches_and_cover_loader(samples: int, drop_last: bool, world_size: int) -> None:
    loader = make(samples, batch_size=4, drop_last=drop_last)
    parts = [loader.shard(rank, world_size) for rank in range(world_size)]
    for start in (0, 3, len(loader)):
        batches = [list(part.epoch(1, start=start)) for part in parts]
        assert {len(own) for own in batches} == {len(loader) - start} == {len(part) - start for part in parts}
        for own, batch in zip(zip(*batches, strict=True), loader.epoch(1, start=start), strict=True):
            assert sorted(rows_in(own)) == sorted(batch.rows.tolist())
            assert all(part.images.shape[1:] == batch.images.shape[1:] for part in own)
    assert sum(part.samples for part in parts) == loader.samples


def test_loader_shard_without_rows_gets_empty_last_batch() -> None:
    last = list(make(209, batch_size=4, dtype=torch.bfloat16).shard(1, 2).epoch(0))[-1]
    assert last.images.shape == (0, 2, 6, 9)
    assert last.images.dtype == torch.bfloat16
    assert last.labels.dtype == last.ids.dtype == last.rows.dtype == torch.int64


def test_loader_shard_keeps_rank_with_another_order() -> None:
    loader, order = make(40, batch_size=4), uniform_order(40, seed=9)
    assert rows_in(loader.shard(1, 2).with_order(order).epoch(0)) == order.rows(1, 20, epoch=0, stride=2).tolist()
    with pytest.raises(ValueError, match="this loader is the part of rank 1 of 2 already: shard the whole one"):
        loader.shard(1, 2).shard(0, 2)


def test_loader_state_resumes_on_any_number_of_ranks() -> None:
    loader = make(48, batch_size=4)
    seen: list[int] = []
    for rank in range(2):
        part = loader.shard(rank, 2)
        seen += rows_in(itertools.islice(part, 5))
    for rank in range(4):
        part = loader.shard(rank, 4)
        part.load_state_dict(loader.shard(0, 2).state_dict() | {"position": 20})
        seen += rows_in(part)
    assert sorted(seen) == list(range(48))


COPIES: dict[str, Callable[[Loader], Loader]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda loader: pickle.loads(pickle.dumps(loader)),
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_loader_copy_resumes_at_same_place(name: str, prefetch: int) -> None:
    augment = Augment(flip=0.5, pad=2, cutout=3)
    loader = Loader(textured_split(40), augment=augment, batch_size=8, seed=1, prefetch=prefetch)
    list(loader)
    for original in (loader, loader.shard(1, 2)):
        twin = COPIES[name](original)
        assert twin._backend is not original._backend
        for ours, theirs in zip(original.epoch(3), twin.epoch(3), strict=True):
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    twin = COPIES[name](loader)
    assert rows_in(twin) == whole(loader, 1)
    assert rows_in(loader) == whole(loader, 1)  # independent places


def test_loader_pickles_images_on_disk_by_path(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.arange(60_000, dtype=np.uint8).reshape(100, 1, 20, 30))
    store = RawImages(np.load(tmp_path / "images.npy", mmap_mode="r"))
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    assert np.array_equal(pickle.loads(packed).array, store.array)
    part = RawImages(store.array[30:])  # a map of part of the file is pickled as bytes
    assert np.array_equal(pickle.loads(pickle.dumps(part)).array, store.array[30:])


def _rows_of_a_spawned_process(loader: Loader, path: Path) -> None:
    path.write_text(json.dumps(rows_in(loader)))


def test_loader_is_sent_to_spawned_process(tmp_path: Path) -> None:
    loader = make()
    process = multiprocessing.get_context("spawn").Process(
        target=_rows_of_a_spawned_process, args=(loader, tmp_path / "rows")
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert json.loads((tmp_path / "rows").read_text()) == whole(loader, 0)
