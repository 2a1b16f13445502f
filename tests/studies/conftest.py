"""A dataset, a recipe that learns it in a tenth of a second, and a finished study."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.loaders.augment import Augment
from hbr_fast.report import figures
from hbr_fast.studies.runner import run_study
from hbr_fast.studies.study import Arm, Study
from hbr_fast.training.recipe import Recipe

RECIPE = Recipe(
    name="tiny",
    model="cnn-8-16",
    epochs=6,
    batch_size=50,
    lr=0.05,
    schedule="triangular",
    augment=Augment(),
    precision="float32",
)
STUDY = Study(name="small", recipe=RECIPE, arms=(Arm("hbr", 0.3),), variants=2, members=1, seed=4)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread: None) -> None:
    """All tests here train."""


@pytest.fixture(autouse=True, scope="module")
def _no_pictures() -> Iterator[None]:
    """All tests here look at tables only, as do the fixtures of a module that write reports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "pictures_of", lambda *args, **named: [])
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """240 train and 60 test images of 1x8x8 in 3 classes, the last the hardest."""
    path = tmp_path_factory.mktemp("data") / "small.hbr"
    return convert("synthetic", path, classes=3, train_per_class=80, test_per_class=20, shape=(1, 8, 8))


@pytest.fixture(scope="session")
def finished(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`STUDY` run on `data`; tests read it and do not write to it."""
    return run_study(STUDY, data, out=tmp_path_factory.mktemp("study") / "small")
