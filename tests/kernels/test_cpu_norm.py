"""The kernels of batch norm and what follows it, called directly, compared with their definition."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from hbr_fast.kernels import reference
from hbr_fast.kernels.norm import cpu_norm as k

MODES = {"nothing": k.NOTHING, "relu": k.RELU, "residual": k.RESIDUAL, "pool": k.POOL}
# Images, height, width, channels: one image, one pixel, odd sides, more images than groups, channels that are an odd
# number of vectors, and enough channels that a few pixels fill a block.
SHAPES = [(1, 2, 3, 16), (9, 1, 1, 16), (2, 3, 2, 48), (3, 7, 9, 16), (k.GROUPS + 6, 2, 5, 32), (2, 9, 5, 1040)]
CASES = [(shape, after) for shape in SHAPES for after in MODES if after != "pool" or min(shape[1:3]) > 1]
GUARD = 19  # numbers on either side of what is written, which also puts it at odd addresses
EPS, MOMENTUM = 1e-3, 0.3


class Case(NamedTuple):
    """Inputs of the kernels; images are channels-last, [B, H, W, C]."""

    x: torch.Tensor
    other: torch.Tensor
    g: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    after: str


class Results(NamedTuple):
    y: np.ndarray
    running_mean: np.ndarray
    running_var: np.ndarray
    dx: np.ndarray
    dother: np.ndarray | None
    dweight: np.ndarray
    dbias: np.ndarray


class Guarded:
    """A tensor full of NaN for a kernel to write, in memory that it must not touch on either side."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        size = int(np.prod(shape))
        self.memory = torch.full((GUARD + size + GUARD,), float("nan"), dtype=dtype)
        self.memory[:GUARD] = self.memory[-GUARD:] = 7.0
        self.tensor = self.memory[GUARD:-GUARD].view(shape)

    def read(self) -> np.ndarray:
        assert (self.memory[:GUARD] == 7).all(), "written before its beginning"
        assert (self.memory[-GUARD:] == 7).all(), "written past its end"
        values: np.ndarray = self.tensor.double().numpy()
        return values


def call(case: Case) -> Results:
    """Forward and backward pass; running statistics begin at 0.5 and 2."""
    x, other, g, weight, bias, after = case
    (n, h, w, c), mode, bf16 = x.shape, MODES[after], int(x.dtype == torch.bfloat16)
    running = [torch.full((c,), value) for value in (0.5, 2.0)]
    y, dx, dother = Guarded(tuple(g.shape), x.dtype), Guarded(tuple(x.shape), x.dtype), Guarded(tuple(x.shape), x.dtype)
    dweight, dbias = Guarded((c,)), Guarded((c,))
    constants, totals = Guarded((k.CONSTANTS, c)), Guarded((k.groups(n), 2, c), torch.float64)
    constants.tensor[k.CENTRE] = x[0, 0, 0]
    options = torch.tensor((MOMENTUM, EPS), dtype=torch.float64)
    tensors: Any = (
        *(x, other, y.tensor, g, dx.tensor, dother.tensor, constants.tensor, totals.tensor, weight, bias, *running),
        *(options, dweight.tensor, dbias.tensor),
    )
    words = (n, h, w, c, bf16, mode, *(tensor.data_ptr() for tensor in tensors))
    k.run(k.moments, k.finish_moments, k.normalise, words)
    k.run(k.sum_gradients, k.finish_gradients, k.differentiate, words)
    constants.read()
    totals.read()
    second = dother.read()
    return Results(
        y.read(),
        running[0].numpy(),
        running[1].numpy(),
        dx.read(),
        second if after == "residual" else None,
        dweight.read(),
        dbias.read(),
    )


def expected(case: Case) -> Results:
    *tensors, after = case
    arrays = [one.double().numpy() for one in tensors if isinstance(one, torch.Tensor)]
    values, others, gradient, weight_c, bias_c = arrays
    options: dict[str, Any] = {"eps": EPS, "after": after, "other_bhwc": others}
    dx, dother, dweight, dbias = reference.batch_norm_gradients(gradient, values, weight_c, bias_c, **options)
    size = values[..., 0].size
    return Results(
        reference.batch_norm(values, weight_c, bias_c, **options),
        0.5 + MOMENTUM * (values.mean((0, 1, 2)) - 0.5),
        2.0 + MOMENTUM * (values.var((0, 1, 2)) * size / (size - 1) - 2.0),
        dx,
        dother if after == "residual" else None,
        dweight,
        dbias,
    )


def drawn(shape: tuple[int, ...], after: str, dtype: torch.dtype, *, levels: int = 0) -> Case:
    """A random case; with `levels`, images of only that many distinct values."""
    n, h, w, c = shape
    numbers = np.random.default_rng(3)
    values = numbers.integers(levels, size=shape) if levels else numbers.normal(3, 2, shape)
    out = (n, h // 2, w // 2, c) if after == "pool" else shape
    weight = numbers.normal(size=c)
    weight[:2] = -1.5, 0  # the largest output is the smallest input; all outputs are the same
    # Not 0: rounding would decide what ReLU lets pass where the weight is 0.
    bias = np.where(np.abs(bias := numbers.normal(size=c)) < 0.1, 0.1, bias)
    x, other, g = (
        torch.from_numpy(one).to(dtype) for one in (values, numbers.normal(-3, 2, shape), numbers.normal(size=out))
    )
    return Case(x, other, g, torch.Tensor(weight), torch.Tensor(bias), after)


def assert_close(found: Results, wanted: Results, dtype: torch.dtype) -> None:
    """To float32's rounding of sums, and for images in bfloat16 to half a unit in their last place beside it."""
    for name, ours, theirs in zip(Results._fields, found, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is None or theirs is None:
            continue
        assert ours.shape == theirs.shape
        rounding = 2.0**-8 if dtype == torch.bfloat16 and name in ("y", "dx", "dother") else 0.0
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=rounding, atol=4e-6 * max(scale, 1.0), err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "after"), CASES)
def test_norm_kernels_match_definition(shape: tuple[int, ...], after: str, dtype: torch.dtype) -> None:
    case = drawn(shape, after, dtype)
    assert_close(call(case), expected(case), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_norm_kernels_with_equal_pixels_in_window(levels: int, dtype: torch.dtype) -> None:
    case = drawn((4, 5, 7, 32), "pool", dtype, levels=levels)
    assert_close(call(case), expected(case), dtype)


@pytest.mark.parametrize("after", MODES)
def test_norm_kernels_keep_nan_in_its_channel(after: str) -> None:
    case = drawn((2, 4, 4, 16), after, torch.float32)
    case.x[1, 2, 2, 5] = float("nan")
    found = call(case)
    for values in (found.y, found.dx, found.dweight, found.running_mean):
        at = np.isnan(values).reshape(-1, 16)
        assert at[:, 5].all()
        assert not np.delete(at, 5, axis=1).any()
