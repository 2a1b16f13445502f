"""Sample ids in the batch, which recording needs and most datasets do not provide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.data

from hbr_fast.loaders.batch import Batch

KEY = "sample_id"

IdOf = Callable[[Any], Any]


class WithIds(torch.utils.data.Dataset[Any]):
    """A dataset whose items include their sample id.

    A tuple gets the id as its last element, a mapping under the key "sample_id". For a map-style dataset the id is the
    index. For an iterable one it is the position in the stream, and if W workers of a `DataLoader` each iterate over a
    share of it, `position * W + worker`: the same in every epoch as long as each share keeps its order and W stays the
    same. So wrap a stream before shuffling, and give `id_of` if workers or processes do not all keep to their own
    share, or if the order changes.

    Parameters
    ----------
    dataset : Dataset or IterableDataset
        Its items are tuples or mappings.
    id_of : callable, optional
        Returns the id of an item, e.g. its file name (`GrowingRecorder` takes any ids), instead of the rule above.

    Examples
    --------
    >>> from torch.utils.data import TensorDataset
    >>> WithIds(TensorDataset(torch.tensor([5.0, 6.0]), torch.tensor([0, 1])))[1]
    (tensor(6.), tensor(1), 1)
    >>> WithIds([{"x": 5.0, "label": 0}])[0]
    {'x': 5.0, 'label': 0, 'sample_id': 0}
    >>> list(WithIds(iter([("a", 0), ("b", 1)])))
    [('a', 0, 0), ('b', 1, 1)]
    """

    def __new__(cls, dataset: Any = None, id_of: IdOf | None = None) -> WithIds:
        """An `IterableWithIds` for iterable-only datasets; torch distinguishes the two kinds by type."""
        streams = isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__")
        # Unpickling, in a spawned worker, calls this with the class alone.
        return super().__new__(IterableWithIds if dataset is not None and streams else cls)

    def __init__(self, dataset: Any, id_of: IdOf | None = None) -> None:
        self.dataset = dataset
        self.id_of = id_of

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self._with_id(self.dataset[index], range(len(self))[index])  # from the end if negative

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch, in one call if the dataset supports it; `DataLoader` calls this."""
        at_once = getattr(self.dataset, "__getitems__", None)
        items = at_once(indices) if callable(at_once) else [self.dataset[index] for index in indices]
        return [self._with_id(item, range(len(self))[index]) for item, index in zip(items, indices, strict=True)]

    def _with_id(self, item: Any, sample: Any) -> Any:
        if self.id_of is not None:
            sample = self.id_of(item)
        if isinstance(item, Mapping):
            if KEY in item:
                raise ValueError(
                    f"items already have the key '{KEY}': use the dataset as it is if that is the sample's id, "
                    "else rename the key"
                )
            return {**item, KEY: sample}
        if isinstance(item, Sequence) and not isinstance(item, str):
            return (*item, sample)
        raise ValueError(f"items must be tuples or mappings to get an id, got {type(item).__name__}")


class IterableWithIds(WithIds, torch.utils.data.IterableDataset[Any]):
    """`WithIds` for an iterable dataset."""

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for position, item in enumerate(self.dataset):
            yield self._with_id(item, position * workers + own)

    def __getitem__(self, index: int) -> Any:
        raise TypeError("an iterable dataset has no items by index")

    def set_epoch(self, epoch: int) -> None:
        """Passed on to the dataset, if it supports it."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def labels_and_ids(batch: Any) -> tuple[torch.Tensor, Any]:
    """Labels and sample ids of a batch of a `WithIds` dataset, or of any batch laid out like one.

    In a sequence the labels are the second element and the ids the last, whatever is between them; in a mapping they
    have the keys "labels" or "label", and "sample_id". A `Batch` of our `Loader` has its own.

    Returns
    -------
    labels : tensor [B, ...]
    ids : integer tensor [B] or [B, T], or a list of B strings

    Raises
    ------
    ValueError
        If they are missing, or what is in their place cannot be ids; the message says what was found.
    """
    if isinstance(batch, Batch):  # its last part are rows of the plan
        return batch.labels, batch.ids
    if isinstance(batch, Mapping):
        label = next((name for name in ("labels", "label") if name in batch), None)
        if label is None or KEY not in batch:
            raise ValueError(f"a batch needs the keys 'labels' and '{KEY}', got {', '.join(map(str, batch))}")
        labels, ids, where = batch[label], batch[KEY], f"under '{KEY}'"
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 3:
        labels, ids, where = batch[1], batch[-1], f"as the last of {len(batch)} parts"
    else:
        found = f"{len(batch)} elements" if isinstance(batch, Sequence) else type(batch).__name__
        raise ValueError(f"a batch must be (inputs, labels, ..., ids), got {found}: wrap the dataset in WithIds")
    if not isinstance(labels, torch.Tensor):
        raise ValueError(f"the labels of a batch must be a tensor, got {type(labels).__name__}")
    if isinstance(ids, torch.Tensor):
        rows, whole = list(ids.shape), not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        fits = whole and 1 <= ids.ndim <= max(1, labels.ndim) and labels.ndim >= 1 and rows[0] == labels.shape[0]
        # More than one id per row only if each has a label: otherwise these are other numbers of the samples.
        fits = fits and (ids.ndim == 1 or ids.shape == labels.shape)
        found = f"{str(ids.dtype).removeprefix('torch.')} {rows}"
    else:
        fits = isinstance(ids, Sequence) and not isinstance(ids, str) and labels.ndim >= 1 and len(ids) == len(labels)
        fits = fits and all(isinstance(one, str | int) for one in ids)
        found = type(ids).__name__
    if not fits:
        raise ValueError(
            f"sample ids must stand {where}, integers or strings for {list(labels.shape)} labels, got {found}: wrap "
            "the dataset in WithIds"
        )
    return labels, ids
