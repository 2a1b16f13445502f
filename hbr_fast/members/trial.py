"""One step of a recipe on a few images, before anything is trained: whether its components work together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.data.pool import Pool
from hbr_fast.training.averaging import Averaged
from hbr_fast.training.build import initial_model, make_loss, make_optimizer
from hbr_fast.training.components import component
from hbr_fast.training.device import compute_dtype
from hbr_fast.training.distributed import ranks
from hbr_fast.training.models.start_weights import load_start_weights
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.trainer import class_counts_of, training_loader

ROWS = 4  # of the batch that is tried
NAMED = 5  # parameters that an error names


def try_step(
    dataset: Dataset,
    recipe: Recipe,
    plan: Plan | None = None,
    pools: Sequence[Pool] = (),
    *,
    device: torch.device | str = "cpu",
) -> None:
    """Train a new model for one step on a few rows, and raise what training would stumble over hours later.

    Parameters
    ----------
    dataset, recipe, plan, pools
        Those of a training; the precision must be resolved.
    device : torch.device
        Where to try it.

    Raises
    ------
    ValueError
        If the model does not give finite logits [B, C], no gradient reaches a parameter, or the loss, the optimiser or
        the schedule does not return what it must; the message says what it returned.
    FileNotFoundError
        If the file of weights to start from does not exist.
    """
    split, classes = dataset.train, dataset.train.num_classes
    small = dataclasses.replace(recipe, batch_size=ROWS, accumulate=1)
    batch = next(training_loader(split, small, seed=0, plan=plan, pools=pools, device=device).epoch(0))
    model = initial_model(recipe, split, seed=0).to(device)
    if recipe.weights and (kept := load_start_weights(model, recipe.weights, classes)):
        progress.say(f"weights {recipe.weights}: {', '.join(kept)} of another width start anew")
    loss = make_loss(recipe, class_counts=class_counts_of(split, plan, pools), device=device)
    optimizer = make_optimizer(recipe, model)
    if recipe.ema:
        Averaged(model, recipe.ema)
    rows = len(split) if plan is None else len(plan)
    _try_schedule(recipe, steps_per_epoch=-(-rows // recipe.batch_size))
    dtype = compute_dtype(recipe)
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(0)
        mean = None
        for mode in (False, True):  # evaluation first: training changes the statistics of batch norms
            model.train(mode)
            with torch.set_grad_enabled(mode):
                logits = _logits(model, recipe, batch.images, dtype, classes)
            if mode:
                mean = _mean_loss(loss.mean, recipe, logits, batch.labels)
        assert mean is not None
        try:
            mean.backward()
        except RuntimeError as error:
            raise ValueError(
                f"loss {recipe.loss!r} of model {recipe.model!r} cannot be differentiated: {_first_line(error)}"
            ) from error
        _require_gradients(model, recipe)
        try:
            optimizer.step()
        except Exception as error:  # of third-party code
            raise ValueError(f"optimizer {recipe.optimizer!r} fails in its first step: {_first_line(error)}") from error


def _logits(model: nn.Module, recipe: Recipe, images: torch.Tensor, dtype: torch.dtype, classes: int) -> torch.Tensor:
    """The logits of a batch.

    Raises
    ------
    ValueError
        If they are not a finite float tensor [B, C].
    """
    who = f"model {recipe.model!r} in {'training' if model.training else 'evaluation'}"
    try:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits: Any = model(images)
    except Exception as error:  # of the user's code
        raise ValueError(
            f"{who} fails on images {list(images.shape)}, {images.dtype} and channels-last: {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error
    wanted = f"it must return logits [{len(images)}, {classes}]"
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"{who} returned {type(logits).__name__}, not a tensor: {wanted}")
    if logits.shape != (len(images), classes) or not logits.is_floating_point():
        raise ValueError(f"{who} returned {logits.dtype} {list(logits.shape)}: {wanted}, floating-point")
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{who} returned logits that are not finite before any training: check its initial weights")
    return logits.float()


def _mean_loss(mean: Any, recipe: Recipe, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    try:
        loss = mean(logits, labels)
    except Exception as error:  # of the user's code
        raise ValueError(
            f"loss {recipe.loss!r} fails on logits {list(logits.shape)} and labels {list(labels.shape)}: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        got = f"a tensor {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(f"loss {recipe.loss!r} returned {got}: it must return the mean loss of the batch, a tensor []")
    if not bool(loss.isfinite()):
        raise ValueError(f"loss {recipe.loss!r} is {loss.item()} before any training")
    if not loss.requires_grad:
        raise ValueError(f"no gradient flows from loss {recipe.loss!r} to model {recipe.model!r}: is one detached?")
    with torch.no_grad():
        twice = float(mean(torch.cat([logits, logits]), torch.cat([labels, labels])))
    # Losses that compare the images of a batch may differ in any other way.
    if loss and math.isclose(twice, 2 * loss.item(), rel_tol=1e-3):
        raise ValueError(
            f"loss {recipe.loss!r} of a batch that has every image twice is twice as large: it must return the mean "
            'over the batch, not the sum (reduction="mean")'
        )
    return loss


def _require_gradients(model: nn.Module, recipe: Recipe) -> None:
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    without = [name for name, one in trained.items() if one.grad is None]
    if len(without) == len(trained):
        raise ValueError(f"no gradient reaches a parameter of model {recipe.model!r}: is its output detached?")
    if without and ranks().size > 1:
        more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
        raise ValueError(
            f"no gradient reaches {', '.join(without[:NAMED])}{more} of model {recipe.model!r}, which torchrun's "
            "processes would wait for: remove them, or freeze them (requires_grad_(False))"
        )


def _try_schedule(recipe: Recipe, *, steps_per_epoch: int) -> None:
    schedule = component("schedule", recipe)
    steps = recipe.epochs * steps_per_epoch
    for step in (*range(0, steps, steps_per_epoch), steps - 1):  # the first of every epoch, and the last
        try:
            factor = schedule(step, steps_per_epoch)
        except Exception as error:  # of the user's code
            raise ValueError(
                f"schedule {recipe.schedule!r} fails at step {step}: {type(error).__name__}: {_first_line(error)}"
            ) from error
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise ValueError(
                f"schedule {recipe.schedule!r} returned {factor!r} at step {step}: it must return a factor of the "
                "learning rate, a finite number of at least 0"
            )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
