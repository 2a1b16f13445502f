"""What to say of a path that is not a dataset: the command that makes one of what is there."""

from __future__ import annotations

from pathlib import Path

_HUGGING_FACE = ("*.parquet", "data/*.parquet", "state.json", "*/state.json")


def not_a_dataset(path: Path, *, missing: str, remedy: str) -> FileNotFoundError:
    """The error for a path without the file `missing`; `remedy` is for a damaged dataset."""
    if not path.exists():
        out = path if path.suffix == ".hbr" else f"{path}.hbr"
        return FileNotFoundError(f"there is no dataset at {path}: make one with hbr-fast convert SOURCE {out}")
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
