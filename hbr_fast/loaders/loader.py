"""The Loader: Split + Plan + Sampler + Augment -> batches on a device, through one of the backends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from hbr_fast.arguments import whole_number
from hbr_fast.data.dataset import Split
from hbr_fast.loaders import backends
from hbr_fast.loaders.batch import DTYPES, Augment, Batch, Job
from hbr_fast.machine import usable_cpus
from hbr_fast.plan import Plan
from hbr_fast.sampler import Sampler, uniform_order
from hbr_fast.sampler.order import check_epoch


class Loader:
    """Batches of a split, in an order and with augmentation that are pure functions of the seed.

    Parameters
    ----------
    split : Split
        Images and labels, e.g. `open_dataset(path).train`.
    plan : Plan, optional
        The rows of an epoch; by default every sample of the split once.
    stores : sequence of Split
        Image stores beside the split, e.g. pools of generated images: a plan's store 1, 2, ... Images have the shape of
        the split's and are normalised as they are.
    order : Sampler, optional
        Which plan row stands where; it draws from as many rows as the plan has. By default
        `uniform_order(len(plan), seed=seed)`.
    augment : Augment
        By default none: images are normalised only.
    batch_size : int
        Rows a batch. The last batch of an epoch may be smaller; `drop_last` leaves it out.
    seed : int
        Keys the order and the augmentation, in [0, 2**63).
    dtype : torch.dtype
        float32 or bfloat16; on a GPU also float16.
    channels_last : bool
        Memory format of the images.
    device : torch.device or str
        Where the batches are.
    threads : int, optional
        Threads that make batches, at least 1; by default torch's, at most as many as the process may use.
    prefetch : int, optional
        Batches made ahead while the caller has one; 0 makes a batch when it is asked for. By default what was best for
        the backend (docs/loading.md).
    backend : str
        One of `hbr_fast.loaders.backends.BACKENDS`; "auto" is "native".

    Raises
    ------
    ValueError
        If an argument is out of range, the plan does not fit the split, or the backend lacks an augmentation.
    ImportError
        If what the backend needs is not installed; the message has the command that installs it.

    Examples
    --------
    >>> loader = Loader(split, augment=Augment(flip=0.5, pad=4), batch_size=128)  # doctest: +SKIP
    >>> for epoch in range(10):  # doctest: +SKIP
    ...     for images, labels, ids, rows in loader.epoch(epoch):
    ...         ...
    """

    def __init__(
        self,
        split: Split,
        *,
        plan: Plan | None = None,
        stores: Sequence[Split] = (),
        order: Sampler | None = None,
        augment: Augment | None = None,
        batch_size: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        prefetch: int | None = None,
        backend: str = "auto",
    ) -> None:
        _check_images((split, *stores))
        if plan is None:
            plan = Plan.of_rows(np.arange(len(split)))
        elif not isinstance(plan, Plan):
            raise ValueError(f"plan must be a Plan, e.g. Plan.of_rows(ids), got {type(plan).__name__}")
        _check_plan(plan, (split, *stores))
        if order is None:
            order = uniform_order(len(plan), seed=seed)
        elif not isinstance(order, Sampler):
            raise ValueError(
                f"order must be a Sampler, e.g. uniform_order(len(plan), seed=0), got {type(order).__name__}: for ids "
                "as they stand give plan=Plan.of_rows(ids) and order=sequential_order(len(ids))"
            )
        if order.num_rows != len(plan):
            raise ValueError(
                f"the order draws from {order.num_rows} rows but the plan has {len(plan)}: make it of as many"
            )
        batch_size = whole_number("batch_size", batch_size)
        if not 1 <= batch_size <= len(order):
            raise ValueError(
                f"batch_size must be in [1, {len(order)}], the rows of an epoch of split {split.name!r}, "
                f"got {batch_size}"
            )
        device = _device(device)
        dtypes = (*DTYPES, torch.float16) if device.type == "cuda" else DTYPES
        if dtype not in dtypes:
            raise ValueError(f"dtype must be one of {', '.join(map(str, dtypes))}, got {dtype}")
        augment = Augment() if augment is None else augment
        if not isinstance(augment, Augment):
            raise ValueError(f"augment must be an Augment, e.g. Augment(flip=0.5), got {type(augment).__name__}")
        augment.check_fits(*split.images.shape[2:])
        backend = "native" if backend == "auto" else backend
        needs = (
            *augment.features,
            *(("interpolated rows",) if (plan.partner >= 0).any() else ()),
            *(("several stores",) if stores else ()),
        )
        found = backends.find(backend, device.type, needs)
        if device.type == "cuda":
            _require_gpu(device)
        threads = torch.get_num_threads() if threads is None else whole_number("threads", threads)
        if prefetch is None:
            prefetch = found.prefetch_on_gpu if device.type == "cuda" else found.prefetch
        prefetch = whole_number("prefetch", prefetch)
        if threads < 1 or prefetch < 0:
            raise ValueError(f"threads must be >= 1 and prefetch >= 0, got {threads} and {prefetch}")
        self.job = Job(
            split=split,
            stores=tuple(stores),
            plan=plan,
            order=order,
            augment=augment,
            batch_size=batch_size,
            seed=seed,
            dtype=dtype,
            channels_last=channels_last,
            drop_last=drop_last,
            device=device,
            threads=min(threads, usable_cpus()),
            prefetch=prefetch,
        )
        self._backend = backends.load(backend, device.type)(self.job)
        self._backend_name = backend

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.job.batches

    @property
    def samples(self) -> int:
        """Rows an epoch visits."""
        return min(len(self) * self.job.batch_size, len(self.job.order))

    def with_order(self, order: Sampler) -> Loader:
        """The same loader with another order, e.g. other weights or counts from the next epoch on.

        Raises
        ------
        ValueError
            If the order does not draw from as many rows as the plan has, or is shorter than a batch.
        """
        return self._changed(order=order)

    def shard(self, rank: int, world_size: int) -> Loader:
        """The loader of one of several processes: its rows of every batch, augmented as they are in the whole batch.

        Rank r of W has the rows r, r + W, ... of a batch. Where the epoch's last batch has too few rows, some ranks
        have one batch less.

        Raises
        ------
        ValueError
            If the ranks cannot share the batch size equally, or the rank is outside of the world size.
        """
        order = self.job.order.shard(rank, world_size, uneven="keep")
        size, rest = divmod(self.job.batch_size, world_size)
        if rest:
            raise ValueError(
                f"{world_size} processes cannot share batches of {self.job.batch_size} rows equally: choose a "
                f"batch_size that {world_size} divides"
            )
        return self._changed(order=order, batch_size=size)

    def _changed(self, **changes: Any) -> Loader:
        options = {field.name: getattr(self.job, field.name) for field in dataclasses.fields(self.job)}
        return Loader(**{**options, **changes}, backend=self._backend_name)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch number `start` on.

        The same epoch is the same batches, whenever and however often it is asked for; iterators do not disturb each
        other. Leaving early frees the iterator's threads.

        Raises
        ------
        ValueError
            If the epoch is not a whole number in [0, 2**32), or the start not one up to the number of batches.
        """
        check_epoch(epoch)
        if not 0 <= whole_number("start", start) <= len(self):
            raise ValueError(f"start must be in [0, {len(self)}], the batches of an epoch, got {start}")
        return self._backend.epoch(epoch, start)


def _device(name: torch.device | str) -> torch.device:
    try:
        return torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}") from None


def _require_gpu(device: torch.device) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 0:
        raise ValueError(f"device '{device}' asked for, but torch sees no GPU here: use device='cpu'")
    if (device.index or 0) >= gpus:
        raise ValueError(f"device '{device}' asked for, but there are GPUs 0 to {gpus - 1} only: name one of them")


def _check_images(splits: Sequence[Split]) -> None:
    for split in splits:
        if split.images.dtype != np.uint8 or split.images.ndim != 4 or not split.images.flags.c_contiguous:
            raise ValueError(
                f"images of split {split.name!r} must be uint8 [N, C, H, W] in one piece, got {split.images.dtype} "
                f"{split.images.shape}{'' if split.images.flags.c_contiguous else ' with gaps'}: make a copy"
            )
        channels = split.images.shape[1]
        if not len(splits[0].mean) == len(splits[0].std) == channels:
            raise ValueError(
                f"images of split {split.name!r} have {channels} channels but mean and std are of "
                f"{len(splits[0].mean)} and {len(splits[0].std)}: give one number a channel"
            )
        if not (np.isfinite(splits[0].mean).all() and np.isfinite(splits[0].std).all()):
            raise ValueError(
                f"mean and std of split {splits[0].name!r} must be finite, got {np.asarray(splits[0].mean).tolist()} "
                f"and {np.asarray(splits[0].std).tolist()}: take those of its images"
            )
        if not (np.asarray(splits[0].std) > 0).all():
            raise ValueError(
                f"std of split {splits[0].name!r} is {np.asarray(splits[0].std).tolist()}: a channel that is the same "
                "everywhere cannot be divided by it; leave it out, or set its std to 1"
            )
        if split.images.shape[1:] != splits[0].images.shape[1:]:
            raise ValueError(
                f"images of store {split.name!r} are {list(split.images.shape[1:])} (C, H, W) but those of split "
                f"{splits[0].name!r} are {list(splits[0].images.shape[1:])}: give both one shape"
            )


def _check_plan(plan: Plan, splits: Sequence[Split]) -> None:
    if len(plan) == 0:
        raise ValueError("the plan has no rows")
    bad = np.flatnonzero((plan.store < 0) | (plan.store >= len(splits)))
    if len(bad):
        row, given = int(bad[0]), len(splits) - 1
        raise ValueError(
            f"plan row {row} takes its image from store {plan.store[row]}, but only the split "
            f"{f'and {given} more are' if given else 'is'} given"
        )
    sizes_r = np.array([len(split) for split in splits])[plan.store]
    for name, lowest in (("index", 0), ("partner", -1)):
        column = getattr(plan, name)
        bad = np.flatnonzero((column < lowest) | (column >= sizes_r))
        if len(bad):
            split = splits[plan.store[bad[0]]]
            raise ValueError(
                f"plan row {bad[0]} has {name} {column[bad[0]]}, outside split {split.name!r} of {len(split)} samples: "
                "was the plan made for another dataset?"
            )
    if not ((plan.weight >= 0) & (plan.weight <= 1)).all():
        raise ValueError("plan weights must lie in [0, 1]")
