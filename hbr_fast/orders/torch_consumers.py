"""The consumer of a sampler's indices: whether it shards them itself, and whether it reads ahead of the training.

Trainers pass a sampler from wrapper to wrapper without informing it. What they do with its indices shows only on the
call stack when the first index is requested: Accelerate wraps the batch sampler, not the sampler, and one sampler may
be used both in a prepared loader and in one that is not.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.utils.data import DistributedSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

# Below this module's frames a sample is being made: a sampler used there belongs to the data set.
_FETCH = "torch.utils.data._utils.fetch"


@dataclass(frozen=True)
class Consumer:
    """The consumer of a sampler's indices.

    Attributes
    ----------
    shards : str
        Name of the wrapper that reads the whole order and keeps this process's part of it; "" if there is none.
    reads_ahead : str
        What takes indices before they are trained on; "" if nothing does.
    epoch : int, optional
        The epoch that Accelerate's loader is in, or that Lightning resumes: Lightning starts workers before it sets it.
    loop : weak reference, optional
        To the iterator of the `DataLoader` that is being iterated.
    """

    shards: str = ""
    reads_ahead: str = ""
    epoch: int | None = None
    loop: weakref.ref[Any] | None = None

    @property
    def in_loop(self) -> bool:
        """Whether a loop over a `DataLoader` is still running: its iterator lives no longer than the loop."""
        return self.loop is not None and self.loop() is not None


def consumer(sampler: DistributedSampler[int]) -> Consumer:
    """The consumer that asks `sampler` for its indices or length, from the call stack."""
    shards, reads_ahead, epoch, loop = "", "", None, None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != _FETCH:
        owner: Any = frame.f_locals.get("self")
        name = type(owner).__name__
        if isinstance(owner, _BaseDataLoaderIter):
            loop = loop or weakref.ref(owner)
            if owner._num_workers > 0:
                reads_ahead = "a DataLoader with workers"
        elif type(owner).__module__ == "accelerate.data_loader":
            if name == "DataLoaderDispatcher" or (name == "BatchSamplerShard" and owner.num_processes > 1):
                shards = f"Accelerate's {name}"
            if name in ("DataLoaderShard", "DataLoaderDispatcher"):
                reads_ahead, epoch = f"Accelerate's {name}", owner.iteration
        elif name == "_FitLoop" and frame.f_code.co_name == "setup_data":
            epoch = owner.epoch_progress.current.processed
        elif isinstance(owner, DistributedSampler) and owner is not sampler and owner.num_replicas > 1:
            shards = name
        frame = frame.f_back
    return Consumer(shards, reads_ahead, epoch, loop)


def called_by_torchdata() -> bool:
    """Whether the caller's caller is torchdata, whose loader stores iterator states and picks the right one."""
    return str(sys._getframe(2).f_globals.get("__name__")).startswith("torchdata.")
