"""Hardness by the trained model: one evaluation pass over the train split (method, section 2, final-model forms)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.data.verify import require_unchanged
from hbr_fast.hardness import FINAL, HardnessRecorder, HardnessScores, estimator, stack_scores
from hbr_fast.members.store import StoredMember
from hbr_fast.tensor_files import read_tensors
from hbr_fast.training.build import untrained_model
from hbr_fast.training.components import sources
from hbr_fast.training.predict import predict
from hbr_fast.training.recipe import Recipe, stored_recipe

RECORD_ROWS = 8192  # rows recorded at once


def final_scores(
    model: nn.Module, split: Split, *, dtype: torch.dtype = torch.float32, provenance: Mapping[str, Any] | None = None
) -> HardnessScores:
    """Final-model estimators of every sample of a split, eval mode, no augmentation.

    Parameters
    ----------
    model : nn.Module
        From images [B, channels, H, W] to logits [B, C].
    split : Split
    dtype : torch.dtype
        Of the images; with bfloat16 the model runs under autocast.
    provenance : dict, optional
        Origin to record with the scores.

    Returns
    -------
    HardnessScores
        Of one member: `aum_final`, `confidence_final`, `loss_final`, `dataiq_final`. `never_learnt` are the samples
        that the model classifies wrong.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    >>> sorted(final_scores(model, data.train).values)
    ['aum_final', 'confidence_final', 'dataiq_final', 'loss_final']
    """
    logits = predict(model, split, dtype=dtype)
    return scores_of_logits(logits, np.asarray(split.labels), provenance=provenance)


def scores_of_logits(
    logits_nc: np.ndarray, labels_n: np.ndarray, *, provenance: Mapping[str, Any] | None = None
) -> HardnessScores:
    """Final-model estimators from the logits of a trained model, float [N, C], eval mode, no augmentation."""
    names = [name.removesuffix("_final") for name in FINAL]
    samples, classes = logits_nc.shape
    recorder = HardnessRecorder(samples, classes, estimators=names, provenance=provenance)
    for first in range(0, samples, RECORD_ROWS):
        rows = slice(first, first + RECORD_ROWS)
        ids = torch.arange(samples)[rows]
        recorder.record(torch.from_numpy(logits_nc[rows]), torch.tensor(labels_n[rows]), ids, epoch=0)
    recorded = recorder.scores()
    return HardnessScores(
        values={name: recorded.values[name.removesuffix("_final")] for name in FINAL},
        observations=recorded.observations,
        never_learnt=recorded.never_learnt,
        provenance={**(provenance or {}), "model": "final"},
    )


def scores_by(members: Sequence[StoredMember], dataset: Dataset, name: str) -> HardnessScores:
    """Scores of stored members that include an estimator: as recorded, with the final-model ones if it is one of those.

    The first time, a final-model estimator costs one pass over the train split per member; it is then kept with the
    member's files.

    Raises
    ------
    ValueError
        If the estimator is unknown or needs a second training, or the members were trained on another dataset.
    """
    chosen = estimator(name)
    if chosen.origin == "second training":
        raise ValueError(f"{name} needs a second training: see hbr_fast.second_split_forgetting")
    scores = stack_scores([member.scores() for member in members])
    scores.require_dataset(dataset.fingerprint)
    if chosen.origin == "training":
        return scores
    final = stack_scores([stored_final_scores(member, dataset) for member in members])
    return HardnessScores(
        values={**scores.values, **final.values},
        observations=scores.observations,
        never_learnt=scores.never_learnt,
        provenance=scores.provenance,
    )


def stored_final_scores(member: StoredMember, dataset: Dataset) -> HardnessScores:
    """Final-model scores of a stored member: read from its files, or computed from its weights and stored there."""
    path = member.path / "final.safetensors"
    # What they describe: for other weights, or the same under another name, they are computed again.
    source = {
        "dataset": dataset.fingerprint,
        "normalised_by": [*dataset.mean, *dataset.std],  # not part of the fingerprint
        "key": member.key,
        "weights": member.info["files"]["weights.safetensors"],
    }
    if path.is_file():
        try:
            kept = HardnessScores.load(path)
        except ValueError as error:
            progress.say(f"{error}; computing them again")
        else:
            if all(kept.provenance.get(name) == value for name, value in source.items()):
                return kept
    require_unchanged(dataset)
    scores = final_scores(
        trained_model(member, dataset.train),
        as_trained(member, dataset.train),
        dtype=member.dtype,
        provenance={**member.scores().provenance, **source},
    )
    scores.save(path)
    return scores


def as_trained(member: StoredMember, split: Split) -> Split:
    """The split with encoded pictures at the size that the member was trained with."""
    size = _recipe(member).size
    return split.at_size(size) if size else split


def _recipe(member: StoredMember) -> Recipe:
    return stored_recipe(member.path / "recipe.json", remedy=_remedy(member))


def _remedy(member: StoredMember) -> str:
    return f"remove {member.path} and train the member again"


def trained_model(member: StoredMember, split: Split) -> nn.Module:
    """The network of a stored member with its trained weights, for images like the split's.

    Raises
    ------
    ValueError
        If the function that makes the network is gone or has changed.
    """
    remedy = _remedy(member)
    recipe, split = _recipe(member), as_trained(member, split)
    without_file = dataclasses.replace(recipe, weights="")  # the file they started from may be gone
    then, now = member.info.get("components", {}).get("model"), sources(without_file).get("model")
    if then != now:
        raise ValueError(
            f"model {recipe.model!r} has changed since {member.path.name} was trained ({then}, now {now}): its weights "
            "belong to the network as it was then; restore that, or train again"
        )
    model = untrained_model(recipe, split)
    path = member.path / "weights.safetensors"
    weights, _ = read_tensors(path, what="weights", remedy=remedy, framework="pt")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} is not of this network ({' '.join(str(error).split()):.200}): {remedy}") from None
    return model
