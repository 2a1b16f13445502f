"""Batch normalisation over the rows of all ranks, as one process with the whole batch would do it.

torch's `SyncBatchNorm` does so on GPUs only, and the networks here must give the same results on any number of
processes of any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

NAMED = 5  # modules that an error names


class CrossRankBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of the rows of all ranks together.

    One sum over the ranks in the forward pass and one in the backward pass. A rank may have no row.
    """

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        """Normalised images, float [B, C, H, W]."""
        if not self.training:
            return super().forward(x_bchw)
        out, mean, variance, count = _Normalise.apply(x_bchw, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)).float(), self.momentum)
            self.num_batches_tracked.add_(1)
        normalised: torch.Tensor = out
        return normalised


class CrossRankBatchNormAct2d(CrossRankBatchNorm2d):
    """timm's `BatchNormAct2d` over the rows of all ranks: followed by its dropout and activation."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.num_features, eps=module.eps, momentum=module.momentum)
        self.drop, self.act = module.drop, module.act

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        """Normalised and activated images, float [B, C, H, W]."""
        activated: torch.Tensor = self.act(self.drop(super().forward(x_bchw)))
        return activated


def across_ranks(model: nn.Module) -> nn.Module:
    """A model whose batch norms are `CrossRankBatchNorm2d`, with the same parameters, buffers and names; in place.

    Raises
    ------
    ValueError
        If it has batch norms that cannot be replaced; the message names them.
    """
    others = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _replacement(module) is None
    ]
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        raise ValueError(
            f"batch norms {', '.join(others[:NAMED])}{more} cannot be computed over the rows of all processes: use "
            "plain nn.BatchNorm2d with affine parameters, running statistics and a momentum, or train in one process"
        )
    for name, module in model.named_children():
        if isinstance(module, nn.BatchNorm2d) and (across := _replacement(module)) is not None:
            across._parameters, across._buffers = module._parameters, module._buffers
            setattr(model, name, across.train(module.training))
        else:
            across_ranks(module)
    return model


def _replacement(module: Any) -> CrossRankBatchNorm2d | None:
    """A batch norm across ranks in place of a module; None if there is none that computes the same."""
    if not module.affine or module.running_mean is None or module.momentum is None:
        return None
    if type(module) in (nn.BatchNorm2d, CrossRankBatchNorm2d):
        return CrossRankBatchNorm2d(module.num_features, eps=module.eps, momentum=module.momentum)
    if type(module).__name__ in ("BatchNormAct2d", "CrossRankBatchNormAct2d"):
        return CrossRankBatchNormAct2d(module)
    return None


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, ...]:
        mean, variance, count = _statistics(x)
        out = functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if len(x) else x.clone()
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        if len(x):
            # With fixed statistics: the gradient of the direct part, and the sums for the rest.
            grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            grad_x, grad_weight, grad_bias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        sums = torch.stack([grad_weight, grad_bias]).double()
        torch.distributed.all_reduce(sums)
        of_weight, of_bias = sums / count
        scale = weight / (variance + ctx.eps).sqrt()
        slope = -scale * of_weight / (variance + ctx.eps).sqrt()  # the part of the value's own deviation
        shift = -scale * of_bias - slope * mean
        by_channel = (1, -1, 1, 1)
        grad_x.addcmul_(x, slope.to(weight.dtype).view(by_channel)).add_(shift.to(weight.dtype).view(by_channel))
        return grad_x, grad_weight, grad_bias, None


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel over all ranks, float32 [C], and how many values a channel has."""
    channels = x.shape[1]
    mean, variance = x.new_zeros(channels, dtype=torch.float32), x.new_zeros(channels, dtype=torch.float32)
    if len(x):
        mean, variance = torch.batch_norm_update_stats(x, mean, variance, 0.0)
    values = x.numel() // channels
    # Moments in float64: subtracting the squared mean loses nothing visible in float32.
    moments = torch.stack([torch.ones_like(mean), mean, variance]).double()
    moments[2] += moments[1] ** 2
    moments *= values
    torch.distributed.all_reduce(moments)
    count = moments[0]
    mean64 = moments[1] / count
    return mean64.float(), (moments[2] / count - mean64**2).clamp(min=0).float(), count
