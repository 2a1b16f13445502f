"""The public names: where they are defined, what importing them costs, and that their examples run."""

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

# Modules whose examples are run.
ALL_MODULES = ["hbr_fast", *(info.name for info in pkgutil.walk_packages(hbr_fast.__path__, "hbr_fast."))]
# Modules that need an extra, and the module it installs.
EXTRAS = {f"hbr_fast.integrations.{library}": library for library in ("lightning", "transformers")}
EXTRAS |= {"hbr_fast.loaders.dali": "nvidia.dali", "hbr_fast.loaders.ffcv": "ffcv"}
# A table, a deprecated class, what needs FFCV, and what draws every picture (tests/report runs it).
WITHOUT_EXAMPLE = {"ESTIMATORS", "Cluster", "open_beton", "write_beton", "write_report"}
HEAVY = {"torch", "torchvision", "numba", "numpy", "ffcv", "nvidia", "triton", "ray", "polars", "matplotlib"}
HEAVY_FOR_CLI = {"torch", "torchvision", "numba", "matplotlib", "polars", "scipy", "sklearn", "jinja2", "ffcv", "ray"}


def declared() -> dict[str, str]:
    """Name -> module, from the stub."""
    assert hbr_fast.__file__ is not None
    tree = ast.parse(Path(hbr_fast.__file__).with_suffix(".pyi").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, "a plain import is private to a type checker"
                found[alias.name] = str(node.module)
    return found


HOME = declared()


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


def test_stub_lists_public_names() -> None:
    assert sorted(hbr_fast.__all__) == sorted(HOME) == sorted(dir(hbr_fast))
    assert len(HOME) > 50


@pytest.mark.parametrize("name", sorted(HOME))
def test_public_names_resolve_and_have_docstrings(name: str) -> None:
    value = getattr(hbr_fast, name)
    assert value is getattr(importlib.import_module(f"hbr_fast.{HOME[name]}"), name)
    if callable(value):
        assert value.__module__ == f"hbr_fast.{HOME[name]}", "named where it is defined"
        doc = value.__doc__
        assert doc is not None
        # A dataclass without a docstring gets its signature as one.
        assert not doc.startswith(f"{name}(")


def test_public_names_include_the_design() -> None:
    designed = {"open_dataset", "convert", "Split", "Plan", "Sampler", "uniform_order", "Loader", "Augment", "Batch"}
    designed |= {"HardnessRecorder", "HardnessScores", "allocate", "resample", "Recipe", "train_ensemble", "evaluate"}
    assert designed | {"Study"} <= set(hbr_fast.__all__)


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute resampel"):
        getattr(hbr_fast, "resampel")  # noqa: B009 (a type checker sees the mistake)
    assert not hasattr(hbr_fast, "__wrapped__")


def test_package_import_is_light() -> None:
    assert modules_after("import hbr_fast") & HEAVY == set()


def test_cli_import_is_light() -> None:
    assert modules_after("import hbr_fast.cli") & HEAVY_FOR_CLI == set()


def test_cli_help_is_light() -> None:
    show = (
        "import contextlib, io, hbr_fast.cli\n"
        "for words in (['--help'], ['train', '--help'], ['study', '--help']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        hbr_fast.cli.main(words)\n"
    )
    assert modules_after(show) & HEAVY_FOR_CLI == set()


def test_modules_after_finds_heavy_import() -> None:
    assert modules_after("import hbr_fast; hbr_fast.Sampler") >= {"numpy", "numba"}


@pytest.mark.parametrize("name", ALL_MODULES)
def test_doctest_examples_run(name: str) -> None:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(set(HOME) - WITHOUT_EXAMPLE))
def test_public_names_have_an_example(name: str) -> None:
    assert ">>> " in str(getattr(hbr_fast, name).__doc__)


def test_doctest_examples_exist() -> None:
    """If the doctests vanished, the tests above would pass silently."""
    finder = doctest.DocTestFinder()
    with_examples = {
        test.name
        for name in ("hbr_fast.hardness.recorder", "hbr_fast.data.convert", "hbr_fast.loaders.loader")
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    assert {"hbr_fast.hardness.recorder.HardnessRecorder", "hbr_fast.data.convert.convert"} <= with_examples
