"""The Python blocks in docs/ run unchanged, commands exist with their options, generated tables are up to date."""

import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hbr_fast import cli

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]
EXTRAS = ("lightning", "transformers", "accelerate")  # a block that imports one runs only if it is installed


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def can_run(block: str) -> bool:
    needed = [extra for extra in EXTRAS if re.search(rf"^(import|from) {extra}\b", block, flags=re.MULTILINE)]
    return all(importlib.util.find_spec(extra) for extra in needed)


def test_docs_have_blocks() -> None:
    assert len(blocks_of(DOCS / "recording.md")) >= 8


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_docs_blocks_run_in_sequence(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        if can_run(block):
            exec(block, names)  # our own pages


def commands_of(page: Path) -> list[list[str]]:
    """The words after `hbr-fast`, or after `-m hbr_fast`, of every command of a page's console blocks."""
    text = page.read_text(encoding="utf-8")
    variables = dict(re.findall(r'^export (\w+)="(.*)"$', text, flags=re.MULTILINE))
    found = []
    for block in re.findall(r"```(?:console|bash)\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = re.sub(rf"\${name}\b", value, line)
            if call := re.search(r"(?:^|\s|/)(?:hbr-fast|-m hbr_fast) ([^|;&]*)", line):
                words = shlex.split(call[1], comments=True)
                if words and words[0] in cli.COMMANDS:
                    found.append(words)
    return found


def test_docs_commands_are_found() -> None:
    assert sum(len(commands_of(page)) for page in PAGES) > 30
    assert ["train", "data.hbr", "runs/base", "--recipe", "paper-resnet18"] in commands_of(DOCS / "clusters.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_docs_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the pages exists, with those options and values; nothing is run."""
    called = []

    def recording(name: str) -> Any:
        @functools.wraps(cli.COMMANDS[name])
        def call(*_: Any, **__: Any) -> None:
            called.append(name)

        return call

    monkeypatch.setattr(cli, "COMMANDS", {name: recording(name) for name in cli.COMMANDS})
    wanted = commands_of(page)
    for words in wanted:
        cli.main(words)
    assert called == [words[0] for words in wanted]


def test_reproduce_the_paper_names_pictures_of_the_report() -> None:
    named = set(re.findall(r"`(\w+)\.(?:png|csv)`", (DOCS / "reproduce-the-paper.md").read_text(encoding="utf-8")))
    report = "".join(path.read_text(encoding="utf-8") for path in (DOCS.parent / "hbr_fast/report").glob("*.py"))
    assert len(named) > 10
    report = report.replace("{study.metric}", "recall")
    assert {name for name in named if f'"{name}"' not in report} == set()


REPRODUCTIONS = [words for words in commands_of(DOCS / "reproduce-the-paper.md") if words[0] == "study"]


@pytest.mark.parametrize("words", REPRODUCTIONS, ids=lambda words: words[1])
def test_reproduce_the_paper_studies_are_planned(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each study of the page, with its options, plans its trainings on generated images."""
    given = [word for word in words if word != "--dry-run"]
    for option in ("--dataset", "--pool", "--recipe"):  # --tiny brings its own
        if option in given:
            del given[given.index(option) : given.index(option) + 2]
    given[given.index("--out") + 1] = str(tmp_path / "out")
    cli.main([*given, "--tiny", "--dry-run"])
    printed = capsys.readouterr().out
    assert re.search(r"^[1-9]\d* trainings, 0 done", printed, flags=re.MULTILINE)


def test_docs_generated_tables_are_up_to_date() -> None:
    command = [sys.executable, str(DOCS.parent / "scripts" / "generate_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
