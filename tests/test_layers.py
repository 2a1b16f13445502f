"""Imports only point down, nothing is unpickled and every module has a docstring."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hbr_fast"
# The design's layers; a name is a module or a sub-package of hbr_fast. The package itself is L0: any module may
# import it, and it imports the rest only when a name is used.
LEVELS = {
    0: {
        "",
        "arguments",
        "seeding",
        "files",
        "processes",
        "temporary",
        "functions",
        "csv_files",
        "json_schema",
        "tensor_files",
        "locks",
        "progress",
        "machine",
    },
    1: {"kernels"},
    2: {"data", "orders"},
    3: {"loaders", "resampling", "hardness", "evaluation"},
    4: {"training", "integrations"},
    5: {"members"},
    6: {"studies"},
    7: {"report"},
    8: {"cli", "__main__"},
}
LEVEL_OF = {part: level for level, parts in LEVELS.items() for part in parts}
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """Module name below hbr_fast: "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def part_of(module: str) -> str:
    return module.split(".")[0]


def imported(source: str, package: str) -> Iterator[str]:
    """Absolute names of all imports of a source, including those in functions and under `if TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def upward_imports(module: str, source: str) -> list[str]:
    """Modules of hbr_fast that `module` imports from a higher layer."""
    package = f"hbr_fast.{module}".rsplit(".", 1)[0]
    own = LEVEL_OF[part_of(module)]
    found = []
    for name in imported(source, package):
        if not name.startswith("hbr_fast."):
            continue
        part = part_of(name.removeprefix("hbr_fast."))
        if part in LEVEL_OF and LEVEL_OF[part] > own:
            found.append(name)
    return found


def test_layers_cover_every_module() -> None:
    assert len(MODULES) > 30
    assert {part_of(dotted(path)) for path in MODULES} == set(LEVEL_OF)


# The package's __init__ loads public names on demand from every layer; test_public_names.py checks those.
@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=dotted)
def test_layers_imports_point_down(path: Path) -> None:
    assert upward_imports(dotted(path), path.read_text()) == []


def test_layers_have_no_import_cycles() -> None:
    """Within a layer, parts may use each other in one direction only."""
    edges = set()
    for path in MODULES:
        own = part_of(dotted(path))
        for name in imported(path.read_text(), f"hbr_fast.{dotted(path)}".rsplit(".", 1)[0]):
            part = part_of(name.removeprefix("hbr_fast.")) if name.startswith("hbr_fast.") else ""
            if own and part in LEVEL_OF and part not in ("", own):
                edges.add((own, part))
    assert {("training", "loaders"), ("members", "training")} <= edges
    assert {edge for edge in edges if edge[::-1] in edges} == set()


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("data.plan", "from hbr_fast.hardness import estimator", True),
        ("data.plan", "import hbr_fast.training.trainer", True),
        ("data.plan", "def f():\n    from hbr_fast import cli", True),
        ("data.plan", "if TYPE_CHECKING:\n    from hbr_fast.report import page", True),
        ("data.dataset", "from ..training import recipe", True),
        ("data.dataset", "from .. import cli", True),
        ("training.trainer", "from hbr_fast.data.dataset import Dataset\nfrom . import recipe", False),
    ],
)
def test_upward_imports_finds_them(module: str, source: str, found: bool) -> None:
    assert bool(upward_imports(module, source)) == found


def test_modules_never_unpickle() -> None:
    serialisers = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}

    def users(names: set[str]) -> set[str]:
        return {
            dotted(path)
            for path in MODULES
            if names & {name.split(".")[0] for name in imported(path.read_text(), "hbr_fast")}
        }

    assert users(serialisers) == set()
    assert users({"pickletools"}) == {"data.sources.plain_pickle"}, "CIFAR's pickles are walked, never run"
    walk = PACKAGE / "data/sources/plain_pickle.py"
    assert len(calls(walk, "pickletools.genops")) == walk.read_text().count("pickletools.") == 1


def calls(path: Path, dotted_name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == dotted_name
    ]


def test_modules_never_pickle_through_numpy_or_torch() -> None:
    loads = [(dotted(path), call) for path in MODULES for name in ("np.load", "np.save") for call in calls(path, name)]
    assert len(loads) >= 4
    for module, call in loads:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options.get("allow_pickle") == "False", f"{module}, line {call.lineno}"
    for path in MODULES:
        assert calls(path, "torch.save") == [], dotted(path)
        for call in calls(path, "torch.load"):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert options.get("weights_only") == "True", f"{dotted(path)}, line {call.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: dotted(path) or "hbr_fast")
def test_modules_have_docstrings(path: Path) -> None:
    source = path.read_text()
    if not source:
        assert path.name == "__init__.py", f"{path} is empty"
        return
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring is not None
    assert docstring.splitlines()[0].endswith((".", ":", "`", ")")) or len(docstring.splitlines()) > 1
