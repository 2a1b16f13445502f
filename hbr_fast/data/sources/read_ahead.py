"""Files are read and decoded by threads, ahead of who uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from hbr_fast.machine import usable_cpus

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_ahead(
    work: Callable[..., _Result], items: Sequence[_Item], rows: int, begin: int = 0, out: np.ndarray | None = None
) -> Iterator[list[_Result]]:
    """Results in order, `rows` at a time, over threads: Pillow decodes without holding the interpreter lock.

    The next chunk is processed while the current one is used. `out` has places for two chunks, which each result may
    fill: they take turns.
    """

    def results(some: Sequence[_Item], first: int) -> list[_Result]:
        if out is None:
            return [work(item) for item in some]
        return [work(item, out=out[(first + n) % len(out)]) for n, item in enumerate(some)]

    workers = usable_cpus()
    step = max(1, rows // (4 * workers))
    with ThreadPoolExecutor(workers) as pool:
        waiting = None
        for start in range(begin, len(items), rows):
            chunk = items[start : start + rows]
            submitted = [
                pool.submit(results, chunk[at : at + step], start - begin + at) for at in range(0, len(chunk), step)
            ]
            if waiting is not None:
                yield [result for future in waiting for result in future.result()]
            waiting = submitted
        if waiting is not None:
            yield [result for future in waiting for result in future.result()]
