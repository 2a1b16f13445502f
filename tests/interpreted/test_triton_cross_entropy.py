"""The recording loss in Triton's interpreter, against torch's loss and the CPU kernel."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from hbr_fast.kernels.hardness import layout, ops_cross_entropy, triton_cross_entropy
from interpreted.tiles import hold_more_rows

OPTIONS = [  # class weights, label smoothing, reduction, ignored rows
    (False, 0.0, "mean", False),
    (True, 0.1, "mean", True),
    (False, 0.2, "sum", True),
    (True, 0.0, "none", False),
    (False, 1.0, "none", True),
]
CASES = [  # every type and every row of options with every number of classes, and of rows
    (classes, rows, (torch.float32, torch.bfloat16, torch.float16)[(i + j + turn) % 3], *OPTIONS[(i + turn) % 5])
    for i, classes in enumerate((2, 3, 7, 128, 1000, 4097))
    for j, rows in enumerate((1, 3, 128, 1000))
    for turn in (range(j, 5, 2) if classes * rows < 100_000 else (j,))
    if classes * rows < 200_000 or rows == 128
] + [(20_000, 2, torch.float32, True, 0.1, "mean", False)]


def batch(rows: int, classes: int, *, ignored: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + classes)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    logits[torch.arange(0, rows, 2), labels[::2]] += 12  # otherwise hardly any row is right with many classes
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
def test_triton_cross_entropy_matches_torch_loss_and_cpu_recording(
    classes: int, rows: int, dtype: torch.dtype, weighted: bool, smoothing: float, reduction: Any, ignored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if rows > 3:
        hold_more_rows(monkeypatch, triton_cross_entropy)
    logits, labels, ids = batch(rows, classes, ignored=ignored)
    logits = logits.to(dtype)
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(1)) + 0.5 if weighted else None
    options = (weight, smoothing, reduction, 2 * rows, layout.ALL_COLUMNS)
    got = triton_cross_entropy.cross_entropy(logits, labels, ids.int(), *options)
    assert_is_torchs(got, expected_of(logits, labels, weight, smoothing, reduction))
    _, _, observed, outcomes = ops_cross_entropy.cross_entropy_operator(logits, labels, ids, *options)
    assert torch.equal(got[3], outcomes)
    kept = outcomes <= layout.RIGHT
    torch.testing.assert_close(got[2][kept], observed[kept], rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("classes", [5, 3000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_triton_cross_entropy_non_finite_and_out_of_range_rows(
    classes: int, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_more_rows(monkeypatch, triton_cross_entropy)
    logits, labels, ids = batch(6, classes)
    logits[1, 2], logits[2, -1] = math.nan, math.inf
    labels[3], labels[4], ids[5] = classes, -1, 12
    options = (None, smoothing, "none", 12, layout.ALL_COLUMNS)
    loss, gradient, _, outcomes = triton_cross_entropy.cross_entropy(logits, labels, ids, *options)
    assert outcomes[1:].tolist() == [
        layout.NOT_FINITE,
        layout.NOT_FINITE,
        layout.BAD_LABEL,
        layout.BAD_LABEL,
        layout.BAD_ID,
    ]
    assert loss.isnan().tolist() == [False, True, True, False, False, False]
    assert gradient.isnan().all(1).tolist() == loss.isnan().tolist()
    assert not loss[3:5].any()
    assert not gradient[3:5].any()
    good = torch.tensor([0, 5])  # an out-of-range id does not affect the loss
    assert_is_torchs((loss[good], gradient[good]), expected_of(logits[good], labels[good], None, smoothing, "none"))


@pytest.mark.parametrize("classes", [3, 4097])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_triton_cross_entropy_masked_classes(classes: int, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_more_rows(monkeypatch, triton_cross_entropy)
    inf = math.inf
    logits = torch.full((4, classes), -inf)
    logits[:, :3] = torch.tensor([[1, -inf, 0.5], [1, -inf, 2.5], [1, -inf, -inf], [-inf, 1, 0]])
    labels, ids = torch.tensor([0, 0, 0, 0]), torch.arange(4)
    options = (None, smoothing, "none", 4, layout.ALL_COLUMNS)
    loss, gradient, observed, outcomes = triton_cross_entropy.cross_entropy(logits, labels, ids, *options)
    on_cpu = ops_cross_entropy.cross_entropy_operator(logits, labels, ids, *options)
    assert outcomes.tolist() == on_cpu[3].tolist() == [1, 0, layout.NOT_FINITE, layout.NOT_FINITE]
    torch.testing.assert_close(observed[:2], on_cpu[2][:2], rtol=3e-6, atol=3e-6)
    expected = expected_of(logits, labels, None, smoothing, "none")
    for one in ((loss, gradient), on_cpu):
        torch.testing.assert_close(one[0][:3].double(), expected[0][:3], rtol=3e-6, atol=1e-6)
        torch.testing.assert_close(one[1][:3].double(), expected[1][:3], rtol=1e-5, atol=1e-7)
        assert one[0][3].isnan()


def test_triton_cross_entropy_mean_divides_by_labelled_rows() -> None:
    logits, labels, ids = batch(1100, 2, ignored=True)  # more labels than the counting program reads at once
    got = triton_cross_entropy.cross_entropy(logits, labels, ids, None, 0.0, "mean", 2200, layout.ALL_COLUMNS)
    assert_is_torchs(got, expected_of(logits, labels, None, 0.0, "mean"))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_triton_cross_entropy_ignored_and_empty_batches(reduction: str) -> None:
    logits, labels, ids = batch(5, 4)
    for rows in (5, 0):
        ignored = torch.full_like(labels, -100)[:rows]
        got = triton_cross_entropy.cross_entropy(logits[:rows], ignored, ids[:rows], None, 0.1, reduction, 10, 127)
        expected = functional.cross_entropy(logits[:rows], ignored, label_smoothing=0.1, reduction=reduction)
        torch.testing.assert_close(got[0], expected, equal_nan=True)
        assert not got[1].any()


@pytest.mark.parametrize("classes", [9, 3000])  # 3000: strided rows are read again
def test_triton_cross_entropy_strides_mask_and_state(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_more_rows(monkeypatch, triton_cross_entropy)
    logits, labels, ids = batch(40, classes, ignored=True)
    ids %= 7  # repeated samples: their order matters
    mask = 1 << layout.AUM | 1 << layout.LOSS
    pairs = torch.stack([labels, ids], dim=1)
    ways: tuple[tuple[Any, Any, Any], ...] = (
        (triton_cross_entropy.cross_entropy, ops_cross_entropy._accumulate_cuda, (logits.T.contiguous().T, *pairs.T)),
        (ops_cross_entropy.cross_entropy_operator, ops_cross_entropy.accumulate_operator, (logits, labels, ids)),
    )
    states: list[list[torch.Tensor]] = []
    for function, accumulate, arguments in ways:
        sums = torch.zeros(7, layout.SUM_COLUMNS, dtype=torch.float64)
        counters = torch.zeros(7, layout.COUNTER_COLUMNS, dtype=torch.int32)
        status = torch.tensor([0, -1, 0, 0])
        loss, gradient, observed, outcomes = function(*arguments, None, 0.0, "mean", 7, mask)
        assert_is_torchs((loss, gradient), expected_of(logits, labels, None, 0.0, "mean"))
        accumulate(observed, outcomes, arguments[2], 0, 20, sums, counters, status)
        states.append([sums, counters, status])
    for got, expected in zip(*states, strict=True):
        torch.testing.assert_close(got, expected, rtol=3e-6, atol=3e-6)
    assert states[0][0].any(0).nonzero().flatten().tolist() == [layout.AUM, layout.LOSS]


def test_triton_cross_entropy_gradient_of_confident_rows_is_precise() -> None:
    # p_y - 1 cancels in float32 for p_y near 1: it must equal minus the others' share, 3 e^-40 / (1 + 3 e^-40).
    logits, zero = torch.tensor([[40.0, 0.0, 0.0, 0.0]]), torch.tensor([0])
    loss, gradient, *_ = triton_cross_entropy.cross_entropy(
        logits, zero, zero, None, 0.0, "mean", 1, layout.ALL_COLUMNS
    )
    assert float(loss) == pytest.approx(3 * math.exp(-40), rel=1e-5)
    assert gradient.tolist()[0] == pytest.approx([-3 * math.exp(-40), *[math.exp(-40)] * 3], rel=1e-5)
