from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, get_worker_info

from hbr_fast.integrations.ids import WithIds, labels_and_ids


class Stream(IterableDataset[Any]):
    """Ten samples, divided among the workers."""

    def __iter__(self) -> Iterator[tuple[float, int, int]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter([(float(i), i % 3, 100 + i) for i in range(10)][first::step])


def test_with_ids_match_their_samples_through_a_loader() -> None:
    inputs, labels = torch.arange(10.0), torch.arange(10) % 3
    tuples = DataLoader(WithIds(TensorDataset(inputs, labels)), batch_size=4, shuffle=True)
    items = [{"inputs": x, "label": y} for x, y in zip(inputs, labels, strict=True)]
    mappings = DataLoader(WithIds(items), batch_size=4, shuffle=True)
    for loader in (tuples, mappings):
        seen = []
        for batch in loader:
            found, ids = labels_and_ids(batch)
            x = batch["inputs"] if isinstance(batch, dict) else batch[0]
            assert torch.equal(x, inputs[ids])
            assert torch.equal(found, labels[ids])
            seen += ids.tolist()
        assert sorted(seen) == list(range(10))


def test_with_ids_index_from_the_end() -> None:
    assert WithIds([("a", 0), ("b", 1)])[-1] == ("b", 1, 1)
    assert len(WithIds([("a", 0), ("b", 1)])) == 2


def test_with_ids_items_of_one_tensor() -> None:
    with pytest.raises(ValueError, match="items must be tuples or mappings to get an id, got Tensor"):
        WithIds(torch.zeros(3))[0]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            [torch.zeros(2), torch.zeros(2)],
            r"must be \(inputs, labels, ..., ids\), got 2 elements: wrap the dataset in",
        ),
        (torch.zeros(2), "got Tensor"),
        ([torch.zeros(2), torch.zeros(2), torch.zeros(2)], r"stand as the last of 3 parts, .* got float32 \[2\]"),
        ([torch.zeros(2), torch.zeros(2), torch.zeros(2, 2).long()], r"for \[2\] labels, got int64 \[2, 2\]: wrap"),
        ([torch.zeros(2), torch.zeros(2), torch.zeros(3).long()], r"for \[2\] labels, got int64 \[3\]"),
        ([torch.zeros(2), torch.zeros(2), "ab"], "got str"),
        ([torch.zeros(2), [0, 1], torch.zeros(2).long()], "the labels of a batch must be a tensor, got list"),
        (
            {"labels": torch.zeros(2), "sample_id": torch.zeros(2, dtype=torch.bool)},
            "stand under 'sample_id'.*got bool",
        ),
        ({"inputs": 0, "labels": 0}, "needs the keys 'labels' and 'sample_id', got inputs, labels"),
        ({"inputs": 0, "sample_id": 0}, "needs the keys 'labels' and 'sample_id', got inputs, sample_id"),
    ],
)
def test_labels_and_ids_other_layouts(batch: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_and_ids(batch)


def test_labels_and_ids_batches_with_groups() -> None:
    # WILDS and fairness datasets yield (inputs, labels, group): the group was mistaken for the id.
    groups = torch.tensor([7, 8, 7, 8, 7])
    data = WithIds(TensorDataset(torch.arange(5.0), torch.arange(5) % 2, groups))
    for batch in DataLoader(data, batch_size=2):
        labels, ids = labels_and_ids(batch)
        assert ids.tolist() == [int(x) for x in batch[0]]
        assert torch.equal(labels, ids % 2)
        assert torch.equal(batch[2], groups[ids])


def test_labels_and_ids_tokens_and_strings() -> None:
    labels = torch.zeros(2, 3).long()
    assert labels_and_ids((None, labels, torch.arange(6).reshape(2, 3)))[1].shape == (2, 3)
    assert labels_and_ids((None, labels, torch.arange(2)))[1].shape == (2,)
    assert labels_and_ids({"label": labels, "sample_id": ["a", "b"]})[1] == ["a", "b"]


def test_with_ids_keeps_existing_id() -> None:
    with pytest.raises(ValueError, match=r"items already have the key 'sample_id': use the dataset as it is"):
        WithIds([{"x": 1.0, "label": 0, "sample_id": 40}])[0]


def test_with_ids_fetches_a_batch_in_one_call() -> None:
    class Batched(TensorDataset):
        calls = 0

        def __getitems__(self, indices: list[int]) -> list[Any]:
            Batched.calls += 1
            return [super(Batched, self).__getitem__(index) for index in indices]

    data = WithIds(Batched(torch.arange(6.0), torch.arange(6)))
    seen = [labels_and_ids(batch)[1].tolist() for batch in DataLoader(Subset(data, [5, 4, 3, 2]), batch_size=2)]
    assert seen == [[5, 4], [3, 2]]
    assert Batched.calls == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_with_ids_of_a_stream(workers: int) -> None:
    data = WithIds(Stream())
    assert isinstance(data, IterableDataset)
    for _ in range(2):  # every epoch yields the same ids
        found: dict[int, int] = {}
        for x, _, group, ids in DataLoader(data, batch_size=4, num_workers=workers):
            assert torch.equal(group, 100 + x.long())
            found |= dict(zip(ids.tolist(), x.long().tolist(), strict=True))
        assert found == {i: i for i in range(10)}
    with pytest.raises(TypeError, match="Stream"):
        len(data)


def test_with_ids_by_a_function() -> None:
    for data in (
        WithIds(Stream(), id_of=lambda item: f"file-{item[2]}"),
        WithIds([(0.0, 1, 105)], lambda item: "file"),
    ):
        *_, ids = next(iter(DataLoader(data, batch_size=2)))
        assert list(ids) in (["file-100", "file-101"], ["file"])
