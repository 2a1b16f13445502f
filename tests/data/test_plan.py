import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hbr_fast.data.plan import Plan


def mixed_plan(**changes: Any) -> Plan:
    columns: dict[str, Any] = {
        "store": np.array([0, 0, 1], np.int16),
        "index": np.array([7, 2**40, 0], np.int64),
        "partner": np.array([-1, 3, -1], np.int64),
        "weight": np.array([1.0, 0.25, 1.0], np.float32),
        "provenance": {"strategy": "smote", "counts": [1, 2], "seed": 3},
    }
    return Plan(**{**columns, **changes})


def test_plan_row_takes_22_bytes() -> None:
    plan = Plan.of_rows(np.arange(1000))
    assert sum(column.nbytes for column in (plan.store, plan.index, plan.partner, plan.weight)) == 22 * 1000


def test_plan_of_rows_keeps_samples_unchanged() -> None:
    plan = Plan.of_rows(np.array([3, 1, 3], np.int32), provenance={"strategy": "random"})
    assert len(plan) == 3
    assert plan.index.tolist() == [3, 1, 3]
    assert plan.index.dtype == np.int64
    assert plan.store.tolist() == [0, 0, 0]
    assert plan.partner.tolist() == [-1, -1, -1]
    assert plan.weight.tolist() == [1, 1, 1]
    assert plan.provenance == {"strategy": "random"}


def test_plan_save_and_load_round_trip(tmp_path: Path) -> None:
    plan = mixed_plan()
    plan.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    for name in ("store", "index", "partner", "weight"):
        saved, read = getattr(plan, name), getattr(loaded, name)
        assert read.dtype == saved.dtype
        np.testing.assert_array_equal(read, saved)
    assert loaded.provenance == plan.provenance
    assert loaded.content_hash() == plan.content_hash()
    assert [file.name for file in tmp_path.iterdir()] == ["plan"]


def test_plan_file_is_plain_safetensors(tmp_path: Path) -> None:
    mixed_plan().save(tmp_path / "plan")
    assert {name: str(a.dtype) for name, a in load_file(tmp_path / "plan").items()} == {
        "store": "int16",
        "index": "int64",
        "partner": "int64",
        "weight": "float32",
    }


def test_plan_content_hash_covers_only_rows() -> None:
    plan = mixed_plan()
    assert plan.content_hash() == mixed_plan(provenance={}).content_hash()
    changed = [
        mixed_plan(store=np.array([0, 0, 0], np.int16)),
        mixed_plan(index=plan.index[::-1].copy()),
        mixed_plan(partner=np.array([-1, 4, -1])),
        mixed_plan(weight=np.array([1.0, 0.5, 1.0], np.float32)),
    ]
    assert len({p.content_hash() for p in (plan, *changed)}) == 5


@pytest.mark.parametrize("content", [b"", b"not a plan", b"\x80\x04K\x01.", b"\xff" * 100])
def test_plan_load_rejects_invalid_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan").write_bytes(content)
    with pytest.raises(ValueError, match=r"plan does not hold a plan \(.*\): make it with hbr-fast resample"):
        Plan.load(tmp_path / "plan")


def test_plan_load_rejects_truncated_file(tmp_path: Path) -> None:
    mixed_plan().save(tmp_path / "plan")
    (tmp_path / "plan").write_bytes((tmp_path / "plan").read_bytes()[:-1])
    with pytest.raises(ValueError, match="plan does not hold a plan"):
        Plan.load(tmp_path / "plan")


def test_plan_load_names_what_does_not_fit(tmp_path: Path) -> None:
    plan = mixed_plan()
    columns = {"store": plan.store, "index": plan.index, "partner": plan.partner, "weight": plan.weight}
    extra = {**columns, "extra": plan.index}
    for name, arrays, about, fault in (
        ("newer", columns, {"schema": 2, "provenance": {}}, "schema is 2, not 1"),
        ("bare", columns, {}, "schema is None, not 1; provenance is NoneType, not dict"),
        ("fewer", {"index": plan.index}, None, "store is missing; partner is missing; weight is missing"),
        ("more", extra, None, "extra is not part of it"),
        ("short", {**columns, "weight": plan.weight[:2]}, None, r"weight is float32 \[2\], not float32 \[3\]"),
        ("wide", {**columns, "index": plan.index.astype(np.int32)}, None, r"index is int32 \[3\], not int64 \[3\]"),
        ("weight", {**columns, "weight": np.array([1, np.nan, 1], np.float32)}, None, "weight of row 1 is nan"),
        ("index", {**columns, "index": np.array([0, -3, 1])}, None, "index of row 1 is -3"),
        ("store", {**columns, "store": np.array([0, 0, -7], np.int16)}, None, "store of row 2 is -7"),
    ):
        known = {"schema": 1, "provenance": {}, "stores": ["a" * 64]} if about is None else about
        save_file(arrays, tmp_path / name, metadata={"hbr_fast": json.dumps(known)})
        with pytest.raises(ValueError, match=rf"{name} does not hold a plan \({fault}.*\): make it with hbr-fast"):
            Plan.load(tmp_path / name)


def test_plan_load_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Plan.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("column", "array"),
    [
        ("store", np.zeros(3, np.int64)),
        ("index", np.zeros(3, np.int32)),
        ("partner", np.zeros(2, np.int64)),
        ("weight", np.zeros(3, np.float64)),
        ("weight", np.zeros((3, 1), np.float32)),
    ],
)
def test_plan_names_invalid_column(column: str, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=rf"plan column '{column}' must be .* got {array.dtype}"):
        mixed_plan(**{column: array})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([0.5, 1.0]), "must be whole numbers, the sample ids, got float64$"),
        (np.array([True, False]), "got bool: np.flatnonzero gives those of a mask"),
    ],
)
def test_plan_rows_must_be_integers(rows: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.of_rows(rows)
