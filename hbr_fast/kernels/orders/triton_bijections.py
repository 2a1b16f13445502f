"""Orders made on the device: the bijection of `cpu_bijections`, number for number (Triton)."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from hbr_fast.kernels.launch import ORDER_BLOCK, ORDER_WARPS, order_grid


@triton.jit
def _mix(digit, key):
    """A 32-bit mix of a digit and a round key."""
    h = digit.to(tl.uint32) ^ key.to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def _permute(x, keys, a, b, ROUNDS: tl.constexpr):
    left = x // b
    right = x - left * b
    for j in tl.static_range(0, ROUNDS, 2):
        left += (_mix(right, tl.load(keys + j)).to(tl.int64) * a) >> 32
        left = tl.where(left >= a, left - a, left)
        right += (_mix(left, tl.load(keys + j + 1)).to(tl.int64) * b) >> 32
        right = tl.where(right >= b, right - b, right)
    return left * b + right


# Compiled once for all lengths and positions.
@triton.jit(do_not_specialize=("out", "start", "stride", "count", "length", "a", "b"))
def bijection_kernel(
    out,
    keys,
    start: tl.int64,
    stride: tl.int64,
    count: tl.int64,
    length: tl.int64,
    a: tl.int64,
    b: tl.int64,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`out[i]` = the element at position `start + i * stride`; see `cpu_bijections.bijection`."""
    # 64 bits before multiplying: an epoch may have more positions than 2**31.
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    x = _permute(tl.where(inside, start + i * stride, 0), keys, a, b, ROUNDS)
    while tl.max((x >= length).to(tl.int32), axis=0) > 0:
        x = tl.where(x >= length, _permute(x, keys, a, b, ROUNDS), x)
    tl.store(out + i, x, mask=inside)


def bijection(start: int, stride: int, length: int, a: int, b: int, keys: np.ndarray, out: torch.Tensor) -> None:
    """Like `cpu_bijections.bijection`, into an int64 tensor on the device."""
    if len(out) == 0:
        return
    with torch.cuda.device_of(out):  # Triton launches on the current device
        bijection_kernel[(order_grid(len(out)),)](
            out,
            torch.from_numpy(keys).to(out.device),
            start,
            stride,
            len(out),
            length,
            a,
            b,
            ROUNDS=len(keys),
            BLOCK=ORDER_BLOCK,
            num_warps=ORDER_WARPS,
        )
