"""Launch sizes of the GPU kernels: pure functions of plain integers, pinned by a test."""

from __future__ import annotations

ORDER_BLOCK = 512  # positions a program works on
ORDER_WARPS = 4

IMAGE_BLOCK = 1024  # values of a plane a program works on: eight a thread, two stores of 16 bytes
IMAGE_WARPS = 4


def order_grid(count: int) -> int:
    """Programs that make `count` rows of an order."""
    return -(-count // ORDER_BLOCK)


HARDNESS_TILE = 512  # logits a program holds at least, in as many rows as that takes
HARDNESS_BLOCK = 2048  # classes a program holds of a row at most
HARDNESS_WARPS = 4
ACCUMULATE_BLOCK = 64  # rows
LABEL_BLOCK = 1024  # labels, or class weights, that the one program summing them reads at once


def hardness_tile(classes: int) -> tuple[int, int]:
    """Rows and classes that one program of recording holds: powers of two."""
    block = min(HARDNESS_BLOCK, 1 << (classes - 1).bit_length())
    return max(1, HARDNESS_TILE // block), block


def image_block(length: int) -> int:
    """Values that one program makes of a plane (channels last: of an image) of `length`: a power of two."""
    return min(IMAGE_BLOCK, max(32 * IMAGE_WARPS, 1 << (length - 1).bit_length()))


def image_grid(batch: int, length: int) -> int:
    """Programs that make `batch` images whose planes (channels last: which) have `length` values."""
    return batch * -(-length // image_block(length))
