"""Check that a recipe, a dataset and a plan fit together, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.data.plan import Plan
from hbr_fast.data.pool import Pool
from hbr_fast.machine import memory_bytes
from hbr_fast.training import components
from hbr_fast.training.build import untrained_model
from hbr_fast.training.distributed import SharedBatches, ranks
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.trainer import training_loader

PARAMETER_BYTES = 12  # a weight, its gradient and its momentum


def check_fit(dataset: Dataset, recipe: Recipe, plan: Plan | None, pools: Sequence[Pool] = ()) -> None:
    """Raise the errors that a training would raise before its first step, without starting one.

    Raises
    ------
    ValueError
        If the plan was made for another dataset, or the model or the batch does not fit this one.
    """
    if plan is not None and plan.provenance.get("dataset", dataset.fingerprint) != dataset.fingerprint:
        raise ValueError(
            f"this plan was made for dataset {plan.provenance['dataset'][:12]}, not for {dataset.fingerprint[:12]}: "
            "resample again"
        )
    dataset = dataset.at_size(recipe.size)
    wanted, given = plan.stores if plan is not None else (), tuple(pool.fingerprint for pool in pools)
    if wanted != given:
        raise ValueError(
            f"this plan takes images from {len(wanted)} pools ({', '.join(one[:12] for one in wanted) or 'none'}) but "
            f"{len(given)} are given ({', '.join(one[:12] for one in given) or 'none'}): give those it was made with"
        )
    if plan is not None and recipe.online_every:
        raise ValueError("online_every resamples the full set while training: it cannot be combined with a plan")
    components.check(recipe)
    loader = training_loader(dataset.train, recipe, seed=0, plan=plan, pools=pools)
    batches = SharedBatches(loader, ranks())
    parameters = _parameters(recipe, dataset.train)
    if (needed := PARAMETER_BYTES * parameters) > (have := memory_bytes()):
        raise ValueError(
            f"model {recipe.model!r} has {parameters:,} parameters: training it takes {needed / 1e9:,.1f} GB and more, "
            f"but this machine has {have / 1e9:,.1f} GB: take a smaller one"
        )
    if batches.rows(len(batches) - 1) // recipe.accumulate <= 1:
        _require_statistics(recipe, dataset.train, batches)


def _parameters(recipe: Recipe, split: Split) -> int:
    """How many numbers the model trains."""
    try:
        with torch.device("meta"):  # a device that has shapes but no storage
            model = untrained_model(recipe, split)
    except ValueError:  # e.g. of a function that reads a tensor while it builds: linspace(0, rate, depth).tolist()
        model = untrained_model(recipe, split)
    return sum(one.numel() for one in model.parameters())


def _require_statistics(recipe: Recipe, split: Split, batches: SharedBatches) -> None:
    """Raise if a part of one row, as the last batch has, leaves a batch norm with one value per channel."""
    with torch.no_grad():
        try:
            untrained_model(recipe, split)(torch.zeros(1, *split.image_shape))
        except ValueError:
            _, height, width = split.image_shape
            parts = f" and accumulate {recipe.accumulate}" if recipe.accumulate > 1 else ""
            raise ValueError(
                f"the last batch of an epoch of {batches.samples:,} rows has {'a part of ' if parts else ''}1 row "
                f"(batch_size {recipe.batch_size}{parts}), and one of {height}x{width} pixels leaves model "
                f"{recipe.model!r} no batch statistics: choose another batch_size"
            ) from None
