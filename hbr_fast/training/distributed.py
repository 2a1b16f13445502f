"""One training shared by the processes of torchrun: their ranks, and how they stay in step.

Outside torchrun there is one rank of one, and everything here does nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from hbr_fast.loaders.batch import Batch
    from hbr_fast.loaders.loader import Loader
    from hbr_fast.orders import Sampler


class OtherRankFailed(RuntimeError):
    """Another process of this training failed, and reports why."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"process {rank} of this training failed: see its message")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train the same model.

    Attributes
    ----------
    rank : int
        Of this process, in [0, size).
    size : int
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """A block that every rank runs; if one fails, all do, so that none waits for another for ever.

        Raises
        ------
        OtherRankFailed
            On ranks other than the first one that failed, which raises its own error.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failed = error
        if self.size == 1:
            return
        at = self._lowest(self.rank if failed else self.size)
        if failed is not None and at == self.rank:
            raise failed
        if at < self.size:
            raise OtherRankFailed(at)

    def highest(self, *numbers: int) -> list[int]:
        """The maximum of each number over the ranks; on the CPU, so that no rank waits for its device."""
        if self.size == 1:
            return [*numbers]
        import torch

        together = torch.tensor(numbers)
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
        return together.tolist()

    def require_same(self, what: str, *numbers: int) -> None:
        """Raise on every rank unless all have the same numbers.

        Raises
        ------
        ValueError
        """
        own = [*numbers, *(-number for number in numbers)]
        if self.highest(*own) != own:  # equal only if the maximum is also the minimum
            raise ValueError(what)

    def interleaved(self, own_nc: np.ndarray) -> np.ndarray:
        """Rows 0 of all ranks in their order, rows 1, ...: [size * N, C] of arrays [N, C]."""
        if self.size == 1:
            return own_nc
        import torch

        own = torch.from_numpy(own_nc)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(parts, own)
        return torch.stack(parts, dim=1).flatten(0, 1).numpy()

    def _lowest(self, number: int) -> int:
        return -self.highest(-number)[0]


def ranks() -> Ranks:
    """The ranks of the current process group; one of one if there is none."""
    import torch

    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size())


class SharedBatches:
    """The batches of a training, each shared by the ranks."""

    def __init__(self, loader: Loader, own: Ranks) -> None:
        self._whole, self._ranks = loader, own
        self._loader = loader if own.size == 1 else loader.shard(own.rank, own.size)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self._whole)

    @property
    def samples(self) -> int:
        """Rows of all ranks that an epoch visits."""
        return self._whole.samples

    @property
    def order(self) -> Sampler:
        """The order that all ranks share."""
        return self._whole.job.order

    def rows(self, step: int) -> int:
        """Rows of all ranks in the batch of a step of an epoch."""
        size = self._whole.job.batch_size
        return min(size, self.samples - step * size)

    def with_order(self, order: Sampler) -> SharedBatches:
        """The same batches in another order."""
        return SharedBatches(self._whole.with_order(order), self._ranks)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Batch, float]]:
        """This rank's rows of batches `start`, `start + 1`, ... of an epoch, and their share of the batch's rows."""
        for step, batch in enumerate(self._loader.epoch(epoch, start=start), start):
            yield batch, len(batch.labels) / self.rows(step)


def shared_model(model: nn.Module) -> nn.Module:
    """A model that computes as one process would with the rows of all ranks: gradients are summed.

    Its parameters and buffers are those of the first rank's `model`.
    """
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from hbr_fast.training.models.batch_norm import across_ranks

    def add_up(bucket: Any) -> Any:
        future = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    shared = DistributedDataParallel(across_ranks(model))
    # Replaces torch's mean over the ranks, which may have different numbers of rows.
    shared.register_comm_hook(None, lambda _, bucket: add_up(bucket))
    return shared


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_rank() -> int:
    """This process's number among those that torchrun started, else 0."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


@contextlib.contextmanager
def joined(device: torch.device | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if any; only the first of them prints.

    They communicate over gloo, and on GPUs over NCCL for data on the device.

    Raises
    ------
    ConnectionError
        If another of them ended during the work.
    """
    if not started_by_torchrun():
        yield Ranks()
        return
    import torch
    from torch import distributed

    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        own = ranks()
        with contextlib.ExitStack() as silent:
            if not own.first:
                silent.enter_context(contextlib.redirect_stdout(io.StringIO()))
                silent.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield own
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise ConnectionError(
            "another process of this training ended: the last save is kept, run the same again"
        ) from error
    finally:
        distributed.destroy_process_group()


def _is_lost_peer(error: RuntimeError) -> bool:
    return any(words in str(error) for words in ("closed by peer", "reset by peer", "Broken pipe"))
