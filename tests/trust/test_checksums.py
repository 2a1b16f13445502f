"""What is read back is what was written: one changed byte anywhere is refused by name, or changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from hbr_fast.data.images import RawImages
from hbr_fast.data.plan import Plan
from hbr_fast.hardness import HardnessRecorder, HardnessScores
from hbr_fast.hardness.state_file import load_state, save_state
from hbr_fast.resampling.smote import same_class_neighbours
from hbr_fast.tensor_files import cached_array, read_tensors, write_tensors


def plan() -> Plan:
    return Plan.of_rows(np.arange(7), provenance={"alpha": 0.5, "counts": [3, 4]})


def scores() -> HardnessScores:
    return HardnessScores(
        values={"aum": np.linspace(0, 1, 4)[None]},
        observations=np.full((1, 4), 3),
        never_learnt=np.array([[True, False, False, True]]),
        provenance={"dataset": "abc"},
    )


FILES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "plan": (plan().save, Plan.load),
    "scores": (scores().save, HardnessScores.load),
    "recorder": (lambda path: save_state(path, HardnessRecorder(3, 2).state_dict(), step=5), load_state),
}


def shown(value: Any) -> str:
    """All of a value's content."""
    if isinstance(value, Plan | HardnessScores):
        value = vars(value)
    if isinstance(value, dict):
        return str([(name, shown(value[name])) for name in sorted(value)])
    if isinstance(value, tuple | list):
        return str([shown(one) for one in value])
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{value.dtype} {value.tolist()}"
    return repr(value)


@pytest.mark.parametrize("kind", FILES)
def test_read_with_one_byte_changed(tmp_path: Path, kind: str) -> None:
    write, read = FILES[kind]
    path = tmp_path / kind
    write(path)
    content, right = path.read_bytes(), shown(read(path))
    refusals = []
    places = range(0, len(content), 3 if kind == "recorder" else 1)  # torch is slower
    for place in places:
        bit = 1 << place % 8
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            found = shown(read(path))
        except ValueError as raised:
            refusals.append(str(raised))
        else:
            assert found == right, (place, bit)
    assert all(line.startswith(f"{path} ") and "\n" not in line for line in refusals)
    assert len(refusals) > 0.9 * len(places)  # the rest is the padding of headers and the like


@pytest.mark.parametrize("kind", FILES)
def test_write_gives_equal_bytes(tmp_path: Path, kind: str) -> None:
    write, _ = FILES[kind]
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_checksum_is_the_same_for_numpy_and_torch(tmp_path: Path) -> None:
    for array in (np.arange(6).reshape(2, 3), np.array(True), np.zeros((0, 3), np.float32)):
        write_tensors(tmp_path / "numpy", {"a": array}, {"x": 1})
        write_tensors(tmp_path / "torch", {"a": torch.from_numpy(array)}, {"x": 1})
        (of_numpy, about), (of_torch, _) = (
            read_tensors(tmp_path / name, what="a thing", remedy="write it again") for name in ("numpy", "torch")
        )
        assert (tmp_path / "numpy").read_bytes() == (tmp_path / "torch").read_bytes()
        assert about["sha256"]
        np.testing.assert_array_equal(of_numpy["a"], array)
        np.testing.assert_array_equal(of_torch["a"], array)


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    columns = {name: getattr(plan(), name) for name in ("store", "index", "partner", "weight")}
    save_file(columns, tmp_path / "plan", metadata={"hbr_fast": '{"schema": 1, "provenance": {}, "stores": []}'})
    assert Plan.load(tmp_path / "plan").content_hash() == plan().content_hash()
    arrays = {**scores().values, "observations": scores().observations, "never_learnt": scores().never_learnt}
    save_file(arrays, tmp_path / "scores", metadata={"hbr_fast": '{"schema": 1, "provenance": {"dataset": "abc"}}'})
    assert shown(HardnessScores.load(tmp_path / "scores")) == shown(scores())


def test_cached_array_damaged_is_computed_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cache" / "found.safetensors"
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(4, dtype=np.int32)

    def get(below: int = 4) -> list[int]:
        values: list[int] = cached_array(path, compute, form="int32 [4]", below=below).tolist()
        return values

    assert get() == get() == [0, 1, 2, 3]
    assert len(calls) == 1
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + b"\x01", b"", b"x" * 100, content[: len(content) // 2]):
        path.write_bytes(damaged)
        assert get() == [0, 1, 2, 3]
        assert path.read_bytes() == content
        assert f"{path} " in capfd.readouterr().err
    assert len(calls) == 6
    assert get(below=3) == [0, 1, 2, 3]  # computed, as the cached one has a value out of range
    assert len(calls) == 7


def test_neighbours_from_a_damaged_cache(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 4, 4), dtype=np.uint8)

    def found() -> list[list[int]]:
        labels = np.zeros(12, np.int64)
        return same_class_neighbours(RawImages(images), labels, 1, k=3, cache=tmp_path).tolist()

    right = found()
    (path,) = tmp_path.glob("neighbours-*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
    assert found() == right
    assert path.read_bytes() == content
