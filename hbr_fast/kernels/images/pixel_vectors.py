"""The vector operations that batches of images are made of, written as LLVM vector instructions (see `vector.py`).

Each is a loop over the rows of one column of an image, as wide as a vector. A row is loaded whole; pixels that are not
the image's become 0 by a mask, and a bias of their own turns that into the border: no branch. So nothing is copied to
make room for a border; but up to `SLACK` bytes before and behind the image are read, and the caller must own those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from hbr_fast.kernels.vector import F32, I8, I32, fused_multiply_add, load, round_bf16, splat, store

SLACK = 32
_CHUNK = 16  # pixels: one register of float32 with AVX-512, two without

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
        Of `lanes` int32: -1, or 0 where the pixel is not the image's but `fill`.
    fill_c, scale_c, bias_c : addresses
        Of `channels` numbers: uint8, float32, float32.
    weight : float32
        With `mixed`: `mate[x] + weight * (src[x] - mate[x])`, not rounded to a byte, takes the place of `src[x]`.
    lanes, channels, mixed, reverse, bf16 : literals
        One to four `channels` are stored side by side. With `reverse` the pixels are stored last first.
    """
    width, together = lanes.literal_value, channels.literal_value
    two, half, backwards = bool(mixed.literal_value), bool(bf16.literal_value), bool(reverse.literal_value)
    # A vector of output is `size` values: of one channel, or of a pixel's channels in turn.
    size = min(width, _CHUNK) if together == 1 else width
    parts = range(width * together // size)
    order = range(width - 1, -1, -1) if backwards else range(width)
    columns = [column for column in order for _ in range(together)]  # the pixel that a value is of

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dst, line, src, mate, plane, stride, count, mask, fill_c, scale_c, bias_c, weight = args[:12]

        def pixels(rows: Sequence[Any]) -> list[Any]:
            """The int32 of each part, from the rows of the channels stored together."""
            if together > 1:
                return _interleaved(builder, rows, width, backwards)
            starts = [size * part for part in (reversed(parts) if backwards else parts)]
            return [_load_pixels(builder, rows[0], start, size, backwards) for start in starts]

        def patterns(address: Any, kind: Any) -> list[Any]:
            """Numbers of the channels in turn, as the values are."""
            bytes_each = 1 if kind == I8 else 4
            numbers = [builder.load(_pointer(builder, address, c * bytes_each, kind)) for c in range(together)]
            numbers = [builder.uitofp(number, F32) for number in numbers] if kind == I8 else numbers
            return [_alternating(builder, numbers, size * part, size) for part in parts]

        zeros = ir.Constant(ir.VectorType(I32, size), [0] * size)
        fills, scales, biases = patterns(fill_c, I8), patterns(scale_c, F32), patterns(bias_c, F32)
        whole = load(builder, mask, ir.VectorType(I32, width))
        masks = [_picked(builder, whole, whole, columns[size * part : size * (part + 1)]) for part in parts]
        # A pixel outside of the image is 0, and its bias makes it what the border is: no operation in the loop.
        outside = [fused_multiply_add(builder, *three) for three in zip(fills, scales, biases, strict=True)]
        inside = [builder.icmp_unsigned("!=", part, zeros) for part in masks]
        biases = [builder.select(*three) for three in zip(inside, biases, outside, strict=True)]
        weight = splat(builder, weight, size)
        images = [src, mate] if two else [src]
        walks = [(_plus(builder, image, c, plane), stride) for image in images for c in range(together)]
        with _rows(builder, count, (dst, line), *walks) as (to, *rows):
            of_images = [pixels(rows[together * i : together * (i + 1)]) for i in range(len(images))]
            for part in parts:
                shown = [builder.and_(image[part], masks[part]) for image in of_images]
                value, *other = (builder.sitofp(each, ir.VectorType(F32, size)) for each in shown)
                if two:
                    value = fused_multiply_add(builder, builder.fsub(value, other[0]), weight, other[0])
                value = fused_multiply_add(builder, value, scales[part], biases[part])
                place = builder.add(to, ir.Constant(to.type, size * part * (2 if half else 4)))
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


def _load_pixels(builder: Any, row: Any, start: int, size: int, backwards: bool) -> Any:
    """The bytes `start` to `start + size` of a row as int32, last first with `backwards`."""
    address = builder.add(row, ir.Constant(row.type, start))
    if not backwards:
        return builder.zext(load(builder, address, ir.VectorType(I8, size)), ir.VectorType(I32, size))
    # The bytes are loaded into every 128 bits of a vector, and each of those picks its four: one load and one shuffle,
    # where reversing and extending would be two shuffles, across lanes.
    once = load(builder, address, ir.VectorType(ir.IntType(8 * size), 1))
    copies = builder.shuffle_vector(once, once, ir.Constant(ir.VectorType(I32, 4), [0] * 4))
    copies = builder.bitcast(copies, ir.VectorType(I8, 4 * size))
    zeros = ir.Constant(copies.type, [0] * copies.type.count)
    picked = []
    for value in range(size):
        nearest = 4 * value // 16 * 16 // size * size  # of the copies
        picked += [nearest + size - 1 - value, *[4 * size] * 3]
    return builder.bitcast(_picked(builder, copies, zeros, picked), ir.VectorType(I32, size))


def _interleaved(builder: Any, rows: Sequence[Any], width: int, backwards: bool) -> list[Any]:
    """`width` bytes of each of two to four rows as int32, a byte of each row in turn; a vector a row."""
    together = len(rows)
    columns = range(width - 1, -1, -1) if backwards else range(width)
    # Value v is row v % together of a column. A vector of them is picked from rows 0 and 1, then 2 and 3.
    values = [width * (v % together) + columns[v // together] for v in range(width * together)]
    loaded = [load(builder, row, ir.VectorType(I8, width)) for row in rows]
    pairs = _pair(builder, loaded[:2]), _pair(builder, loaded[2:] or loaded[:2])
    parts = [_picked(builder, *pairs, values[width * part : width * (part + 1)]) for part in range(together)]
    return [builder.zext(part, ir.VectorType(I32, width)) for part in parts]


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


def _pointer(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, ir.Constant(address.type, offset)), kind.as_pointer())


def _plus(builder: Any, address: Any, number: int, step: Any) -> Any:
    return builder.add(address, builder.mul(step, ir.Constant(step.type, number)))
