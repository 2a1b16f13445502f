"""How confident a trained ensemble is of images it did not train on; pools of generated images are ranked by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset, Split
from hbr_fast.data.pool import Pool
from hbr_fast.data.verify import require_unchanged
from hbr_fast.files import content_hash
from hbr_fast.hardness.class_means import class_means
from hbr_fast.members.scoring.final_model import as_trained, trained_model
from hbr_fast.members.store import StoredMember
from hbr_fast.resampling.pools import RANKED, RankedPool
from hbr_fast.tensor_files import cached_array
from hbr_fast.training.predict import evaluated


def rank_pool(pool: Pool, dataset: Dataset, members: Sequence[StoredMember], *, cache: Path) -> RankedPool:
    """What resampling needs to know of a pool: labels, and the ensemble's confidence in its and the real images.

    Parameters
    ----------
    pool : Pool
    dataset : Dataset
        That of the members; its train split gives the real images' confidence.
    members : sequence of StoredMember
    cache : path
        A directory that caches the confidences, named by the pool's fingerprint and the members' keys.
    """
    keys = [member.key for member in members]

    def confidence(name: str, split: Split, fingerprint: str) -> np.ndarray:
        path = cache / f"confidence-{content_hash({'images': fingerprint, 'members': keys})[:20]}.safetensors"

        def compute() -> np.ndarray:
            require_unchanged(dataset)
            return own_confidence(split, dataset, members, label=name)

        return cached_array(path, compute, form=f"float32 [{len(split)}]")

    real = confidence("train split", dataset.train, dataset.fingerprint)
    return RankedPool(
        labels=pool.split.labels,
        fingerprint=pool.fingerprint,
        confidence=confidence("pool", pool.split, pool.fingerprint),
        real_confidence=class_means(real, dataset.train.labels, len(dataset.classes), classes=dataset.classes),
    )


def ranked_pool(
    oversample: str, pool: Pool, dataset: Dataset, members: Sequence[StoredMember], *, cache: Path
) -> RankedPool:
    """What an oversampler needs to know of a pool: confidences (see `rank_pool`) only if it ranks by them."""
    if oversample in RANKED:
        return rank_pool(pool, dataset, members, cache=cache)
    return RankedPool(labels=pool.split.labels, fingerprint=pool.fingerprint)


def own_confidence(split: Split, dataset: Dataset, members: Sequence[StoredMember], *, label: str) -> np.ndarray:
    """Probability of each image's own class, mean over the members: float32 [N]; eval mode, no augmentation.

    Images stream through one member after the other: memory holds a few batches, and for each image its label, index
    and confidence.
    """
    images = dataclasses.replace(split, mean=dataset.train.mean, std=dataset.train.std)  # as in training
    total = np.zeros(len(split), np.float64)
    with progress.task(f"{label}: confidence", total=len(members) * len(split), unit="images") as advance:
        for member in members:
            model = trained_model(member, dataset.train)
            for batch, logits in evaluated(model, as_trained(member, images), dtype=member.dtype):
                own = logits.softmax(1).gather(1, batch.labels[:, None])[:, 0]
                total[batch.ids.numpy()] += own.double().numpy()
                images.store.release_memory()
                advance(len(batch.ids))
    return (total / len(members)).astype(np.float32)
