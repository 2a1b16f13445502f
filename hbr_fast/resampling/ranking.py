"""Ranks and reproducible choices that the strategies share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hbr_fast.seeding import Stream, generator


def raw_bits(count: int, *, seed: int, stream: Stream, c: int) -> np.ndarray:
    """Random words that depend only on seed, stream and class, uint64 [count]; a longer row extends a shorter one.

    Choices are made from these words: numpy keeps them stable between its versions, but not its `choice` and
    `permutation`.
    """
    bits: np.ndarray = generator(seed, stream, c).bit_generator.random_raw(count)
    return bits


def shuffled(ids: np.ndarray, *, seed: int, stream: Stream, c: int) -> np.ndarray:
    """The samples of class `c` in random order."""
    return ids[np.argsort(raw_bits(len(ids), seed=seed, stream=stream, c=c), kind="stable")]


def hardest_first(scores: np.ndarray, hard_is: str | None) -> np.ndarray:
    """Positions from hardest to easiest, ties in their order."""
    return np.argsort(scores if hard_is == "low" else -scores, kind="stable")


def class_name(c: int, classes: Sequence[str] | None) -> str:
    """Name of a class in messages."""
    return f"class {c}" if classes is None else f"class {classes[c]!r}"


def members_of_classes(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Positions of each class's samples in `labels`, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])
