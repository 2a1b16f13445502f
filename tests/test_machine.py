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
