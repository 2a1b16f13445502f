"""Batch norm, ReLU, max-pool and residual sum fused into one operation where possible: training on the CPU.

The modules stay torch's own, with their names in the `state_dict`; only how they run differs. Anything but plain
float32 or bfloat16 channels-last CPU tensors in training (another device, evaluation, `torch.compile`, `torch.func`,
channels that are not a multiple of 16) runs module by module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hbr_fast.kernels import team
from hbr_fast.kernels.norm import cpu_norm as k


class FusedSequential(nn.Sequential):
    """An `nn.Sequential`, nested or not, that runs batch norm and the ReLU and 2x2 max-pool after it as one.

    A window of the pool whose largest values are equal gives its gradient to the first of them, as torch does;
    equality is decided before rounding to bfloat16. Hooks of fused modules are not called.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = list(_leaves(self))
        i = 0
        while i < len(layers):
            layer = layers[i]
            if isinstance(layer, nn.BatchNorm2d) and can_fuse(layer, x):
                mode, taken = _fusable_tail(layers[i + 1 : i + 3], x)
                x = norm(layer, x, mode)
                i += taken
            else:
                x = layer(x)
                i += 1
        return x


def add_and_relu(layer: nn.Module, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
    """`relu(layer(x) + shortcut)`, the layer a batch norm."""
    assert isinstance(layer, nn.BatchNorm2d)
    if can_fuse(layer, x) and can_fuse(layer, shortcut) and x.dtype == shortcut.dtype and x.shape == shortcut.shape:
        return norm(layer, x, k.RESIDUAL, shortcut)
    return functional.relu(layer(x) + shortcut)


def can_fuse(layer: nn.BatchNorm2d, x: torch.Tensor) -> bool:
    """Whether the fused operation equals the module, which must be torch's own class, for this tensor."""
    return (
        type(layer) is nn.BatchNorm2d
        and layer.training
        and layer.affine
        and layer.momentum is not None
        and layer.running_mean is not None
        and layer.weight.dtype == torch.float32
        and team.is_plain(x)
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.ndim == 4
        and x.shape[1] == layer.num_features
        and x.shape[1] % k.LANES == 0
        and x.numel() > x.shape[1]  # one value per channel: torch refuses it
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def norm(layer: nn.BatchNorm2d, x: torch.Tensor, mode: int, other: torch.Tensor | None = None) -> torch.Tensor:
    """Batch norm in training plus what `mode` says, with running statistics updated."""
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    y: torch.Tensor = _Norm.apply(
        x, other, layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.momentum, layer.eps, mode
    )
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        other: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running_mean: torch.Tensor,
        running_var: torch.Tensor,
        momentum: float,
        eps: float,
        mode: int,
    ) -> torch.Tensor:
        n, c, h, w = x.shape
        constants = torch.empty(k.CONSTANTS, c, dtype=torch.float32)
        constants[k.CENTRE] = x[0, :, 0, 0]  # near the mean, so the variance is not a difference of large numbers
        totals = torch.empty(k.groups(n), 2, c, dtype=torch.float64)
        options = torch.tensor((momentum, eps), dtype=torch.float64)
        size = (n, c, h // 2, w // 2) if mode == k.POOL else (n, c, h, w)
        y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        tensors = (x, other, y, None, None, None, constants, totals, weight, bias, running_mean, running_var, options)
        k.run(k.moments, k.finish_moments, k.normalise, _words(x, mode, *tensors))
        ctx.mode = mode
        ctx.save_for_backward(x, y if mode == k.RESIDUAL else None, constants)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, y, constants = ctx.saved_tensors
        g = g.contiguous(memory_format=torch.channels_last)
        n, c = x.shape[:2]
        dx = torch.empty_like(x)
        dother = torch.empty_like(x) if ctx.mode == k.RESIDUAL else None
        totals = torch.empty(k.groups(n), 2, c, dtype=torch.float64)
        dweight, dbias = (torch.empty(c, dtype=torch.float32) for _ in range(2))
        tensors = (x, None, y, g, dx, dother, constants, totals, None, None, None, None, None, dweight, dbias)
        k.run(k.sum_gradients, k.finish_gradients, k.differentiate, _words(x, ctx.mode, *tensors))
        return dx, dother, dweight, dbias, None, None, None, None, None


def _words(x: torch.Tensor, mode: int, *tensors: torch.Tensor | None) -> tuple[int, ...]:
    n, c, h, w = x.shape
    addresses = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    return (n, h, w, c, int(x.dtype == torch.bfloat16), mode, *addresses)


def _leaves(layers: nn.Sequential) -> Iterator[nn.Module]:
    for layer in layers:
        # A subclass with a forward of its own may add a shortcut.
        if isinstance(layer, nn.Sequential) and type(layer).forward in (nn.Sequential.forward, FusedSequential.forward):
            yield from _leaves(layer)
        else:
            yield layer


def _fusable_tail(layers: list[nn.Module], x: torch.Tensor) -> tuple[int, int]:
    """What can be fused with a batch norm: the mode, and the number of modules including it."""
    if not layers or type(layers[0]) is not nn.ReLU:
        return k.NOTHING, 1
    pools = len(layers) > 1 and type(layers[1]) is nn.MaxPool2d and _is_plain(layers[1])
    return (k.POOL, 3) if pools and min(x.shape[2:]) > 1 else (k.RELU, 2)


def _is_plain(pool: nn.MaxPool2d) -> bool:
    options = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    return options == (2, 2, 0, 1, False, False)
