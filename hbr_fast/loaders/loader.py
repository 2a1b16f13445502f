"""The Loader: Split + Plan + Sampler + Augment -> batches on a device, through one of the backends."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hbr_fast.arguments import whole_number
from hbr_fast.data.dataset import Split
from hbr_fast.data.plan import Plan
from hbr_fast.data.views import Fit
from hbr_fast.loaders import backends
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.batch_transforms import BatchTransforms, level_job
from hbr_fast.loaders.checks import checked_job, normalised_by
from hbr_fast.loaders.iteration import Batches, Place
from hbr_fast.loaders.picture_cache import CacheUse
from hbr_fast.loaders.pictures import decoding_job
from hbr_fast.orders import Sampler
from hbr_fast.orders.order import checked_epoch, checked_rank
from hbr_fast.orders.torch_sampler import place_to_iterate


class Loader:
    """Batches of a split, in an order and with augmentation that are pure functions of the seed.

    Parameters
    ----------
    split : Split
        Images and labels, e.g. `open_dataset(path).train`.
    plan : Plan, optional
        The rows of an epoch; by default every sample of the split once.
    stores : sequence of Split
        Additional image stores, e.g. pools of generated images: a plan's store 1, 2, ... Their images have the split's
        shape and are normalised like the split's.
    order : Sampler, optional
        The order of the plan's rows; it must draw from as many rows as the plan has. By default
        `uniform_order(len(plan), seed=seed)`.
    augment : Augment
        By default none: images are only normalised.
    batch_size : int
        Rows per batch. The last batch of an epoch may be smaller; `drop_last` leaves it out.
    seed : int
        Keys the order and the augmentation, in [0, 2**63).
    dtype : torch.dtype
        float32 or bfloat16; on a GPU also float16.
    channels_last : bool
        Memory format of the images.
    device : torch.device or str
        Device of the batches.
    threads : int, optional
        Threads that make batches, at least 1; by default torch's thread count, at most the CPUs of the process.
    prefetch : int, optional
        Batches made ahead while the caller uses one; 0 makes each batch on request. The default is what measured best
        for the backend (docs/loading.md).
    backend : str
        One of `hbr_fast.loaders.backends.BACKENDS`; "auto" is "native".
    size, fit : optional
        For encoded pictures: `split.at_size(size, fit)`, and the same of the stores. A random-resized crop is taken
        from the picture as it is stored.
    mean, std : sequence of float, optional
        What images are normalised by, one number a channel, of pixels in [0, 1]: e.g. those that a pretrained model was
        trained with. By default the split's, which are those of the dataset's train split.
    cache : int or str
        Memory for decoded pictures, in bytes or e.g. "256 MB": those decoded first are not decoded again, as far as
        they fit (`cache_use`). Random-resized crops, which are new in every epoch, are not kept.

    Raises
    ------
    ValueError
        If an argument is out of range, the plan does not fit the split, or the backend lacks an augmentation.
    ImportError
        If a requirement of the backend is not installed; the message has the command that installs it.

    Examples
    --------
    >>> loader = Loader(split, augment=Augment(flip=0.5, pad=4), batch_size=128)  # doctest: +SKIP
    >>> for images, labels, ids, rows in loader:  # doctest: +SKIP
    ...     ...  # epoch 0; the next loop is epoch 1, and loader.epoch(7) gives any
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
        size: int | tuple[int, int] | None = None,
        fit: Fit = "crop",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        cache: int | str = 0,
    ) -> None:
        if size is not None:
            split, stores = split.at_size(size, fit), [one.at_size(size, fit) for one in stores]
        split = normalised_by(split, mean=mean, std=std)
        job, backend = checked_job(
            split,
            plan=plan,
            stores=stores,
            order=order,
            augment=augment,
            batch_size=batch_size,
            seed=seed,
            dtype=dtype,
            channels_last=channels_last,
            drop_last=drop_last,
            device=device,
            threads=threads,
            prefetch=prefetch,
            backend=backend,
            cache=cache,
        )
        self._set_up(job, backend)

    def _set_up(self, job: Job, backend: str, *, whole: Job | None = None, part: tuple[int, int] | None = None) -> None:
        self.job = job
        self._whole, self._part = whole or job, part  # the job of all ranks, and (rank, world size) after `shard`
        self._backend_name = backend
        made_by = decoding_job(job)
        self._pictures = made_by.pictures
        self._transforms = BatchTransforms(job) if job.augment.on_batch else None
        if self._transforms is not None:
            made_by = level_job(made_by)
        self._backend = backends.load(backend, job.device.type)(made_by)
        self._place = Place()
        self._parts: dict[tuple[int, int], Loader] = {}

    def __repr__(self) -> str:
        batches = f"{self.job.batches:,} batches of {self.job.batch_size:,}"
        return f"<Loader: {batches} of {self.job.split!r}, {self._backend_name} on {self.job.device}>"

    def __len__(self) -> int:
        """Batches in an epoch: the same number on every rank."""
        return self._whole.batches

    @property
    def samples(self) -> int:
        """Rows an epoch visits."""
        return min(self.job.batches * self.job.batch_size, len(self.job.order))

    @property
    def bad_pictures(self) -> dict[int, str]:
        """What is wrong with the encoded pictures that could not be used so far, by sample id.

        Their images are mean grey and their labels -100, which losses and recorders leave out.
        """
        return dict(self._pictures.bad) if self._pictures is not None else {}

    @property
    def cache_use(self) -> CacheUse:
        """How many of the decoded pictures that were needed so far were in the cache, and how many it holds."""
        return self._pictures.cache_use() if self._pictures is not None else CacheUse(0, 0, 0, 0)

    def with_order(self, order: Sampler) -> Loader:
        """The same loader, or the same rank's part of it, with another order: e.g. other weights or counts.

        Raises
        ------
        ValueError
            If the order does not draw from as many rows as the plan has, or is shorter than a batch.
        """
        options = {field.name: getattr(self._whole, field.name) for field in dataclasses.fields(self._whole)}
        del options["most_batches"], options["pictures"], options["levels"]
        changed = Loader(**{**options, "order": order}, backend=self._backend_name)
        return changed if self._part is None else changed.shard(*self._part)

    def shard(self, rank: int, world_size: int) -> Loader:
        """The loader of one of several processes: its rows of every batch, augmented as in the whole batch.

        Rank r of W has the rows r, r + W, ... of a batch, and every rank has as many batches as the whole loader. If
        the epoch's last batch has fewer rows than there are ranks, some ranks get a batch of length 0.

        Raises
        ------
        ValueError
            If the batch size is not divisible by the world size, the rank is out of range, or the loader is already a
            rank's part.
        """
        rank, world_size = checked_rank(rank, world_size)
        if self._part is not None:
            raise ValueError(
                f"this loader is the part of rank {self._part[0]} of {self._part[1]} already: shard the whole one"
            )
        size, rest = divmod(self.job.batch_size, world_size)
        if rest:
            raise ValueError(
                f"{world_size} processes cannot share batches of {self.job.batch_size} rows equally: choose a "
                f"batch_size that {world_size} divides"
            )
        job = dataclasses.replace(
            self.job,
            order=self.job.order.shard(rank, world_size, uneven="keep"),
            batch_size=size,
            most_batches=self.job.batches,
        )
        part = object.__new__(type(self))
        part._set_up(job, self._backend_name, whole=self.job, part=(rank, world_size))
        return part

    def of_this_process(self) -> Loader:
        """The loader that a loop takes batches from: this rank's part if `torch.distributed` is initialised.

        `shard` overrides this: after `shard(0, 1)` every rank has every row.
        """
        place = place_to_iterate()
        if self._part is not None or place == (0, 1):
            return self
        if place not in self._parts:
            self._parts[place] = self.shard(*place)
        return self._parts[place]

    def __iter__(self) -> Iterator[Batch]:
        """The next epoch: a whole one, or the rest of the epoch whose state was loaded.

        In a distributed run, this rank's rows of its batches. Loops are independent of each other; a loop that was left
        early is followed by a whole epoch.
        """
        return Batches(self, self._place)

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop this epoch, from its beginning unless a position in the same epoch was loaded."""
        self._place.set_epoch(checked_epoch(epoch))

    batch_sampler = None  # Lightning looks for it where there is a sampler

    @property
    def sampler(self) -> Loader:
        """The loader itself: Lightning calls `set_epoch` of what is a `DataLoader`'s `sampler`."""
        return self

    @property
    def dataset(self) -> Any:
        """Not available: batches are made of a plan, not of a data set's items.

        Raises
        ------
        AttributeError
            Always. Accelerate's `skip_first_batches` would make another loader from the items.
        """
        raise AttributeError(
            "a Loader has no dataset whose batches could be skipped: call loader.load_state_dict(state) instead of "
            "skip_first_batches, and give Hugging Face's Trainer ignore_data_skip=True"
        )

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches that the latest loop yielded, in constant size; for any number of ranks."""
        epoch, batches = self._place.now()
        order = self._whole.order
        return order.state(epoch=epoch, position=min(batches * self._whole.batch_size, len(order)))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next loop resume where a state was taken; `set_epoch` of the same epoch keeps the position.

        Raises
        ------
        ValueError
            If the state is from another order or version, or lies within a batch.
        """
        order, size = self._whole.order, self._whole.batch_size
        epoch, position = order.restore(state)
        if position % size and position != len(order):
            raise ValueError(
                f"this state is at position {position}, within a batch of {size} rows: load it into a loader with the "
                "batch size that it was saved with"
            )
        self._place = Place(epoch, min(-(-position // size), len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Job and position; threads, buffers and device memory are recreated on unpickling."""
        place = self._place.epoch, self._place.start
        return {
            "job": self.job,
            "whole": self._whole,
            "part": self._part,
            "backend": self._backend_name,
            "place": place,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._set_up(state["job"], state["backend"], whole=state["whole"], part=state["part"])
        self._place = Place(*state["place"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Loader:
        """A loader with its own position; immutable parts, including images, are shared."""
        return copy.copy(self)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, starting at batch number `start`.

        The same epoch always gives the same batches; iterators are independent of each other. Leaving early frees the
        iterator's threads.

        Raises
        ------
        ValueError
            If the epoch is not a whole number in [0, 2**32), or the start exceeds the number of batches.
        """
        epoch = checked_epoch(epoch)
        if not 0 <= whole_number("start", start) <= len(self):
            raise ValueError(f"start must be in [0, {len(self)}], the batches of an epoch, got {start}")
        own = self.job.batches
        batches = self._backend.epoch(epoch, min(start, own))
        if self._transforms is not None:
            batches = self._transforms.applied(batches, epoch, min(start, own))
        return batches if own == len(self) else itertools.chain(batches, self._empty(len(self) - max(start, own)))

    def _empty(self, count: int) -> Iterator[Batch]:
        """Batches that have rows only on other ranks."""
        job = self.job
        for _ in range(count):
            images = torch.empty(0, *job.split.image_shape, dtype=job.dtype, device=job.device)
            yield Batch(images, *(torch.empty(0, dtype=torch.int64, device=job.device) for _ in range(3)))
