"""One update of a network: the step of every training here, with or without recording."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.loaders.batch import Batch
from hbr_fast.seeding import Stream, spread_seed
from hbr_fast.training.averaging import Averaged
from hbr_fast.training.build import make_loss
from hbr_fast.training.components import component
from hbr_fast.training.device import compute_dtype
from hbr_fast.training.losses import Loss
from hbr_fast.training.mixing import Mixing, mixing_of
from hbr_fast.training.recipe import Recipe


class Stepper:
    """The steps of one training: what recipe, seed and place determine of each.

    Random numbers that the network itself draws, as in dropout, are keyed by (seed, step, rank), through torch's global
    generator: the caller keeps its state (`torch.random.fork_rng`).

    Parameters
    ----------
    recipe : Recipe
        With resolved precision.
    model : nn.Module
        The module to call: compiled, or shared with other ranks.
    optimizer : torch.optim.Optimizer
    seed : int
    steps_per_epoch : int
    class_counts : int [C]
        Training samples of each class.
    device : torch.device
    averaged : Averaged, optional
        The moving average of the weights to update.
    rank : int
        Of this process among those that share the batches.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        steps_per_epoch: int,
        class_counts: np.ndarray,
        device: torch.device | str = "cpu",
        averaged: Averaged | None = None,
        rank: int = 0,
    ) -> None:
        self.recipe, self.model, self.optimizer = recipe, model, optimizer
        self.seed, self.steps_per_epoch, self.averaged, self.rank = seed, steps_per_epoch, averaged, rank
        self.loss = make_loss(recipe, class_counts=class_counts, device=device)
        self.schedule = component("schedule", recipe)
        self.dtype = compute_dtype(recipe)

    def __call__(
        self,
        batch: Batch,
        recorder: HardnessRecorder | None,
        *,
        epoch: int,
        step: int,
        loss_out: torch.Tensor,
        right_out: torch.Tensor,
        share: float = 1.0,
    ) -> None:
        """Train on the batch of a step of an epoch, both from 0; the others are those of `train_step`."""
        recipe, done = self.recipe, epoch * self.steps_per_epoch + step
        torch.manual_seed(spread_seed(self.seed, Stream.NETWORK, done << 16 | self.rank))
        set_learning_rate(self.optimizer, self.schedule(done, self.steps_per_epoch))
        height, width = batch.images.shape[2:]
        train_step(
            self.model,
            self.optimizer,
            recorder,
            batch,
            loss=self.loss,
            epoch=epoch,
            dtype=self.dtype,
            loss_out=loss_out,
            right_out=right_out,
            share=share,
            mixing=mixing_of(
                recipe,
                seed=self.seed,
                epoch=epoch,
                position=step * recipe.batch_size,
                rows=len(batch.labels),
                size=(height, width),
            ),
            accumulate=recipe.accumulate,
            clip_norm=recipe.clip_norm,
        )
        if self.averaged is not None:
            own = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
            self.averaged.update(own, done)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recorder: HardnessRecorder | None,
    batch: Batch,
    *,
    loss: Loss,
    epoch: int,
    dtype: torch.dtype,
    loss_out: torch.Tensor,
    right_out: torch.Tensor,
    share: float = 1.0,
    mixing: Mixing | None = None,
    accumulate: int = 1,
    clip_norm: float = 0.0,
) -> None:
    """One update. The mean loss and the number of right answers are written on the device, and not read back.

    Parameters
    ----------
    model, optimizer
    recorder : HardnessRecorder, optional
        Records the logits of the step, before the update, against the rows' own labels.
    batch : Batch
    loss : Loss
    epoch : int
        From 0, for the recorder.
    dtype : torch.dtype
        bfloat16 runs the network under autocast.
    loss_out : float32 [], right_out : int64 []
        On the device of the batch.
    share : float
        Fraction of the batch's rows on this rank, if ranks share it; gradients add up, and the loss written is this
        rank's part.
    mixing : Mixing, optional
        How the images of the batch are mixed with each other, and the loss with their labels.
    accumulate : int
        Parts in which the batch passes through the network.
    clip_norm : float
        Largest norm of the gradient; 0 does not clip.
    """
    images, others = batch.images, None
    if mixing is not None:
        images, others = mixing.images(images), mixing.labels(batch.labels)
    optimizer.zero_grad()
    total, right = torch.zeros_like(loss_out), torch.zeros_like(right_out)
    parts = _parts(len(batch.labels), accumulate, empty_too=isinstance(model, DistributedDataParallel))
    for number, rows in enumerate(parts):
        labels, ids = batch.labels[rows], batch.ids[rows]
        with contextlib.ExitStack() as open_contexts:
            if number + 1 < len(parts) and isinstance(model, DistributedDataParallel):
                open_contexts.enter_context(model.no_sync())  # the last part adds the gradients up
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = model(images[rows])
            logits = logits.float()  # networks of other libraries give bfloat16
            if not len(labels):  # no row, no mean, but this rank takes part in the sums over ranks
                mean = logits.sum()
            elif mixing is not None and others is not None:
                if recorder is not None:
                    recorder.record(logits, labels, ids, epoch=epoch)
                mean = mixing.loss(loss.mean, logits, labels, others[rows])
            elif recorder is not None:
                mean = loss.recorded(logits, labels, ids, recorder, epoch=epoch)
            else:
                mean = loss.mean(logits, labels)
            of_batch = share * len(labels) / len(batch.labels) if len(batch.labels) else 0.0
            if of_batch not in (0, 1):
                mean = of_batch * mean
            mean.backward()
        total = total + mean.detach()
        right = right + (logits.detach().argmax(1) == labels).sum()
    if clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    loss_out.copy_(total)
    right_out.copy_(right)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every parameter group its own peak learning rate times the schedule's factor for the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _parts(rows: int, count: int, *, empty_too: bool) -> list[slice]:
    """Consecutive rows in `count` parts that differ by at most one row; empty ones only where ranks must keep step."""
    edges = [rows * number // count for number in range(count + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges) if empty_too or edge[0] < edge[1]]
