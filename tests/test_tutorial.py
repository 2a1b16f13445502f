"""The tutorial's commands run as they stand, and find what its text says they find."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from hbr_fast import Execution, cli, evaluate, open_dataset, open_ensemble

ROOT = Path(__file__).parent.parent


def commands() -> list[list[str]]:
    text = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.mark.slow  # twelve trainings and a report: half a minute
def test_tutorial_commands_find_what_the_text_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # In this process: starting others takes longer than training.
    monkeypatch.setattr(Execution, "at_once", lambda self, members: 1)
    steps = commands()
    assert [words[:2] for words in steps] == [
        ["python", "scripts/examples/draw_shapes.py"],
        ["hbr-fast", "convert"],
        ["hbr-fast", "info"],
        ["hbr-fast", "train"],
        ["hbr-fast", "evaluate"],
        ["hbr-fast", "hardness"],
        ["hbr-fast", "study"],
        ["export", "PYTHONPATH=scripts/examples"],
        ["hbr-fast", "train"],
        ["hbr-fast", "evaluate"],
    ]
    for words in steps:
        if words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        elif words[0] == "export":
            monkeypatch.syspath_prepend(str(ROOT / words[1].partition("=")[2]))
        else:
            cli.main(words[1:])

    assert len(open_dataset("shapes.hbr").test) == 400
    ensemble, _ = open_ensemble("runs/first")
    labels = open_dataset("shapes.hbr").test.labels
    recall = np.mean([evaluate(member.test_logits(), labels).recall for member in ensemble.members], axis=0)
    assert open_dataset("shapes.hbr").classes[int(recall.argmin())] == "ellipse"
    assert re.search(r"sample \d+  \w+  \w+/\d{4}\.png", capsys.readouterr().out), "hardness --top names files"
    choice = json.loads(Path("runs/path/study.json").read_text())["choice"]
    assert [one["alpha"] for one in choice["validation"]] == sorted(one["alpha"] for one in choice["validation"])
    assert len(choice["validation"]) == 3
    assert choice["alpha"] < 0.1, "none or a little: which of the two depends on how a processor rounds"
    assert choice["validation"][-1]["accuracy"] < choice["validation"][0]["accuracy"] - 20, "the largest alpha ruins it"
    assert Path("runs/path/report/index.html").is_file()
    own, _ = open_ensemble("runs/mine")
    assert evaluate(own.members[0].test_logits(), labels).accuracy > 0.5, "of four classes"
    assert json.loads(Path("runs/mine/recipe.json").read_text())["model"] == "small_net:small_net"
