"""Launch sizes of the GPU kernels: pure functions of plain integers, pinned by a test."""

from __future__ import annotations

ORDER_BLOCK = 512  # positions a program works on
ORDER_WARPS = 4


def order_grid(count: int) -> int:
    """Programs that make `count` rows of an order."""
    return -(-count // ORDER_BLOCK)
