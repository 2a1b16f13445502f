"""The loss that records in Triton's interpreter, against torch's loss and against the CPU kernel."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from hbr_fast.kernels import cpu_hardness as k
from hbr_fast.kernels import ops_cross_entropy, triton_cross_entropy
from interpreted.tiles import hold_more_rows

OPTIONS = [  # class weights, label smoothing, reduction, ignored rows
    (False, 0.0, "mean", False),
    (True, 0.1, "mean", True),
    (False, 0.2, "sum", True),
    (True, 0.0, "none", False),
    (False, 1.0, "none", True),
]
CASES = [  # where there are many logits, each type has options of its own
    (classes, rows, dtype, *options)
    for classes in (2, 3, 7, 128, 1000, 4097)
    for rows in (1, 3, 128, 1000)
    for place, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16))
    for turn, options in enumerate(OPTIONS)
    if classes * rows < 100_000 or turn == place
] + [(100_000, 2, torch.float32, True, 0.1, "mean", False)]


def batch(rows: int, classes: int, *, ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + classes)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    logits[torch.arange(0, rows, 2), labels[::2]] += 12  # else hardly any row is right among many classes
    if ignored:
        labels[1::3] = -100
    return logits, labels, torch.randint(2 * rows, (rows,), generator=generator)


def expected_of(
    logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None, smoothing: float, reduction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's loss and gradient in float64."""
    leaf = logits.double().requires_grad_()
    loss = functional.cross_entropy(
        leaf, labels.long(), None if weight is None else weight.double(), label_smoothing=smoothing, reduction=reduction
    )
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


def assert_is_torchs(got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss, gradient, *_ = got
    assert loss.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected[0], rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=2e-7 * float(expected[1].abs().max()))


@pytest.mark.parametrize(("classes", "rows", "dtype", "weighted", "smoothing", "reduction", "ignored"), CASES)
def test_it_is_the_loss_of_torch_and_records_what_the_cpu_does(
    classes: int, rows: int, dtype: torch.dtype, weighted: bool, smoothing: float, reduction: Any, ignored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if rows == 1000 or (rows == 128 and classes > 7):
        hold_more_rows(monkeypatch, triton_cross_entropy)
    logits, labels, ids = batch(rows, classes, ignored=ignored)
    logits = logits.to(dtype)
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(1)) + 0.5 if weighted else None
    options = (weight, smoothing, reduction, 2 * rows, k.ALL_COLUMNS)
    got = triton_cross_entropy.cross_entropy(logits, labels, ids.int(), *options)
    assert_is_torchs(got, expected_of(logits, labels, weight, smoothing, reduction))
    _, _, observed, outcomes = ops_cross_entropy.cross_entropy_operator(logits, labels, ids, *options)
    assert torch.equal(got[3], outcomes)
    kept = outcomes <= k.RIGHT
    torch.testing.assert_close(got[2][kept], observed[kept], rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("classes", [5, 3000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_that_are_not_finite_or_out_of_range(classes: int, smoothing: float) -> None:
    logits, labels, ids = batch(6, classes)
    logits[1, 2], logits[2, -1] = math.nan, -math.inf
    labels[3], labels[4], ids[5] = classes, -1, 12
    options = (None, smoothing, "none", 12, k.ALL_COLUMNS)
    loss, gradient, _, outcomes = triton_cross_entropy.cross_entropy(logits, labels, ids, *options)
    assert outcomes[1:].tolist() == [k.NOT_FINITE, k.NOT_FINITE, k.BAD_LABEL, k.BAD_LABEL, k.BAD_ID]
    assert loss.isnan().tolist() == [False, True, True, False, False, False]
    assert gradient.isnan().all(1).tolist() == loss.isnan().tolist()
    assert not loss[3:5].any()
    assert not gradient[3:5].any()
    good = torch.tensor([0, 5])  # an id that is out of range is not the loss's affair
    assert_is_torchs((loss[good], gradient[good]), expected_of(logits[good], labels[good], None, smoothing, "none"))


def test_a_mean_divides_by_the_rows_that_have_a_label() -> None:
    logits, labels, ids = batch(2500, 2, ignored=True)  # more labels than the program that counts them reads at once
    got = triton_cross_entropy.cross_entropy(logits, labels, ids, None, 0.0, "mean", 5000, k.ALL_COLUMNS)
    assert_is_torchs(got, expected_of(logits, labels, None, 0.0, "mean"))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_batch_of_ignored_rows_and_one_of_none(reduction: str) -> None:
    logits, labels, ids = batch(5, 4)
    for rows in (5, 0):
        ignored = torch.full_like(labels, -100)[:rows]
        got = triton_cross_entropy.cross_entropy(logits[:rows], ignored, ids[:rows], None, 0.1, reduction, 10, 127)
        expected = functional.cross_entropy(logits[:rows], ignored, label_smoothing=0.1, reduction=reduction)
        torch.testing.assert_close(got[0], expected, equal_nan=True)
        assert not got[1].any()


@pytest.mark.parametrize("classes", [9, 3000])  # 3000: strided rows are read again
def test_strides_a_mask_and_the_state(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_more_rows(monkeypatch, triton_cross_entropy)
    logits, labels, ids = batch(40, classes, ignored=True)
    ids %= 7  # every sample several times: their order counts
    mask = 1 << k.AUM | 1 << k.LOSS
    pairs = torch.stack([labels, ids], dim=1)
    ways: tuple[tuple[Any, Any, Any], ...] = (
        (triton_cross_entropy.cross_entropy, ops_cross_entropy._accumulate_cuda, (logits.T.contiguous().T, *pairs.T)),
        (ops_cross_entropy.cross_entropy_operator, ops_cross_entropy.accumulate_operator, (logits, labels, ids)),
    )
    states: list[list[torch.Tensor]] = []
    for function, accumulate, arguments in ways:
        sums = torch.zeros(7, k.SUM_COLUMNS, dtype=torch.float64)
        counters = torch.zeros(7, k.COUNTER_COLUMNS, dtype=torch.int32)
        status = torch.tensor([0, -1, 0, 0])
        loss, gradient, observed, outcomes = function(*arguments, None, 0.0, "mean", 7, mask)
        assert_is_torchs((loss, gradient), expected_of(logits, labels, None, 0.0, "mean"))
        accumulate(observed, outcomes, arguments[2], 0, 20, sums, counters, status)
        states.append([sums, counters, status])
    for got, expected in zip(*states, strict=True):
        torch.testing.assert_close(got, expected, rtol=3e-6, atol=3e-6)
    assert states[0][0].any(0).nonzero().flatten().tolist() == [k.AUM, k.LOSS]


def test_confident_rows_keep_the_digits_of_their_gradient() -> None:
    # p_y - 1 of p_y near 1 has no digits left in float32: it is minus the others' share, 3 e^-40 / (1 + 3 e^-40).
    logits, zero = torch.tensor([[40.0, 0.0, 0.0, 0.0]]), torch.tensor([0])
    loss, gradient, *_ = triton_cross_entropy.cross_entropy(logits, zero, zero, None, 0.0, "mean", 1, k.ALL_COLUMNS)
    assert float(loss) == pytest.approx(3 * math.exp(-40), rel=1e-5)
    assert gradient.tolist()[0] == pytest.approx([-3 * math.exp(-40), *[math.exp(-40)] * 3], rel=1e-5)
