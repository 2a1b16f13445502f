"""A cached kernel is not used after a change to anything that is compiled into it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hbr_fast.kernels import cache

KERNEL = """
import numba as nb
from hbr_fast.kernels.cache import CACHE
from hbr_fast.kernels.constant import VALUE

@nb.njit(cache=CACHE)
def value():
    return VALUE
"""
SHOW = """
from hbr_fast.kernels.kernel import value
print(value(), len(value.stats.cache_hits) > 0, value.stats.cache_path)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of what compiling takes, with a kernel that returns an imported constant."""
    folder = tmp_path / "hbr_fast"
    (folder / "kernels").mkdir(parents=True)
    for name in ("__init__.py", "kernels/__init__.py"):
        (folder / name).write_text("")
    for name in ("seeding.py", "kernels/cache.py"):
        shutil.copy(cache.KERNELS.parent / name, folder / name)
    (folder / "kernels" / "constant.py").write_text("VALUE = 1\n")
    (folder / "kernels" / "kernel.py").write_text(KERNEL)
    return folder


def run(package: Path, **environment: str) -> tuple[int, bool, Path]:
    """What the kernel returns, whether it was in the cache, and where that is."""
    own = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-c", SHOW]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=True, cwd=package.parent)
    value, hit, path = done.stdout.split()
    return int(value), hit == "True", Path(path)


def change(package: Path, value: int) -> None:
    (package / "kernels" / "constant.py").write_text(f"VALUE = {value}\n")


def test_cache_is_stale_after_change_of_an_imported_constant(package: Path) -> None:
    place = package / "kernels" / "__pycache__"
    assert run(package) == (1, False, place)
    assert run(package) == (1, True, place)
    files = sorted(place.iterdir())
    change(package, 2)
    assert run(package) == (2, False, place)
    assert sorted(place.iterdir()) == files, "the old kernel is replaced"


def test_cache_of_read_only_installation_is_stale_after_change_too(package: Path, tmp_path: Path) -> None:
    # A file in place of the directory, since root may write to a read-only one.
    (package / "kernels" / "__pycache__").write_text("")
    value, hit, path = run(package, XDG_CACHE_HOME=str(tmp_path / "user"))
    assert (value, hit) == (1, False)
    assert path.is_relative_to(tmp_path / "user")
    change(package, 2)
    assert run(package, XDG_CACHE_HOME=str(tmp_path / "user")) == (2, False, path)


def test_cache_of_all_kernels_is_checked() -> None:
    """No kernel is cached by numba's own rule, and no file that is compiled into one is left out."""
    files = list(cache.KERNELS.parent.rglob("*.py"))
    assert len(files) > 100
    cached = re.compile(r"(njit|jit|cfunc|vectorize)\(.*cache=(?!CACHE)")
    assert [str(path) for path in files if cached.search(path.read_text())] == []
    imported = {
        module
        for path in cache.KERNELS.rglob("*.py")
        for module in re.findall(r"^from hbr_fast\.(\w+)", path.read_text(), re.MULTILINE)
    }
    others = {path.stem for path in cache.sources() if not path.is_relative_to(cache.KERNELS)}
    assert imported - {"kernels"} == others
