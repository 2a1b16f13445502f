"""Launch sizes of the GPU kernels: pure functions of plain integers, pinned by a test."""

from __future__ import annotations

ORDER_BLOCK = 512  # positions per program
ORDER_WARPS = 4

IMAGE_BLOCK = 1024  # values of a plane per program: eight per thread, which are two stores of 16 bytes
IMAGE_WARPS = 4


def order_grid(count: int) -> int:
    """Number of programs for `count` rows of an order."""
    return -(-count // ORDER_BLOCK)


HARDNESS_TILE = 512  # minimum logits per program, in as many rows as needed
HARDNESS_BLOCK = 2048  # maximum classes of a row per program
HARDNESS_WARPS = 4
ACCUMULATE_BLOCK = 64  # rows
LABEL_BLOCK = 1024  # labels, or class weights, read at once by the single program that sums them


def hardness_tile(classes: int) -> tuple[int, int]:
    """Rows and classes of one program of the recording kernels: powers of two."""
    block = min(HARDNESS_BLOCK, 1 << (classes - 1).bit_length())
    return max(1, HARDNESS_TILE // block), block


def image_block(length: int) -> int:
    """Values per program, of a plane with `length` values (channels last: of an image): a power of two."""
    return min(IMAGE_BLOCK, max(32 * IMAGE_WARPS, 1 << (length - 1).bit_length()))


def image_grid(batch: int, length: int) -> int:
    """Number of programs for `batch` images whose planes (channels last: which themselves) have `length` values."""
    return batch * -(-length // image_block(length))
