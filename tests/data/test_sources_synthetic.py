"""Generated images: deterministic bytes, and a hardness that shows in classifier errors."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from hbr_fast.data import images as images_module
from hbr_fast.data.sources import Source, synthetic


def images_of(source: Source, split: str) -> np.ndarray:
    return np.concatenate(list(source.splits[split].blocks()))


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def test_synthetic_golden_bytes() -> None:
    """The generator is part of the format: results reported for a seed must stay reproducible."""
    source = synthetic(classes=3, train_per_class=5, test_per_class=2, shape=(2, 9, 7), seed=7)
    digest = hashlib.sha256()
    for name, split in source.splits.items():
        assert split.truth_n is not None
        digest.update(images_of(source, name).tobytes())
        digest.update((split.truth_n * 65536).astype("<i8").tobytes())
    assert digest.hexdigest() == "2da8bc5e544f0a689403f6d2104498cf771266d4a5148ca7bd086de9e3ac22b9"


@pytest.mark.parametrize("size", [1, 1000, 1 << 22])
def test_synthetic_is_independent_of_block_size(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    source = synthetic(classes=4, train_per_class=30, test_per_class=3, shape=(3, 9, 7))
    expected = images_of(source, "train")
    monkeypatch.setattr(images_module, "BLOCK_BYTES", size)
    np.testing.assert_array_equal(images_of(source, "train"), expected)


def test_synthetic_splits_and_seeds_differ() -> None:
    first, second = (synthetic(classes=2, train_per_class=5, test_per_class=5, seed=seed) for seed in (0, 1))
    assert not np.array_equal(images_of(first, "train"), images_of(first, "test"))
    assert not np.array_equal(images_of(first, "train"), images_of(second, "train"))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_synthetic_hardness_predicts_classifier_errors(shape: tuple[int, int, int]) -> None:
    """A nearest-class-mean classifier learns, and its test errors follow the truth."""
    source = synthetic(train_per_class=300, test_per_class=200, shape=shape)
    train, test = (images_of(source, split).astype(np.float64) for split in ("train", "test"))
    labels_n, test_labels_n = source.splits["train"].labels_n, source.splits["test"].labels_n
    truth_n = source.splits["test"].truth_n
    assert truth_n is not None
    means_c = np.stack([train[labels_n == label].mean(axis=0).ravel() for label in range(10)])
    scores_nc = test.reshape(len(test), -1) @ means_c.T - 0.5 * (means_c**2).sum(axis=1)
    rows = np.arange(len(test))
    own_n = scores_nc[rows, test_labels_n]
    scores_nc[rows, test_labels_n] = -np.inf
    margin_n = own_n - scores_nc.max(axis=1)

    wrong_n = margin_n < 0
    error_c = np.array([wrong_n[test_labels_n == label].mean() for label in range(10)])
    truth_c = np.array([truth_n[test_labels_n == label].mean() for label in range(10)])
    assert 0.7 < 1 - wrong_n.mean() < 0.95
    assert error_c[0] < 0.05
    assert error_c[-1] > 0.3
    assert rank_correlation(error_c, truth_c) > 0.85
    assert rank_correlation(-margin_n, truth_n) > 0.8
    within = [rank_correlation(-margin_n[test_labels_n == c], truth_n[test_labels_n == c]) for c in range(10)]
    assert min(within) > 0.6, "samples of one class differ too"


def test_synthetic_truth_is_ordered_and_in_range() -> None:
    source = synthetic(classes=20, train_per_class=400, test_per_class=10, shape=(1, 8, 8))
    split = source.splits["train"]
    assert split.truth_n is not None
    assert split.truth_n.min() >= 0
    assert split.truth_n.max() <= 0.7
    means_c = np.array([split.truth_n[split.labels_n == label].mean() for label in range(20)])
    np.testing.assert_allclose(means_c, np.linspace(0.2, 0.5, 20), atol=0.02)
    spread_c = np.array([np.ptp(split.truth_n[split.labels_n == label]) for label in range(20)])
    assert np.all(np.abs(spread_c - 0.4) < 0.02)
    np.testing.assert_array_equal(np.bincount(split.labels_n), 400)


@pytest.mark.parametrize("classes", [16, 64, 256])
def test_synthetic_classes_are_equidistant(classes: int) -> None:
    from hbr_fast.data.sources.synthetic import _prototypes

    grid = {16: 4, 64: 8, 256: 16}[classes]
    patterns = _prototypes(classes, 3, grid, 0).reshape(classes, -1)
    products = patterns @ patterns.T
    np.testing.assert_array_equal(products, products[0, 0] * np.eye(classes, dtype=np.int64))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"classes": 1}, r"classes must be in 2\.\.256, got 1"),
        ({"classes": 257}, "classes must be in"),
        ({"train_per_class": 0}, "every class needs a sample"),
        ({"test_per_class": -1}, "every class needs a sample"),
        ({"shape": (3, 3, 8)}, "sides of at least 4 pixels for 10 classes"),
        ({"shape": (0, 8, 8)}, "shape must be"),
        ({"shape": (8, 8)}, "shape must be"),
        ({"classes": 17, "shape": (1, 7, 8)}, "at least 8 pixels"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**63}, "seed must be in"),
    ],
)
def test_synthetic_rejects_invalid_options(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        synthetic(**options)
