"""What this process may use and runs on: processors, instruction sets, versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from hbr_fast import __version__


def usable_cpus() -> int:
    """Processors this process may run on (its affinity mask, not what the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_name() -> str:
    """The processor's name as the operating system gives it, and its widest vectors, if Linux says.

    In virtual machines processors of very different speed go by one name.
    """
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    flags = _cpu_flags()
    return " ".join([name, *(vectors for flag, vectors in _VECTORS.items() if flag in flags)][:2])


# The widest first.
_VECTORS = {"avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32: AMX, Arm BF16, and AVX512-BF16 but not Intel's.

    Intel's AVX512-BF16 is slower than its float32 (docs/training-speed.md); it is met without AMX where a virtual
    machine hides that.
    """
    flags = _cpu_flags()
    if "avx512_bf16" in flags and _cpuinfo("vendor_id") != "GenuineIntel":
        return True
    return not flags.isdisjoint({"amx_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def versions() -> dict[str, str]:
    """Versions of what numbers depend on; ours is the source's own, which need not be installed."""
    others = {name: metadata.version(name) for name in ("torch", "numpy", "numba")}
    return {"python": platform.python_version(), "hbr-fast": __version__, **others}


def _cpuinfo(field: str) -> str:
    """The first value of a field of Linux's /proc/cpuinfo, or nothing."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
