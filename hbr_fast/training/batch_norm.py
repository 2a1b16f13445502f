"""Batch normalisation over the rows of all ranks, as one process with the whole batch would do it.

torch's `SyncBatchNorm` does so on GPUs only, and the networks here must train to the same numbers on any number of
processes of any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


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


def across_ranks(model: nn.Module) -> nn.Module:
    """A model whose batch norms are `CrossRankBatchNorm2d`, with the same parameters, buffers and names; in place."""
    for name, module in model.named_children():
        if isinstance(module, nn.BatchNorm2d):
            across = CrossRankBatchNorm2d(module.num_features, eps=module.eps, momentum=module.momentum)
            across._parameters, across._buffers = module._parameters, module._buffers
            setattr(model, name, across.train(module.training))
        else:
            across_ranks(module)
    return model


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
            # Of fixed statistics: the gradient of the output's direct part, and the sums that the rest is made of.
            grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            grad_x, grad_weight, grad_bias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        sums = torch.stack([grad_weight, grad_bias]).double()
        torch.distributed.all_reduce(sums)
        of_weight, of_bias = sums / count
        scale = weight / (variance + ctx.eps).sqrt()
        slope = -scale * of_weight / (variance + ctx.eps).sqrt()  # what a value's own deviation adds to its gradient
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
    # Moments in float64: taking the mean's square off the second one again loses nothing that float32 would show.
    moments = torch.stack([torch.ones_like(mean), mean, variance]).double()
    moments[2] += moments[1] ** 2
    moments *= values
    torch.distributed.all_reduce(moments)
    count = moments[0]
    mean64 = moments[1] / count
    return mean64.float(), (moments[2] / count - mean64**2).clamp(min=0).float(), count
