"""What a run reports about its machine."""

from importlib import metadata
from pathlib import Path

import pytest

from hbr_fast import machine


def test_versions_of_uninstalled_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def not_installed(name: str) -> str:
        if name == "hbr-fast":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    versions = machine.versions()
    source = (Path(__file__).parents[1] / "hbr_fast" / "__init__.py").read_text()
    assert f'__version__ = "{versions["hbr-fast"]}"' in source.splitlines()
    assert versions["torch"] == version("torch")
    assert list(versions) == ["python", "hbr-fast", "torch", "numpy", "numba"]


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512_bf16\n", True),
        ("vendor_id : GenuineIntel\nflags : avx2 avx512_bf16\n", False),
        ("vendor_id : GenuineIntel\nflags : avx2 avx512_bf16 amx_bf16\n", True),
        ("vendor_id : AuthenticAMD\nflags : avx2\n", False),
        ("Features : asimd bf16\n", True),
        ("Features : asimd\n", False),
    ],
)
def test_has_fast_bfloat16_by_processor(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, fast: bool) -> None:
    pretend(monkeypatch, cpuinfo)
    assert machine.has_fast_bfloat16() is fast


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("model name : AMD EPYC\nflags : fpu avx2 avx512f avx512_bf16\n", "AMD EPYC AVX512-BF16"),
        ("model name : AMD EPYC\nflags : fpu avx2\n", "AMD EPYC AVX2"),
        ("model name : Xeon\nflags : avx512f avx512_bf16 amx_bf16 amx_tile\n", "Xeon AVX512-BF16 AMX"),
        ("model name : Old\nflags : fpu sse2\n", "Old"),
    ],
)
def test_processor_name_includes_vector_width(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, name: str) -> None:
    pretend(monkeypatch, cpuinfo)
    assert machine.cpu_name() == name


def pretend(monkeypatch: pytest.MonkeyPatch, cpuinfo: str) -> None:
    lines = dict(line.split(" : ") for line in cpuinfo.splitlines())
    monkeypatch.setattr(machine, "_cpuinfo", lambda field: lines.get(field, ""))
