"""Recording in Triton's interpreter, against the CPU kernel and the definitions."""

import math
from collections import defaultdict

import pytest
import torch
from hardness.agreement import Visit, assert_agree

from hbr_fast import HardnessRecorder
from hbr_fast.hardness.state import empty_state as empty_state_on
from hbr_fast.kernels import reference
from hbr_fast.kernels.hardness import layout, ops, triton_record
from interpreted.tiles import hold_more_rows

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def empty_state(samples: int) -> State:
    return empty_state_on(samples, "cpu")


def batch(rows: int, classes: int, *, samples: int, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    logits[torch.arange(0, rows, 2), labels[::2]] += 12  # otherwise hardly any row is right with many classes
    return logits, labels, torch.randint(samples, (rows,), generator=generator)


def assert_same(got: State, expected: State) -> None:
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[2], expected[2])
    torch.testing.assert_close(got[0], expected[0], rtol=3e-6, atol=3e-6)


CASES = [  # every type with every number of classes, and of rows
    (classes, rows, (torch.float32, torch.bfloat16, torch.float16)[(i + j) % 3])
    for i, classes in enumerate((2, 3, 7, 128, 1000, 4097))  # 4097: three blocks, the last one nearly empty
    for j, rows in enumerate((1, 3, 128, 1000))
    if classes * rows < 200_000 or rows == 128
]


@pytest.mark.parametrize(("classes", "rows", "dtype"), CASES)
def test_triton_record_matches_cpu_and_definitions(
    classes: int, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rows > 3:
        hold_more_rows(monkeypatch, triton_record)
        monkeypatch.setattr(triton_record, "ACCUMULATE_BLOCK", 1024)
    samples = rows + 1  # the last is never seen
    got, expected = (HardnessRecorder(samples, classes, el2n_epochs=2) for _ in range(2))
    monkeypatch.setattr(got, "_record", lambda form, *arguments: triton_record.record(*arguments))
    visits: dict[int, list[Visit]] = defaultdict(list)
    for epoch in range(3):
        logits, labels, ids = batch(rows, classes, samples=max(1, rows // 3), seed=epoch)
        if epoch == 0:  # every id once; later some ids three times
            ids = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))
        if rows > 3:
            logits[2, 1], logits[3, 0], labels[1] = math.nan, math.inf, -100
        logits = logits.to(dtype)
        got.record(logits, labels, ids.int(), epoch=epoch)
        expected.record(logits, labels, ids, epoch=epoch)
        for z, label, sample in zip(logits.double().numpy(), labels.tolist(), ids.tolist(), strict=True):
            if label != -100:
                visits[sample].append((epoch, z, label))
    assert_same(state(got), state(expected))
    assert_agree(visits, got, expected)
    if rows > 3:
        assert got.counters[:, layout.FORGOTTEN].any()
        assert got.scores().provenance["rows_not_finite"] == 6


def state(recorder: HardnessRecorder) -> State:
    return recorder.sums, recorder.counters, recorder.nonfinite


def test_triton_record_float64_logits() -> None:
    got, expected = empty_state(2), empty_state(2)
    logits, labels, ids = batch(2, 4097, samples=2, seed=0)
    for record, into in ((triton_record.record, got), (ops.record, expected)):
        record(logits.double(), labels, ids, 0, 2, layout.ALL_COLUMNS, *into)
    assert_same(got, expected)


@pytest.mark.parametrize("classes", [2, 5, 600, 20_000])
def test_triton_record_one_observation_matches_definition(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_more_rows(monkeypatch, triton_record)
    logits, labels, _ = batch(4, classes, samples=4, seed=1)
    sums, counters, status = empty_state(4)
    triton_record.record(logits, labels, torch.arange(4), 0, 20, layout.ALL_COLUMNS, sums, counters, status)
    for row in range(4):
        expected = reference.observation(logits[row].numpy(), int(labels[row]))
        for name, column in (
            ("aum", layout.AUM),
            ("aum_softmax", layout.AUM_SOFTMAX),
            ("loss", layout.LOSS),
            ("el2n", layout.EL2N),
        ):
            assert float(sums[row, column]) == pytest.approx(expected[name], rel=3e-6, abs=1e-7), name
        assert counters[row, layout.CORRECT] == expected["correctness"]


def test_triton_record_strides_and_mask() -> None:
    logits, labels, ids = batch(30, 5, samples=20, seed=3)
    logits[4, 0] = math.nan
    strided_labels, strided_ids = torch.stack([labels, ids], dim=1).T
    got, expected = empty_state(20), empty_state(20)
    mask = 1 << layout.AUM | 1 << layout.LOSS
    triton_record.record(logits.T.contiguous().T, strided_labels, strided_ids, 0, 20, mask, *got)
    ops.record(logits, labels, ids, 0, 20, mask, *expected)
    assert_same(got, expected)
    assert got[0].any(0).nonzero().flatten().tolist() == [layout.AUM, layout.LOSS]


def test_triton_record_finds_non_finite_logit_in_every_block() -> None:
    logits = torch.zeros(5, 4097)
    logits[torch.arange(4), torch.tensor([0, 2047, 2048, 4096])] = torch.tensor(
        [math.inf, math.nan, -math.inf, math.nan]
    )
    sums, counters, status = empty_state(5)
    labels = torch.full((5,), 7)
    triton_record.record(logits, labels, torch.arange(5), 0, 20, 1 << layout.AUM, sums, counters, status)
    assert counters[:, layout.OBSERVATIONS].tolist() == [0, 0, 1, 0, 1]  # -inf masks a class
    assert status.tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize("classes", [3, 2049, 4097])
def test_triton_record_masked_classes(classes: int) -> None:
    inf = math.inf
    logits = torch.full((6, classes), -inf)
    logits[:, :3] = torch.tensor(
        [[1, -inf, 0.5], [1, -inf, 2.5], [1, -inf, -inf], [-inf, 1, 0], [0, 1, -inf], [-inf, -inf, -inf]]
    )
    logits[4, -1] = 2.0  # the only remaining other class is in the last block
    labels, ids = torch.tensor([0, 0, 0, 0, 1, 0]), torch.arange(6)
    got, expected = empty_state(6), empty_state(6)
    for record, into in ((triton_record.record, got), (ops.record, expected)):
        record(logits, labels, ids, 0, 20, layout.ALL_COLUMNS, *into)
    assert_same(got, expected)
    assert got[1][:, layout.OBSERVATIONS].tolist() == [1, 1, 0, 0, 1, 0]
    assert got[2].tolist() == [3, 2, 0, 0]


def test_triton_record_breaks_ties_by_lowest_index() -> None:
    logits = torch.randint(0, 2, (60, 5), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(60) % 5
    sums, counters, status = empty_state(60)
    triton_record.record(logits, labels, torch.arange(60), 0, 20, 1 << layout.AUM, sums, counters, status)
    assert torch.equal(counters[:, layout.CORRECT].bool(), logits.argmax(1) == labels)


def test_triton_record_repeated_sample_in_row_order() -> None:
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    zeros = torch.zeros(130, dtype=torch.int64)  # more rows than two blocks hold
    for order, forgotten in (([right, wrong] * 65, 65), ([wrong] * 65 + [right] * 65, 0)):
        sums, counters, status = empty_state(2)
        triton_record.record(torch.tensor(order), zeros, zeros, 4, 20, layout.ALL_COLUMNS, sums, counters, status)
        assert counters[0].tolist()[:6] == [130, 65, forgotten, int(order[-1] == right), 4, 130]
        assert not counters[1, layout.OBSERVATIONS]


def test_triton_record_skips_and_reports_out_of_range_rows() -> None:
    recorder = HardnessRecorder(4, 3)
    state = (recorder.sums, recorder.counters, recorder.nonfinite)
    labels, ids = torch.tensor([0, 3, -1, 1, 2]), torch.tensor([0, 1, 2, 4, -1])
    triton_record.record(torch.ones(5, 3), labels, ids, 0, 20, layout.ALL_COLUMNS, *state)
    assert recorder.nonfinite.tolist() == [0, -1, 2, 2]
    assert recorder.counters[:, layout.OBSERVATIONS].tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"2 rows had a label outside \[0, 3\) and 2 an id outside \[0, 4\)"):
        recorder.scores()


def test_triton_record_two_epochs_by_hand() -> None:
    # Probabilities (0.75, 0.25) for label 0: right; then (0.25, 0.75): wrong. The logits are ln 3 and 0.
    sums, counters, status = empty_state(2)
    ln3 = math.log(3)
    for epoch, logits in enumerate(([[ln3, 0.0], [0.0, ln3]], [[0.0, ln3], [ln3, 0.0]])):
        ids = torch.tensor([0, 1])
        triton_record.record(
            torch.tensor(logits), torch.zeros(2).long(), ids, epoch, 20, layout.ALL_COLUMNS, sums, counters, status
        )
    # margins ln 3 and - ln 3; of probabilities 0.5 and -0.5; p 0.75 and 0.25; p^2 0.5625 and 0.0625; losses
    # ln 4/3 and ln 4; EL2N sqrt(0.25^2 * 2) and sqrt(0.75^2 * 2)
    row = [0, 0, 1.0, 0.625, ln3, math.log(16 / 3), math.sqrt(2)]
    for sample in range(2):
        assert sums[sample, :7].tolist() == pytest.approx(row, rel=1e-6, abs=1e-6)
    # observations, right, forgotten, last right, first learned, in the EL2N window
    assert counters[:, :6].tolist() == [[2, 1, 1, 0, 0, 2], [2, 1, 0, 1, 1, 2]]


def test_triton_record_reports_first_non_finite_row() -> None:
    state = empty_state(900)
    logits = torch.zeros(700, 2)
    logits[[150, 650]] = math.nan
    for ids in (torch.arange(700), torch.arange(700).flip(0)):
        triton_record.record(logits, torch.zeros(700).long(), ids, 0, 20, 1 << layout.AUM, *state)
    assert state[2].tolist() == [4, 150, 0, 0]


def test_triton_record_kernels_are_interpreted() -> None:
    assert "interpreter" in type(triton_record.observe_kernel).__module__
