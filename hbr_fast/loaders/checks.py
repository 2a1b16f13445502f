"""The arguments of a `Loader`: checked, defaults filled in, and put into a job."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from hbr_fast.arguments import checked_bytes, whole_number
from hbr_fast.data.dataset import Split
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.plan import Plan
from hbr_fast.loaders import backends
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.batch import DTYPES, Job
from hbr_fast.machine import usable_cpus
from hbr_fast.orders import Sampler, uniform_order
from hbr_fast.seeding import checked_seed


def checked_job(
    split: Split,
    *,
    plan: Plan | None,
    stores: Sequence[Split],
    order: Sampler | None,
    augment: Augment | None,
    batch_size: int,
    seed: int,
    dtype: torch.dtype,
    channels_last: bool,
    drop_last: bool,
    device: torch.device | str,
    threads: int | None,
    prefetch: int | None,
    backend: str,
    cache: int | str = 0,
) -> tuple[Job, str]:
    """The job that a `Loader`'s arguments describe, and the name of its backend; they are documented there."""
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
        raise ValueError(f"the order draws from {order.num_rows} rows but the plan has {len(plan)}: make it of as many")
    batch_size = whole_number("batch_size", batch_size)
    if not 1 <= batch_size <= len(order):
        raise ValueError(
            f"batch_size must be in [1, {len(order)}], the rows of an epoch of split {split.name!r}, got {batch_size}"
        )
    device = _device(device)
    dtypes = (*DTYPES, torch.float16) if device.type == "cuda" else DTYPES
    if dtype not in dtypes:
        raise ValueError(f"dtype must be one of {', '.join(map(str, dtypes))}, got {dtype}")
    augment = Augment() if augment is None else augment
    if not isinstance(augment, Augment):
        raise ValueError(f"augment must be an Augment, e.g. Augment(flip=0.5), got {type(augment).__name__}")
    augment.check_fits(*split.image_shape)
    backend = "native" if backend == "auto" else backend
    encoded = any(isinstance(one.store, EncodedImages) for one in (split, *stores))
    cache = checked_bytes("cache", cache)
    needs = (
        *augment.features,
        *(("interpolated rows",) if (plan.partner >= 0).any() else ()),
        *(("several stores",) if stores else ()),
        *(("encoded pictures",) if encoded else ()),
        *(("cache of decoded pictures",) if encoded and cache else ()),
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
    job = Job(
        split=split,
        stores=tuple(stores),
        plan=plan,
        order=order,
        augment=augment,
        batch_size=batch_size,
        seed=checked_seed(seed),
        dtype=dtype,
        channels_last=channels_last,
        drop_last=drop_last,
        device=device,
        threads=min(threads, usable_cpus()),
        prefetch=prefetch,
        cache=cache,
    )
    return job, backend


def normalised_by(split: Split, *, mean: Sequence[float] | None, std: Sequence[float] | None) -> Split:
    """The split with another mean or standard deviation for its images; None keeps its own.

    Raises
    ------
    ValueError
        If it is not one number a channel, or not of pixels in [0, 1].
    """
    if mean is not None:
        split = dataclasses.replace(split, mean=_of_channels("mean", mean, len(split.mean)))
    if std is not None:
        split = dataclasses.replace(split, std=_of_channels("std", std, len(split.std)))
    return split


def _of_channels(name: str, values: Sequence[float], channels: int) -> np.ndarray:
    try:
        values_c = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {channels} numbers, one a channel, got {values!r}") from None
    if values_c.shape != (channels,):
        raise ValueError(f"{name} must be one number a channel, {channels} here, got {np.asarray(values).tolist()}")
    if not ((values_c >= 0) & (values_c <= 1)).all() or (name == "std" and not values_c.all()):
        interval = "(0, 1]" if name == "std" else "[0, 1]"
        bytes_ = np.isfinite(values_c).all() and values_c.max() > 1
        hint = ": divide those of pixels in 0..255 by 255" if bytes_ else ""
        raise ValueError(f"{name} must lie in {interval}, as pixels in [0, 1] do, got {values_c.tolist()}{hint}")
    return values_c


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
        channels = split.image_shape[0]
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
        if split.image_shape != splits[0].image_shape:
            raise ValueError(
                f"images of store {split.name!r} are {list(split.image_shape)} (C, H, W) but those of split "
                f"{splits[0].name!r} are {list(splits[0].image_shape)}: give both one shape"
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
