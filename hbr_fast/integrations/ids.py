"""Sample ids with the batch: what every recording needs and most datasets do not give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils.data

KEY = "sample_id"


class WithIds(torch.utils.data.Dataset[Any]):
    """A map-style dataset whose items also say which sample they are.

    A tuple gets the id as its last element, a mapping under the key "sample_id"; the id is the index in the dataset.

    Parameters
    ----------
    dataset : Dataset
        With a length and items that are tuples or mappings.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> WithIds(TensorDataset(torch.tensor([5.0, 6.0]), torch.tensor([0, 1])))[1]
    (tensor(6.), tensor(1), 1)
    >>> WithIds([{"x": 5.0, "label": 0}])[0]
    {'x': 5.0, 'label': 0, 'sample_id': 0}
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        sample = range(len(self))[index]  # from the end, if it is negative
        if isinstance(item, Mapping):
            return {**item, KEY: sample}
        if isinstance(item, Sequence) and not isinstance(item, str):
            return (*item, sample)
        raise ValueError(f"items must be tuples or mappings to get an id, got {type(item).__name__}")


def labels_and_ids(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and sample ids of a batch of a `WithIds` dataset, or of any batch laid out like one.

    Raises
    ------
    ValueError
        If they are not there; the message says what is.
    """
    if isinstance(batch, Mapping):
        label = next((name for name in ("labels", "label") if name in batch), None)
        if label is None or KEY not in batch:
            raise ValueError(f"a batch needs the keys 'labels' and '{KEY}', got {', '.join(map(str, batch))}")
        return batch[label], batch[KEY]
    if isinstance(batch, Sequence) and len(batch) >= 3:
        return batch[1], batch[2]
    found = f"{len(batch)} elements" if isinstance(batch, Sequence) else type(batch).__name__
    raise ValueError(f"a batch must be (inputs, labels, ids), got {found}: wrap the dataset in WithIds")
