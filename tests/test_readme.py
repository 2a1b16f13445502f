"""The README's Python blocks run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = PYTHON.findall(README)


def test_readme_has_python_blocks() -> None:
    assert BLOCKS


def test_readme_blocks_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, names)  # our own README
    assert len(names["resampled"].job.plan) == len(names["train"])
    assert len(names["labels"]) > 0


def test_the_blocks_of_the_guide_to_sampling_run_one_after_another() -> None:
    blocks = PYTHON.findall((ROOT / "docs/sampling.md").read_text(encoding="utf-8"))
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)  # our own guide
    assert len(list(names["again"])) == 6
    assert 0 not in list(names["loader"].sampler)
