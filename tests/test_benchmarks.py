"""The benchmarks run, print their ratios and compare like with like; their figures are not checked."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
KEYS: dict[str, dict[str, set[str] | None]] = {
    "bench_convert": {"cpu_time_over_fastest_loop": None, "cpu_time_over_pillow": None},
    "bench_decoders": {
        "native_over_pillow_whole": None,
        "native_over_pillow_evaluation": None,
        "native_over_draft": None,
    },
    "bench_loading": {
        "native_over_ffcv": None,
        "native_over_dali": None,
        "native_over_torchvision": None,
        "native_over_bound": None,
        "efficiency": None,
        "scaling": None,
        "first_batch_seconds_cold": None,
        "first_batch_seconds_cached": None,
        "peak_memory_mb": None,
    },
    "bench_members": {
        "processes_over_sequence": {"cnn-16-32-64 x2"},
    },
    "bench_photos": {
        "native_over_torchvision": None,
        "native_over_dali": None,
        "native_over_ffcv": None,
        "native_over_timm": None,
        "native_over_spdl": None,
        "native_over_bound": None,
        "large_over_pillow": None,
        "convert_over_copy": None,
        "convert_many_over_copy": None,
        "efficiency": None,
    },
    "bench_prefetch": {"default_over_best": {"native", "ffcv", "dali", "torchvision"}},
    "bench_recording": {
        "time_over_cross_entropy": {"10", "100", "1000"},
        "loop_over_fused_128x10": None,
        "fused_loss_time_over_torch": {"10", "100", "1000"},
        "epoch_share": None,
    },
    "bench_sampling": {
        "weighted_built_over_torch": {"1281167", "14000000"},
        "weighted_cached_over_torch": {"1281167", "14000000"},
        "uniform_indices_per_second_per_core": None,
        "quota_indices_per_second_per_core": None,
        "first_index_ms": None,
    },
    "bench_settings": {
        "setting_over_plain": {"pinned, cnn-16-32-64"},
        "evaluation_over_default": {"20", "125"},
    },
    "bench_training": {
        "efficiency": None,
        "efficiency_by_side": {"32", "96"},
        "over_paper_loop": {"cnn-16-32-64", "cnn-32-64-128", "resnet18"},
        "convolution_share": {"cnn-16-32-64", "cnn-32-64-128", "resnet18"},
        "convolutions_over_matmul": {"cnn-16-32-64", "cnn-32-64-128", "resnet18"},
        "one_pass_over_separate": {"10", "100", "1000", "10000"},
    },
}
NEEDS = {"native_over_ffcv": "ffcv", "native_over_dali": "nvidia.dali"}
LEFT_OUT = {("bench_photos", "native_over_ffcv"), ("bench_photos", "native_over_spdl")}  # tiny runs, or not installed


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_benchmark_runs_and_prints_its_ratios(name: str, tmp_path: Path) -> None:
    table = tmp_path / "figures.csv"
    command = [
        sys.executable,
        str(BENCHMARKS / f"{name}.py"),
        "--tiny",
        "--threads",
        "2",
        "--out",
        str(table),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    ratios = json.loads(done.stdout.splitlines()[-1])
    assert set(ratios) == set(KEYS[name])
    for key, inner in KEYS[name].items():
        if inner is not None:
            assert set(ratios[key]) == inner
            assert all(ratio > 0 for ratio in ratios[key].values())
        elif ratios[key] is None and (name, key) in LEFT_OUT:
            pass
        elif key in NEEDS and not is_installed(NEEDS[key]) and not os.environ.get("CI"):
            assert ratios[key] is None
        else:
            assert ratios[key] > 0

    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert "noop" in {row["variant"] for row in rows}
    for row in rows:
        assert row["benchmark"] == name
        assert row["size"] == "tiny"
        assert row["threads"] == "2"
        for column in ("cpu", "cores", "memory_gib", "python", "torch", "numba", "hbr-fast", "date", "cache"):
            assert row[column], column
        low, middle, high = (float(row[f"seconds_per_call_p{p}"]) for p in (20, 50, 80))
        assert 0 < low <= middle <= high


def test_measure_runs_variants_once_per_round_in_rotated_order(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load("harness", monkeypatch)
    called: list[str] = []
    variants = [harness.Variant(name, lambda name=name: called.append(name), 1) for name in "abc"]
    timings = harness.measure(variants, rounds=3, seconds=0.0)
    assert list(timings) == ["a", "b", "c"]
    assert called[-9:] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_speed_ratio_is_median_of_ratios_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load("harness", monkeypatch)

    def timing(name: str, items: int, seconds: list[float]) -> object:
        return harness.Timing(harness.Variant(name, lambda: None, items), 1, np.array(seconds))

    # A machine that slows down threefold in the second round and tenfold in the third: still twice the speed.
    timings = {"ours": timing("ours", 20, [1, 3, 10]), "theirs": timing("theirs", 10, [1, 3, 10])}
    case = harness.Case("case", "images", 4, "theirs", timings)
    assert case.speed_ratio("ours", "theirs") == 2.0
    assert case.speed_ratio("ours", "absent") is None


@pytest.mark.parametrize(
    ("augment", "change"),
    [
        pytest.param({"flip": 0.0, "pad": 4}, 1, id="never-flipped"),
        pytest.param({"flip": 1.0, "pad": 4}, 1, id="always-flipped"),
        pytest.param({"flip": 0.5, "pad": 0}, 1, id="not-cropped"),
        pytest.param({"flip": 0.5, "pad": 2}, 1, id="cropped-less"),
        pytest.param({"flip": 0.5, "pad": 4}, 1.2, id="scaled-otherwise"),
        pytest.param({"flip": 0.5, "pad": 4}, -1, id="sign"),
    ],
)
def test_same_work_rejects_loaders_with_different_output(
    augment: dict[str, Any], change: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench_loading = load("bench_loading", monkeypatch)
    split = bench_loading.random_split(2000, (3, 32, 32))
    native = bench_loading.native(split, threads=1)
    other = bench_loading.native(split, 1, bench_loading.Augment(**augment))

    def changed() -> Iterator[torch.Tensor]:
        return (batch * change for batch in other())

    shape = split.images.shape[1:]
    assert bench_loading.same_work({"native": (native, 2000), "other": (native, 2000)}, shape)["other"] < 0.15
    with pytest.raises(ValueError, match="other does other work than native"):
        bench_loading.same_work({"native": (native, 2000), "other": (changed, 2000)}, shape)
