"""The JPEG library that Pillow is linked with, called from compiled code, without the interpreter lock.

Pillow's wheels bring libjpeg-turbo as a shared library. Its C interface decodes parts of a picture
(`jpeg_crop_scanline`, `jpeg_skip_scanlines`) and smaller versions of it (1/2, 1/4, 1/8), which no Python package offers
together. The functions are found among the libraries that Pillow's extension is linked with, as `team` finds OpenMP.

Structures are those of libjpeg's interface 6.2 on 64-bit machines, fixed since 1998. The library refuses a caller of
another version or structure size, and `functions` decodes a picture before anyone relies on it.

libjpeg leaves a failed call by a jump (`longjmp`); its error handler must not return. So every call that can fail is
made below `guarded`, which is where the jump leads.
"""

from __future__ import annotations

import ctypes
import functools
import io
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from hbr_fast.kernels import team
from hbr_fast.kernels.cache import CACHE

_NAMES = (
    "jpeg_std_error", "jpeg_CreateDecompress", "jpeg_mem_src", "jpeg_read_header", "jpeg_start_decompress",
    "jpeg_crop_scanline", "jpeg_skip_scanlines", "jpeg_read_scanlines", "jpeg_abort_decompress",
    "jpeg_destroy_decompress",
)  # fmt: skip
_STD_ERROR, _CREATE, _MEM_SRC, _READ_HEADER, _START, _CROP, _SKIP, _READ, _ABORT, _DESTROY = range(10)
_ON_ERROR, _ON_MESSAGE, _MAKE, _OPEN, _READ_REGION, FUNCTIONS = range(10, 16)  # our own

_VERSION, _STRUCT_BYTES, _ERROR_BYTES = 62, 632, 168
# Byte offsets in `jpeg_decompress_struct`, and in `jpeg_error_mgr`.
_ERR, _CLIENT_DATA, _WIDTH, _HEIGHT = 0, 24, 48, 52
_COLORS, _SCALE, _SCALE_OF, _OUT_WIDTH = 64, 68, 72, 136
_ERROR_EXIT, _EMIT_MESSAGE = 0, 8
GRAY, RGBX = 1, 7  # colour spaces of the output: one byte a pixel, and four, of which the last is unused
_WIDEST_BLOCK = 32

# A decoder: these words, then libjpeg's two structures.
_TABLE, _JUMP, _DATA, _LENGTH, _SPACE, _NUMERATOR, _TOP, _BOTTOM, _LEFT, _RIGHT, _ROWS, _ROOM, _WORDS = range(13)
_INFO, _ERRORS = _WORDS, _WORDS + _STRUCT_BYTES // 8
DECODER = _ERRORS + _ERROR_BYTES // 8


@intrinsic
def _call(typingctx: Any, function: Any, a: Any, b: Any, c: Any) -> Any:
    """Call a C function of at most three whole numbers or addresses; what it returns, with undefined upper bits."""
    word = ir.IntType(64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(word, [word, word, word])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def guarded(typingctx: Any, body: Any, decoder: Any) -> Any:
    """Call `body(decoder, jump)`; 0, or 1 if it left by a jump to `jump`.

    A function of its own that keeps nothing in registers across `_setjmp`.
    """
    word = ir.IntType(64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        module, name = builder.module, "hbr_guarded"
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(word, [word, word]), name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            inside = ir.IRBuilder(function.append_basic_block())
            jump = inside.alloca(word, 64)  # more than any system's jmp_buf
            jump.align = 16
            setjmp = ir.Function(module, ir.FunctionType(ir.IntType(32), [word.as_pointer()]), "_setjmp")
            setjmp.attributes.add("returns_twice")
            came_back = inside.icmp_signed("!=", inside.call(setjmp, [jump]), ir.Constant(ir.IntType(32), 0))
            first, failed = function.append_basic_block(), function.append_basic_block()
            inside.cbranch(came_back, failed, first)
            inside.position_at_end(first)
            kind = ir.FunctionType(ir.VoidType(), [word, word])
            called = inside.inttoptr(function.args[0], kind.as_pointer())
            inside.call(called, [function.args[1], inside.ptrtoint(jump, word)])
            inside.ret(ir.Constant(word, 0))
            inside.position_at_end(failed)
            inside.ret(ir.Constant(word, 1))
        return builder.call(function, args)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _jump_to(typingctx: Any, jump: Any) -> Any:
    word = ir.IntType(64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        longjmp = builder.module.globals.get("longjmp")
        if longjmp is None:
            kind = ir.FunctionType(ir.VoidType(), [word, ir.IntType(32)])
            longjmp = ir.Function(builder.module, kind, "longjmp")
            longjmp.attributes.add("noreturn")
        builder.call(longjmp, [args[0], ir.Constant(ir.IntType(32), 1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@nb.njit(inline="always")
def _int(info, offset):
    return team.array_at(info + offset, (1,), np.int32)


@nb.cfunc(types.void(types.int64), cache=CACHE)
def _on_error(info):
    """libjpeg's `error_exit`: the call failed."""
    words = team.array_at(team.array_at(info + _CLIENT_DATA, (1,), np.int64)[0], (_WORDS,), np.int64)
    _jump_to(words[_JUMP])


@nb.cfunc(types.void(types.int64, types.int32), cache=CACHE)
def _on_message(info, level):
    """libjpeg's `emit_message`: nothing is printed. Damaged bytes do not get here: their checksum is wrong."""


@nb.cfunc(types.void(types.int64, types.int64), cache=CACHE)
def _make(decoder, jump):
    words = team.array_at(decoder, (DECODER,), np.int64)
    functions = team.array_at(words[_TABLE], (FUNCTIONS,), np.int64)
    words[_JUMP] = jump
    _call(functions[_CREATE], decoder + 8 * _INFO, _VERSION, _STRUCT_BYTES)


@nb.cfunc(types.void(types.int64, types.int64), cache=CACHE)
def _open(decoder, jump):
    words = team.array_at(decoder, (DECODER,), np.int64)
    functions = team.array_at(words[_TABLE], (FUNCTIONS,), np.int64)
    info = decoder + 8 * _INFO
    words[_JUMP] = jump
    _call(functions[_MEM_SRC], info, words[_DATA], words[_LENGTH])
    _call(functions[_READ_HEADER], info, 1, 0)


@nb.cfunc(types.void(types.int64, types.int64), cache=CACHE)
def _read_region(decoder, jump):
    words = team.array_at(decoder, (DECODER,), np.int64)
    functions = team.array_at(words[_TABLE], (FUNCTIONS,), np.int64)
    info = decoder + 8 * _INFO
    words[_JUMP] = jump
    _int(info, _COLORS)[0], _int(info, _SCALE)[0], _int(info, _SCALE_OF)[0] = words[_SPACE], words[_NUMERATOR], 8
    _call(functions[_START], info, 0, 0)
    # The library moves the left end to a multiple of its block, and says where; the right end stays.
    sides = words[_LEFT] | (words[_RIGHT] - words[_LEFT]) << 32
    words[_LEFT] = sides
    place = decoder + 8 * _LEFT
    _call(functions[_CROP], info, place, place + 4)
    words[_LEFT] = words[_LEFT] & 0xFFFFFFFF
    row_bytes = np.int64(_int(info, _OUT_WIDTH)[0]) * (1 if words[_SPACE] == GRAY else 4)
    if row_bytes * (words[_BOTTOM] - words[_TOP]) > words[_ROOM]:
        _jump_to(jump)
    if words[_TOP] > 0:
        _call(functions[_SKIP], info, words[_TOP], 0)
    words[_RIGHT] = row_bytes
    to = words[_ROWS]
    for _ in range(words[_TOP], words[_BOTTOM]):
        words[_ROWS] = to
        if (_call(functions[_READ], info, decoder + 8 * _ROWS, 1) & 0xFFFFFFFF) != 1:
            _jump_to(jump)
        to += row_bytes


@nb.njit(nogil=True, cache=CACHE)
def set_up(decoder_w, table):
    """Make a decoder of the zeroed words [DECODER]; whether the library accepted it. Then it must be put away."""
    decoder = decoder_w.ctypes.data
    functions = team.array_at(table, (FUNCTIONS,), np.int64)
    errors = decoder + 8 * _ERRORS
    decoder_w[_TABLE] = table
    decoder_w[_INFO + _ERR // 8] = errors
    _call(functions[_STD_ERROR], errors, 0, 0)
    team.array_at(errors + _ERROR_EXIT, (1,), np.int64)[0] = functions[_ON_ERROR]
    team.array_at(errors + _EMIT_MESSAGE, (1,), np.int64)[0] = functions[_ON_MESSAGE]
    decoder_w[_INFO + _CLIENT_DATA // 8] = decoder
    return guarded(functions[_MAKE], decoder) == 0


@nb.njit(nogil=True, cache=CACHE)
def put_away(decoder_w):
    """Free what the library allocated."""
    functions = team.array_at(decoder_w[_TABLE], (FUNCTIONS,), np.int64)
    _call(functions[_DESTROY], decoder_w.ctypes.data + 8 * _INFO, 0, 0)


@nb.njit(nogil=True, cache=CACHE)
def open_picture(decoder_w, data, length):
    """Read the header of a JPEG: (height, width) as stored, or (0, 0)."""
    functions = team.array_at(decoder_w[_TABLE], (FUNCTIONS,), np.int64)
    decoder = decoder_w.ctypes.data
    decoder_w[_DATA], decoder_w[_LENGTH] = data, length
    if guarded(functions[_OPEN], decoder) != 0:
        close_picture(decoder_w)
        return np.int64(0), np.int64(0)
    info = decoder + 8 * _INFO
    return np.int64(_int(info, _HEIGHT)[0]), np.int64(_int(info, _WIDTH)[0])


@nb.njit(nogil=True, cache=CACHE)
def read_region(decoder_w, space, numerator, top, bottom, left, right, rows_u8):
    """Decode rows [top, bottom) and at least columns [left, right) of the opened picture at numerator/8 of its size.

    Returns the first column and the bytes of a row, or (-1, 0). Pixels lie in `rows_u8`, which has room for
    `_WIDEST_BLOCK` more columns.
    """
    functions = team.array_at(decoder_w[_TABLE], (FUNCTIONS,), np.int64)
    decoder_w[_SPACE], decoder_w[_NUMERATOR] = space, numerator
    decoder_w[_TOP], decoder_w[_BOTTOM], decoder_w[_LEFT], decoder_w[_RIGHT] = top, bottom, left, right
    decoder_w[_ROWS], decoder_w[_ROOM] = rows_u8.ctypes.data, rows_u8.size
    failed = guarded(functions[_READ_REGION], decoder_w.ctypes.data)
    close_picture(decoder_w)
    if failed != 0:
        return np.int64(-1), np.int64(0)
    return decoder_w[_LEFT], decoder_w[_RIGHT]


@nb.njit(nogil=True, cache=CACHE)
def room_for(rows, columns, space):
    """Bytes that `read_region` needs."""
    return rows * (columns + _WIDEST_BLOCK) * (1 if space == GRAY else 4)


@nb.njit(nogil=True, cache=CACHE)
def close_picture(decoder_w):
    """Make the decoder ready for the next picture."""
    functions = team.array_at(decoder_w[_TABLE], (FUNCTIONS,), np.int64)
    _call(functions[_ABORT], decoder_w.ctypes.data + 8 * _INFO, 0, 0)


@functools.cache
def functions() -> np.ndarray | None:
    """Addresses of the library's functions and ours, int64 [FUNCTIONS]; None if Pillow's library is of another kind."""
    import PIL._imaging
    from PIL import Image

    try:
        library = ctypes.CDLL(PIL._imaging.__file__)
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _NAMES]
    except (AttributeError, OSError):
        return None
    own = (_on_error, _on_message, _make, _open, _read_region)
    table = np.array([*addresses, *(function.address for function in own)], np.int64)
    levels = np.add.outer(np.arange(24) * 6, np.arange(40)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=95)
    found = _tried(np.frombuffer(file.getvalue(), np.uint8), table, 24, 40)
    works = found.shape == (16, 24) and int(np.abs(found.astype(int) - levels[8:, 16:]).max()) <= 8
    return table if works else None


@nb.njit(nogil=True, cache=CACHE)
def _tried(content, table, height, width):
    decoder_w = np.zeros(DECODER, np.int64)
    rows = np.zeros((16 * (width + _WIDEST_BLOCK)), np.uint8)
    nothing = rows[:0].reshape(0, 1)
    found = nothing
    if not set_up(decoder_w, table.ctypes.data):
        return found
    if open_picture(decoder_w, content.ctypes.data, content.size) == (height, width):
        first, row_bytes = read_region(decoder_w, GRAY, 8, 8, height, 16, width, rows)
        if first == 16 and row_bytes == width - 16:
            found = rows[: 16 * row_bytes].reshape(16, row_bytes)
    put_away(decoder_w)
    return found
