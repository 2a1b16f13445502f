"""Choice of device and precision for a training; tests on a GPU are in tests/gpu."""

import dataclasses
from pathlib import Path
from typing import cast

import pytest
import torch

from hbr_fast import machine
from hbr_fast.data.dataset import Dataset
from hbr_fast.files import read_json, write_json
from hbr_fast.members.ensemble import train_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.members.store import member_key
from hbr_fast.training.device import Compute, compute_dtype, gpu_memory_mb, gpu_utilisation, resolve_precision
from hbr_fast.training.recipe import Precision, Recipe


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.parametrize(
    ("name", "gpus", "found"),
    [("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("auto", 2, "cuda:0"), ("cuda", 2, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_compute_resolves_requested_device(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, found: str) -> None:
    with_gpus(monkeypatch, gpus)
    assert Compute(name).resolved() == torch.device(found)


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("cuda", 0, r"device 'cuda' asked for, but torch sees no GPU here: use --device cpu"),
        ("cuda:2", 2, r"device 'cuda:2' asked for, but there are GPUs 0 to 1 only: ask for fewer"),
        ("cuda:", 2, r"device must be auto, cpu, cuda or cuda:N, got 'cuda:'"),
        ("gpu", 2, r"got 'gpu'"),
    ],
)
def test_compute_refuses_missing_device(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, message: str) -> None:
    with_gpus(monkeypatch, gpus)
    with pytest.raises(ValueError, match=message):
        Compute(name).resolved()


def test_compute_refuses_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert Compute().resolved() == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ValueError, match=r"process 3 of torchrun on this machine asks for a GPU, but there are GPUs 0"):
        Compute().resolved()
    assert Compute("cpu").resolved() == torch.device("cpu")


def test_compute_compiles_only_for_one_process_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="compile is for one process on a GPU: leave it out"):
        Compute("cpu", compile=True).resolved()
    with_gpus(monkeypatch, 1)
    assert Compute(compile=True).resolved() == torch.device("cuda:0")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
@pytest.mark.parametrize("on_processor", [True, False])
def test_resolve_precision_follows_training_device(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, capability: tuple[int, int], on_processor: bool
) -> None:
    with_gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device.index == 1 else (7, 0))
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda: on_processor)
    auto = dataclasses.replace(recipe, precision="auto")
    names = {True: "bfloat16", False: "float32"}
    for device, fast in (("cpu", on_processor), ("cuda:1", capability >= (8, 0)), ("cuda:0", False)):
        resolved = resolve_precision(auto, Compute(device).resolved())
        assert resolved == dataclasses.replace(recipe, precision=cast(Precision, names[fast]))
        assert compute_dtype(resolved) == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_resolve_precision_keeps_explicit_value(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, precision: Precision, dtype: torch.dtype
) -> None:
    for native in (True, False):
        monkeypatch.setattr(machine, "has_fast_bfloat16", lambda native=native: native)
        asked = dataclasses.replace(recipe, precision=precision)
        assert resolve_precision(asked, torch.device("cpu")) == asked
        assert compute_dtype(asked) == dtype


def test_resolve_precision_needs_a_gpu_to_query(monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    with_gpus(monkeypatch, 0)
    auto = dataclasses.replace(recipe, precision="auto")
    with pytest.raises(ValueError, match="this machine has none to ask: set precision to float32 or bfloat16"):
        resolve_precision(auto, Execution(cluster="local", gpus_per_member=1).training_device())
    assert resolve_precision(auto, Execution(cluster="local").training_device()).precision != "auto"


def test_train_ensemble_on_the_cpu_with_a_gpu_keeps_cpu_precision(
    monkeypatch: pytest.MonkeyPatch, tiny: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    with_gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda: False)
    auto = dataclasses.replace(recipe, precision="auto")
    (member,) = train_ensemble(tiny, auto, members=1, out=tmp_path, execution=Execution(device="cpu")).members
    assert member.info["precision"] == "float32"
    for path in (tmp_path / "recipe.json", member.path / "recipe.json"):
        assert Recipe.from_json(read_json(path)) == recipe
    assert Recipe.from_json(member.scores().provenance["recipe"]) == recipe
    assert member.key == member_key(tiny, recipe, seed=member.seed, plan=None)
    # A run directory written before precisions were resolved holds the same members.
    write_json(tmp_path / "recipe.json", auto.to_json())
    assert train_ensemble(tiny, auto, members=1, out=tmp_path, execution=Execution(device="cpu")).members == (member,)
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda: True)
    with pytest.raises(ValueError, match="another recipe \\(precision 'float32', not 'bfloat16'\\)"):
        train_ensemble(tiny, auto, members=1, out=tmp_path, execution=Execution(device="cpu"))


def test_invalid_device_is_reported_before_training(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device must be auto"):
        train_ensemble(tiny, recipe, members=1, out=tmp_path, execution=Execution(device="abacus"))
    assert not (tmp_path / "members").exists()


def test_cpu_has_a_name_and_no_gpu_figures(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    assert gpu_memory_mb(torch.device("cpu")) is gpu_utilisation(torch.device("cpu")) is None
    (member,) = train_ensemble(tiny, recipe, members=1, out=tmp_path, execution=Execution(device="cpu")).members
    assert member.info["device"] == "cpu"
    assert member.history()["gpu_memory_mb"].null_count() == recipe.epochs
