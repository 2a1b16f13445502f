"""The public surface: the names, where they live, what importing them costs, and that their examples run."""

import ast
import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import hbr_fast

# Modules whose examples are run, i.e. those that have some.
ALL_MODULES = ["hbr_fast", *(info.name for info in pkgutil.walk_packages(hbr_fast.__path__, "hbr_fast."))]
# Modules that need an extra, and what it installs.
EXTRAS = {f"hbr_fast.integrations.{library}": library for library in ("lightning", "transformers")}
EXTRAS |= {"hbr_fast.loaders.dali": "nvidia.dali", "hbr_fast.loaders.ffcv": "ffcv"}
HEAVY = {"torch", "torchvision", "numba", "numpy", "ffcv", "nvidia", "triton", "ray", "polars", "matplotlib"}
HEAVY_FOR_CLI = {"torch", "torchvision", "numba", "matplotlib", "polars", "scipy", "sklearn", "jinja2", "ffcv", "ray"}


def declared_for_type_checkers() -> dict[str, str]:
    """Name -> module, from the block under `if TYPE_CHECKING` of hbr_fast/__init__.py."""
    assert hbr_fast.__file__ is not None
    tree = ast.parse(Path(hbr_fast.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname is None
            found[alias.name] = str(node.module).removeprefix("hbr_fast.")
    return found


def modules_after(statement: str) -> set[str]:
    """Top-level modules in `sys.modules` of a fresh process after a statement."""
    code = f"import sys\n{statement}\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    root = str(Path(hbr_fast.__path__[0]).parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_three_lists_of_names_agree() -> None:
    assert declared_for_type_checkers() == hbr_fast._HOME
    assert sorted(hbr_fast.__all__) == sorted(hbr_fast._HOME)
    assert len(set(hbr_fast.__all__)) == len(hbr_fast.__all__)
    assert dir(hbr_fast) == sorted(hbr_fast.__all__)


@pytest.mark.parametrize("name", sorted(hbr_fast._HOME))
def test_every_name_resolves_to_its_home_and_has_a_docstring(name: str) -> None:
    value = getattr(hbr_fast, name)
    assert value is getattr(importlib.import_module(f"hbr_fast.{hbr_fast._HOME[name]}"), name)
    if callable(value):
        assert value.__module__ == f"hbr_fast.{hbr_fast._HOME[name]}", "named where it is defined"
        doc = value.__doc__
        assert doc is not None
        # A dataclass without a docstring of its own gets its signature as one.
        assert not doc.startswith(f"{name}(")


def test_the_names_of_the_design_are_there() -> None:
    designed = {"open_dataset", "convert", "Split", "Plan", "Sampler", "uniform_order", "Loader", "Augment", "Batch"}
    designed |= {"HardnessRecorder", "HardnessScores", "allocate", "resample", "Recipe", "train_ensemble", "evaluate"}
    assert designed | {"Study"} <= set(hbr_fast.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'resampel'"):
        _ = hbr_fast.resampel
    assert not hasattr(hbr_fast, "__wrapped__")


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    assert modules_after("import hbr_fast") & HEAVY == set()


def test_importing_the_command_line_pulls_in_nothing_heavy() -> None:
    assert modules_after("import hbr_fast.cli") & HEAVY_FOR_CLI == set()


def test_building_the_help_pulls_in_nothing_heavy() -> None:
    show = (
        "import contextlib, io, hbr_fast.cli\n"
        "for words in (['--help'], ['train', '--help'], ['study', '--help']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        hbr_fast.cli.main(words)\n"
    )
    assert modules_after(show) & HEAVY_FOR_CLI == set()


def test_the_check_itself_sees_a_heavy_import() -> None:
    assert modules_after("import hbr_fast; hbr_fast.Sampler") >= {"numpy", "numba"}


@pytest.mark.parametrize("name", ALL_MODULES)
def test_examples_run(name: str) -> None:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0


def test_some_examples_are_found() -> None:
    """Doctests that silently vanish would pass for ever."""
    finder = doctest.DocTestFinder()
    with_examples = {
        test.name
        for name in ("hbr_fast.hardness.recorder", "hbr_fast.data.convert", "hbr_fast.loaders.loader")
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    assert {"hbr_fast.hardness.recorder.HardnessRecorder", "hbr_fast.data.convert.convert"} <= with_examples
