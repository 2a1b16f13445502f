"""Second-split forgetting time: how soon a sample is forgotten while the model learns others.

Source: Maini et al., "Characterizing datapoints via second-split forgetting", NeurIPS 2022. They ask when a sample
becomes wrong for good; here (method, section 2) it is when it is first wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.data.plan import Plan
from hbr_fast.data.verify import require_unchanged
from hbr_fast.hardness import HardnessScores
from hbr_fast.seeding import Stream, generator, spread_seed
from hbr_fast.training.build import initial_model, make_optimizer
from hbr_fast.training.device import compute_dtype, resolve_precision
from hbr_fast.training.predict import predict
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.step import Stepper
from hbr_fast.training.trainer import class_counts_of, training_loader


def second_split_forgetting(
    dataset: Dataset, recipe: Recipe, *, seed: int, advance: Callable[[int], None] | None = None
) -> HardnessScores:
    """Train on a random half of each class, then on the other half, and record when samples of the first become wrong.

    The model is evaluated on the first half, eval mode, no augmentation, before the second training (time 0) and after
    each of its E epochs (times 1 to E). The score of a sample is the first time it is classified wrong, E + 1 if it
    never is; samples of the second half are not observed (NaN). Members with other seeds have other halves:
    their mean (`stack_scores`) covers every sample.

    Parameters
    ----------
    dataset : Dataset
    recipe : Recipe
        Of both trainings. The second starts from the weights of the first and repeats the whole schedule.
    seed : int
        In [0, 2**63).
    advance : callable, optional
        Called with the number of rows after each step, for a progress bar.

    Returns
    -------
    HardnessScores
        Of one member: `ssft`. `never_learnt` are samples already wrong at time 0.

    Raises
    ------
    ValueError
        If a class has fewer than 2 samples, or the model or the batch does not fit.
    FloatingPointError
        If a training diverges.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert, named_recipe
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> recipe = named_recipe("quickstart", ["model=cnn-4-8", "epochs=1", "batch_size=4", "augment.pad=0"])
    >>> scores = second_split_forgetting(data, recipe, seed=0)
    >>> int((scores.observations > 0).sum())
    4
    """
    require_unchanged(dataset)
    train = dataset.at_size(recipe.size).train
    first, second = halves(np.asarray(train.labels), seed=seed)
    recipe = resolve_precision(recipe, torch.device("cpu"))
    dtype = compute_dtype(recipe)
    model = initial_model(recipe, train, seed=seed)
    for _ in epochs_of_training(model, train, recipe, rows=first, seed=seed, advance=advance):
        pass
    time = np.zeros(len(first), np.int64)
    intact = right(model, train, first, dtype=dtype)
    never_learnt = ~intact
    # Its own order and augmentation, since the first training's belong to other rows.
    other_seed = spread_seed(seed, Stream.SECOND_SPLIT, 1)
    for _ in epochs_of_training(model, train, recipe, rows=second, seed=other_seed, advance=advance):
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
    """Sample ids of two random halves of every class, each in ascending order; the first half takes an odd sample.

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
    advance: Callable[[int], None] | None = None,
) -> Iterator[int]:
    """Train a model on some rows of a split by a recipe, and yield after every epoch."""
    plan = Plan.of_rows(rows)
    loader = training_loader(split, recipe, seed=seed, plan=plan)
    stepper = Stepper(
        recipe,
        model,
        make_optimizer(recipe, model),
        seed=seed,
        steps_per_epoch=len(loader),
        class_counts=class_counts_of(split, plan),
    )
    loss_s, right_s = torch.zeros(len(loader)), torch.zeros(len(loader), dtype=torch.int64)
    for epoch in range(recipe.epochs):
        model.train()
        for step, batch in enumerate(loader.epoch(epoch)):
            with torch.random.fork_rng(devices=[]):
                stepper(batch, None, epoch=epoch, step=step, loss_out=loss_s[step], right_out=right_s[step])
            if advance is not None:
                advance(len(batch.labels))
        if not loss_s.isfinite().all():
            raise FloatingPointError(f"training diverged in epoch {epoch}; lower the learning rate ({recipe.lr})")
        yield epoch


def right(model: nn.Module, split: Split, rows: np.ndarray, *, dtype: torch.dtype) -> np.ndarray:
    """Whether the model classifies each of the rows correctly, eval mode, no augmentation: bool [R]."""
    return predict(model, split, dtype=dtype, rows=rows).argmax(1) == split.labels[rows]
