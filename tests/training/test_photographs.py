"""Training on encoded pictures: as on stored pixels of the same size, and past damaged pictures."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import write_photographs

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.images import RawImages
from hbr_fast.loaders.augment import Augment
from hbr_fast.members.preflight import check_fit
from hbr_fast.resampling.pipeline import resample_by_hardness
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.trainer import train_member

RECIPE = Recipe(name="photos", model="cnn-4", epochs=2, batch_size=6, precision="float32", size=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_photographs(tmp_path_factory.mktemp("photos"))
    return convert("folder", tmp_path_factory.mktemp("out") / "photos.hbr", root=root, store="encoded")


def with_stored_pixels(dataset: Dataset, size: int) -> Dataset:
    splits = {}
    for name, split in dataset.at_size(size).splits.items():
        images = split.store.gather(np.arange(len(split)))
        images.flags.writeable = False
        splits[name] = dataclasses.replace(split, store=RawImages(images))
    return dataclasses.replace(dataset, splits=splits)


def test_training_on_pictures_equals_training_on_their_pixels(dataset: Dataset) -> None:
    recipe = dataclasses.replace(RECIPE, augment=Augment(flip=0.5, pad=2))
    of_pictures = train_member(dataset, recipe, seed=1)
    of_pixels = train_member(with_stored_pixels(dataset, 16), recipe, seed=1)
    for name, weights in of_pixels.weights.items():
        assert torch.equal(of_pictures.weights[name], weights)
    np.testing.assert_array_equal(of_pictures.test_logits, of_pixels.test_logits)


def test_training_sets_a_damaged_picture_aside(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(dataset.path, tmp_path / "damaged.hbr"))
    store = dataset.train.store
    assert isinstance(store, EncodedImages)
    content = bytearray((path / "train.00000.tar").read_bytes())
    content[int(store.index["offset"][8]) + 200] ^= 1
    (path / "train.00000.tar").write_bytes(content)
    recipe = dataclasses.replace(RECIPE, augment=Augment(flip=0.5, resized_crop=(0.3, 1.0)))
    member = train_member(open_dataset(path), recipe, seed=1)
    said = capsys.readouterr().err
    assert "trained without 1 bad pictures: 8 (train/dog/2.jpg) is not as it was converted (another checksum)" in said
    seen = member.scores.observations[0]
    assert seen.tolist() == [0 if row == 8 else 2 for row in range(12)]
    assert np.isfinite(member.test_logits).all()


def test_recipe_size_is_part_of_what_determines_a_training() -> None:
    plain, sized = dataclasses.replace(RECIPE, size=0), RECIPE
    assert "size" not in plain.identity()
    assert sized.identity() == {**plain.identity(), "size": 16}
    assert Recipe.from_json(sized.to_json()) == sized
    with pytest.raises(ValueError, match="size cannot be -1"):
        dataclasses.replace(RECIPE, size=-1)


def test_pictures_without_a_size_are_refused_before_training(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"images of split 'train' vary in size: choose one, .*--set size=224"):
        check_fit(dataset, dataclasses.replace(RECIPE, size=0), None)
    with pytest.raises(ValueError, match="stored at 16 x 16 pixels, not 24 x 24"):
        check_fit(with_stored_pixels(dataset, 16), dataclasses.replace(RECIPE, size=24), None)
    check_fit(dataset, RECIPE, None)


def test_smote_needs_a_size(dataset: Dataset) -> None:
    scores = train_member(dataset, RECIPE, seed=0, provenance={"dataset": dataset.fingerprint}).scores
    with pytest.raises(ValueError, match="smote compares pixels, and pictures that vary in size"):
        resample_by_hardness(dataset, scores, oversample="smote", seed=0)
    resampled = resample_by_hardness(dataset, scores, estimator="loss", alpha=1.0, oversample="random", seed=0)
    assert len(resampled.plan) == 12
