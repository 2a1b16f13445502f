"""What `mkdocs build` adds to docs/: the pages that stand in the repository's root, and the reference.

The reference has every public name of `hbr_fast/__init__.pyi`, and every command with its help, so there is no second
list to maintain.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
FROM_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
# Part of the package -> title of its page; report and studies share one.
TITLES = {
    "data": "Datasets and plans",
    "orders": "Orders and samplers",
    "loaders": "Loaders",
    "hardness": "Recording hardness",
    "resampling": "Allocation, resampling, pruning, noise",
    "training": "Recipes and training",
    "members": "Ensembles",
    "evaluation": "Metrics and statistics",
    "studies": "Studies and reports",
    "integrations": "Other trainers",
}
SHARED = {"report": "studies"}
# Imported from their own modules, because each needs its library.
INTEGRATIONS = (
    "integrations.ids.WithIds",
    "integrations.lightning.HardnessCallback",
    "integrations.transformers.HardnessCallback",
    "hardness.aum.AUMCalculator",
    "hardness.stability.ensemble_size_curve",
)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {uri: (ROOT / name).read_text(encoding="utf-8") for name, uri in FROM_ROOT.items()}
    for uri, content in {**pages, **dict(reference())}.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the repository become links of the site; a link to source code becomes its text."""
    in_root = page.file.src_uri in FROM_ROOT.values()

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        name = path if in_root else path.removeprefix("../")
        if name in FROM_ROOT and (in_root or path != name):
            name = FROM_ROOT[name]
        elif in_root and name.startswith("docs/"):
            name = name.removeprefix("docs/")
        elif in_root or path != name:
            return str(text)
        return f"[{text}]({name or '.'}{'#' + anchor if anchor else ''})"

    return re.sub(r"(?<!\\)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^()\s]+)\)", link, markdown)


def reference() -> Iterator[tuple[str, str]]:
    """The reference's pages: (path, Markdown)."""
    entries: dict[str, list[tuple[str, str]]] = {part: [] for part in TITLES}
    for name, module in public_names():
        part = module.split(".")[0]
        entries[SHARED.get(part, part)].append((f"hbr_fast.{name}", f"{module}.{name}"))
    entries["integrations"] += [(f"hbr_fast.{path}", path) for path in INTEGRATIONS]
    for part, title in TITLES.items():
        blocks = [
            f"::: hbr_fast.{path}\n    options:\n      heading: {shown}\n      toc_label: {shown.split('.')[-1]}\n"
            for shown, path in entries[part]
        ]
        yield f"reference/{part}.md", "\n".join([f"# {title}\n", *blocks])
    yield "reference/command-line.md", command_line()


def public_names() -> list[tuple[str, str]]:
    """(name, module below hbr_fast) of every public name."""
    tree = ast.parse((ROOT / "hbr_fast" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return [(alias.name, str(node.module)) for node in imports for alias in node.names]


def command_line() -> str:
    """The help of every command."""
    os.environ.update(COLUMNS="100", NO_COLOR="1")  # tyro lays its help out for the terminal
    from hbr_fast.cli import COMMANDS, main

    lines = ["# Command line\n", "`hbr-fast COMMAND --help` prints the same. Exit codes: 0, 2 for a mistake, 75 if "]
    lines[-1] += "SIGTERM ended a training that can be resumed, 130 after Ctrl-C.\n"
    for name in COMMANDS:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([name, "--help"])
        # tyro leaves the paragraphs of a description to the terminal to wrap.
        wrap = textwrap.TextWrapper(100, break_on_hyphens=False, break_long_words=False)
        text = "\n".join(wrap.fill(line.rstrip()) for line in shown.getvalue().strip().splitlines())
        lines.append(f"## {name}\n\n```text\n{text}\n```\n")
    return "\n".join(lines)
