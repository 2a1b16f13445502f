"""`AUMCalculator` against the `aum` package that it reimplements."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.hardness.aum import AUMCalculator


def batches(ids: list[Any]) -> list[tuple[torch.Tensor, torch.Tensor, list[Any]]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(6):
        rows = torch.randint(len(ids), (5,), generator=generator).tolist()  # ids repeat within a batch too
        logits = torch.randn(5, 4, generator=generator)
        made.append((logits, torch.tensor([row % 4 for row in rows]), [ids[row] for row in rows]))
    return made


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("ids", [list(range(7)), ["a", "b", "c,d", "e"]], ids=["integers", "strings"])
def test_aum_calculator_matches_the_aum_package(ids: list[Any], tmp_path: Path) -> None:
    aum = pytest.importorskip("aum")
    ours, theirs = (
        AUMCalculator(tmp_path / "ours", compressed=False),
        aum.AUMCalculator(str(tmp_path / "theirs"), False),
    )
    for logits, targets, sample_ids in batches(ids):
        got, expected = ours.update(logits, targets, sample_ids), theirs.update(logits, targets, sample_ids)
        assert {key: asdict(record) for key, record in got.items()} == {
            key: asdict(record) for key, record in expected.items()
        }
    for calculator in (ours, theirs):
        calculator.finalize()
    for name in ("aum_values.csv", "full_aum_records.csv"):
        own, other = (rows_of(tmp_path / folder / name) for folder in ("ours", "theirs"))
        assert own[0] == other[0]
        assert [row[0] for row in own] == [row[0] for row in other]
        for ours_row, theirs_row in zip(own[1:], other[1:], strict=True):
            np.testing.assert_allclose(np.array(ours_row[1:], float), np.array(theirs_row[1:], float), rtol=1e-15)


def test_aum_calculator_compressed_writes_only_values(tmp_path: Path) -> None:
    calculator = AUMCalculator(tmp_path / "never")
    calculator.update(torch.tensor([[2.0, 0.5], [0.0, 1.0]]), torch.tensor([0, 0]), torch.tensor([4, 2]))
    calculator.finalize(tmp_path / "here")
    assert rows_of(tmp_path / "here" / "aum_values.csv") == [["sample_id", "aum"], ["4", "1.5"], ["2", "-1.0"]]
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "aum_values.csv"]


def test_aum_calculator_batch_of_one_and_logits_with_gradients() -> None:
    calculator = AUMCalculator("unused")
    logits = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
    record = calculator.update(logits, torch.tensor([2]), [9])[9]
    assert asdict(record) == {
        "sample_id": 9,
        "num_measurements": 1,
        "target_logit": 2,
        "target_val": 2.0,
        "other_logit": 1,
        "other_val": 3.0,
        "margin": -1.0,
        "aum": -1.0,
    }


def test_aum_calculator_agrees_with_recorder() -> None:
    calculator, recorder = AUMCalculator("unused"), HardnessRecorder(7, 4)
    for logits, targets, ids in batches(list(range(7))):
        calculator.update(logits, targets, ids)
        recorder.record(logits, targets, torch.tensor(ids), epoch=0)
    scores = recorder.scores().per_sample("aum")
    for sample, total in calculator.sums.items():
        assert scores[int(sample)] == pytest.approx(total / calculator.counts[sample], rel=1e-6)


@pytest.mark.parametrize("target", [-1, 3])
def test_aum_calculator_rejects_out_of_range_targets(target: int) -> None:
    with pytest.raises(ValueError, match=r"targets must be classes in \[0, 3\), got some from"):
        AUMCalculator("unused").update(torch.zeros(2, 3), torch.tensor([1, target]), [1, 2])


def test_aum_calculator_rejects_mismatched_shapes() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 3\], \[2\] and 1"):
        AUMCalculator("unused").update(torch.zeros(2, 3), torch.zeros(2).long(), [1])
