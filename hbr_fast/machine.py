"""What this process runs on and may use: processors, instruction sets, versions."""

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
    """Physical memory of the machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_name() -> str:
    """The processor's name from the operating system, with its widest vector extension where Linux reports it.

    In virtual machines, processors of very different speed share one name; with AMX they train several times as fast.
    """
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    flags = _cpu_flags()
    vectors = [vectors for flag, vectors in _VECTORS.items() if flag in flags][:1]
    return " ".join([name, *vectors, *(["AMX"] if "amx_tile" in flags else [])])


def hardware() -> dict[str, str | int]:
    """What results depend on besides versions: processor, usable processors, memory, and the GPU that torch sees."""
    import torch

    found: dict[str, str | int] = {
        "processor": cpu_name(),
        "usable_cpus": usable_cpus(),
        "memory_gb": round(memory_bytes() / 1e9),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


# The widest first.
_VECTORS = {"avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32: AMX, Arm BF16, and AVX512-BF16 but not Intel's.

    Intel's AVX512-BF16 is slower than its float32 (docs/training-speed.md); it appears without AMX where a virtual
    machine hides AMX.
    """
    flags = _cpu_flags()
    if "avx512_bf16" in flags and _cpuinfo("vendor_id") != "GenuineIntel":
        return True
    return not flags.isdisjoint({"amx_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def versions() -> dict[str, str]:
    """Versions of everything that results depend on; our own comes from the source, which need not be installed."""
    others = {name: metadata.version(name) for name in ("torch", "numpy", "numba")}
    return {"python": platform.python_version(), "hbr-fast": __version__, **others}


def _cpuinfo(field: str) -> str:
    """The first value of a field of Linux's /proc/cpuinfo, or ""."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
