"""Safetensors files with JSON metadata: written atomically, and checked before anything in them is used."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hbr_fast import progress
from hbr_fast.files import atomic_path, canonical_json, make_directory, parse_json, require_ordinary

if TYPE_CHECKING:
    import numpy as np

KEY = "hbr_fast"  # of the metadata: several keys would be written in varying order, and equal content in other bytes

CHECKSUM = "sha256"

_TYPES = {"F64": "float64", "F32": "float32", "I64": "int64", "I32": "int32", "I16": "int16", "BOOL": "bool"}


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write tensors and JSON values as one file with a checksum of them, atomically.

    Parameters
    ----------
    path : path
    tensors : dict of str to NumPy array, or of str to torch tensor
    about : dict
        JSON values, without NaN.
    """
    from safetensors import SafetensorError

    values = json.loads(canonical_json(dict(about)))
    metadata = {KEY: canonical_json({**values, CHECKSUM: _checksum(tensors, values)})}
    arrays = all(type(tensor).__module__ == "numpy" for tensor in tensors.values())
    with atomic_path(path) as temporary:
        try:
            if arrays:
                import numpy as np
                from safetensors.numpy import save_file

                save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, temporary, metadata)
            else:
                from safetensors.torch import save_file as save_torch

                save_torch({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            if number := re.search(r"os error (\d+)", str(error)):  # e.g. the disk is full
                raise OSError(int(number[1]), os.strerror(int(number[1])), os.fspath(path)) from error
            raise


def read_tensors(
    path: str | os.PathLike[str],
    forms: Mapping[str, str] | None = None,
    *,
    what: str,
    remedy: str,
    about: Mapping[str, Any] | None = None,
    framework: Literal["numpy", "pt"] = "numpy",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a file that `write_tensors` wrote.

    Parameters
    ----------
    path : path
    forms : dict, optional
        Type and shape of each tensor, e.g. `{"index": "int64 [R]", "weight": "float32 [R]"}`: a letter is one size
        throughout the file, a number is itself, and the name "*" stands for all names that are not listed. By default
        the tensors are not checked.
    what, remedy : str
        For messages: "{path} does not hold {what} (...): {remedy}".
    about : dict, optional
        JSON values that must be there, others are allowed: a type for any value of it, or the value itself, e.g.
        `{"schema": 1, "provenance": dict}`.
    framework : "numpy" or "pt"
        NumPy arrays, or torch tensors.

    Returns
    -------
    tensors : dict of str to array or tensor
    about : dict of str to JSON value
        With "sha256", unless an earlier version wrote the file: then it has no checksum and is read unverified.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not such a file, or its content does not have the checksum that was written; the message lists
        everything that does not fit.
    """
    from safetensors import SafetensorError

    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path} with {what}: {remedy}")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is a directory and does not hold {what}: {remedy}")
    try:
        return _read(path, forms, about or {}, framework)
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} does not hold {what} ({' '.join(str(error).split())}): {remedy}") from None


def cached_array(path: Path, compute: Callable[[], np.ndarray], *, form: str, below: int | None = None) -> np.ndarray:
    """An array of a type and shape, e.g. "int32 [7, 5]", from its cache file, or computed and cached there.

    With `below`, its values are in [0, below). A damaged file is reported and replaced.
    """
    if path.exists():
        try:
            found: np.ndarray = read_tensors(path, {"array": form}, what="a cached array", remedy="computing it again")[
                0
            ]["array"]
            if below is None or not found.size or 0 <= found.min() <= found.max() < below:
                return found
            raise ValueError(f"{path} does not hold a cached array (some are not below {below}): computing it again")
        except ValueError as error:
            progress.say(str(error))
    computed = compute()
    make_directory(path.parent)
    write_tensors(path, {"array": computed}, {})
    return computed


def _read(
    path: str | os.PathLike[str], forms: Mapping[str, str] | None, about: Mapping[str, Any], framework: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import safe_open

    require_ordinary(path)
    with safe_open(path, framework=framework) as file:
        values = parse_json((file.metadata() or {}).get(KEY, "{}"))
        names = list(file.keys())
        if faults := _faults_of_values(values, about):
            raise ValueError("; ".join(faults))
        if forms is not None:
            found = {name: file.get_slice(name) for name in names}  # from the header, before any tensor is read
            types = {name: _TYPES.get(one.get_dtype(), one.get_dtype()) for name, one in found.items()}
            if faults := _faults_of_forms(types, {name: one.get_shape() for name, one in found.items()}, forms):
                raise ValueError("; ".join(faults))
        tensors = {name: file.get_tensor(name) for name in names}
    without = {name: value for name, value in values.items() if name != CHECKSUM}
    if CHECKSUM in values and values[CHECKSUM] != _checksum(tensors, without):
        raise ValueError("it was changed after it was written: another checksum")
    return tensors, values


def _checksum(tensors: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values and of the name, type, shape and bytes of every tensor; the same for NumPy and torch."""
    digest = hashlib.sha256(canonical_json(values).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Any) -> memoryview:
    if type(tensor).__module__ == "numpy":
        import numpy as np

        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    import torch

    bytes_: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return bytes_


def _faults_of_values(values: Any, about: Mapping[str, Any]) -> list[str]:
    if not isinstance(values, dict):
        return [f"its metadata are a {type(values).__name__}, not an object"]
    faults = []
    for name, expected in about.items():
        if isinstance(expected, type):
            if type(values.get(name)) is not expected:
                faults.append(f"{name} is {type(values.get(name)).__name__}, not {expected.__name__}")
        elif type(values.get(name)) is not type(expected) or values[name] != expected:
            faults.append(f"{name} is {values.get(name)!r:.40}, not {expected!r}")
    return faults


def _faults_of_forms(types: Mapping[str, str], shapes: Mapping[str, list[int]], forms: Mapping[str, str]) -> list[str]:
    faults = [f"{name} is missing" for name in forms if name != "*" and name not in types]
    if "*" not in forms:
        faults += [f"{name} is not part of it" for name in sorted(set(types) - set(forms))]
    sizes: dict[str, int] = {}
    for name in (*forms, *sorted(set(types) - set(forms))):  # sizes are those of the first tensor listed
        form = forms.get(name, forms.get("*"))
        if name not in types or form is None:
            continue
        kind, *axes = re.findall(r"\w+", form)
        shape = shapes[name]
        fits = len(shape) == len(axes) and types[name] == kind
        for axis, size in zip(axes, shape, strict=False):
            fits &= size == (int(axis) if axis.isdigit() else sizes.setdefault(axis, size))
        if not fits:
            known = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
            faults.append(f"{name} is {types[name]} {shape}, not {kind} [{known}]")
    return faults
