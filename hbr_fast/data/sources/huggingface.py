"""Hugging Face datasets on disk: the output of `save_to_disk`, and folders of Parquet files as on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from hbr_fast.arguments import near_names
from hbr_fast.csv_files import polars_faults, require_readable_parquet
from hbr_fast.data.sources.classes import Labelled, unified
from hbr_fast.data.sources.encoded import picture_source
from hbr_fast.data.sources.headers import Mode
from hbr_fast.data.sources.layouts import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES, Listing, Place
from hbr_fast.data.sources.pictures import Decoding, Fit
from hbr_fast.data.sources.source import Source, checked_labels
from hbr_fast.data.sources.tables import LABEL_COLUMNS
from hbr_fast.data.sources.trees import Entry, PackedNames, PassedOver
from hbr_fast.files import read_json, reason
from hbr_fast.json_schema import require_schema
from hbr_fast.progress import printable

if TYPE_CHECKING:
    import polars


def huggingface(
    *,
    root: str | os.PathLike[str] | None = None,
    label_column: str | None = None,
    size: tuple[int, int] | None = None,
    resize: Fit = "stretch",
    mode: Mode = "auto",
    background: tuple[int, int, int] | None = None,
    skip_bad: bool = False,
) -> Source:
    """A dataset of encoded pictures with a column of labels.

    Parameters
    ----------
    root : path
        The output of `DatasetDict.save_to_disk` or `Dataset.save_to_disk`, or a folder with Parquet files whose names
        begin with the split, in it or in `data`: `train-00000-of-00001.parquet`, ...
    label_column : str, optional
        Needed if it is not called label or similar.
    size, resize, mode, background, skip_bad : optional
        As in `folder`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such dataset at `root`, or no column of pictures or labels: the message lists the columns.
    """
    if root is None:
        raise ValueError("huggingface: say where the dataset is with --root")
    place = Path(root)
    frames, names = _saved(place) if (place / "state.json").is_file() else _dictionary(place)
    chosen = {
        key: next((frames[name] for wanted in spelt for name in frames if name.casefold() == wanted), None)
        for key, spelt in (("train", TRAIN_NAMES), ("test", TEST_NAMES), ("validation", VALIDATION_NAMES))
    }
    if chosen["test"] is None:
        chosen |= {"test": chosen["validation"], "validation": None}
    if chosen["train"] is None:
        raise ValueError(f"{place} has the splits {', '.join(frames)}: one must be called train")
    labelled = {
        key: _labelled(place, key, frame, names, label_column) for key, frame in chosen.items() if frame is not None
    }
    classes, found = unified(labelled, places={split: split for split in labelled}, where=place)
    return picture_source(
        place.resolve().name,
        classes,
        found,
        mode=mode,
        how=Decoding(size, resize, background),
        skip_bad=skip_bad,
        passed=PassedOver(),
        options={} if resize == "stretch" else {"resize": resize},
        kind="huggingface",
        no_test=ValueError(f"{place} has no test split: hold one out with --test-fraction 0.2"),
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """A column of encoded pictures, read as a tree whose files are its rows: `train/0`, `train/1`, ..."""

    place: Path
    pictures: polars.Series

    @property
    def name(self) -> str:
        return self.place.resolve().name

    def entries(self, folder: str, passed: PassedOver | None = None) -> list[Entry]:
        return [Entry(str(row)) for row in range(len(self.pictures))]

    def has_file(self, path: str) -> bool:
        return path.rpartition("/")[2].isdecimal()

    def read(self, path: str) -> bytes:
        content = self.pictures[int(path.rpartition("/")[2])]
        if content is None:
            raise OSError("the row has no picture")
        return bytes(content)

    def head(self, path: str, count: int) -> bytes:
        return self.read(path)[:count]


_FILE = TypedDict("_FILE", {"filename": str})  # noqa: UP013
_STATE = TypedDict("_STATE", {"_data_files": list[_FILE]})  # noqa: UP013 - of `save_to_disk`
Frames = Mapping[str, "polars.DataFrame"]
Names = Mapping[str, Sequence[str]]  # class names by column


def _dictionary(place: Path) -> tuple[Frames, Names]:
    """The splits below a folder: saved datasets or Parquet files."""
    if not place.is_dir():
        raise FileNotFoundError(f"{place} is not a folder: give what save_to_disk wrote, or one of Parquet files")
    saved = sorted(one for one in place.iterdir() if (one / "state.json").is_file())
    if saved:
        found = {one.name: _saved(one) for one in saved}
        names = {column: given for _, classes in found.values() for column, given in classes.items()}
        return {name: frames["train"] for name, (frames, _) in found.items()}, names
    return _parquet(place)


def _saved(place: Path) -> tuple[Frames, Names]:
    """One saved split, as "train"."""
    import polars  # heavy, and needed for this only

    state, info = read_json(place / "state.json"), read_json(place / "dataset_info.json")
    require_schema(state, _STATE, where=str(place / "state.json"), remedy="save it again")
    require_schema(info, dict, where=str(place / "dataset_info.json"), remedy="save it again")
    files = [place / Path(one["filename"]).name for one in state["_data_files"]]
    if not files:
        raise ValueError(f"{place / 'state.json'} names no files of data: save it again")
    _require_ordinary(files)
    try:
        frame = polars.concat([polars.read_ipc_stream(file) for file in files])
    except polars_faults() as error:
        raise ValueError(f"{place} is not a readable Arrow dataset ({reason(error)}): save it again") from None
    if state.get("_indices_data_files"):
        raise ValueError(f"{place} holds a selection of rows beside its data: save it again after flatten_indices()")
    return {"train": frame}, _class_names(info.get("features"))


def _require_ordinary(files: Sequence[Path]) -> None:
    for file in files:
        if not file.is_file():  # to open a pipe is to wait for a writer
            what = "is not an ordinary file" if file.exists() else "is missing"
            raise ValueError(f"{file} {what}: save the dataset again")


def _parquet(place: Path) -> tuple[Frames, Names]:
    import json

    import polars  # heavy, and needed for this only

    files: dict[str, list[Path]] = {}
    for file in sorted([*place.glob("*.parquet"), *place.glob("data/*.parquet")]):
        files.setdefault(re.split(r"[-_.]", file.name)[0], []).append(file)
    if not files:
        raise FileNotFoundError(
            f"{place} holds no Hugging Face dataset: give what save_to_disk wrote, or a folder with "
            "train-*.parquet in it or in data"
        )
    _require_ordinary([*chain.from_iterable(files.values())])
    names: dict[str, Sequence[str]] = {}
    try:
        require_readable_parquet(*chain.from_iterable(files.values()))
        for parts in files.values():
            described = polars.read_parquet_metadata(parts[0]).get("huggingface")
            names |= _class_names(json.loads(described)["info"]["features"] if described else None)
        return {
            key: polars.concat([polars.read_parquet(part) for part in parts]) for key, parts in files.items()
        }, names
    except polars_faults() + (ValueError, KeyError) as error:  # noqa: RUF005 - for mypy
        raise ValueError(
            f"{place} holds Parquet files that cannot be read ({reason(error)}): fetch them again"
        ) from None


def _class_names(features: Any) -> dict[str, Sequence[str]]:
    features = features if isinstance(features, dict) else {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
        and all(isinstance(name, str) for name in feature["names"])
    }


def _labelled(place: Path, split: str, frame: polars.DataFrame, names: Names, label_column: str | None) -> Labelled:
    """The pictures and labels of a split."""
    import polars  # heavy, and needed for this only

    def refused(what: str) -> ValueError:
        near = near_names(label_column or "", frame.columns)
        hint = f"did you mean {near[0]!r}?" if near else f"its columns are {printable(', '.join(frame.columns))}"
        return ValueError(f"{place}, split {split}: there is no column of {what}: {hint}")

    pictures = None
    for series in frame.get_columns():
        if isinstance(series.dtype, polars.Struct) and "bytes" in [field.name for field in series.dtype.fields]:
            pictures = series.struct.field("bytes")
            break
        if series.dtype == polars.Binary:
            pictures = series
            break
    if pictures is None:
        raise refused("encoded pictures")
    usual = [*names, *(one for one in frame.columns if one.lower() in (*LABEL_COLUMNS, "fine_label"))]
    column = label_column or next((one for one in usual if one in frame.columns), None)
    if column is None or column not in frame.columns:
        raise refused("labels" if label_column is None else f"the name {label_column!r}")
    if not (frame[column].dtype.is_integer() or frame[column].dtype in (polars.String, polars.Boolean)):
        raise ValueError(f"{place}, split {split}: labels in {column!r} are neither whole numbers nor names")
    values = frame[column].to_list()
    if None in values:
        raise ValueError(f"{place}, split {split}: row {values.index(None)} has no label: remove it")
    if column in names and frame[column].dtype.is_integer():
        given = list(names[column])
    else:
        given = [str(one) for one in sorted(set(values))]
        index = {name: label for label, name in enumerate(given)}
        values = [index[str(value)] for value in values]
    if any(abs(value) >= 2**63 for value in values):
        raise ValueError(f"{place}, split {split}: {column!r} has numbers that are no classes")
    labels_n = checked_labels(np.array(values, dtype=np.int64), len(given), where=f"{place} {split}")
    paths = PackedNames(f"{split}/{row}" for row in range(len(values)))
    return Labelled(given, Listing(Place(_Rows(place, pictures), ""), paths, labels_n))
