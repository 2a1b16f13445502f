"""A dataset and a recipe that train in hundredths of a second."""

import dataclasses
from pathlib import Path

import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.loaders.augment import Augment
from hbr_fast.training.recipe import Recipe

TINY = Recipe(
    name="tiny",
    model="cnn-4-8",
    epochs=2,
    batch_size=50,
    lr=0.05,
    schedule="triangular",
    augment=Augment(flip=0.5, pad=1),
    precision="float32",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread: None) -> None:
    """All tests here train."""


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.hbr"
    convert("synthetic", path, classes=3, train_per_class=40, test_per_class=20, shape=(1, 8, 8))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Dataset:
    """120 train and 60 test images of 1x8x8 in 3 classes."""
    return open_dataset(tiny_path)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same size as `tiny`, with other pixels."""
    path = tmp_path_factory.mktemp("other") / "other.hbr"
    return convert("synthetic", path, classes=3, train_per_class=40, test_per_class=20, shape=(1, 8, 8), seed=9)


@pytest.fixture
def recipe() -> Recipe:
    return dataclasses.replace(TINY)
