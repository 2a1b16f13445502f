"""Without an extra the rest works, and what needs it names the command that installs it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hbr_fast.data import remote
from hbr_fast.data.dataset import open_dataset
from hbr_fast.training.models.libraries import timm_model

EXTRAS = ("accelerate", "ffcv", "lightning", "nvidia", "ray", "tensorboard", "timm", "transformers")
SCRIPT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from hbr_fast import cli
import hbr_fast.report.page
recipe = ["--set", "model=cnn-4", "epochs=1", "batch_size=20", "augment.pad=0", "size=0"]
cli.main(["convert", "synthetic", "a.hbr", "--classes", "3", "--train-per-class", "20", "--test-per-class", "4"])
cli.main(["train", "a.hbr", "run", "--recipe", "quickstart", *recipe])
cli.main(["resample", "run", "plan.safetensors", "--alpha", "0.1", "--nonpositive", "shift"])
cli.main(["evaluate", "run"])
print(sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[1].split(","))))
"""


def test_core_needs_no_extra(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, ",".join(EXTRAS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "plan.safetensors").exists()


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("fsspec", "remote", lambda: open_dataset("memory://absent/photos.hbr")),
        ("timm", "timm", lambda: timm_model("resnet10t", (3, 32, 32), 2)),
    ],
)
def test_what_needs_an_extra_names_it(
    module: str, extra: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Of FFCV, DALI, Ray and TensorBoard: beside their other tests.
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv(remote.DIRECTORY, str(tmp_path))
    remote._filesystem.cache_clear()
    with pytest.raises((ImportError, ValueError), match=rf"pip install 'hbr-fast\[{extra}\]'"):
        use()
