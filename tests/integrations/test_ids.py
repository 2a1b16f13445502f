import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hbr_fast.integrations.ids import WithIds, labels_and_ids


def test_ids_follow_their_samples_through_a_loader() -> None:
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


def test_an_index_from_the_end_is_the_same_sample() -> None:
    assert WithIds([("a", 0), ("b", 1)])[-1] == ("b", 1, 1)
    assert len(WithIds([("a", 0), ("b", 1)])) == 2


def test_items_that_can_take_no_id() -> None:
    with pytest.raises(ValueError, match="items must be tuples or mappings to get an id, got Tensor"):
        WithIds(torch.zeros(3))[0]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([torch.zeros(2), torch.zeros(2)], r"must be \(inputs, labels, ids\), got 2 elements: wrap the dataset in"),
        (torch.zeros(2), "got Tensor"),
        ({"inputs": 0, "labels": 0}, "needs the keys 'labels' and 'sample_id', got inputs, labels"),
        ({"inputs": 0, "sample_id": 0}, "needs the keys 'labels' and 'sample_id', got inputs, sample_id"),
    ],
)
def test_batches_without_ids_say_what_they_have(batch: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_and_ids(batch)
