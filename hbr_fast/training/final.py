"""Hardness by the trained model: one evaluation pass over the train split (method, section 2, final-model forms)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.files import read_json
from hbr_fast.hardness import FINAL, HardnessRecorder, HardnessScores, estimator, stack_scores
from hbr_fast.training.inference import predict
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.store import StoredMember
from hbr_fast.training.trainer import initial_model

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
        What the scores should say of where they come from.

    Returns
    -------
    HardnessScores
        Of one member: `aum_final`, `confidence_final`, `loss_final`, `dataiq_final`. `never_learnt` are the samples
        that the model gets wrong.
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
    """Scores of stored members that hold an estimator: as recorded, with the final-model ones if it is one of them.

    A final-model estimator costs one pass over the train split a member, the first time: it is kept beside the member's
    other files.

    Raises
    ------
    ValueError
        If the estimator is unknown or needs a second training, or the members were trained on another dataset.
    """
    chosen = estimator(name)
    if chosen.origin == "second training":
        raise ValueError(f"{name} needs a second training: see hbr_fast.training.ssft.second_split_forgetting")
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
    """Final-model scores of a stored member: those kept beside it, or else computed from its weights and kept."""
    path = member.path / "final.safetensors"
    # What they are of: other weights, or the same under another name, are computed again.
    source = {"dataset": dataset.fingerprint, "key": member.key, "weights": member.info["files"]["weights.safetensors"]}
    if path.is_file():
        kept = HardnessScores.load(path)
        if all(kept.provenance.get(name) == value for name, value in source.items()):
            return kept
    scores = final_scores(
        trained_model(member, dataset.train),
        dataset.train,
        dtype=getattr(torch, member.info["precision"]),
        provenance={**member.scores().provenance, **source},
    )
    scores.save(path)
    return scores


def trained_model(member: StoredMember, split: Split) -> nn.Module:
    """The network of a stored member with its trained weights, for images like the split's."""
    from safetensors.torch import load_file

    recipe = Recipe.from_json(read_json(member.path / "recipe.json"))
    model = initial_model(recipe, split, seed=0)
    model.load_state_dict(load_file(member.path / "weights.safetensors"))
    return model
