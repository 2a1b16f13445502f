"""Several members trained as one network: their layers side by side, as groups of channels.

A convolution of M groups is M convolutions, and the statistics of a batch norm are each channel's own, so the members
stay apart from the images to the logits. Loader, optimiser, learning rate and recorder are each member's own. The
members' parameters and buffers are parts of the stack's, the same memory: checkpoints, evaluation and the finished
weights are those of plain models.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.data.pool import Pool
from hbr_fast.loaders.batch import Batch
from hbr_fast.plan import Plan
from hbr_fast.training import signals
from hbr_fast.training.checkpoint import Checkpoints
from hbr_fast.training.distributed import Ranks, SharedBatches
from hbr_fast.training.inference import predict
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.state import EpochRecord, TrainingState
from hbr_fast.training.trainer import (
    Diverged,
    Member,
    compute_dtype,
    epoch_record,
    finished_member,
    initial_state,
    rows_done,
    set_learning_rate,
    training_loader,
)

SHARED_FIELDS = ("model", "epochs", "batch_size", "precision")  # of the recipes of a stack


class StackedNetwork(nn.Module):
    """M models of one architecture as one network.

    The models stay usable: from now on their parameters and buffers are parts of this network's memory.

    Parameters
    ----------
    models : sequence of nn.Module
        Of `build_model` (each a `Classifier`), all by one name, on one device.

    Raises
    ------
    ValueError
        If a layer with parameters is neither a convolution nor a batch norm.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = len(models)
        self.features = copy.deepcopy(models[0].get_submodule("features"))
        self.head = cast(nn.Linear, copy.deepcopy(models[0].get_submodule("head")))
        self._parts: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        for part in ("features", "head"):
            trees = [model.get_submodule(part).modules() for model in (self, *models)]
            for layer, *layers in zip(*trees, strict=True):
                self._join(layer, layers)

    def forward(self, images_mbchw: Sequence[torch.Tensor]) -> torch.Tensor:
        """A batch [B, channels, H, W] for each member to logits [M, B, C], float32."""
        features = self.features(torch.cat(list(images_mbchw), dim=1))
        with torch.autocast(features.device.type, enabled=False):
            features_mbf = features.float().unflatten(1, (self.members, -1)).transpose(0, 1)
            weight_mcf = self.head.weight.unflatten(0, (self.members, -1))
            bias_m1c = self.head.bias.view(self.members, 1, -1)
            return torch.baddbmm(bias_m1c, features_mbf, weight_mcf.transpose(1, 2))

    def hand_out_gradients(self) -> None:
        """Give the members' parameters their parts of the gradients, for their optimisers."""
        for whole, parts in self._parts:
            assert whole.grad is not None
            for part, gradient in zip(parts, whole.grad.chunk(self.members), strict=True):
                part.grad = gradient

    def _join(self, layer: nn.Module, layers: Sequence[nn.Module]) -> None:
        """Make one layer of the members' own, which become parts of it."""
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        if own and not isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            raise ValueError(f"a layer of type {type(layer).__name__} cannot be stacked: train the members otherwise")
        for name, tensor in own:
            if tensor.ndim == 0:  # a batch norm's count of steps, which members in one place have in common
                for member in layers:
                    setattr(member, name, tensor)
                continue
            joined = torch.cat([getattr(member, name).detach() for member in layers])
            if joined.ndim == 4:
                joined = joined.contiguous(memory_format=torch.channels_last)
            for member, part in zip(layers, joined.chunk(self.members), strict=True):
                getattr(member, name).data = part
            if isinstance(tensor, nn.Parameter):
                tensor.data = joined
                self._parts.append((tensor, [getattr(member, name) for member in layers]))
            else:
                setattr(layer, name, joined)
        if isinstance(layer, nn.Conv2d):
            layer.groups *= self.members


@dataclass(frozen=True)
class StackedMember:
    """One member of a stack: what `train_member` takes of it."""

    recipe: Recipe
    seed: int
    plan: Plan | None = None
    pools: tuple[Pool, ...] = ()
    provenance: Mapping[str, Any] | None = None
    checkpoints: Checkpoints | None = None
    advance: Callable[[int], None] | None = None
    on_epoch: Callable[[EpochRecord], None] | None = None


@dataclass
class Run:
    """A member while it trains."""

    member: StackedMember
    batches: SharedBatches
    state: TrainingState
    diverged: Diverged | None = None

    @property
    def place(self) -> tuple[int, int]:
        return self.state.epoch, self.state.step

    @property
    def unfinished(self) -> bool:
        return self.diverged is None and self.state.epoch < self.member.recipe.epochs

    def advance(self, rows: int) -> None:
        if self.member.advance is not None and rows:
            self.member.advance(rows)

    def save(self) -> None:
        if self.member.checkpoints is not None:
            self.member.checkpoints.save(self.state)


def train_stacked(dataset: Dataset, members: Sequence[StackedMember]) -> list[Member | Diverged]:
    """Train several members at once as one network: to rounding what `train_member` makes of each.

    Seeds, rows and whatever of the recipes is not in `SHARED_FIELDS` are each member's own, learning rates and
    augmentation too. A member that diverges leaves the stack. Members whose checkpoints stand at different steps join
    the stack one after another, at the step where each is. The seconds in a member's history are those of the stack.

    Parameters
    ----------
    dataset : Dataset
    members : sequence of StackedMember
        Their epochs must have equally many rows.

    Returns
    -------
    list of Member or Diverged
        In the order of `members`.

    Raises
    ------
    ValueError
        If the members cannot be one network, or what `train_member` raises.
    Terminated, KeyboardInterrupt
        If a signal asked for it; members with checkpoints are saved first.
    """
    _check_alike(members)
    dtype = compute_dtype(members[0].recipe)
    runs = [begin(dataset.train, member, dtype) for member in members]
    rows = {run.batches.samples for run in runs}
    if len(rows) > 1:
        raise ValueError(f"stacked members need epochs of equally many rows, got {', '.join(map(str, sorted(rows)))}")
    for run in runs:
        run.advance(rows_done(run.state, run.batches))
    with signals.deferred() as pending:

        def may_stop() -> None:
            if (number := pending()) is not None:
                for run in runs:
                    if run.diverged is None:
                        run.save()
                signals.obey(number)

        together: list[Run] = []
        while unfinished := [run for run in runs if run.unfinished]:
            first = min(run.place for run in unfinished)
            standing = [run for run in unfinished if run.place == first]
            if standing != together:
                together, network = standing, StackedNetwork([run.state.model for run in standing])
            ahead = [run.state.step for run in unfinished if run.state.epoch == first[0] and run.place > first]
            for batches in _epoch(together, until=min(ahead, default=len(together[0].batches))):
                start = time.perf_counter()
                step(network, together, batches, dtype)
                seconds = time.perf_counter() - start
                for run, batch in zip(together, batches, strict=True):
                    run.state.step += 1
                    run.state.seconds += seconds
                    run.advance(len(batch.labels))
                if any(run.member.checkpoints is not None and run.member.checkpoints.due() for run in together):
                    for run in together:
                        run.save()
                may_stop()
            for run in together:
                if run.state.step == len(run.batches):
                    _end_epoch(run)
        return [_finished(run, dataset, dtype, may_stop) for run in runs]


def _check_alike(members: Sequence[StackedMember]) -> None:
    recipe = members[0].recipe
    for member in members:
        if member.recipe.online_every:
            raise ValueError("online_every changes the rows of each member while it trains: do not stack such members")
        for name in SHARED_FIELDS:
            here, there = getattr(recipe, name), getattr(member.recipe, name)
            if here != there:
                raise ValueError(f"stacked members need one {name}, got {here!r} and {there!r}")


def begin(split: Split, member: StackedMember, dtype: torch.dtype) -> Run:
    """The member as `train_member` begins it, or where its checkpoint stands."""
    recipe = member.recipe
    loader = training_loader(split, recipe, seed=member.seed, plan=member.plan, pools=member.pools, dtype=dtype)
    batches = SharedBatches(loader, Ranks())
    state = initial_state(
        recipe,
        split,
        seed=member.seed,
        steps=len(batches),
        provenance=member.provenance,
        strangers=bool(member.pools),
    )
    if member.checkpoints is not None:
        member.checkpoints.restore(state)
    return Run(member, batches, state)


def _epoch(runs: Sequence[Run], *, until: int) -> Iterator[tuple[Batch, ...]]:
    """The batches of all members from the step where they stand up to, not with, step `until`."""
    epoch, start = runs[0].place
    iterators = [run.batches.epoch(epoch, start=start) for run in runs]
    for _, *own in zip(range(start, until), *iterators, strict=False):
        yield tuple(batch for batch, _ in own)


def step(network: StackedNetwork, runs: Sequence[Run], batches: Sequence[Batch], dtype: torch.dtype) -> None:
    """One update of every member: `train_step`, side by side."""
    with torch.autocast(batches[0].images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits_mbc = network([batch.images for batch in batches])
    losses = [
        functional.cross_entropy(logits, batch.labels, label_smoothing=run.member.recipe.label_smoothing)
        for run, batch, logits in zip(runs, batches, logits_mbc.unbind(), strict=True)
    ]
    network.zero_grad()
    torch.stack(losses).sum().backward()
    network.hand_out_gradients()
    for run, batch, logits, loss in zip(runs, batches, logits_mbc.detach().unbind(), losses, strict=True):
        state, recipe, steps = run.state, run.member.recipe, len(run.batches)
        state.recorder.record(logits, batch.labels, batch.ids, epoch=state.epoch)
        set_learning_rate(state.optimiser, recipe.learning_rate(state.epoch * steps + state.step, steps))
        state.optimiser.step()
        state.loss_s[state.step].copy_(loss.detach())
        state.right_s[state.step].copy_((logits.argmax(1) == batch.labels).sum())


def _end_epoch(run: Run) -> None:
    checkpoints = run.member.checkpoints
    try:
        run.state.history.append(epoch_record(run.state, run.batches, run.member.recipe))
    except Diverged as error:
        run.diverged = error
        return
    if run.member.on_epoch is not None:
        run.member.on_epoch(run.state.history[-1])
    run.state.next_epoch()
    if checkpoints is not None and checkpoints.due(epochs_done=run.state.epoch):
        run.save()


def _finished(run: Run, dataset: Dataset, dtype: torch.dtype, after_batch: Callable[[], None]) -> Member | Diverged:
    if run.diverged is not None:
        return run.diverged
    logits = predict(run.state.model, dataset.test, dtype=dtype, after_batch=after_batch)
    try:
        return finished_member(run.state, logits, run.member.recipe)
    except Diverged as error:
        return error
