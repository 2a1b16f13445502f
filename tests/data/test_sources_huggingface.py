"""Hugging Face datasets on disk, as the `datasets` library writes them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from PIL import Image

from hbr_fast.data.convert import convert
from hbr_fast.data.sources import Source, huggingface
from hbr_fast.data.sources.opening import open_source

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def frame(count: int, first: int) -> polars.DataFrame:
    rows = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(np.full((4, 5, 3), first + number, np.uint8)).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": number % 2})
    return polars.DataFrame(rows)


def save(place: Path, parts: list[polars.DataFrame], **state: Any) -> None:
    place.mkdir(parents=True)
    files = [f"data-{index:05d}-of-{len(parts):05d}.arrow" for index in range(len(parts))]
    for name, part in zip(files, parts, strict=True):
        part.write_ipc_stream(place / name)
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files], **state}))
    (place / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def values(source: Source, split: str) -> list[int]:
    return [int(image[0, 0, 0]) for block in source.splits[split].blocks() for image in block]


def test_huggingface_saved_dataset_dict(tmp_path: Path) -> None:
    """Sharded into several files, like large datasets."""
    save(tmp_path / "pets" / "train", [frame(4, 0), frame(2, 4)])
    save(tmp_path / "pets" / "validation", [frame(4, 100)])
    dataset = convert("huggingface", tmp_path / "pets.hbr", root=tmp_path / "pets")
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.images[:, 0, 0, 0].tolist() == list(range(6))
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert dataset.test.images[:, 1, 3, 4].tolist() == [100, 101, 102, 103]
    assert dataset.meta["source"]["kind"] == "huggingface"
    save(tmp_path / "pets" / "test", [frame(2, 200)])
    source = open_source("huggingface", root=tmp_path / "pets")
    assert {split: values(source, split)[0] for split in source.splits} == {"train": 0, "test": 200, "validation": 100}


def test_huggingface_single_split_needs_test_fraction(tmp_path: Path) -> None:
    save(tmp_path / "pets", [frame(8, 0)])
    with pytest.raises(ValueError, match=r"has no test split: hold one out with --test-fraction"):
        open_source("huggingface", root=tmp_path / "pets")
    source = open_source("huggingface", root=tmp_path / "pets", test_fraction=0.25)
    assert sorted(values(source, "train") + values(source, "test")) == list(range(8))
    assert source.splits["test"].labels_n.tolist() == [0, 1]


def test_huggingface_hub_parquet_layout(tmp_path: Path) -> None:
    """Labels without names, and a column with another name."""
    place = tmp_path / "data"
    place.mkdir()
    for split, first in (("train", 0), ("test", 50)):
        part = frame(4, first).with_columns(polars.col("label").replace_strict({0: "no", 1: "yes"}).alias("is_dog"))
        part.drop("label").write_parquet(place / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="there is no column of labels: its columns are image, is_dog"):
        huggingface(root=tmp_path)
    source = huggingface(root=tmp_path, label_column="is_dog", size=(4, 4))
    assert source.classes == ("no", "yes")
    assert values(source, "test") == [50, 51, 52, 53]
    with pytest.raises(ValueError, match=r"no column of the name 'is_dgo': did you mean 'is_dog'\?"):
        huggingface(root=tmp_path, label_column="is_dgo")


def test_huggingface_names_or_skips_rows_without_image(tmp_path: Path) -> None:
    part = frame(5, 0)
    images = part["image"].to_list()
    images[3] = {"bytes": None, "path": "gone.png"}
    images[4] = {"bytes": b"damaged", "path": None}
    save(tmp_path / "pets" / "train", [part.with_columns(polars.Series("image", images))])
    save(tmp_path / "pets" / "test", [frame(4, 100)])
    with pytest.raises(ValueError, match=r"train/3 cannot be read \(the row has no picture\); .*train/4 is not a read"):
        convert("huggingface", tmp_path / "a.hbr", root=tmp_path / "pets")
    dataset = convert("huggingface", tmp_path / "a.hbr", root=tmp_path / "pets", skip_bad=True)
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_huggingface_rejects_invalid_dataset(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no Hugging Face dataset: give what save_to_disk wrote"):
        huggingface(root=tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        huggingface(root=tmp_path / "absent")
    save(tmp_path / "a" / "dev", [frame(2, 0)])
    with pytest.raises(ValueError, match="has the splits dev: one must be called train"):
        huggingface(root=tmp_path / "a")
    save(tmp_path / "b", [frame(2, 0)], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(ValueError, match=r"save it again after flatten_indices\(\)"):
        open_source("huggingface", root=tmp_path / "b", test_fraction=0.5)
