"""Second-split forgetting time: how soon a sample is forgotten while the model learns other ones.

Source: Maini et al., "Characterizing datapoints via second-split forgetting", NeurIPS 2022. They ask from when on a
sample stays wrong; here (method, section 2) it is when it is wrong first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.hardness import HardnessScores
from hbr_fast.loaders.loader import Loader
from hbr_fast.plan import Plan
from hbr_fast.sampler import sequential_order
from hbr_fast.seeding import Stream, generator, spread_seed
from hbr_fast.training.inference import EVALUATION_BATCH
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.trainer import (
    compute_dtype,
    initial_model,
    make_optimiser,
    set_learning_rate,
    training_loader,
)


def second_split_forgetting(
    dataset: Dataset, recipe: Recipe, *, seed: int, advance: Callable[[int], None] | None = None
) -> HardnessScores:
    """Train on a random half of each class, then on the other half, and see when samples of the first go wrong.

    The model is evaluated on the first half, eval mode, no augmentation, before the second training (time 0) and after
    each of its E epochs (times 1 to E). The score of a sample is the first time it is classified wrong, E + 1 if it
    never is; samples of the second half are not observed (NaN). Members of several seeds have other halves: their mean
    (`stack_scores`) covers every sample.

    Parameters
    ----------
    dataset : Dataset
    recipe : Recipe
        Of either training. The second starts from the weights of the first, with the whole schedule once more.
    seed : int
        In [0, 2**63).
    advance : callable, optional
        Called with the number of rows after each step, for a progress bar.

    Returns
    -------
    HardnessScores
        Of one member: `ssft`. `never_learnt` are samples wrong at time 0 already.

    Raises
    ------
    ValueError
        If a class has fewer than 2 samples, or the model or the batch does not fit.
    FloatingPointError
        If a training diverges.
    """
    train = dataset.train
    first, second = halves(np.asarray(train.labels), seed=seed)
    dtype = compute_dtype(recipe)
    model = initial_model(recipe, train, seed=seed)
    for _ in epochs_of_training(model, train, recipe, rows=first, seed=seed, dtype=dtype, advance=advance):
        pass
    time = np.zeros(len(first), np.int64)
    intact = right(model, train, first, dtype=dtype)
    never_learnt = ~intact
    # Its own order and augmentation: those of the first training belong to other rows.
    other_seed = spread_seed(seed, Stream.SECOND_SPLIT, 1)
    for _ in epochs_of_training(model, train, recipe, rows=second, seed=other_seed, dtype=dtype, advance=advance):
        time[intact] += 1
        intact &= right(model, train, first, dtype=dtype)
    time[intact] += 1
    scores = np.full((1, len(train)), np.nan)
    scores[0, first] = time
    observations = np.zeros((1, len(train)), np.int64)
    observations[0, first] = recipe.epochs + 1
    wrong = np.zeros((1, len(train)), bool)
    wrong[0, first] = never_learnt
    provenance = {"dataset": dataset.fingerprint, "recipe": recipe.to_json(), "seed": seed, "first_half": len(first)}
    return HardnessScores({"ssft": scores}, observations, wrong, provenance)


def halves(labels_n: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample ids of two random halves of every class, each in ascending order; the first has the odd one.

    Raises
    ------
    ValueError
        If a class has fewer than 2 samples.
    """
    random = generator(seed, Stream.SECOND_SPLIT)
    in_first = np.zeros(len(labels_n), bool)
    for c in np.unique(labels_n):
        members = np.flatnonzero(labels_n == c)
        if len(members) < 2:
            raise ValueError(f"class {c} has {len(members)} sample: a second split needs at least 2 of every class")
        in_first[random.permutation(members)[: (len(members) + 1) // 2]] = True
    return np.flatnonzero(in_first), np.flatnonzero(~in_first)


def epochs_of_training(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    rows: np.ndarray,
    seed: int,
    dtype: torch.dtype,
    advance: Callable[[int], None] | None = None,
) -> Iterator[int]:
    """Train a model on some rows of a split as a recipe says, and yield after every epoch."""
    loader = training_loader(split, recipe, seed=seed, plan=Plan.of_rows(rows), dtype=dtype)
    optimiser = make_optimiser(model, recipe)
    for epoch in range(recipe.epochs):
        model.train()
        losses = []
        for step, batch in enumerate(loader.epoch(epoch)):
            set_learning_rate(optimiser, recipe.learning_rate(epoch * len(loader) + step, len(loader)))
            with torch.autocast(batch.images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = model(batch.images)
            loss = functional.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
            if advance is not None:
                advance(len(batch.labels))
        if not torch.stack(losses).isfinite().all():
            raise FloatingPointError(f"training diverged in epoch {epoch}; lower the learning rate ({recipe.lr})")
        yield epoch


def right(model: nn.Module, split: Split, rows: np.ndarray, *, dtype: torch.dtype) -> np.ndarray:
    """Whether the model classifies each of some rows of a split right, eval mode, no augmentation: bool [R]."""
    loader = Loader(
        split,
        plan=Plan.of_rows(rows),
        order=sequential_order(len(rows)),
        batch_size=min(EVALUATION_BATCH, len(rows)),
        dtype=dtype,
        channels_last=True,
        prefetch=0,
    )
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return torch.cat([model(batch.images).argmax(1) == batch.labels for batch in loader.epoch(0)]).numpy()
