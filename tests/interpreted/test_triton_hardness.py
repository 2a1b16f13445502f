"""Recording in Triton's interpreter, against the CPU kernel and the definitions."""

import math
from collections import defaultdict

import pytest
import torch
from hardness.agreement import Visit, assert_agree

from hbr_fast import HardnessRecorder
from hbr_fast.kernels import cpu_hardness as k
from hbr_fast.kernels import ops, reference, triton_hardness
from interpreted.tiles import hold_more_rows

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def empty_state(samples: int, *members: int) -> State:
    sums = torch.zeros(*members, samples, k.SUM_COLUMNS, dtype=torch.float64)
    counters = torch.zeros(*members, samples, k.COUNTER_COLUMNS, dtype=torch.int32)
    counters[..., [k.LAST_CORRECT, k.FIRST_LEARNED]] = -1
    return sums, counters, torch.tensor([0, -1, 0, 0])


def batch(shape: tuple[int, ...], samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, generator=generator)
    labels = torch.randint(shape[-1], shape[-2:-1], generator=generator)
    for row in range(0, shape[-2], 2):  # else hardly any row is right among many classes
        logits[..., row, labels[row]] += 12
    return logits, labels, torch.randint(samples, shape[-2:-1], generator=generator)


def assert_same(got: State, expected: State) -> None:
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[2], expected[2])
    torch.testing.assert_close(got[0], expected[0], rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 128, 1000])
@pytest.mark.parametrize("classes", [2, 3, 7, 128, 1000, 4097])  # 4097: three blocks, the last one nearly empty
def test_it_records_what_the_cpu_and_the_definitions_do(
    classes: int, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rows == 1000 or (rows == 128 and classes > 7):
        hold_more_rows(monkeypatch, triton_hardness)
        monkeypatch.setattr(triton_hardness, "ACCUMULATE_BLOCK", 1024)
    samples = rows + 1  # the last is never seen
    got, expected = (HardnessRecorder(samples, classes, el2n_epochs=2) for _ in range(2))
    monkeypatch.setattr(got, "_record", lambda form, *arguments: triton_hardness.record(*arguments))
    visits: dict[int, list[Visit]] = defaultdict(list)
    for epoch in range(3):
        logits, labels, ids = batch((rows, classes), max(1, rows // 3), seed=epoch)
        if epoch == 0:  # every id once; later some three times each
            ids = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))
        if rows > 3:
            logits[2, 1], logits[3, 0], labels[1] = math.nan, -math.inf, -100
        logits = logits.to(dtype)
        got.record(logits, labels, ids.int(), epoch=epoch)
        expected.record(logits, labels, ids, epoch=epoch)
        for z, label, sample in zip(logits.double().numpy(), labels.tolist(), ids.tolist(), strict=True):
            if label != -100:
                visits[sample].append((epoch, z, label))
    assert_same(state(got), state(expected))
    assert_agree(visits, got, expected)
    if rows > 3:
        assert got.counters[:, k.FORGOTTEN].any()
        assert got.scores().provenance["rows_not_finite"] == 6


def state(recorder: HardnessRecorder) -> State:
    return recorder.sums, recorder.counters, recorder.nonfinite


def test_logits_in_double_precision() -> None:
    got, expected = empty_state(2), empty_state(2)
    logits, labels, ids = batch((2, 4097), 2, seed=0)
    for record, into in ((triton_hardness.record, got), (ops.record, expected)):
        record(logits.double(), labels, ids, 0, 2, k.ALL_COLUMNS, *into)
    assert_same(got, expected)


@pytest.mark.parametrize("classes", [2, 5, 600, 100_000])
def test_one_observation_is_that_of_the_definition(classes: int) -> None:
    logits, labels, _ = batch((4, classes), 4, seed=1)
    sums, counters, status = empty_state(4)
    triton_hardness.record(logits, labels, torch.arange(4), 0, 20, k.ALL_COLUMNS, sums, counters, status)
    for row in range(4):
        expected = reference.observation(logits[row].numpy(), int(labels[row]))
        for name, column in (("aum", k.AUM), ("aum_softmax", k.AUM_SOFTMAX), ("loss", k.LOSS), ("el2n", k.EL2N)):
            assert float(sums[row, column]) == pytest.approx(expected[name], rel=3e-6, abs=1e-7), name
        assert counters[row, k.CORRECT] == expected["correctness"]


@pytest.mark.parametrize("shared", [True, False])
def test_members_strides_and_a_mask(shared: bool) -> None:
    logits, labels, ids = batch((2, 30, 5), 20, seed=3)
    if not shared:  # every member saw other samples
        labels, ids = torch.stack([labels, labels.roll(1)]), torch.stack([ids, ids.roll(2)])
    logits[1, 4, 0] = math.nan
    strided = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    got, expected = empty_state(20, 2), empty_state(20, 2)
    mask = 1 << k.AUM | 1 << k.LOSS
    triton_hardness.record(strided, labels, ids, 0, 20, mask, *got)
    ops.record(logits, labels, ids, 0, 20, mask, *expected)
    assert_same(got, expected)
    assert got[0].any(0).any(0).nonzero().flatten().tolist() == [k.AUM, k.LOSS]


def test_a_logit_that_is_not_finite_is_seen_in_every_block() -> None:
    logits = torch.zeros(5, 4097)
    logits[torch.arange(4), torch.tensor([0, 2047, 2048, 4096])] = torch.tensor(
        [math.inf, math.nan, -math.inf, math.nan]
    )
    sums, counters, status = empty_state(5)
    labels = torch.full((5,), 7)
    triton_hardness.record(logits, labels, torch.arange(5), 0, 20, 1 << k.AUM, sums, counters, status)
    assert counters[:, k.OBSERVATIONS].tolist() == [0, 0, 0, 0, 1]
    assert status.tolist() == [4, 0, 0, 0]


def test_ties_are_right_only_for_the_lowest_index() -> None:
    logits = torch.randint(0, 2, (60, 5), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(60) % 5
    sums, counters, status = empty_state(60)
    triton_hardness.record(logits, labels, torch.arange(60), 0, 20, 1 << k.AUM, sums, counters, status)
    assert torch.equal(counters[:, k.CORRECT].bool(), logits.argmax(1) == labels)


def test_a_sample_many_times_in_a_batch_counts_in_the_order_of_its_rows() -> None:
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    zeros = torch.zeros(300, dtype=torch.int64)  # more rows than a block holds
    for order, forgotten in (([right, wrong] * 150, 150), ([wrong] * 150 + [right] * 150, 0)):
        sums, counters, status = empty_state(2)
        triton_hardness.record(torch.tensor(order), zeros, zeros, 4, 20, k.ALL_COLUMNS, sums, counters, status)
        assert counters[0].tolist()[:6] == [300, 150, forgotten, int(order[-1] == right), 4, 300]
        assert not counters[1, k.OBSERVATIONS]


def test_rows_out_of_range_are_left_out_counted_and_reported() -> None:
    recorder = HardnessRecorder(4, 3)
    state = (recorder.sums, recorder.counters, recorder.nonfinite)
    labels, ids = torch.tensor([0, 3, -1, 1, 2]), torch.tensor([0, 1, 2, 4, -1])
    triton_hardness.record(torch.ones(5, 3), labels, ids, 0, 20, k.ALL_COLUMNS, *state)
    assert recorder.nonfinite.tolist() == [0, -1, 2, 2]
    assert recorder.counters[:, k.OBSERVATIONS].tolist() == [1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"2 rows had a label outside \[0, 3\) and 2 an id outside \[0, 4\)"):
        recorder.scores()


def test_two_epochs_of_two_samples_by_hand() -> None:
    # Probabilities (0.75, 0.25) for label 0: right; then (0.25, 0.75): wrong. The logits are ln 3 and 0.
    sums, counters, status = empty_state(2)
    ln3 = math.log(3)
    for epoch, logits in enumerate(([[ln3, 0.0], [0.0, ln3]], [[0.0, ln3], [ln3, 0.0]])):
        ids = torch.tensor([0, 1])
        triton_hardness.record(
            torch.tensor(logits), torch.zeros(2).long(), ids, epoch, 20, k.ALL_COLUMNS, sums, counters, status
        )
    # margins ln 3 and - ln 3; of probabilities 0.5 and -0.5; p 0.75 and 0.25; p^2 0.5625 and 0.0625; losses
    # ln 4/3 and ln 4; EL2N sqrt(0.25^2 * 2) and sqrt(0.75^2 * 2)
    row = [0, 0, 1.0, 0.625, ln3, math.log(16 / 3), math.sqrt(2)]
    for sample in range(2):
        assert sums[sample, :7].tolist() == pytest.approx(row, rel=1e-6, abs=1e-6)
    # observations, right, forgotten, last right, first learned, in the EL2N window
    assert counters[:, :6].tolist() == [[2, 1, 1, 0, 0, 2], [2, 1, 0, 1, 1, 2]]


def test_the_first_id_not_finite_is_the_first_row() -> None:
    state = empty_state(900)
    logits = torch.zeros(700, 2)
    logits[[150, 650]] = math.nan
    for ids in (torch.arange(700), torch.arange(700).flip(0)):
        triton_hardness.record(logits, torch.zeros(700).long(), ids, 0, 20, 1 << k.AUM, *state)
    assert state[2].tolist() == [4, 150, 0, 0]


def test_the_kernels_are_interpreted() -> None:
    assert "interpreter" in type(triton_hardness.observe_kernel).__module__
