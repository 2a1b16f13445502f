"""Memory that a training on the CPU frees is kept for its next step instead of returned to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

# Parameters of glibc's mallopt (malloc.h), the values it starts with, and the largest that it moves to by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_STARTING_MMAP_MAX = 65536
_LARGEST_MMAP_THRESHOLD = 32 << 20
_NEVER = 2**31 - 1


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, the C library keeps freed memory for the next use; at its end what is free goes back to the system.

    glibc takes blocks above 32 MiB from the system each time and returns them, so every page of them is mapped again
    in every step: for the layers of `whitened2-64-192-192` an eighth of a step's processor time. Results do not
    depend on it. Another C library, and settings of the user's own (`MALLOC_...`, `GLIBC_TUNABLES`), are left alone.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim") or _set_by_user():
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        # glibc no longer adapts these once one is set: they stay at the largest values that it would reach.
        library.mallopt(_MMAP_MAX, _STARTING_MMAP_MAX)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        library.malloc_trim(0)


def _set_by_user() -> bool:
    return any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
