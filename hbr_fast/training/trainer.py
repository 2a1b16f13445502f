"""Training one member: plain PyTorch, hardness recorded during training, nothing read from the device within a step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.data.plan import Plan
from hbr_fast.data.pool import Pool
from hbr_fast.hardness import ESTIMATORS, HardnessRecorder
from hbr_fast.loaders.loader import Loader
from hbr_fast.orders import QuotaOrder, Sampler, quota_order, sequential_order
from hbr_fast.progress import printable
from hbr_fast.resampling.allocation import reallocate
from hbr_fast.training import signals
from hbr_fast.training.averaging import Averaged
from hbr_fast.training.build import initial_model, make_optimizer
from hbr_fast.training.checkpoint import Checkpoints
from hbr_fast.training.device import Compute, compute_dtype, gpu_memory_mb, gpu_utilisation, resolve_precision
from hbr_fast.training.distributed import SharedBatches, ranks, shared_model
from hbr_fast.training.member import Diverged, Member, finished_member
from hbr_fast.training.memory import freed_memory_kept
from hbr_fast.training.predict import predict
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.state import EpochRecord, TrainingState
from hbr_fast.training.step import Stepper

PICTURE_CACHE = 256 * 10**6  # bytes of decoded pictures that a training keeps
_BAD_NAMED = 10  # bad pictures that a message lists


def train_member(
    dataset: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    plan: Plan | None = None,
    pools: Sequence[Pool] = (),
    provenance: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    checkpoints: Checkpoints | None = None,
    compute: Compute | None = None,
) -> Member:
    """Train one model on the train split and record the hardness of every sample it visits.

    Everything random follows from `seed`: initial weights, order, augmentation, mixing and what the network draws
    itself, each from its own stream. On the CPU, with the same number of threads, a resumed training gives the bits of
    an uninterrupted one. The caller's random state is unchanged.

    If `torch.distributed` is initialised, its ranks share every batch, and every rank returns the same member: that of
    one process, up to rounding.

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
        Origin to record with the scores.
    advance : callable, optional
        Called with the number of rows after each step, for a progress bar; first with those that a checkpoint holds.
    on_epoch : callable, optional
        Called with the record of each finished epoch.
    checkpoints : Checkpoints, optional
        Where the training is saved and resumed from. SIGTERM and Ctrl-C then save first.
    compute : Compute, optional
        On which device; by default a GPU if there is one. Results are on the processor.

    Raises
    ------
    ValueError
        If the model or the batch does not fit the dataset, there is no such device, or the checkpoint is another
        training's.
    Diverged
        If the loss of a step, or a logit of the trained model, is not finite.
    Terminated, KeyboardInterrupt
        If a signal requested it.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert, named_recipe
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> recipe = named_recipe("quickstart", ["model=cnn-4-8", "epochs=1", "batch_size=4", "augment.pad=0"])
    >>> member = train_member(data, recipe, seed=0)
    >>> member.test_logits.shape
    (4, 2)
    """
    dataset = dataset.at_size(recipe.size)
    train, own, compute = dataset.train, ranks(), compute or Compute()
    device = compute.resolved()
    recipe = resolve_precision(recipe, device)
    dtype = compute_dtype(recipe)
    require_shareable(recipe, compute, processes=own.size)
    loader = training_loader(train, recipe, seed=seed, plan=plan, pools=pools, device=device)
    batches = SharedBatches(loader, own)
    state = initial_state(
        recipe,
        train,
        seed=seed,
        steps=len(batches),
        device=device,
        provenance=provenance,
        distributed=own.size > 1,
        ignore_unknown_ids=bool(pools),
    )
    model = state.model
    advance = advance or (lambda rows: None)
    with own.agreed():
        if checkpoints is not None and checkpoints.restore(state):
            advance(rows_done(state, batches))
    own.require_same(
        "the processes of this training see different checkpoints: put the run directory where all of them see it",
        state.epoch,
        state.step,
    )
    stepper = Stepper(
        recipe,
        shared_model(model) if own.size > 1 else compute.network(model),
        state.optimizer,
        seed=seed,
        steps_per_epoch=len(batches),
        class_counts=class_counts_of(train, plan, pools),
        device=device,
        averaged=state.averaged,
        rank=own.rank,
    )
    generators = [device] if device.type == "cuda" else []
    memory = freed_memory_kept() if device.type == "cpu" else contextlib.nullcontext()
    with memory, torch.random.fork_rng(generators), signals.deferred() as pending:

        def save_and_stop(due: bool) -> None:
            """Save if it is due on the first rank, and stop after saving if a signal asks any rank to."""
            save, number = own.highest(due and own.first, pending() or 0)
            if checkpoints is not None and (save or number):
                state.merge_ranks()
                with own.agreed():
                    if own.first:
                        checkpoints.save(state)
            if number:
                signals.obey(number)

        if state.class_counts is not None:
            batches = batches.with_order(quota_order(train.labels, np.array(state.class_counts), seed=seed))
        for epoch in range(state.epoch, recipe.epochs):
            if recipe.online_every and epoch and epoch % recipe.online_every == 0 and state.step == 0:
                order = online_order(batches.order, state.recorder, train, recipe, seed=seed)
                batches, state.class_counts = batches.with_order(order), order.counts(0).tolist()
            start = time.perf_counter() - state.seconds
            for batch, share in batches.epoch(epoch, start=state.step):
                step = state.step
                stepper(
                    batch,
                    state.recorder,
                    epoch=epoch,
                    step=step,
                    loss_out=state.loss_s[step],
                    right_out=state.right_s[step],
                    share=share,
                )
                state.step, state.seconds = step + 1, time.perf_counter() - start
                advance(batches.rows(step))
                save_and_stop(checkpoints is not None and checkpoints.due())
            if device.type == "cuda":  # the host ran ahead of the device
                torch.cuda.synchronize(device)
                state.seconds = time.perf_counter() - start
            state.merge_ranks()
            state.history.append(epoch_record(state, batches, recipe))
            if on_epoch is not None:
                on_epoch(state.history[-1])
            state.next_epoch()
            save_and_stop(checkpoints is not None and checkpoints.due(epochs_done=state.epoch))
        part = sequential_order(len(dataset.test)).shard(own.rank, own.size)

        def logits_by(network: torch.nn.Module) -> np.ndarray:
            found = predict(network, dataset.test, dtype=dtype, order=part, after_batch=lambda: save_and_stop(False))
            return own.interleaved(found)[: len(dataset.test)]

        logits = logits_by(model)
        ema_logits = None if state.averaged is None else logits_by(state.averaged.model)
    report_bad_pictures(loader, train)
    return finished_member(state, logits, recipe, ema_logits=ema_logits)


def report_bad_pictures(loader: Loader, split: Split) -> None:
    """Say which encoded pictures of the train split could not be used."""
    bad = sorted(loader.bad_pictures.items())
    if bad:
        sources = split.sources
        named = [
            f"{row}{f' ({printable(sources[row])})' if sources is not None and row < len(sources) else ''} {reason}"
            for row, reason in bad[:_BAD_NAMED]
        ]
        more = f"; and {len(bad) - _BAD_NAMED:,} more" if len(bad) > _BAD_NAMED else ""
        progress.say(f"trained without {len(bad):,} bad pictures: {'; '.join(named)}{more}")


def initial_state(
    recipe: Recipe,
    split: Split,
    *,
    seed: int,
    steps: int,
    device: torch.device | str = "cpu",
    provenance: Mapping[str, Any] | None = None,
    distributed: bool = False,
    ignore_unknown_ids: bool = False,
) -> TrainingState:
    """The initial state of a training; the other arguments are those of `HardnessRecorder`."""
    model = initial_model(recipe, split, seed=seed).to(device)
    return TrainingState(
        model=model,
        averaged=Averaged(model, recipe.ema) if recipe.ema else None,
        optimizer=make_optimizer(recipe, model),
        recorder=HardnessRecorder(
            len(split),
            split.num_classes,
            el2n_epochs=recipe.el2n_epochs,
            device=device,
            provenance=provenance,
            distributed=distributed,
            ignore_unknown_ids=ignore_unknown_ids,
        ),
        loss_s=torch.zeros(steps, device=device),
        right_s=torch.zeros(steps, dtype=torch.int64, device=device),
    )


def rows_done(state: TrainingState, batches: SharedBatches) -> int:
    """Rows trained so far; an epoch's last batch may have fewer than the others."""
    return state.epoch * batches.samples + sum(batches.rows(step) for step in range(state.step))


def epoch_record(state: TrainingState, batches: SharedBatches, recipe: Recipe) -> EpochRecord:
    """The record of the epoch just ended: the only place where its losses are read back.

    Raises
    ------
    Diverged
        If one of them is not finite.
    """
    losses = state.loss_s.cpu().numpy().astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise Diverged(state.epoch, int(bad[0]), float(losses[bad[0]]), recipe.lr)
    rows = [batches.rows(step) for step in range(len(batches))]
    last = (state.epoch + 1) * len(batches) - 1
    return EpochRecord(
        epoch=state.epoch,
        learning_rate=recipe.learning_rate(last, len(batches)),
        train_loss=float(losses @ rows) / batches.samples,
        train_accuracy=int(state.right_s.sum()) / batches.samples,
        seconds=state.seconds,
        images_per_second=batches.samples / state.seconds,
        gpu_memory_mb=gpu_memory_mb(state.loss_s.device),
        gpu_utilisation=gpu_utilisation(state.loss_s.device),
    )


def online_order(order: Sampler, recorder: HardnessRecorder, split: Split, recipe: Recipe, *, seed: int) -> QuotaOrder:
    """The order of the coming epochs in the online mode: class counts a step nearer to those by AUM so far."""
    counts = order.counts(0) if isinstance(order, QuotaOrder) else split.class_counts()
    moved = reallocate(
        counts,
        recorder.scores().class_means("aum", split.labels, split.num_classes),
        hard_is=ESTIMATORS["aum"].hard_is,
        alpha=recipe.online_alpha,
        max_change=recipe.online_max_change,
    )
    return quota_order(split.labels, moved, seed=seed)


def require_shareable(recipe: Recipe, compute: Compute, *, processes: int) -> None:
    """Refuse what a recipe asks for and several processes, or a compiled network, cannot do.

    Raises
    ------
    ValueError
    """
    if processes > 1 and recipe.mixes:
        raise ValueError(
            "mixup and cutmix mix the rows of a batch, which the processes of torchrun share: train in one process, or "
            "without them"
        )
    if compute.compile and recipe.accumulate > 1:
        raise ValueError("a compiled network takes whole batches: leave out compile, or accumulate")


def class_counts_of(split: Split, plan: Plan | None, pools: Sequence[Pool] = ()) -> np.ndarray:
    """How many rows of an epoch each class has: int64 [C]."""
    if plan is None:
        return split.class_counts()
    counts_c = np.zeros(split.num_classes, np.int64)
    for store, labels in enumerate([split.labels, *(pool.split.labels for pool in pools)]):
        counts_c += np.bincount(labels[plan.index[plan.store == store]], minlength=split.num_classes)
    return counts_c


def training_loader(
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    plan: Plan | None = None,
    pools: Sequence[Pool] = (),
    device: torch.device | str = "cpu",
) -> Loader:
    """The batches that a recipe with resolved precision trains on."""
    return Loader(
        split,
        plan=plan,
        stores=[pool.split for pool in pools],
        augment=recipe.augment,
        batch_size=recipe.batch_size,
        seed=seed,
        dtype=compute_dtype(recipe),
        channels_last=True,
        device=device,
        prefetch=0,  # the network keeps every core busy, and making a batch takes a few thousandths of a step
        cache=PICTURE_CACHE,
    )
