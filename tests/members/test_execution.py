"""Settings of an execution, in the current form and in the deprecated one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hbr_fast
from hbr_fast import machine
from hbr_fast.data.dataset import Dataset
from hbr_fast.members.engines import ENGINES, engine_for
from hbr_fast.members.ensemble import train_ensemble
from hbr_fast.members.execution import Cluster, Execution, execution_of
from hbr_fast.training.checkpoint import CheckpointEvery
from hbr_fast.training.device import Compute
from hbr_fast.training.recipe import Recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members_at_once": 0}, "members_at_once must be at least 1, got 0"),
        ({"checkpoint_minutes": float("nan")}, "checkpoint_minutes must be at least 0, got nan"),
        ({"checkpoint_every_epochs": -1}, "checkpoint_every_epochs must be at least 0, got -1"),
        ({"cluster": "local", "cpus_per_member": -1}, "cpus_per_member must be at least 0"),
        ({"cluster": "local", "gpus_per_member": 1.5}, "a fraction of one GPU or a whole number, got 1.5"),
        ({"cluster": "local", "retries": -1}, "retries must be at least 0"),
        ({"cluster": "local", "members_at_once": 2}, "as many members at once as it has room for"),
        ({"cluster": "local", "device": "cpu"}, "leave out the cluster, or device and compile"),
        ({"cluster": "local", "tensorboard": True}, "leave out the cluster or tensorboard"),
        ({"cluster": "nonsense"}, "a cluster's address is local, auto or HOST:PORT"),
        ({"cluster": "ray://127.0.0.1:10001"}, "a cluster's address is local, auto or HOST:PORT"),
        ({"cluster": "127.0.0.1:"}, "a cluster's address is local, auto or HOST:PORT"),
        ({"cluster": ""}, "a cluster's address is local, auto or HOST:PORT"),
        ({"retries": 1}, "of members on a cluster: name the cluster too"),
    ],
)
def test_execution_checked_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Execution(**options).checked()
    assert ";" not in str(caught.value), "one fault"


def test_execution_checked_names_all_faults() -> None:
    with pytest.raises(ValueError, match=r"members_at_once .*; checkpoint_minutes .*; .*device and compile; .*tensor"):
        Execution(0, cluster="auto", device="cpu", checkpoint_minutes=-1, tensorboard=True).checked()


def test_execution_checked_allows_one_member_at_a_time_under_torchrun() -> None:
    assert Execution("auto").checked(processes=2) == Execution("auto")
    for wrong in (Execution(2), Execution(cluster="local")):
        with pytest.raises(ValueError, match="2 processes of torchrun train one member at a time together"):
            wrong.checked(processes=2)


@pytest.mark.parametrize(("members", "cpus", "at_once"), [(1, 2, 1), (4, 2, 2), (2, 64, 2), (16, 1, 1), (0, 2, 1)])
def test_execution_auto_is_one_member_per_core(
    monkeypatch: pytest.MonkeyPatch, members: int, cpus: int, at_once: int
) -> None:
    monkeypatch.setattr(machine, "usable_cpus", lambda: cpus)
    assert Execution("auto", device="cpu").at_once(members) == at_once
    assert Execution(3).at_once(members) == max(1, min(3, members))


def test_execution_auto_is_one_member_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(machine, "usable_cpus", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert Execution("auto").at_once(16) == 1


def test_engine_for_follows_execution() -> None:
    assert engine_for(Execution(), at_once=1) is ENGINES["inline"]
    assert engine_for(Execution(4), at_once=1) is ENGINES["inline"], "a single member needs no other process"
    assert engine_for(Execution(4), at_once=2) is ENGINES["processes"]
    assert engine_for(Execution(cluster="local"), at_once=1) is ENGINES["ray"]


def test_execution_of_deprecated_arguments() -> None:
    assert execution_of(None, {}, caller="train") == Execution()
    old = {
        "members_at_once": 2,
        "checkpoint": CheckpointEvery(epochs=3, minutes=1.5),
        "compute": Compute("cpu"),
        "tensorboard": True,
        "cluster": None,
    }
    with pytest.warns(DeprecationWarning, match=r"train\(members_at_once, .*\) will go: pass execution="):
        found = execution_of(None, old, caller="train")
    assert found == Execution(2, "cpu", checkpoint_every_epochs=3, checkpoint_minutes=1.5, tensorboard=True)
    with pytest.warns(DeprecationWarning, match=r"train\(cluster\)"):
        found = execution_of(None, {"cluster": Cluster("auto", 2, 0.5, 7)}, caller="train")
    assert found == Execution(cluster="auto", cpus_per_member=2, gpus_per_member=0.5, retries=7)


def test_execution_of_refuses_unknown_and_mixed_arguments() -> None:
    with pytest.raises(TypeError, match=r"train\(\) got an unexpected keyword argument 'member_at_once'"):
        execution_of(None, {"member_at_once": 2}, caller="train")
    with pytest.raises(TypeError, match="takes members_at_once within execution="):
        execution_of(Execution(), {"members_at_once": 2}, caller="train")


def test_train_ensemble_accepts_execution_and_deprecated_arguments(
    tiny: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    new = train_ensemble(tiny, recipe, members=1, out=tmp_path, execution=Execution(device="cpu"))
    with pytest.warns(DeprecationWarning, match=r"train_ensemble\(compute\)") as warned:
        assert train_ensemble(tiny, recipe, members=1, out=tmp_path, compute=Compute("cpu")) == new
    assert warned[0].filename == __file__, "it points at the caller"


@pytest.mark.parametrize("command", ["train", "study"])
def test_command_help_lists_execution_flags_without_heavy_imports(command: str) -> None:
    code = (
        "import sys\nfrom hbr_fast.cli import main\n"
        f"try:\n    main(['{command}', '--help'])\n"
        "except SystemExit:\n    print({'torch', 'ray', 'numba'} & set(sys.modules), file=sys.stderr)"
    )
    root = str(Path(hbr_fast.__path__[0]).parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stderr.strip() == "set()"
    for flag in (
        *("--members-at-once", "--device", "--compile", "--cluster", "--cpus-per-member", "--gpus-per-member"),
        *("--checkpoint-every-epochs", "--checkpoint-minutes", "--tensorboard"),
    ):
        assert f" {flag} " in done.stdout.replace("|", " ").replace(",", " "), flag
    assert "or 1 on a GPU" in " ".join(done.stdout.replace("│", " ").split()), "fields are explained"
