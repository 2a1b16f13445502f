"""The recording loss equals torch's, and its recording equals the recorder's own pass."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch.nn import functional

from hardness.agreement import Visit, assert_agree
from hbr_fast import HardnessRecorder, hardness_cross_entropy
from hbr_fast.kernels.hardness import layout, ops_cross_entropy

REDUCTIONS = ("mean", "sum", "none")


def batch(rows: int, classes: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return logits, labels, torch.randint(2 * rows, (rows,), generator=generator)


def loss_and_gradient(function: Any, logits: torch.Tensor, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf, *arguments, **options)
    # Weight per-row losses unevenly: the gradient of their plain sum would hide a mix-up.
    (loss * torch.arange(1, loss.numel() + 1).reshape(loss.shape)).sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("classes", [10, 40])
@pytest.mark.parametrize("among", [1, 40, 1500, None])  # number of distinct ids; None: each at most once
def test_cross_entropy_threads_record_repeated_samples_in_order(among: int | None, classes: int) -> None:
    rows, samples, visits = 1024, 2000, 3
    found: dict[int, tuple[HardnessRecorder, list[torch.Tensor]]] = {}
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        generator = torch.Generator().manual_seed(0)
        together, apart = HardnessRecorder(samples, classes), HardnessRecorder(samples, classes)
        results: list[torch.Tensor] = []
        for epoch in range(visits):
            logits = torch.randn(rows, classes, generator=generator)
            labels = torch.randint(classes, (rows,), generator=generator)
            once = torch.randperm(samples, generator=generator)[:rows]
            ids = torch.randint(among, (rows,), generator=generator) if among else once
            labels[::7] = -100
            if epoch == visits - 1:
                logits[5, 1] = float("nan")
            torch.set_num_threads(threads)
            try:
                results += loss_and_gradient(hardness_cross_entropy, logits, labels, ids, together, epoch=epoch)
                apart.record(logits, labels, ids, epoch=epoch)
            finally:
                torch.set_num_threads(before)
        torch.testing.assert_close(together.counters, apart.counters, rtol=0, atol=0)
        torch.testing.assert_close(together.sums, apart.sums, rtol=0, atol=0)
        torch.testing.assert_close(together.nonfinite, apart.nonfinite, rtol=0, atol=0)
        found[threads] = together, results
    for threads in (2, 3):
        torch.testing.assert_close(found[threads][0].sums, found[1][0].sums, rtol=0, atol=0)
        torch.testing.assert_close(found[threads][1], found[1][1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("rows", "classes"), [(1, 2), (3, 7), (20, 8), (19, 9), (300, 10), (40, 16), (33, 100), (5, 4097)]
)
def test_cross_entropy_loss_and_gradient_match_torch(
    rows: int, classes: int, weighted: bool, smoothing: float, reduction: Any
) -> None:
    logits, labels, ids = batch(rows, classes)
    if rows > 3:
        labels[1::5] = -100
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(1)) + 0.5 if weighted else None
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    recorder = HardnessRecorder(2 * rows, classes)
    loss, gradient = loss_and_gradient(hardness_cross_entropy, logits, labels, ids, recorder, epoch=0, **options)
    if weight is not None:
        options["weight"] = weight.double()
    exact, exact_gradient = loss_and_gradient(functional.cross_entropy, logits.double(), labels, **options)
    assert loss.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=3e-6, atol=1e-6)
    torch.testing.assert_close(
        gradient.double(), exact_gradient, rtol=1e-5, atol=2e-7 * float(exact_gradient.abs().max())
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_records_the_same_as_recorder(smoothing: float) -> None:
    with_loss, alone = HardnessRecorder(80, 12, el2n_epochs=2), HardnessRecorder(80, 12, el2n_epochs=2)
    for epoch in range(3):
        logits, labels, ids = batch(40, 12, seed=epoch)
        logits[5, 3], labels[7] = math.nan, -100
        hardness_cross_entropy(logits, labels, ids, with_loss, epoch=epoch, label_smoothing=smoothing)
        alone.record(logits, labels, ids, epoch=epoch)
    for own, other in zip(state(with_loss), state(alone), strict=True):
        assert torch.equal(own, other)
    assert with_loss.epochs == 3
    assert with_loss.counters[:, layout.OBSERVATIONS].sum() == 3 * 38


def test_cross_entropy_records_by_definition() -> None:
    # Loss and gradient do not depend on the reference logit of the exponentials; the recording does.
    recorder = HardnessRecorder(80, 12, el2n_epochs=2)
    visits: dict[int, list[Visit]] = defaultdict(list)
    for epoch in range(3):
        logits, labels, ids = batch(40, 12, seed=epoch)
        hardness_cross_entropy(logits, labels, ids, recorder, epoch=epoch)
        for z, label, sample in zip(logits.numpy(), labels.tolist(), ids.tolist(), strict=True):
            visits[sample].append((epoch, z, label))
    assert_agree(visits, recorder)


def state(recorder: HardnessRecorder) -> tuple[torch.Tensor, ...]:
    return recorder.sums, recorder.counters, recorder.nonfinite


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_gradcheck(weighted: bool, smoothing: float, reduction: Any) -> None:
    logits, labels, ids = batch(6, 5)
    labels[2] = -100
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64) if weighted else None

    def loss(logits: torch.Tensor) -> torch.Tensor:
        recorder = HardnessRecorder(12, 5)
        return hardness_cross_entropy(
            logits, labels, ids, recorder, epoch=0, weight=weight, label_smoothing=smoothing, reduction=reduction
        )

    double = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (double,))
    expected = functional.cross_entropy(double, labels, weight=weight, label_smoothing=smoothing, reduction=reduction)
    torch.testing.assert_close(loss(double), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cross_entropy_half_precision_autocast_logits(dtype: torch.dtype) -> None:
    logits, labels, ids = batch(20, 10)
    logits = logits.to(dtype)
    loss, gradient = loss_and_gradient(hardness_cross_entropy, logits, labels, ids, HardnessRecorder(40, 10), epoch=0)
    expected, expected_gradient = loss_and_gradient(functional.cross_entropy, logits.float(), labels)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype), rtol=1e-2, atol=1e-5)


def test_cross_entropy_strided_logits_and_int32_labels() -> None:
    logits, labels, ids = batch(20, 9)
    expected = loss_and_gradient(functional.cross_entropy, logits, labels)
    got = loss_and_gradient(
        lambda z, *rest, **options: hardness_cross_entropy(z.T.contiguous().T, *rest, **options),
        logits, labels.int(), ids.int(), HardnessRecorder(40, 9), epoch=0, label_smoothing=0.0,
    )  # fmt: skip
    torch.testing.assert_close(got, expected)


def test_cross_entropy_gradient_of_confident_rows_is_precise() -> None:
    # p_y - 1 cancels in float32 for p_y near 1: it must equal minus the others' share, 3 e^-40 / (1 + 3 e^-40).
    logits = torch.tensor([[40.0, 0.0, 0.0, 0.0]])
    zero = torch.tensor([0])
    loss, gradient = loss_and_gradient(hardness_cross_entropy, logits, zero, zero, HardnessRecorder(1, 4), epoch=0)
    assert float(loss) == pytest.approx(3 * math.exp(-40), rel=1e-5)
    assert gradient.tolist()[0] == pytest.approx([-3 * math.exp(-40), *[math.exp(-40)] * 3], rel=1e-5)


def test_cross_entropy_non_finite_rows_give_nan_as_in_torch() -> None:
    logits, labels, ids = batch(4, 3)
    logits[2, 1] = math.inf
    recorder = HardnessRecorder(8, 3)
    loss, gradient = loss_and_gradient(hardness_cross_entropy, logits, labels, ids, recorder, epoch=0, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False]
    assert gradient.isnan().any(1).tolist() == [False, False, True, False]
    assert recorder.scores().provenance["first_id_not_finite"] == int(ids[2])


def test_cross_entropy_all_rows_ignored() -> None:
    logits, labels, ids = batch(4, 3)
    labels[:] = -100
    recorder = HardnessRecorder(8, 3)
    assert hardness_cross_entropy(logits, labels, ids, recorder, epoch=0).isnan()  # 0 / 0, as torch's
    assert hardness_cross_entropy(logits, labels, ids, recorder, epoch=0, reduction="sum") == 0
    assert not recorder.sums.any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [0, 9])
def test_cross_entropy_is_independent_of_default_dtype(
    rows: int, reduction: Any, double_by_default: Callable[[], AbstractContextManager[None]]
) -> None:
    logits, labels, ids = (tensor[:rows] for tensor in batch(9, 5))
    found = []
    for context in (nullcontext, double_by_default):
        ops_cross_entropy._ones.cache_clear()
        with context():
            recorder, leaf = HardnessRecorder(20, 5), logits.clone().requires_grad_()
            loss = hardness_cross_entropy(leaf, labels, ids, recorder, epoch=0, reduction=reduction)
            loss.sum().backward()
        found.append((loss, leaf.grad, recorder.sums))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_cross_entropy_rejects_invalid_arguments() -> None:
    logits, labels, ids = batch(4, 3)
    recorder = HardnessRecorder(8, 3)
    for options, message in (
        ({"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', got 'max'"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"weight": torch.ones(4)}, r"weight must be \[3\] on cpu, got \[4\] on cpu"),
        ({"weight": [1.0, 1.0, 1.0]}, r"weight must be a torch.Tensor of \[3\], got list"),
        ({"weight": torch.ones(3).numpy()}, r"weight must be a torch.Tensor of \[3\], got ndarray"),
    ):
        with pytest.raises(ValueError, match=message):
            hardness_cross_entropy(logits, labels, ids, recorder, epoch=0, **options)
    labels[1] = 3
    with pytest.raises(ValueError, match=r"row 1 has label 3, outside \[0, 3\)"):
        hardness_cross_entropy(logits, labels, ids, recorder, epoch=0)
    with pytest.raises(ValueError, match=r"logits must be \[B, 3\]"):
        hardness_cross_entropy(logits[:, :2], labels, ids, recorder, epoch=0)
    assert not recorder.counters[:, layout.OBSERVATIONS].any()


@pytest.mark.parametrize(("reduction", "weighted"), list(itertools.product(("mean", "none"), (False, True))))
def test_cross_entropy_operators_pass_opcheck(reduction: str, weighted: bool) -> None:
    logits, labels, ids = batch(5, 4)
    weight = torch.rand(4) if weighted else None
    arguments = (logits.requires_grad_(), labels, ids, weight, 0.1, reduction, 10, layout.ALL_COLUMNS)
    torch.library.opcheck(ops_cross_entropy.cross_entropy_operator, arguments)
    _, _, observed, outcomes = ops_cross_entropy.cross_entropy_operator(*arguments)
    torch.library.opcheck(
        ops_cross_entropy.accumulate_operator, (observed, outcomes, ids, 0, 20, *state(HardnessRecorder(10, 4)))
    )


def test_cross_entropy_compiles_without_graph_break() -> None:
    inputs, labels, ids = batch(12, 6)
    layers = [torch.eye(6).requires_grad_() for _ in range(2)]
    recorders = [HardnessRecorder(24, 6) for _ in range(2)]
    compiled = torch.compile(
        lambda *arguments: hardness_cross_entropy(arguments[0] @ arguments[1], labels, ids, arguments[2], epoch=0),
        fullgraph=True,
        backend="aot_eager",
    )
    for _ in range(2):
        loss = hardness_cross_entropy(inputs @ layers[0], labels, ids, recorders[0], epoch=0)
        traced = compiled(inputs, layers[1], recorders[1])
        assert torch.equal(loss, traced)
        loss.backward()
        traced.backward()
    assert torch.equal(layers[0].grad, layers[1].grad)  # type: ignore[arg-type]
    for own, other in zip(state(recorders[0]), state(recorders[1]), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("by_the_loss", [True, False])
def test_cross_entropy_compiled_step_does_not_recompile_per_epoch(by_the_loss: bool) -> None:
    # A changing number must not be compiled in: torch stops recompiling after eight times.
    logits, labels, ids = batch(12, 6)
    recorder, expected = HardnessRecorder(24, 6, el2n_epochs=3), HardnessRecorder(24, 6, el2n_epochs=3)

    def step(epoch: int) -> torch.Tensor:
        if by_the_loss:
            return hardness_cross_entropy(2 * logits, labels, ids, recorder, epoch=epoch)
        recorder.record(2 * logits, labels, ids, epoch=epoch)
        return logits.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for epoch in range(20):
        compiled(epoch)
        expected.record(2 * logits, labels, ids, epoch=epoch)
    assert recorder.epochs == expected.epochs == 20
    for own, other in zip(state(recorder), state(expected), strict=True):
        assert torch.equal(own, other)
    again = HardnessRecorder(24, 6, el2n_epochs=3)
    again.load_state_dict(recorder.state_dict())
    assert again.scores().provenance == expected.scores().provenance


def test_cross_entropy_compiled_step_rejects_distributed_recorder() -> None:
    logits, labels, ids = batch(12, 6)
    recorder = HardnessRecorder(24, 6, distributed=True)
    step = torch.compile(
        lambda: hardness_cross_entropy(2 * logits, labels, ids, recorder, epoch=0), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(torch._dynamo.exc.Unsupported, match="record outside what is compiled"):
        step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the plain tensor function, the operator
def test_cross_entropy_rejects_second_derivative(dtype: torch.dtype) -> None:
    logits, labels, ids = batch(5, 4)
    leaf = logits.to(dtype).requires_grad_()
    loss = hardness_cross_entropy(leaf, labels, ids, HardnessRecorder(10, 4), epoch=0)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(loss, leaf, create_graph=True)


def test_cross_entropy_backward_twice_doubles_gradient() -> None:
    logits, labels, ids = batch(5, 4)
    leaf = logits.requires_grad_()
    loss = hardness_cross_entropy(leaf, labels, ids, HardnessRecorder(10, 4), epoch=0)
    (once,) = torch.autograd.grad(functional.cross_entropy(leaf, labels), leaf)
    for times in (1, 2, 3):
        loss.backward(retain_graph=times < 3)
        torch.testing.assert_close(leaf.grad, times * once)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_ignored_batch_matches_torch(reduction: Any) -> None:
    logits, _, ids = batch(5, 4)
    labels = torch.full((5,), -100)
    recorder = HardnessRecorder(10, 4)
    got = loss_and_gradient(hardness_cross_entropy, logits, labels, ids, recorder, epoch=0, reduction=reduction)
    expected = loss_and_gradient(functional.cross_entropy, logits, labels, reduction=reduction)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_empty_batch_matches_torch(reduction: Any) -> None:
    logits, none = torch.empty(0, 3, requires_grad=True), torch.empty(0, dtype=torch.int64)
    loss = hardness_cross_entropy(logits, none, none, HardnessRecorder(5, 3), epoch=0, reduction=reduction)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, none, reduction=reduction), equal_nan=True)
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 3)
