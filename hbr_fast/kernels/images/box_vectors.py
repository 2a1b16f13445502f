"""The inner step of scaling: a pixel of four channels as a weighted sum of neighbours, as LLVM vector instructions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from hbr_fast.kernels.vector import F32, I8, I32, I64, fused_multiply_add, load, splat

_PIXEL = ir.VectorType(F32, 4)


@intrinsic
def weighted_pixel(typingctx: Any, line: Any, weights: Any, count: Any) -> Any:
    """Sum of `count` (at least one) neighbouring pixels of four float32 each, times their weights, rounded.

    Addresses of the pixels and of the weights (float32); the result has the channels' bytes from the lowest on. Weights
    are not negative and add up to 1, so that no value leaves a byte.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line, weights, count = args
        before = builder.block
        loop, after = builder.append_basic_block("taps"), builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        t, total = builder.phi(I64), builder.phi(_PIXEL)
        t.add_incoming(ir.Constant(I64, 0), before)
        total.add_incoming(ir.Constant(_PIXEL, [0.5] * 4), before)
        weight = load(builder, builder.add(weights, builder.shl(t, ir.Constant(I64, 2))), F32)
        pixel = load(builder, builder.add(line, builder.shl(t, ir.Constant(I64, 4))), _PIXEL)
        added = fused_multiply_add(builder, pixel, splat(builder, weight, 4), total)
        following = builder.add(t, ir.Constant(I64, 1))
        t.add_incoming(following, loop)
        total.add_incoming(added, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        whole = builder.fptosi(added, ir.VectorType(I32, 4))
        return builder.bitcast(builder.trunc(whole, ir.VectorType(I8, 4)), I32)

    return types.uint32(types.int64, types.int64, types.int64), codegen
