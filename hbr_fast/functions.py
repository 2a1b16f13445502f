"""Functions that users name, `package.module:function`: imported, and keyed by their version or source.

Names, not objects, because they cross processes and machines, and a member's key hashes them.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hbr_fast.arguments import did_you_mean


def is_function_name(name: str) -> bool:
    """Whether a name has the form `package.module:function`."""
    module, colon, function = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *function.split(".")])


def function_named(what: str, name: str) -> Callable[..., Any]:
    """The function, or class, of the form `package.module:function`.

    Parameters
    ----------
    what : str
        What it is for, e.g. "loss": named in errors.
    name : str

    Raises
    ------
    ValueError
        If it cannot be imported, or is not callable.

    Examples
    --------
    >>> function_named("order", "itertools:chain").__name__
    'chain'
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{what} {name!r}: {module} cannot be imported ({error}): install it, or put its directory on PYTHONPATH"
        ) from None
    except Exception as error:  # of the user's code
        raise ValueError(
            f"{what} {name!r}: {module} cannot be imported ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    for part in path.split("."):
        near = [one for one, value in vars(found).items() if callable(value)] if hasattr(found, "__dict__") else []
        if not hasattr(found, part):
            raise ValueError(f"{what} {name!r}: {module} has no {path}{did_you_mean(near, part)}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{what} {name!r} is of type {type(found).__name__}, not a function{did_you_mean(near, part)}")
    function: Callable[..., Any] = found
    return function


def function_version(what: str, name: str, function: Callable[..., Any]) -> str:
    """Its declared `__version__`, else the SHA-256 of the file that defines it; what that file imports does not count.

    Raises
    ------
    ValueError
        If it has neither.
    """
    declared = getattr(function, "__version__", None)
    if declared is not None:
        return f"version {declared}"
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
        assert path is not None
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (AssertionError, OSError, TypeError):
        raise ValueError(
            f"{what} {name!r} has no source file to key its members by: give the function a __version__"
        ) from None
