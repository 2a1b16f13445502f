"""The Python blocks of the pages under docs/ run as they stand, and what they say of the code is true."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from hbr_fast.hardness import ESTIMATORS

DOCS = Path(__file__).parent.parent / "docs"
EXTRAS = ("lightning", "transformers", "accelerate")  # a block that imports one runs where it is installed


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def can_run(block: str) -> bool:
    needed = [extra for extra in EXTRAS if re.search(rf"^(import|from) {extra}\b", block, flags=re.MULTILINE)]
    return all(importlib.util.find_spec(extra) for extra in needed)


def test_there_are_blocks_to_run() -> None:
    assert len(blocks_of(DOCS / "recording.md")) >= 8


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_blocks_run_one_after_another(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        if can_run(block):
            exec(block, names)  # our own pages


def test_the_table_of_estimators_is_the_codes() -> None:
    text = (DOCS / "recording.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", text, flags=re.MULTILINE)
    assert rows == [(e.name, e.hard_is, e.origin, e.meaning) for e in ESTIMATORS.values()]
