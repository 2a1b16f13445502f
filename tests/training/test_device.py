"""Which device a training computes on; what it does on a GPU is in tests/gpu."""

from pathlib import Path

import pytest
import torch

from hbr_fast import machine
from hbr_fast.cli.options import number_at_once
from hbr_fast.data.dataset import Dataset
from hbr_fast.training.device import Compute, gpu_memory_mb, gpu_utilisation, has_fast_bfloat16
from hbr_fast.training.ensemble import train_ensemble
from hbr_fast.training.recipe import Recipe


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.parametrize(
    ("name", "gpus", "found"),
    [("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("auto", 2, "cuda:0"), ("cuda", 2, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_the_device_asked_for(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, found: str) -> None:
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
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, message: str
) -> None:
    with_gpus(monkeypatch, gpus)
    with pytest.raises(ValueError, match=message):
        Compute(name).resolved()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert Compute().resolved() == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ValueError, match=r"process 3 of torchrun on this machine asks for a GPU, but there are GPUs 0"):
        Compute().resolved()
    assert Compute("cpu").resolved() == torch.device("cpu")


def test_compile_is_for_one_process_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="compile is for one process on a GPU: leave it out"):
        Compute("cpu", compile=True).resolved()
    with_gpus(monkeypatch, 1)
    assert Compute(compile=True).resolved() == torch.device("cuda:0")


def test_auto_at_once_is_one_on_a_gpu_where_nothing_is_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cpus", lambda: 8)
    for gpus, stacked, at_once in ((0, False, 3), (1, False, 1), (1, True, 3)):
        with_gpus(monkeypatch, gpus)
        assert number_at_once("auto", 3, Compute(), stacked=stacked) == at_once
    assert number_at_once(2, 3, Compute(), stacked=False) == 2


def test_precision_follows_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus in (0, 1):
        with_gpus(monkeypatch, gpus)
        for native in (True, False):
            monkeypatch.setattr(machine, "has_fast_bfloat16", lambda found=native != bool(gpus): found)
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated, found=native: found)
            assert has_fast_bfloat16() == native


def test_a_wrong_device_is_told_before_anything_trains(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device must be auto"):
        train_ensemble(tiny, recipe, members=1, out=tmp_path, compute=Compute("abacus"))
    assert not (tmp_path / "members").exists()


def test_the_processor_is_named_and_has_no_figures_of_a_gpu(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    assert gpu_memory_mb(torch.device("cpu")) is gpu_utilisation(torch.device("cpu")) is None
    (member,) = train_ensemble(tiny, recipe, members=1, out=tmp_path, compute=Compute("cpu")).members
    assert member.info["device"] == "cpu"
    assert member.history()["gpu_memory_mb"].null_count() == recipe.epochs
