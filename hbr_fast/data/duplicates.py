"""Repeated pictures that spoil a result: in two splits, or under two labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

EXAMPLES = 10  # pairs listed individually


class PictureHashes:
    """64-bit hashes of pictures, collected block by block, 8 bytes per picture.

    Equal hashes only suggest equal pixels: `repeated_pictures` compares the pixels themselves.
    """

    def __init__(self, pixels: int) -> None:
        weights = np.random.Philox(key=0).random_raw(-(-pixels // 8))
        self._weights = weights | np.uint64(1)
        self._hashes: list[np.ndarray] = []

    def add(self, block_nchw: np.ndarray) -> None:
        """Hash a contiguous uint8 block [B, C, H, W]."""
        rows = block_nchw.reshape(len(block_nchw), -1)
        if rows.shape[1] % 8:
            rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
        self._hashes.append(rows.view(np.uint64) @ self._weights)  # modulo 2**64; odd weights preserve every difference

    def values(self) -> np.ndarray:
        """uint64 [N], in the order of the pictures."""
        return np.concatenate(self._hashes) if self._hashes else np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True)
class _Row:
    split: str
    row: int
    label: int


def repeated_pictures(
    hashes: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    pixels_of: Callable[[str, int], np.ndarray],
) -> Iterator[tuple[str, int, str, int]]:
    """Pairs (split, row, split, row) of equal pictures in two splits, or in one split under two labels.

    If a picture occurs many times, every occurrence is paired with the first one only.
    """
    names = list(hashes)
    every = np.concatenate([hashes[name] for name in names])
    order = np.argsort(every, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(every[order]) != 0])
    lengths = np.diff(np.r_[starts, len(order)])
    offsets = np.cumsum([0, *(len(hashes[name]) for name in names)])

    def row_of(position: int) -> _Row:
        index = int(np.searchsorted(offsets, position, side="right")) - 1
        row = int(position - offsets[index])
        return _Row(names[index], row, int(labels[names[index]][row]))

    for start, length in sorted(
        zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True), key=lambda run: order[run[0]]
    ):
        group = [row_of(position) for position in order[start : start + length]]
        if len({(row.split, row.label) for row in group}) == 1:
            continue
        first = group[0]
        pixels = pixels_of(first.split, first.row)
        for other in group[1:]:
            if (other.split, other.label) != (first.split, first.label) and np.array_equal(
                pixels, pixels_of(other.split, other.row)
            ):
                yield first.split, first.row, other.split, other.row


def notes_on_repeated(
    pairs: Iterator[tuple[str, int, str, int]],
    labels: Mapping[str, np.ndarray],
    classes: Sequence[str],
    name_of: Callable[[str, int], str],
) -> list[str]:
    """Lines for the user: how many pictures are repeated across splits and across labels, with the first few pairs."""
    across: list[str] = []
    contradicting: list[str] = []
    counts = [0, 0]
    for split, row, other_split, other_row in pairs:
        label, other_label = int(labels[split][row]), int(labels[other_split][other_row])
        pair = f"{name_of(split, row)} and {name_of(other_split, other_row)}"
        if split != other_split:
            counts[0] += 1
            across += [pair] if len(across) < EXAMPLES else []
        if label != other_label:
            counts[1] += 1
            pair += f" ({classes[label]} and {classes[other_label]})"
            contradicting += [pair] if len(contradicting) < EXAMPLES else []
    lines = []
    for count, examples, what in (
        (counts[0], across, "the same picture is in two splits, so results will look too good"),
        (counts[1], contradicting, "the same picture has two labels"),
    ):
        if count:
            more = f"; and {count - len(examples):,} more" if count > len(examples) else ""
            lines.append(f"{what} ({count:,} {'pair' if count == 1 else 'pairs'}): {'; '.join(examples)}{more}")
    return lines
