"""What a run says of the machine it ran on."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from hbr_fast import machine


def test_a_source_tree_that_is_not_installed_has_versions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_us(name: str) -> str:
        if name == "hbr-fast":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_us)
    versions = machine.versions()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert versions["hbr-fast"] == project["version"]
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
def test_bfloat16_is_fast_on_processors_that_multiply_it_faster_than_float32(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str, fast: bool
) -> None:
    pretend(monkeypatch, cpuinfo)
    assert machine.has_fast_bfloat16() is fast


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("model name : AMD EPYC\nflags : fpu avx2 avx512f avx512_bf16\n", "AMD EPYC AVX512-BF16"),
        ("model name : AMD EPYC\nflags : fpu avx2\n", "AMD EPYC AVX2"),
        ("model name : Old\nflags : fpu sse2\n", "Old"),
    ],
)
def test_processors_of_one_name_are_told_apart_by_their_vectors(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str, name: str
) -> None:
    pretend(monkeypatch, cpuinfo)
    assert machine.cpu_name() == name


def pretend(monkeypatch: pytest.MonkeyPatch, cpuinfo: str) -> None:
    lines = dict(line.split(" : ") for line in cpuinfo.splitlines())
    monkeypatch.setattr(machine, "_cpuinfo", lambda field: lines.get(field, ""))
