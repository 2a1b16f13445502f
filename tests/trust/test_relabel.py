"""Relabelling vouches for what it links: nothing from outside the dataset, nothing changed, never onto itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.relabel import relabel
from hbr_fast.data.verify import verify_dataset


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return convert("synthetic", tmp_path / "a.hbr", classes=2, train_per_class=4, test_per_class=2, shape=(1, 4, 4))


def test_relabel_onto_itself_is_refused(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "link.hbr").symlink_to(data.path)
    for out in (data.path, tmp_path / "link.hbr", tmp_path / "." / "a.hbr"):
        with pytest.raises(ValueError, match="is the dataset itself, whose true labels would be lost"):
            relabel(data, data.train.labels[::-1].copy(), out, force=True)
    verify_dataset(data.path)


def test_relabel_links_nothing_from_outside(data: Dataset, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    images = data.path / "test.images.npy"
    os.rename(images, secret)
    images.symlink_to(secret)
    with pytest.raises(ValueError, match=r"test\.images\.npy is a symbolic link"):
        relabel(open_dataset(data.path), data.train.labels, tmp_path / "b.hbr")
    assert secret.stat().st_nlink == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hbr", "secret"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_relabel_of_changed_labels_is_refused(data: Dataset, tmp_path: Path, split: str) -> None:
    path = data.path / f"{split}.labels.npy"
    labels = np.load(path, allow_pickle=False)
    np.save(path, labels[::-1], allow_pickle=False)
    with pytest.raises(ValueError, match=rf"{split}\.labels\.npy was changed after conversion"):
        relabel(open_dataset(data.path), data.train.labels, tmp_path / "b.hbr")


def test_relabel_through_a_linked_directory(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "link.hbr").symlink_to(data.path)
    made = relabel(open_dataset(tmp_path / "link.hbr"), data.train.labels[::-1].copy(), tmp_path / "b.hbr")
    assert os.path.samefile(data.path / "train.images.npy", made.path / "train.images.npy")
    assert json.loads((made.path / "meta.json").read_text())["files"] != data.meta["files"]
    verify_dataset(made.path)
