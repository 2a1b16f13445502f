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
from hbr_fast.plan import Plan
from hbr_fast.sampler import QuotaOrder, Sampler, quota_order, sequential_order
from hbr_fast.seeding import Stream, spread_seed
from hbr_fast.training import signals
from hbr_fast.training.checkpoint import Checkpoints
from hbr_fast.training.device import Compute, gpu_memory_mb, gpu_utilisation, has_fast_bfloat16
from hbr_fast.training.distributed import SharedBatches, ranks, shared_model
from hbr_fast.training.inference import predict
from hbr_fast.training.models import build_model
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.state import EpochRecord, TrainingState


class Diverged(FloatingPointError):
    """A training whose loss stopped being a finite number.

    Attributes
    ----------
    epoch, step : int
        Where that was seen first, both from 0, the step within the epoch; step -1: in the logits of the test split,
        after the last update.
    loss : float
        What it was there.
    lr : float
        The recipe's learning rate.
    """

    def __init__(self, epoch: int, step: int, loss: float, lr: float) -> None:
        super().__init__(epoch, step, loss, lr)  # so that it crosses processes
        self.epoch, self.step, self.loss, self.lr = epoch, step, loss, lr

    @property
    def where(self) -> str:
        """The place, in words."""
        if self.step < 0:
            return f"in its last updates (epoch {self.epoch}): test logits are not finite"
        return f"at epoch {self.epoch}, step {self.step}: the loss is {self.loss}"

    def __str__(self) -> str:
        return f"training diverged {self.where}; lower the learning rate ({self.lr})"


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
    on_epoch: Callable[[EpochRecord], None] | None = None,
    checkpoints: Checkpoints | None = None,
    compute: Compute | None = None,
) -> Member:
    """Train one model on the train split and record the hardness of every sample it visits.

    Everything random follows from `seed`: initial weights, order and augmentation, each from a stream of its own. On
    the CPU, with the same number of threads, a training that was interrupted and went on gives the bits of one that was
    not.

    Where `torch.distributed` is initialised its ranks share every batch, and every rank returns the same member: that
    of one process, to rounding.

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
        Called with the number of rows after each step, for a progress bar; first with those that a checkpoint holds.
    on_epoch : callable, optional
        Called with what each epoch did when it is over.
    checkpoints : Checkpoints, optional
        Where the training saves itself and is taken up again. SIGTERM and Ctrl-C then save before they are obeyed.
    compute : Compute, optional
        On which device; by default a GPU where there is one. What is returned is on the processor.

    Raises
    ------
    ValueError
        If the model or the batch does not fit the dataset, there is no such device, or the checkpoint is of another
        training.
    Diverged
        If the loss of a step, or a logit of the trained model, is not finite.
    Terminated, KeyboardInterrupt
        If a signal asked for it.
    """
    train, own, compute = dataset.train, ranks(), compute or Compute()
    device, dtype = compute.resolved(), compute_dtype(recipe)
    loader = training_loader(train, recipe, seed=seed, plan=plan, pools=pools, dtype=dtype, device=device)
    batches = SharedBatches(loader, own)
    state = initial_state(
        recipe,
        train,
        seed=seed,
        steps=len(batches),
        device=device,
        provenance=provenance,
        distributed=own.size > 1,
        strangers=bool(pools),
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
    stepped = shared_model(model) if own.size > 1 else compute.network(model)
    with signals.deferred() as pending:

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
                set_learning_rate(state.optimiser, recipe.learning_rate(epoch * len(batches) + step, len(batches)))
                train_step(
                    stepped,
                    state.optimiser,
                    state.recorder,
                    batch,
                    epoch=epoch,
                    recipe=recipe,
                    dtype=dtype,
                    loss_out=state.loss_s[step],
                    right_out=state.right_s[step],
                    share=share,
                )
                state.step, state.seconds = step + 1, time.perf_counter() - start
                advance(batches.rows(step))
                save_and_stop(checkpoints is not None and checkpoints.due())
            if device.type == "cuda":  # the host ran ahead of it
                torch.cuda.synchronize(device)
                state.seconds = time.perf_counter() - start
            state.merge_ranks()
            state.history.append(epoch_record(state, batches, recipe))
            if on_epoch is not None:
                on_epoch(state.history[-1])
            state.next_epoch()
            save_and_stop(checkpoints is not None and checkpoints.due(epochs_done=state.epoch))
        part = sequential_order(len(dataset.test)).shard(own.rank, own.size)
        logits = predict(model, dataset.test, dtype=dtype, order=part, after_batch=lambda: save_and_stop(False))
        logits = own.interleaved(logits)[: len(dataset.test)]
    return finished_member(state, logits, recipe)


def initial_state(
    recipe: Recipe,
    split: Split,
    *,
    seed: int,
    steps: int,
    device: torch.device | str = "cpu",
    provenance: Mapping[str, Any] | None = None,
    distributed: bool = False,
    strangers: bool = False,
) -> TrainingState:
    """Where a training of so many steps an epoch begins; the other arguments are those of `HardnessRecorder`."""
    model = initial_model(recipe, split, seed=seed).to(device)
    return TrainingState(
        model=model,
        optimiser=make_optimiser(model, recipe),
        recorder=HardnessRecorder(
            len(split),
            split.num_classes,
            el2n_epochs=recipe.el2n_epochs,
            device=device,
            provenance=provenance,
            distributed=distributed,
            strangers=strangers,
        ),
        loss_s=torch.zeros(steps, device=device),
        right_s=torch.zeros(steps, dtype=torch.int64, device=device),
    )


def rows_done(state: TrainingState, batches: SharedBatches) -> int:
    """Rows that were trained on up to where a training stands; an epoch's last batch may have fewer than the others."""
    return state.epoch * batches.samples + sum(batches.rows(step) for step in range(state.step))


def finished_member(state: TrainingState, logits: np.ndarray, recipe: Recipe) -> Member:
    """What a training at its end left, with the model's logits of the test split.

    Raises
    ------
    Diverged
        If one of them is not finite.
    """
    if not np.isfinite(logits).all():
        raise Diverged(recipe.epochs - 1, -1, float("nan"), recipe.lr)
    return Member(
        weights={name: tensor.detach().cpu().clone() for name, tensor in state.model.state_dict().items()},
        scores=state.recorder.scores(),
        test_logits=logits,
        history=tuple(state.history),
    )


def epoch_record(state: TrainingState, batches: SharedBatches, recipe: Recipe) -> EpochRecord:
    """What the epoch that has just ended did: the one place where its losses are read back.

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


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    recorder: HardnessRecorder,
    batch: Batch,
    *,
    epoch: int,
    recipe: Recipe,
    dtype: torch.dtype,
    loss_out: torch.Tensor,
    right_out: torch.Tensor,
    share: float = 1.0,
) -> None:
    """One update. Mean loss and right answers are written into two one-element tensors on the device, and not read.

    `share`: these rows over those of the batch that several ranks share, whose gradients add up; the loss written is
    then this rank's part of it.
    """
    with torch.autocast(batch.images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(batch.images)
    loss = functional.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
    if share != 1:
        loss = share * loss if share else logits.sum()  # without a row: no mean, but a part in the sums over ranks
    recorder.record(logits, batch.labels, batch.ids, epoch=epoch)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    loss_out.copy_(loss.detach())
    right_out.copy_((logits.detach().argmax(1) == batch.labels).sum())


def compute_dtype(recipe: Recipe) -> torch.dtype:
    """The number format of a recipe's convolutions on this machine: "auto" goes by its GPU if it has one."""
    if recipe.precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.precision]


def online_order(order: Sampler, recorder: HardnessRecorder, split: Split, recipe: Recipe, *, seed: int) -> QuotaOrder:
    """The order of the coming epochs in the online mode: class counts a step nearer to what AUM so far asks for."""
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
    device: torch.device | str = "cpu",
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
        device=device,
        prefetch=0,  # the network has work for every core, and making a batch takes a few thousandths of its step
    )


def initial_model(recipe: Recipe, split: Split, *, seed: int) -> nn.Module:
    """The untrained model of a seed, channels-last. The caller's random state is left as it was."""
    channels, height, width = split.images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spread_seed(seed, Stream.INITIALISATION, 0))
        model = build_model(recipe.model, channels=channels, image_size=(height, width), classes=split.num_classes)
    return model.to(memory_format=torch.channels_last)


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
