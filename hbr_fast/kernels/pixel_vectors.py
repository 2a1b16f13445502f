"""The vector operations that batches of images are made of, written as LLVM vector instructions (see `vector.py`).

Each is a loop over the rows of one column of an image, as wide as a vector. A row is loaded whole, and pixels that are
not the image's are replaced: by mask, without a branch. So nothing is copied to make room for a border; but up to
`SLACK` bytes before and behind the image are read, and the caller must own those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from hbr_fast.kernels.vector import F32, I8, I32, fused_multiply_add, load, round_bf16, splat, store

SLACK = 32

_ADDRESS = types.uint64


@intrinsic(prefer_literal=True)
def convert_rows(
    typingctx: Any,
    dst: Any,
    line: Any,
    src: Any,
    mate: Any,
    plane: Any,
    stride: Any,
    count: Any,
    mask: Any,
    fill_c: Any,
    scale_c: Any,
    bias_c: Any,
    weight: Any,
    lanes: Any,
    channels: Any,
    mixed: Any,
    reverse: Any,
    bf16: Any,
) -> Any:
    """`dst[x] = src[x] * scale + bias` for `lanes` pixels of `count` rows: bytes in, float32 (or bfloat16) out.

    Parameters
    ----------
    dst, line : address and uint64
        Of the first row out, and bytes from one to the next.
    src, mate, plane, stride : two addresses and two uint64
        Of the first row in, the same of another image, bytes from one channel to the next and from row to row.
    count : int64
    mask : address
        Of `lanes` bytes: 0 where the pixel is not the image's but `fill`.
    fill_c, scale_c, bias_c : addresses
        Of `channels` numbers: uint8, float32, float32.
    weight : float32
        With `mixed`: `mate[x] + weight * (src[x] - mate[x])`, not rounded to a byte, takes the place of `src[x]`.
    lanes, channels, mixed, reverse, bf16 : literals
        One to four `channels` are stored side by side. With `reverse` the pixels are stored last first.
    """
    width, together = lanes.literal_value, channels.literal_value
    two, half = bool(mixed.literal_value), bool(bf16.literal_value)
    columns = list(range(width - 1, -1, -1)) if reverse.literal_value else list(range(width))
    # Value v is channel v % together of a pixel. A vector of them is picked from channels 0 and 1, then 2 and 3.
    values = [width * (v % together) + columns[v // together] for v in range(width * together)]
    parts = range(together)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dst, line, src, mate, plane, stride, count, mask, fill_c, scale_c, bias_c, weight = args[:12]

        def interleaved(rows: Sequence[Any]) -> list[Any]:
            pairs = _pair(builder, rows[:2]), _pair(builder, rows[2:] or rows[:2])
            return [_picked(builder, *pairs, values[width * part : width * (part + 1)]) for part in parts]

        def patterns(address: Any, kind: Any) -> list[Any]:
            """Numbers of the channels in turn, as the values are."""
            numbers = [builder.load(_pointer(builder, address, c * (1 if kind == I8 else 4), kind)) for c in parts]
            numbers = [builder.uitofp(number, F32) for number in numbers] if kind == I8 else numbers
            return [_alternating(builder, numbers, width * part, width) for part in parts]

        vector = ir.VectorType(I8, width)
        fills, scales, biases = patterns(fill_c, I8), patterns(scale_c, F32), patterns(bias_c, F32)
        outside = [fused_multiply_add(builder, *three) for three in zip(fills, scales, biases, strict=True)]
        inside = [_not_zero(builder, part) for part in interleaved([load(builder, mask, vector)] * together)]
        weight = splat(builder, weight, width)
        images = [src, mate] if two else [src]
        walks = [(_plus(builder, image, c, plane), stride) for image in images for c in parts]
        with _rows(builder, count, (dst, line), *walks) as (to, *rows):
            loaded = [load(builder, row, vector) for row in rows]
            picked = [interleaved(loaded[together * i : together * (i + 1)]) for i in range(len(images))]
            for part in parts:
                value, *other = (_as_float(builder, image[part]) for image in picked)
                if two:
                    value = fused_multiply_add(builder, builder.fsub(value, other[0]), weight, other[0])
                value = fused_multiply_add(builder, value, scales[part], biases[part])
                value = builder.select(inside[part], value, outside[part])
                place = builder.add(to, ir.Constant(to.type, width * part * (2 if half else 4)))
                store(builder, round_bf16(builder, value) if half else value, place)
        return context.get_dummy_value()

    arguments = (_ADDRESS,) * 6 + (types.int64,) + (_ADDRESS,) * 4 + (types.float32,)
    return types.void(*arguments, lanes, channels, mixed, reverse, bf16), codegen


@intrinsic(prefer_literal=True)
def store_pixel(typingctx: Any, dst: Any, value: Any, bf16: Any) -> Any:
    """Store one float32 at address `dst`, or its bfloat16 with the literal `bf16`."""
    half = bool(bf16.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = splat(builder, args[1], 1)
        store(builder, round_bf16(builder, value) if half else value, args[0])
        return context.get_dummy_value()

    return types.void(_ADDRESS, types.float32, bf16), codegen


@intrinsic(prefer_literal=True)
def prefetch_image(typingctx: Any, address: Any, size: Any) -> Any:
    """Ask for `size` bytes at an address that will be read soon."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        ask = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0i8")
        lines = builder.udiv(args[1], ir.Constant(args[1].type, 64))
        with _rows(builder, lines, (args[0], ir.Constant(args[0].type, 64))) as (line,):
            pointer = builder.inttoptr(line, I8.as_pointer())
            builder.call(ask, [pointer, ir.Constant(I32, 0), ir.Constant(I32, 3), ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(_ADDRESS, types.int64), codegen


class _rows:
    """A loop over rows; the block sees the address of each of several walks, of (first, step)."""

    def __init__(self, builder: Any, count: Any, *walks: tuple[Any, Any]) -> None:
        self.builder, self.walks = builder, walks
        self.places = [cgutils.alloca_once_value(builder, first) for first, _ in walks]
        self.loop = cgutils.for_range(builder, count)

    def __enter__(self) -> Any:
        self.loop.__enter__()
        self.now = [self.builder.load(place) for place in self.places]
        return self.now

    def __exit__(self, *exception: Any) -> Any:
        for place, now, (_, step) in zip(self.places, self.now, self.walks, strict=True):
            self.builder.store(self.builder.add(now, step), place)
        return self.loop.__exit__(*exception)


def _pair(builder: Any, vectors: Sequence[Any]) -> Any:
    """Two vectors in one, or one twice."""
    lanes = 2 * vectors[0].type.count
    return builder.shuffle_vector(vectors[0], vectors[-1], ir.Constant(ir.VectorType(I32, lanes), list(range(lanes))))


def _picked(builder: Any, first: Any, second: Any, places: Sequence[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, len(places)), places))


def _alternating(builder: Any, numbers: Sequence[Any], start: int, lanes: int) -> Any:
    """`lanes` of the endless repetition of some numbers, from `start` on."""
    if len(numbers) == 1:
        return splat(builder, numbers[0], lanes)
    vector = ir.Constant(ir.VectorType(F32, lanes), ir.Undefined)
    for lane in range(lanes):
        vector = builder.insert_element(vector, numbers[(start + lane) % len(numbers)], ir.Constant(I32, lane))
    return vector


def _not_zero(builder: Any, mask: Any) -> Any:
    return builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, [0] * mask.type.count))


def _as_float(builder: Any, pixels: Any) -> Any:
    lanes = pixels.type.count
    return builder.uitofp(builder.zext(pixels, ir.VectorType(I32, lanes)), ir.VectorType(F32, lanes))


def _pointer(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, ir.Constant(address.type, offset)), kind.as_pointer())


def _plus(builder: Any, address: Any, number: int, step: Any) -> Any:
    return builder.add(address, builder.mul(step, ir.Constant(step.type, number)))
