"""A compiled kernel is loaded from numba's cache only if no source file of the kernels has changed since.

numba checks only the file that defines a kernel, although constants and functions imported from other files are
compiled in: after a change to one of those it would silently run the old kernel. So kernels here say `cache=CACHE`, and
a change to any file that is compiled into one counts as a change to each. Where the cache lies is up to numba
(`__pycache__`, the user's cache directory, or `NUMBA_CACHE_DIR`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core.caching import CompileResultCacheImpl

KERNELS = Path(__file__).parent


def sources() -> list[Path]:
    """The files that may be compiled into a kernel."""
    return [KERNELS.parent / "seeding.py", *sorted(KERNELS.rglob("*.py"))]


@functools.cache
def sources_hash() -> str:
    """SHA-256 of the names and contents of these files; computed once, in some 3 ms."""
    digest = hashlib.sha256()
    for path in sources():
        content = path.read_bytes()
        digest.update(f"{path.relative_to(KERNELS.parent)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


class _KernelLocator:
    """Where numba itself would keep a kernel, but with the hash of all sources instead of that of one file."""

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> Any:
        if not Path(file).is_relative_to(KERNELS):
            return None  # not a kernel of ours: numba asks the next class
        located = (locator.from_function(function, file) for locator in _NUMBAS)
        found = next((locator for locator in located if locator is not None), None)
        if found is not None:
            found.get_source_stamp = sources_hash
        return found


_implementation: Any = CompileResultCacheImpl
_NUMBAS: list[Any] = _implementation._locator_classes
_implementation._locator_classes = [_KernelLocator, *_NUMBAS]

CACHE = True
