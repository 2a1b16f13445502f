"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output stays for results.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]

PLAIN_INTERVAL_S = 10.0  # log files need a sign of life, not a flood


def say(line: str) -> None:
    """Print one status line to standard error."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def task(description: str, *, total: int, unit: str) -> Iterator[Advance]:
    """Show the progress of `total` units of work; the block calls the yielded function with the units just done.

    Examples
    --------
    >>> with task("convert train", total=60_000, unit="images") as advance:  # doctest: +SKIP
    ...     advance(512)
    """
    if sys.stderr.isatty():
        with _bar(description, total=total, unit=unit) as advance:
            yield advance
    else:
        with _lines(description, total=total, unit=unit) as advance:
            yield advance


@contextlib.contextmanager
def _bar(description: str, *, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "", style="cyan")

    columns = (TextColumn("{task.description}"), BarColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        handle = progress.add_task(description, total=total)
        yield lambda units: progress.advance(handle, units)


@contextlib.contextmanager
def _lines(description: str, *, total: int, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(units: int) -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_S and 0 < done < total:
            last = now
            rate = done / (now - start)
            say(f"{description}: {done:,}/{total:,} {unit}, {rate:,.0f} {unit}/s, {(total - done) / rate:,.0f} s left")

    yield advance
    seconds = time.monotonic() - start
    say(f"{description}: {done:,} {unit} in {seconds:.1f} s ({done / max(seconds, 1e-9):,.0f} {unit}/s)")
