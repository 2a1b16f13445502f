"""Decode JPEGs and scale a box of each to a slot of one size, on all threads of torch's team (numba and libjpeg).

Only what is needed is decoded: at 1/2, 1/4 or 1/8 of the size where the box is that much larger than its slot, only the
rows of the box, and of those only the blocks that it touches. Then one antialiased resize, of the box only, with two
short sums a pixel. `hbr_fast.kernels.reference.box_resized` is the definition.
"""

from __future__ import annotations

import functools

import numba as nb
import numpy as np

from hbr_fast.kernels import team
from hbr_fast.kernels.cache import CACHE
from hbr_fast.kernels.images import libjpeg
from hbr_fast.kernels.images.box_vectors import weighted_pixel
from hbr_fast.kernels.images.libjpeg import DECODER, GRAY, RGBX

# A picture to decode. `box` is in pixels as stored; the slot's part for it has `tall` x `wide` pixels, whose first one
# is at `out` and whose neighbours below and to the right are `down` and `right` bytes on: a picture that is stored
# turned is written upright.
TASK = np.dtype(
    [
        ("data", np.int64),
        ("length", np.int64),
        ("crc", np.int64),
        ("height", np.int64),
        ("width", np.int64),
        ("box", np.float64, 4),
        ("tall", np.int64),
        ("wide", np.int64),
        ("out", np.int64),
        ("down", np.int64),
        ("right", np.int64),
        ("plane", np.int64),
        ("status", np.int64),
    ]
)
MADE, DAMAGED, NOT_JPEG = range(3)  # what becomes of a task
_TASK_BYTES = TASK.itemsize


def _crc_tables() -> np.ndarray:
    """For eight bytes at a time: what each byte adds, uint32 [8, 256]."""
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        word = byte
        for _ in range(8):
            word = word >> 1 ^ (0xEDB88320 if word & 1 else 0)
        tables[0, byte] = word
    for number in range(1, 8):
        tables[number] = tables[number - 1] >> 8 ^ tables[0, tables[number - 1] & 0xFF]
    return tables


_CRC = _crc_tables()


@nb.njit(nogil=True, cache=CACHE)
def crc32(data_u8):
    """CRC-32 as in zip files and `zlib.crc32`."""
    crc = np.uint32(0xFFFFFFFF)
    whole = data_u8.size // 8 * 8
    for i in range(0, whole, 8):
        low = crc ^ (
            np.uint32(data_u8[i])
            | np.uint32(data_u8[i + 1]) << np.uint32(8)
            | np.uint32(data_u8[i + 2]) << np.uint32(16)
            | np.uint32(data_u8[i + 3]) << np.uint32(24)
        )
        crc = np.uint32(
            _CRC[7, low & np.uint32(0xFF)]
            ^ _CRC[6, low >> np.uint32(8) & np.uint32(0xFF)]
            ^ _CRC[5, low >> np.uint32(16) & np.uint32(0xFF)]
            ^ _CRC[4, low >> np.uint32(24)]
            ^ _CRC[3, data_u8[i + 4]]
            ^ _CRC[2, data_u8[i + 5]]
            ^ _CRC[1, data_u8[i + 6]]
            ^ _CRC[0, data_u8[i + 7]]
        )
    for i in range(whole, data_u8.size):
        crc = np.uint32(crc >> np.uint32(8) ^ _CRC[0, (crc ^ np.uint32(data_u8[i])) & np.uint32(0xFF)])
    return np.int64(crc ^ np.uint32(0xFFFFFFFF))


@nb.njit(nogil=True, cache=CACHE)
def taps(start, length, size, new):
    """Weights of the antialiased bilinear scaling of [start, start + length) of a line of `size` pixels to `new`.

    Pixel i of the result is the sum over t of weights[i, t] times pixel first[i] + t.
    """
    scale = length / new
    support = max(scale, 1.0)
    most = int(np.ceil(2 * support))
    first, weights = np.empty(new, np.int64), np.zeros((new, most), np.float32)
    for i in range(new):
        centre = start + (i + 0.5) * scale
        low = min(max(int(np.floor(centre - support + 0.5)), 0), size - 1)
        if low + 0.5 - centre <= -support and low < size - 1:
            low += 1
        high = min(int(np.floor(centre + support + 0.5)), size, low + most)
        first[i], total = low, 0.0
        for j in range(low, high):
            total += max(0.0, 1 - abs(j + 0.5 - centre) / support)
        for j in range(low, high):
            weights[i, j - low] = max(0.0, 1 - abs(j + 0.5 - centre) / support) / total
        if high <= low or total == 0.0:  # beyond the picture: its edge
            weights[i, 0] = 1
    return first, weights


@nb.njit(nogil=True, cache=CACHE, fastmath={"contract"})
def _mix_rows(rows_u8, row_bytes, begin, weights_t, line):
    """Write the weighted sum of rows from `begin` on, two or three at a time: each reads and writes `line` once."""
    count = weights_t.size
    while count > 1 and weights_t[count - 1] == 0:
        count -= 1
    at = begin * row_bytes
    a = rows_u8[at : at + row_bytes]
    weight_a = weights_t[0]
    if count == 1:
        for i in range(row_bytes):
            line[i] = weight_a * np.float32(a[i])
        return
    b = rows_u8[at + row_bytes : at + 2 * row_bytes]
    weight_b = weights_t[1]
    if count == 2:
        for i in range(row_bytes):
            line[i] = weight_b * np.float32(b[i]) + weight_a * np.float32(a[i])
        return
    c = rows_u8[at + 2 * row_bytes : at + 3 * row_bytes]
    weight_c = weights_t[2]
    for i in range(row_bytes):
        line[i] = weight_c * np.float32(c[i]) + (weight_b * np.float32(b[i]) + weight_a * np.float32(a[i]))
    t = 3
    while t + 1 < count:
        at = (begin + t) * row_bytes
        a, b = rows_u8[at : at + row_bytes], rows_u8[at + row_bytes : at + 2 * row_bytes]
        weight_a, weight_b = weights_t[t], weights_t[t + 1]
        for i in range(row_bytes):
            line[i] = weight_b * np.float32(b[i]) + (weight_a * np.float32(a[i]) + line[i])
        t += 2
    if t < count:
        at = (begin + t) * row_bytes
        a, weight_a = rows_u8[at : at + row_bytes], weights_t[t]
        for i in range(row_bytes):
            line[i] += weight_a * np.float32(a[i])


@nb.njit(nogil=True, cache=CACHE)
def _mix_columns(line, first_x, left, weights_x, pixels):
    """Write the weighted sums of a row's neighbours: pixels of four bytes. Few taps are constants, for short loops."""
    most = weights_x.shape[1]
    begin, weights = line.ctypes.data - 16 * left, weights_x.ctypes.data
    if most == 2:
        for x in range(pixels.size):
            pixels[x] = weighted_pixel(begin + 16 * first_x[x], weights + 8 * x, 2)
    elif most == 3:
        for x in range(pixels.size):
            pixels[x] = weighted_pixel(begin + 16 * first_x[x], weights + 12 * x, 3)
    elif most == 4:
        for x in range(pixels.size):
            pixels[x] = weighted_pixel(begin + 16 * first_x[x], weights + 16 * x, 4)
    else:
        for x in range(pixels.size):
            pixels[x] = weighted_pixel(begin + 16 * first_x[x], weights + 4 * most * x, most)


@nb.njit(nogil=True, cache=CACHE)
def _store_planes(pixels, to, right, plane):
    """Write the first three bytes of pixels to the planes of a slot, `right` bytes apart."""
    if right == 1:
        for c in range(3):
            row, shift = team.array_at(to + c * plane, (pixels.size,), np.uint8), np.uint32(8 * c)
            for x in range(pixels.size):
                row[x] = np.uint8(pixels[x] >> shift)
    else:
        for x in range(pixels.size):
            for c in range(3):
                byte = np.uint8(pixels[x] >> np.uint32(8 * c))
                team.array_at(to + c * plane + x * right, (1,), np.uint8)[0] = byte


@nb.njit(nogil=True, cache=CACHE)
def _scale(task, rows_u8, row_bytes, top, left, height, width, box, channels):
    """Write the slot's part from decoded rows, which begin at (top, left) of a picture of `height` x `width`."""
    first_y, weights_y = taps(box[0], box[2], height, task.tall)
    first_x, weights_x = taps(box[1], box[3], width, task.wide)
    most = weights_x.shape[1]
    lanes = 4 if channels == 3 else 1
    line = np.zeros(row_bytes + lanes * most, np.float32)  # taps of weight 0 may lie behind the row
    pixels = np.empty(task.wide, np.uint32)
    for y in range(task.tall):
        _mix_rows(rows_u8, row_bytes, first_y[y] - top, weights_y[y], line)
        to = task.out + y * task.down
        if channels == 3:
            _mix_columns(line, first_x, left, weights_x, pixels)
            _store_planes(pixels, to, task.right, task.plane)
            continue
        for x in range(task.wide):
            gray = np.float32(0.5)
            for t in range(most):
                gray += weights_x[x, t] * line[first_x[x] - left + t]
            team.array_at(to + x * task.right, (1,), np.uint8)[0] = np.uint8(gray)
    line[:1] = 0  # keeps it: numba frees an array after the last use of its name, and this one is used by its address
    weights_x[:1] = 0


@nb.njit(nogil=True, cache=CACHE)
def _reduction(task, box):
    """Eighths of the picture's size at which the box still is no smaller than its part of the slot: 8, 4, 2 or 1."""
    eighths = 8
    while eighths > 1 and box[2] * eighths >= 16 * task.tall and box[3] * eighths >= 16 * task.wide:
        eighths //= 2
    return eighths


@nb.njit(nogil=True, cache=CACHE)
def _span(start, length, size, new):
    """First and last pixel + 1 that the scaling of [start, start + length) to `new` pixels reads."""
    support = max(length / new, 1.0) + 1
    return max(0, int(np.floor(start - support))), min(size, int(np.ceil(start + length + support)))


@nb.njit(nogil=True, cache=CACHE)
def _decode(task, decoder_w, rows, channels):
    """Make one slot; what became of it, and the scratch memory, which may have grown."""
    content = team.array_at(task.data, (task.length,), np.uint8)
    if crc32(content) != task.crc:
        return DAMAGED, rows
    if task.length < 4 or content[0] != 0xFF or content[1] != 0xD8:
        return NOT_JPEG, rows
    height, width = libjpeg.open_picture(decoder_w, task.data, task.length)
    if height != task.height or width != task.width:
        libjpeg.close_picture(decoder_w)
        return NOT_JPEG, rows
    eighths = _reduction(task, task.box)
    box = task.box * (eighths / 8)
    height, width = -(-height * eighths // 8), -(-width * eighths // 8)
    top, bottom = _span(box[0], box[2], height, task.tall)
    left, right = _span(box[1], box[3], width, task.wide)
    # Two more columns: upsampled colour at the end of what is decoded lacks its neighbour.
    left, right = max(0, left - 2), min(width, right + 2)
    space = RGBX if channels == 3 else GRAY
    room = libjpeg.room_for(bottom - top, right - left, space)
    if room > rows.size:
        rows = np.empty(room, np.uint8)
    left, row_bytes = libjpeg.read_region(decoder_w, space, eighths, top, bottom, left, right, rows)
    if left < 0:
        return NOT_JPEG, rows
    _scale(task, rows, row_bytes, top, left, height, width, box, channels)
    return MADE, rows


@functools.cache
def kernel():
    """The pass over tasks, with one decoder for each piece of them.

    Words are the addresses of the tasks and of `libjpeg.functions()`, and the number of channels.
    """

    @nb.cfunc(team.KERNEL, cache=CACHE)
    def decode(first, last, words):
        tasks = team.array_at(words[0] + first * _TASK_BYTES, (last - first,), TASK)
        decoder_w = np.zeros(DECODER, np.int64)
        rows = np.empty(1 << 18, np.uint8)
        if libjpeg.set_up(decoder_w, words[1]):
            for b in range(last - first):
                status, rows = _decode(tasks[b], decoder_w, rows, words[2])
                tasks[b].status = status
        libjpeg.put_away(decoder_w)

    return decode


def decode(tasks_b: np.ndarray, channels: int, *, threads: int) -> None:
    """Make the slots of tasks, which then say what became of them.

    Addresses are followed as they are: the caller keeps what they lead to. Without a usable JPEG library nothing is
    made.

    Parameters
    ----------
    tasks_b : TASK [B]
    channels : 1 or 3
    threads : int
    """
    tasks_b["status"] = NOT_JPEG
    functions = libjpeg.functions()
    if functions is not None:
        words = (tasks_b.ctypes.data, functions.ctypes.data, channels)
        team.run(kernel(), len(tasks_b), words, threads=threads)
