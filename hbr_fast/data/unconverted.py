"""What to say of a path that is not what a command takes: what is there, what may be meant, or how to make it."""

from __future__ import annotations

import os
from pathlib import Path

from hbr_fast.arguments import near_names
from hbr_fast.data.meta_json import META

# What a directory is by a file in it.
DIRECTORIES = {META: "a dataset", "ensemble.json": "a trained ensemble", "study.json": "a study"}
_HUGGING_FACE = ("*.parquet", "data/*.parquet", "state.json", "*/state.json")


def other_directory(path: Path, wanted: str) -> str | None:
    """What a directory is that does not hold the file `wanted`: a dataset, an ensemble or a study."""
    return next((what for name, what in DIRECTORIES.items() if name != wanted and (path / name).is_file()), None)


def meant_path(path: Path, wanted: str) -> str:
    """The end of an error about a path that does not exist: the nearest name beside it that holds the file `wanted`."""
    try:
        names = [entry.name for entry in os.scandir(path.parent) if os.path.isfile(os.path.join(entry.path, wanted))]
    except OSError:
        return ""
    near = [f"{path.name}.hbr"] if f"{path.name}.hbr" in names else near_names(path.name, names)
    return f" (did you mean {path.with_name(near[0])}?)" if near else ""


def not_a_dataset(path: Path, *, missing: str, remedy: str) -> FileNotFoundError:
    """The error for a path without the file `missing`; `remedy` is for a damaged dataset."""
    if not path.exists():
        out = path if path.suffix == ".hbr" else f"{path}.hbr"
        return FileNotFoundError(
            f"there is no dataset at {path}{meant_path(path, META)}: make one with hbr-fast convert SOURCE {out}"
        )
    if other := other_directory(path, META):
        return FileNotFoundError(f"{path} is {other}, not a dataset: give the dataset that it was made of")
    if path.suffix == ".hbr":
        return FileNotFoundError(f"{path / missing} is missing, so {path} is not a dataset: {remedy}")
    is_folder = path.is_dir()
    if is_folder and any(next(path.glob(pattern), None) for pattern in _HUGGING_FACE):
        source = "huggingface"
    else:
        source = "npz" if path.suffix == ".npz" else "folder"
    name = path.resolve().name
    out = f"{name if is_folder else name.partition('.')[0]}.hbr"
    return FileNotFoundError(
        f"{path} is a plain {'folder' if is_folder else 'file'}, not a dataset (it has no {missing}): give the dataset "
        f"that hbr-fast convert {source} {out} --root {path} makes of its images"
    )
