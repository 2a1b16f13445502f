"""Training one member: plain PyTorch, hardness recorded on the way, nothing read from the device within a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hbr_fast.allocation import reallocate
from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.data.pool import Pool
from hbr_fast.hardness import ESTIMATORS, HardnessRecorder, HardnessScores
from hbr_fast.loaders.batch import Augment, Batch
from hbr_fast.loaders.loader import Loader
from hbr_fast.machine import has_native_bfloat16
from hbr_fast.plan import Plan
from hbr_fast.sampler import QuotaOrder, quota_order, sequential_order
from hbr_fast.seeding import Stream, spread_seed
from hbr_fast.training.models import build_model
from hbr_fast.training.recipe import Recipe

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did: means over its rows, in train mode."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Member:
    """One trained model and what its training left.

    Attributes
    ----------
    weights : dict of str to tensor
        The model's `state_dict`.
    scores : HardnessScores
        Of this one member.
    test_logits : float32 [N_test, C]
    history : tuple of EpochRecord
    """

    weights: Mapping[str, torch.Tensor]
    scores: HardnessScores
    test_logits: np.ndarray
    history: tuple[EpochRecord, ...]


def train_member(
    dataset: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    plan: Plan | None = None,
    pools: Sequence[Pool] = (),
    provenance: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Member:
    """Train one model on the train split and record the hardness of every sample it visits.

    Everything random follows from `seed`: initial weights, order and augmentation, each from a stream of its own.

    Parameters
    ----------
    dataset : Dataset
    recipe : Recipe
    seed : int
        In [0, 2**63).
    plan : Plan, optional
        Rows of the train split that make an epoch; by default each sample once.
    pools : sequence of Pool
        Where a plan's generated images are: its store 1, 2, ...
    provenance : dict, optional
        What the scores should say of where they come from.
    advance : callable, optional
        Called with the number of rows after each step, for a progress bar.

    Raises
    ------
    ValueError
        If the model or the batch does not fit the dataset.
    FloatingPointError
        If the training diverges: the loss of an epoch is not finite.
    """
    train = dataset.train
    dtype = compute_dtype(recipe)
    model = initial_model(recipe, train, seed=seed)
    optimiser = make_optimiser(model, recipe)
    recorder = HardnessRecorder(
        len(train),
        train.num_classes,
        el2n_epochs=recipe.el2n_epochs,
        provenance=provenance,
        strangers=bool(pools),
    )
    loader = training_loader(train, recipe, seed=seed, plan=plan, pools=pools, dtype=dtype)
    history = []
    for epoch in range(recipe.epochs):
        start = time.perf_counter()
        if recipe.online_every and epoch and epoch % recipe.online_every == 0:
            loader = loader.with_order(online_order(loader, recorder, train, recipe, seed=seed))
        totals = torch.zeros(2, dtype=torch.float64)  # summed loss, right answers
        for number, batch in enumerate(loader.epoch(epoch)):
            rate = recipe.learning_rate(epoch * len(loader) + number, len(loader))
            set_learning_rate(optimiser, rate)
            train_step(model, optimiser, recorder, batch, epoch=epoch, recipe=recipe, dtype=dtype, totals=totals)
            if advance is not None:
                advance(len(batch.labels))
        loss, right = (totals / loader.samples).tolist()
        seconds = time.perf_counter() - start
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"training diverged: the loss of epoch {epoch} is {loss}; lower the learning rate ({recipe.lr})"
            )
        history.append(EpochRecord(epoch, rate, loss, right, seconds, loader.samples / seconds))
    logits = predict(model, dataset.test, dtype=dtype)
    if not np.isfinite(logits).all():
        raise FloatingPointError(
            f"training diverged in its last updates: test logits are not finite; lower the learning rate ({recipe.lr})"
        )
    return Member(weights=model.state_dict(), scores=recorder.scores(), test_logits=logits, history=tuple(history))


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    recorder: HardnessRecorder,
    batch: Batch,
    *,
    epoch: int,
    recipe: Recipe,
    dtype: torch.dtype,
    totals: torch.Tensor,
) -> None:
    """One update. Loss and right answers are added to `totals` where they are; nothing is read back."""
    with torch.autocast(batch.images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(batch.images)
    loss = functional.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
    recorder.record(logits, batch.labels, batch.ids, epoch=epoch)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    totals[0] += loss.detach() * len(batch.labels)
    totals[1] += (logits.detach().argmax(1) == batch.labels).sum()


def predict(model: nn.Module, split: Split, *, dtype: torch.dtype) -> np.ndarray:
    """Logits of every sample of a split in its order, eval mode, no augmentation: float32 [N, C]."""
    loader = Loader(
        split,
        order=sequential_order(len(split)),
        batch_size=min(EVALUATION_BATCH, len(split)),
        dtype=dtype,
        channels_last=True,
        prefetch=0,
    )
    model.eval()
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        return torch.cat([model(batch.images) for batch in loader.epoch(0)]).numpy()


def compute_dtype(recipe: Recipe) -> torch.dtype:
    """The number format of a recipe's convolutions on this machine."""
    if recipe.precision == "auto":
        return torch.bfloat16 if has_native_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.precision]


def check_fit(dataset: Dataset, recipe: Recipe, plan: Plan | None, pools: Sequence[Pool] = ()) -> None:
    """Raise what a training would raise before its first step, without starting one.

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
    wanted, given = plan.stores if plan is not None else (), tuple(pool.fingerprint for pool in pools)
    if wanted != given:
        raise ValueError(
            f"this plan takes images from {len(wanted)} pools ({', '.join(one[:12] for one in wanted) or 'none'}) but "
            f"{len(given)} are given ({', '.join(one[:12] for one in given) or 'none'}): give those it was made with"
        )
    if plan is not None and recipe.online_every:
        raise ValueError("online_every resamples the full set while training: it does not go with a plan")
    initial_model(recipe, dataset.train, seed=0)
    training_loader(dataset.train, recipe, seed=0, plan=plan, pools=pools, dtype=compute_dtype(recipe))


def online_order(loader: Loader, recorder: HardnessRecorder, split: Split, recipe: Recipe, *, seed: int) -> QuotaOrder:
    """The order of the coming epochs in the online mode: class counts a step nearer to what AUM so far asks for."""
    order = loader.job.order
    counts = order.counts(0) if isinstance(order, QuotaOrder) else split.class_counts()
    moved = reallocate(
        counts,
        recorder.scores().class_means("aum", split.labels, split.num_classes),
        hard_is=ESTIMATORS["aum"].hard_is,
        alpha=recipe.online_alpha,
        max_change=recipe.online_max_change,
    )
    return quota_order(split.labels, moved, seed=seed)


def training_loader(
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    plan: Plan | None = None,
    pools: Sequence[Pool] = (),
    dtype: torch.dtype,
) -> Loader:
    """The batches that a recipe trains on."""
    return Loader(
        split,
        plan=plan,
        stores=[pool.split for pool in pools],
        augment=Augment(flip=recipe.flip, pad=recipe.pad),
        batch_size=recipe.batch_size,
        seed=seed,
        dtype=dtype,
        channels_last=True,
        prefetch=0,  # the network has work for every core, and making a batch takes a few thousandths of its step
    )


def initial_model(recipe: Recipe, split: Split, *, seed: int) -> nn.Module:
    """The untrained model of a seed, channels-last. The caller's random state is left as it was."""
    channels, height, width = split.images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spread_seed(seed, Stream.INITIALISATION, 0))
        model = build_model(recipe.model, channels=channels, image_size=(height, width), classes=split.num_classes)
    return model.to(memory_format=torch.channels_last)


def trained_model(recipe: Recipe, split: Split, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model of a recipe with a member's weights, in eval mode."""
    model = initial_model(recipe, split, seed=0)
    model.load_state_dict(weights)
    return model.eval()


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, one fused kernel for all parameters."""
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the learning rate of the coming step."""
    for group in optimiser.param_groups:
        group["lr"] = rate
