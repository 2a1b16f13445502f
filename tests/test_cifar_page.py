"""Every command of docs/cifar-10.md runs, in its order, on 2,000 small generated images: smaller networks and grids."""

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast import cli
from hbr_fast.data.convert import convert
from hbr_fast.files import read_json
from hbr_fast.resampling.noise import inject_noise

ROOT = Path(__file__).parent.parent
SMALLER = {
    "small-cnn": ["model=cnn-8-16"],
    "cifar-fast": ["model=whitened2-8-16"],
    "cifar-quick": ["model=whitened2-8-8"],
}
CHEAP = ["epochs=2", "batch_size=50", "precision=float32"]


def commands() -> Iterator[list[str]]:
    """The words of each command of the page's console blocks."""
    text = (ROOT / "docs" / "cifar-10.md").read_text(encoding="utf-8")
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)


def smaller(words: list[str]) -> list[str]:
    """The words of a training or a study, with a network of seconds, one variant, and one or two members."""
    most = {"--members": 2} if words[0] == "train" else {"--variants": 1, "--members": 1}
    if words[1] == "alpha-path":
        most["--points"] = 1
    words = list(words)
    for option, value in most.items():
        if option in words:
            place = words.index(option) + 1
            words[place] = str(min(value, int(words[place])))
        else:
            words += [option, str(value)]
    changes = [*SMALLER[words[words.index("--recipe") + 1]], *CHEAP]
    if words[0] == "study" and "--nonpositive" not in words:
        words += ["--nonpositive", "shift"]  # after so few epochs
    if "--set" not in words:
        words += ["--set"]
    at = words.index("--set") + 1
    kept = [word for word in words[at:] if word.partition("=")[0] not in {one.partition("=")[0] for one in changes}]
    return [*words[:at], *changes, *kept, "--members-at-once", "1"]


def run(words: list[str]) -> None:
    if words[0] == "hbr-fast" and words[1] in ("train", "study"):
        cli.main(smaller(words[1:]))
    elif words[:2] == ["hbr-fast", "convert"]:
        sizes: dict[str, Any] = {"train_per_class": 200, "test_per_class": 20, "shape": (3, 8, 8)}
        data = convert("synthetic", words[3], classes=10, **sizes)
        worse, aggre = (inject_noise(data.train.labels, rate, num_classes=10, seed=1).labels for rate in (0.4, 0.1))
        np.savez("judges.npz", cscore=-np.asarray(data.train.truth), worse=worse, aggre=aggre)
    elif words[0] == "hbr-fast":
        cli.main(words[1:])
    elif words[0] == "python":
        script, given = Path(words[1]), words[2:]
        if "--cleanlab" in given:
            given += ["--members-at-once", "1"]
        if "--held-out" in given:
            given = [*given, *SMALLER[given[given.index("--recipe") + 1]], *CHEAP, "--members-at-once", "1"]
        importlib.import_module(script.stem).main(given)
    else:
        assert words[:2] == ["pip", "install"], f"no way to try {words}"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_commands_of_the_page_run_on_generated_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cleanlab")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found: dict[str, dict[str, dict[str, Any]]] = {}  # by script, what the last lines of its runs say
    ran = []
    for words in commands():
        if not words:
            continue
        run(words)
        printed = capsys.readouterr().out
        if words[0] == "python":
            found.setdefault(Path(words[1]).stem, {}).update(json.loads(printed.splitlines()[-1]))
        ran.append(words[:2])
    assert len(ran) > 10
    # Time to hardness: generated images have a known hardness, which a short training finds.
    assert found["time_to_hardness"]["small-cnn x2"]["samples"] > 0.5
    # Wrong labels, by every method.
    wrong = found["wrong_labels"]
    for method in ("aum", "aum_final", "aum, threshold samples", "cleanlab self_confidence"):
        assert wrong[method]["auroc"] > 0.75, method
    assert wrong["aum, threshold samples"]["trainings"] == 2
    # The paper's figure 1, and its case studies with their controls.
    assert Path("recall.png").read_bytes().startswith(b"\x89PNG")
    arms = {arm["name"] for arm in read_json(Path("runs/cifar-10/study.json"))["arms"]}
    assert arms == {"baseline", "random-1", "other-class-1", "reweighted-1", "balanced"}
    arms = {arm["name"] for arm in read_json(Path("runs/cifar-10-grid/study.json"))["arms"]}
    assert {"random-0.25", "smote-0.25", "other-class-0.25", "reweighted-0.25", "balanced"} <= arms
    half = {arm["name"]: arm for arm in read_json(Path("runs/cifar-10-half/study.json"))["arms"]}
    assert half["pruned-50"]["counts"] == [100] * 10
    choice = read_json(Path("runs/cifar-10-alpha/study.json"))["choice"]
    assert choice["arm"] in {row["arm"] for row in choice["validation"]}
    for study in ("cifar-10", "cifar-10-grid", "cifar-10-half", "cifar-10-alpha"):
        assert Path("runs", study, "report", "index.html").is_file()
