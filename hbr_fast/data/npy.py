"""The only reader of `.npy` files and arrays in `.npz` files: headers are checked before anything is allocated."""

from __future__ import annotations

import math
import os
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from hbr_fast.files import named_reading, require_ordinary
from hbr_fast.progress import printable

# What reading a damaged `.npz` file raises.
NPZ_DAMAGE = (
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    RuntimeError,
    OverflowError,
    LookupError,
)
_DEFLATE_AT_MOST = 1032  # deflate's maximum expansion of a byte
_MOST_AXES = 32  # of an array of any version of NumPy
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shape: tuple[int, ...] | None = None,
    mapped: bool = False,
    remedy: str = "write it again",
) -> np.ndarray:
    """Read an `.npy` file that holds exactly what its header says, without Python objects.

    Parameters
    ----------
    path : path
    dtype, shape : optional
        Required type and shape; the array must then also be C-ordered.
    mapped : bool
        Whether to map the file, read-only, instead of reading it.
    remedy : str
        The end of error messages: what the user can do.

    Returns
    -------
    array

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, longer or shorter than its header says, or has the wrong type or shape; the message names it.
    """
    require_ordinary(path)
    try:
        with named_reading(path), open(path, "rb") as file:
            found_shape, fortran, found = npy_header(file)
            expected = file.tell() + math.prod(found_shape) * found.itemsize
            size = os.fstat(file.fileno()).st_size
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npy file ({_line(error)}): {remedy}") from None
    wrong = dtype is not None and (found != dtype or (fortran and len(found_shape) > 1))
    if wrong or (shape is not None and found_shape != shape):
        wanted = f"{np.dtype(dtype) if dtype is not None else 'an array'} {list(shape or ())}"
        raise ValueError(f"{path} holds {found} {list(found_shape)} instead of {wanted}: {remedy}")
    if size != expected:
        raise ValueError(f"{path} has {size:,} bytes where its header speaks of {expected:,}: {remedy}")
    array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return array


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of a `.npy` stream; reads its header.

    Raises
    ------
    ValueError
        If it is damaged, of an unknown version, or holds Python objects, or no array can have its type and shape.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version} is not known")
        shape, fortran, dtype = _HEADERS[version](file)
    except (ValueError, EOFError, OSError):
        raise
    except Exception as error:  # numpy parses the header as Python: tokenizer, recursion and type errors
        raise ValueError(f"its header is damaged ({_line(error)})") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects: allow_pickle is never set")
    if dtype.itemsize == 0 or dtype.subdtype is not None:  # any number of items in no bytes, or axes beyond its shape
        raise ValueError(f"no array has the type {dtype!s:.40}")
    # Sides of 0 hide what the product of the others would be, and NumPy takes no bool as a side.
    whole = all(type(side) is int and side >= 0 for side in shape)
    if not whole or len(shape) > _MOST_AXES or math.prod(max(side, 1) for side in shape) * dtype.itemsize > sys.maxsize:
        raise ValueError(f"no array has the shape {list(shape)!s:.60}")
    return shape, fortran, dtype


def read_npz(path: str | os.PathLike[str], name: str, *, remedy: str = "write it again") -> np.ndarray:
    """Read one array of an `.npz` file, without Python objects.

    Parameters
    ----------
    path : path
    name : str
    remedy : str
        The end of error messages: what the user can do.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or has no such array; the message names those that it has.
    """
    held = npz_names(path, remedy=remedy)
    if name not in held:
        raise ValueError(f"{path} has no array {name!r}: it has {printable(', '.join(held)) or 'none'}")
    try:
        with zipfile.ZipFile(path) as archive:
            check_npz_member(Path(path), archive, name)
        with np.load(path, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[name]
    except NPZ_DAMAGE as error:
        raise ValueError(f"{path} is not a readable .npz file ({_line(error)}): {remedy}") from None
    return array


def npz_names(path: str | os.PathLike[str], *, remedy: str = "write it again") -> list[str]:
    """Names of the arrays of an `.npz` file.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is damaged.
    """
    require_ordinary(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return [member.removesuffix(".npy") for member in archive.namelist()]
    except FileNotFoundError:
        raise
    except NPZ_DAMAGE as error:
        raise ValueError(f"{path} is not a readable .npz file ({_line(error)}): {remedy}") from None


def check_npz_member(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    """Raise if the header of an array in an `.npz` file and the archive's index disagree, before the array is read.

    Raises
    ------
    NPZ_DAMAGE
    """
    info = archive.getinfo(f"{name}.npy")
    packed, unpacked = info.compress_size, info.file_size
    if packed > path.stat().st_size or unpacked > max(1, packed) * _DEFLATE_AT_MOST:
        raise ValueError(f"array {name!r} would be {unpacked:,} bytes, more than {packed:,} packed ones can hold")
    with archive.open(info) as file:
        shape, _, dtype = npy_header(file)
        expected = file.tell() + math.prod(shape) * dtype.itemsize
    if expected != unpacked:
        raise ValueError(f"array {name!r} has {unpacked:,} bytes where its header speaks of {expected:,}")


def _line(error: Exception) -> str:
    """The first line of numpy's message, which can quote a whole header."""
    return f"{(str(error).splitlines() or [type(error).__name__])[0]:.120}"
