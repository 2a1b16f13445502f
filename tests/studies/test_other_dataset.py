"""A study's directory and its hardness belong to one dataset, e.g. not to the same pictures after JPEG."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.files import read_json
from hbr_fast.hardness import HardnessScores
from hbr_fast.resampling.pipeline import resample_by_hardness
from hbr_fast.studies.preview import preview
from hbr_fast.studies.runner import run_study

from .conftest import STUDY


@pytest.fixture(scope="module")
def other(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The dataset with one pixel changed: same classes, same sizes."""
    folder = tmp_path_factory.mktemp("other")
    images = np.array(data.train.images)
    images[0, 0, 0, 0] ^= 1
    test: dict[str, Any] = {"test_images": data.test.images, "test_labels": data.test.labels}
    np.savez(folder / "other.npz", images=images, labels=data.train.labels, classes=np.array(data.classes), **test)
    return convert("npz", folder / "other.hbr", root=folder / "other.npz")


def test_study_refuses_the_directory_of_another_dataset(finished: Path, data: Dataset, other: Dataset) -> None:
    before = read_json(finished / "study.json")
    for run in (run_study, preview):
        with pytest.raises(ValueError, match="holds a study of ") as caught:
            run(STUDY, other, out=finished)
        for one in (data, other):
            assert f"{one.name} ({one.path.name}, fingerprint {one.fingerprint[:12]})" in str(caught.value)
    assert read_json(finished / "study.json") == before


def test_hardness_of_another_dataset_is_refused(finished: Path, data: Dataset, other: Dataset) -> None:
    scores = HardnessScores.load(next((finished / "members").iterdir()) / "hardness.safetensors")
    said = f"recorded on dataset {data.fingerprint[:12]}, not on {other.fingerprint[:12]}"
    with pytest.raises(ValueError, match=said):
        resample_by_hardness(other, scores, alpha=0.1, seed=0)
