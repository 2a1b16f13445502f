"""Fused batch norm gives the numbers of torch's own modules, and falls back to them wherever it cannot be used."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from hbr_fast.kernels.norm import cpu_norm
from hbr_fast.training.models import layers
from hbr_fast.training.models.layers import FusedSequential, add_and_relu
from hbr_fast.training.models.networks import build_model

Tensors = list[torch.Tensor]

SHAPES = [(5, 32, 8, 8), (3, 16, 7, 9), (130, 48, 5, 4), (2, 64, 2, 3), (9, 16, 1, 1)]
TAILS: dict[str, Callable[[], list[nn.Module]]] = {
    "nothing": list,
    "relu": lambda: [nn.ReLU()],
    "pool": lambda: [nn.ReLU(inplace=True), nn.MaxPool2d(2)],
}


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, seed: int = 0) -> torch.Tensor:
    """Channels-last, mean 3: more than a standard deviation from 0."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 3
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def plain(channels: int, tail: str = "relu") -> nn.Sequential:
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        nn.init.normal_(norm.weight)  # negative ones too: then the largest output is the smallest input
        nn.init.normal_(norm.bias)
    return nn.Sequential(norm, *TAILS[tail]())


def results(run: Callable[..., torch.Tensor], norm: nn.Module, *inputs: torch.Tensor) -> Tensors:
    """Output, gradients by inputs and parameters, running statistics."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y = run(*leaves)
    y.backward(images(tuple(y.shape), y.dtype, seed=2) - 3)
    gradients = [tensor.grad for tensor in (*leaves, *norm.parameters()) if tensor.grad is not None]
    assert len(gradients) == len(leaves) + 2
    return [y.detach(), *gradients, *norm.buffers()]


def assert_close(fused: Tensors, expected: Tensors, tolerance: float) -> None:
    for one, other in zip(fused, expected, strict=True):
        assert one.shape == other.shape
        scale = max(float(other.double().abs().max()), 1e-3)
        assert float((one.double() - other.double()).abs().max()) <= tolerance * scale


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The modes of the fused operations that ran."""
    modes: list[int] = []
    norm = layers.norm

    def counted(layer: nn.BatchNorm2d, x: torch.Tensor, mode: int, *rest: torch.Tensor) -> torch.Tensor:
        modes.append(mode)
        return norm(layer, x, mode, *rest)

    monkeypatch.setattr(layers, "norm", counted)
    return modes


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 1.6e-2)])
def test_fused_norm_matches_torch_in_double_precision(
    tail: str, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, fused_calls: list[int]
) -> None:
    if min(shape[2:]) == 1 and tail == "pool":
        tail = "relu"
    theirs = plain(shape[1], tail)
    ours = FusedSequential(*copy.deepcopy(theirs))
    x = images(shape, dtype)
    fused = results(ours, ours, x)
    assert len(fused_calls) == 1
    assert fused[0].dtype == fused[1].dtype == dtype
    assert_close(fused, results(theirs.double(), theirs, x.double()), tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 1.6e-2)])
def test_fused_norm_with_residual_matches_torch(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, fused_calls: list[int]
) -> None:
    ours = plain(shape[1])[0]
    theirs = copy.deepcopy(ours).double()
    assert isinstance(ours, nn.BatchNorm2d)
    x, shortcut = images(shape, dtype), images(shape, dtype, seed=3) - 3
    fused = results(lambda *inputs: add_and_relu(ours, *inputs), ours, x, shortcut)
    assert fused_calls == [cpu_norm.RESIDUAL]
    expected = results(lambda a, b: torch.relu(theirs(a) + b), theirs, x.double(), shortcut.double())
    assert_close(fused, expected, tolerance)


def test_fused_norm_variance_is_accurate_for_a_large_mean() -> None:
    x = images((8, 16, 4, 4)) + 3000
    theirs = plain(16)
    ours = FusedSequential(*copy.deepcopy(theirs))
    assert_close(results(ours, ours, x), results(theirs.double(), theirs, x.double()), 2e-3)


def test_fused_norm_pool_gradient_goes_to_first_of_equal_pixels() -> None:
    x = torch.zeros(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, :, 0, 1] = x[0, :, 1, 0] = x[0, :, 2, 2] = x[0, :, 2, 3] = x[0, :, 3, 2] = 1.0
    theirs = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
    ours = FusedSequential(*copy.deepcopy(theirs))
    assert_close(results(ours, ours, x), results(theirs.double(), theirs, x.double()), 2e-6)


def test_fused_norm_propagates_nan() -> None:
    x = images((2, 16, 4, 4), torch.bfloat16)
    x[1, 3, 2, 2] = float("nan")
    y = FusedSequential(*plain(16, "pool"))(x)
    assert y[:, 3].isnan().all()
    assert not y[:, :3].isnan().any()


@pytest.mark.parametrize("tail", TAILS)
def test_fused_norm_does_not_depend_on_threads(tail: str) -> None:
    x, threads = images((70, 32, 6, 6), torch.bfloat16), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            ours = FusedSequential(*plain(32, tail))
            found.append(results(ours, ours, x))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (lambda net, x: (net.eval(), x), (2, 16, 4, 4)),
        (lambda net, x: (net, x.contiguous()), (2, 16, 4, 4)),
        (lambda net, x: (net.double(), x.double()), (2, 16, 4, 4)),
        (lambda net, x: (net, x), (2, 12, 4, 4)),
    ],
    ids=["evaluation", "contiguous", "float64", "12 channels"],
)
def test_fused_norm_falls_back_to_modules(
    change: Callable[..., tuple[nn.Module, torch.Tensor]], shape: tuple[int, ...], fused_calls: list[int]
) -> None:
    theirs = plain(shape[1], "pool")
    ours, x = change(FusedSequential(*copy.deepcopy(theirs)), images(shape))
    same, _ = change(theirs, images(shape))
    assert torch.equal(ours(x), same(x))
    assert not fused_calls


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, ceil_mode=True)])
def test_fused_norm_leaves_other_pools_as_modules(pool: nn.Module, fused_calls: list[int]) -> None:
    ours = FusedSequential(*plain(16), pool)
    x = images((2, 16, 7, 7))
    torch.testing.assert_close(ours(x), pool(plain(16)(x)))
    assert fused_calls == [cpu_norm.RELU]


def test_fused_norm_falls_back_under_torch_func_and_fake_tensors(fused_calls: list[int]) -> None:
    net = FusedSequential(nn.BatchNorm2d(16, momentum=0.1), nn.ReLU())
    stacked = {name: torch.stack([tensor.detach()] * 3) for name, tensor in net.state_dict().items()}
    x = images((2, 16, 4, 4))

    def call(state: dict[str, torch.Tensor]) -> torch.Tensor:
        output: torch.Tensor = torch.func.functional_call(net, state, (x,))
        return output

    torch.testing.assert_close(torch.vmap(call)(stacked)[2], net(x))
    assert len(fused_calls) == 1
    with FakeTensorMode():
        fake = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
        FusedSequential(nn.BatchNorm2d(16), nn.ReLU())(fake)
    assert len(fused_calls) == 1


def test_fused_norm_refuses_one_value_per_channel_like_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        FusedSequential(*plain(16))(images((1, 16, 1, 1)))


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("cnn-16-32", [cpu_norm.POOL] * 2),
        ("vgg-16-32", [cpu_norm.RELU, cpu_norm.POOL] * 2),
        (
            "resnet18",
            [cpu_norm.RELU]
            + [cpu_norm.RELU, cpu_norm.RESIDUAL] * 2
            + [cpu_norm.RELU, cpu_norm.NOTHING, cpu_norm.RESIDUAL, cpu_norm.RELU, cpu_norm.RESIDUAL] * 3,
        ),
    ],
)
def test_networks_fuse_every_batch_norm(name: str, modes: list[int], fused_calls: list[int]) -> None:
    net = build_model(name, channels=3, image_size=(16, 16), classes=4).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(images((4, 3, 16, 16), torch.bfloat16)).sum().backward()
    assert fused_calls == modes


def test_fused_norm_ignores_default_dtype(double_by_default: Callable[[], AbstractContextManager[None]]) -> None:
    x, found = images((5, 32, 8, 8)), []
    for context in (nullcontext, double_by_default):
        modules, leaf = FusedSequential(*plain(32)), x.clone().requires_grad_()
        with context():
            y = modules(leaf)
            y.backward(x)
        found.append([y.detach(), leaf.grad, *(p.grad for p in modules.parameters()), *modules.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
