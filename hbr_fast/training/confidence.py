"""How sure a trained ensemble is of images that it was not trained on: pools of generated ones are ranked by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.data.pool import Pool
from hbr_fast.files import atomic_write, content_hash, let_go
from hbr_fast.loaders.loader import Loader
from hbr_fast.resampling.pools import RankedPool
from hbr_fast.sampler import sequential_order
from hbr_fast.training.final import trained_model
from hbr_fast.training.inference import EVALUATION_BATCH
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.store import StoredMember
from hbr_fast.training.trainer import compute_dtype


def rank_pool(
    pool: Pool, dataset: Dataset, recipe: Recipe, members: Sequence[StoredMember], *, cache: Path
) -> RankedPool:
    """What resampling needs to know of a pool: labels, and how sure the ensemble is of its images and of the real ones.

    Parameters
    ----------
    pool : Pool
    dataset : Dataset
        The members' own; its train split gives the real images' confidence.
    recipe : Recipe
        The members' own.
    members : sequence of StoredMember
    cache : path
        A directory that keeps the confidences, named by the pool's fingerprint and the members' keys.
    """
    keys = [member.key for member in members]

    def confidence(name: str, split: Split, fingerprint: str) -> np.ndarray:
        path = cache / f"confidence-{content_hash({'images': fingerprint, 'members': keys})[:20]}.npy"
        if not path.exists():
            found = own_confidence(split, dataset, recipe, members, label=name)
            cache.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                np.save(file, found, allow_pickle=False)
        kept: np.ndarray = np.load(path, allow_pickle=False)
        return kept

    real = confidence("train split", dataset.train, dataset.fingerprint)
    labels = dataset.train.labels
    sums_c = np.bincount(labels, weights=real, minlength=len(dataset.classes))
    return RankedPool(
        labels=pool.split.labels,
        fingerprint=pool.fingerprint,
        confidence=confidence("pool", pool.split, pool.fingerprint),
        real_confidence=sums_c / dataset.train.class_counts(),
    )


def own_confidence(
    split: Split, dataset: Dataset, recipe: Recipe, members: Sequence[StoredMember], *, label: str
) -> np.ndarray:
    """Probability of each image's own class, mean over the members: float32 [N]; eval mode, no augmentation.

    Images stream through one member after the other: memory holds some batches of them, and for each image its label,
    its place in the order and its confidence.
    """
    images = dataclasses.replace(split, mean=dataset.train.mean, std=dataset.train.std)  # as the members saw theirs
    dtype = compute_dtype(recipe)
    total = np.zeros(len(split), np.float64)
    with progress.task(f"{label}: confidence", total=len(members) * len(split), unit="images") as advance:
        for member in members:
            model = trained_model(member, dataset.train).eval()
            loader = Loader(
                images,
                order=sequential_order(len(split)),
                batch_size=min(EVALUATION_BATCH, len(split)),
                dtype=dtype,
                channels_last=True,
                prefetch=0,
            )
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                for batch in loader.epoch(0):
                    own = model(batch.images).softmax(1).gather(1, batch.labels[:, None])[:, 0]
                    total[batch.ids.numpy()] += own.double().numpy()
                    let_go(images.images)
                    advance(len(batch.ids))
    return (total / len(members)).astype(np.float32)
