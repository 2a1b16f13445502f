"""The README's Python blocks run unchanged."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = PYTHON.findall(README)


def test_readme_has_python_blocks() -> None:
    assert BLOCKS


def test_readme_blocks_run_in_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block, names)  # our own README
    assert len(names["loader"].sampler) == len(names["dataset"])
    drawn = names["y"][torch.tensor(list(names["loader"].sampler))].bincount(minlength=3)
    assert drawn.argmin() == 1, "class 1 is the easy one, as the README says"


def test_readme_is_one_screen() -> None:
    assert README.count("\n") < 110


def test_sampling_guide_blocks_run_in_sequence() -> None:
    blocks = PYTHON.findall((ROOT / "docs/sampling.md").read_text(encoding="utf-8"))
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)  # our own guide
    assert len(list(names["again"])) == 6
    assert 0 not in list(names["loader"].sampler)
