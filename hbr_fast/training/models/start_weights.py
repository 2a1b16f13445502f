"""Weights to start from: read from a file, never downloaded, never unpickled."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hbr_fast.files import reason, sha256_of_file
from hbr_fast.progress import printable

NAMED = 5  # tensors that an error names


def load_start_weights(model: nn.Module, path: str, num_classes: int) -> list[str]:
    """Load a file's weights into a model, except those of a classifier of another width.

    Parameters
    ----------
    model : nn.Module
    path : str
        A safetensors file, or one of `torch.save` that holds tensors only; the tensors may be below "state_dict" or
        "model".
    num_classes : int
        Tensors whose first dimension is this in the model, and another number in the file, keep their initial values.

    Returns
    -------
    list of str
        Names of the tensors that keep their initial values.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or its tensors do not fit the model or hold NaN or infinity; the message names them.
    """
    found = _read(path)
    own = model.state_dict()
    kept = [name for name, tensor in own.items() if name in found and _other_width(tensor, found[name], num_classes)]
    faults = {
        "lacks": [name for name in own if name not in found and not name.endswith("num_batches_tracked")],
        "has too": [name for name in found if name not in own],
        "has another shape for": [
            f"{name} ({list(found[name].shape)}, not {list(tensor.shape)})"
            for name, tensor in own.items()
            if name in found and name not in kept and found[name].shape != tensor.shape
        ],
        "has another type for": [
            f"{name} ({found[name].dtype}, not {tensor.dtype})"
            for name, tensor in own.items()
            if name in found and name not in kept and _kind(found[name]) != _kind(tensor)
        ],
    }
    if any(faults.values()):
        what = "; ".join(f"it {verb} {_some(names)}" for verb, names in faults.items() if names)
        raise ValueError(f"the weights {path} are of another model: {what}")
    if wild := [name for name, tensor in found.items() if name not in kept and not bool(tensor.isfinite().all())]:
        raise ValueError(f"the weights {path} have NaN or infinity in {_some(wild)}: start from others")
    model.load_state_dict({**own, **{name: tensor for name, tensor in found.items() if name not in kept}})
    return kept


def weights_hash(path: str) -> str:
    """SHA-256 of a file of weights, which members started from it are keyed by.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    file = _existing(path)
    about = file.stat()
    return _hash_of(file, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _hash_of(file: Path, size: int, changed: int) -> str:
    return sha256_of_file(file)


def _existing(path: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}: nothing is downloaded; give one that is there")
    return file


def _read(path: str) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    file = _existing(path)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if zipfile.is_zipfile(file):
            _require_unpacked(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for a file of any content
        raise ValueError(
            f"{path} holds no weights that can be read without unpickling ({printable(reason(error))}): save the "
            "state_dict, best as a safetensors file"
        ) from None
    for below in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(below), Mapping):
            content = content[below]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(one, torch.Tensor) for name, one in content.items()
    ):
        raise ValueError(f"{path} holds no state_dict, a dict of tensors by name: save the model's")
    if odd := [name for name, one in content.items() if not _is_plain(one)]:
        raise ValueError(
            f"{path} has tensors that are sparse, quantised or without values ({_some(odd)}): save plain ones"
        )
    return content


def _require_unpacked(file: Path) -> None:
    """torch.save does not compress: a small file cannot unpack to much."""
    with zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > file.stat().st_size:
            raise ValueError("its members are compressed, which torch.save never does")


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized


def _kind(tensor: torch.Tensor) -> str:
    """Values of one kind are converted to each other: float16 to float32, but not complex to real."""
    return "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "whole"


def _other_width(own: torch.Tensor, found: torch.Tensor, num_classes: int) -> bool:
    return (
        own.ndim == found.ndim > 0
        and own.shape[0] == num_classes != found.shape[0]
        and own.shape[1:] == found.shape[1:]
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(printable(f'{name:.100}') for name in names[:NAMED])}{more}"
