"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output stays for results.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

Advance = Callable[[int], None]


class AdvanceBytes(Protocol):
    """Called with the units just done and, where that says more, the bytes in them."""

    def __call__(self, units: int, size: int = 0, /) -> None: ...


PLAIN_INTERVAL_S = 10.0  # log files need a sign of life, not a flood


_words: Callable[[str], str] = str


@contextlib.contextmanager
def spoken(words: Callable[[str], str]) -> Iterator[None]:
    """Within the block, status lines are said in these words: the command line's, where it calls the library."""
    global _words
    before, _words = _words, words
    try:
        yield
    finally:
        _words = before


def in_words(line: str) -> str:
    """The line as `say` would say it."""
    return _words(line)


def say(line: str) -> None:
    """Print one status line to standard error; names in it may come from files of others."""
    print(printable(in_words(line)), file=sys.stderr, flush=True)


@contextlib.contextmanager
def task(description: str, *, total: int, unit: str) -> Iterator[AdvanceBytes]:
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
def _bar(description: str, *, total: int, unit: str) -> Iterator[AdvanceBytes]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    sizes = 0

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed, seconds = task.finished_speed or task.speed, task.elapsed
            return Text(_rate(speed, unit, sizes / seconds if seconds else 0) if speed else "", style="cyan")

    columns = (TextColumn("{task.description}"), BarColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        handle = progress.add_task(description, total=total)

        def advance(units: int, size: int = 0, /) -> None:
            nonlocal sizes
            sizes += size
            progress.advance(handle, units)

        yield advance


@contextlib.contextmanager
def _lines(description: str, *, total: int, unit: str) -> Iterator[AdvanceBytes]:
    start = last = time.monotonic()
    first: tuple[float, int, int] | None = None  # time, units and bytes at the first report, after starting up
    done = sizes = 0

    def advance(units: int, size: int = 0, /) -> None:
        nonlocal done, first, last, sizes
        done, sizes = done + units, sizes + size
        now = time.monotonic()
        if first is None and units:
            first = now, done, sizes
        if now - last >= PLAIN_INTERVAL_S and first is not None and done < total:
            last = now
            seconds, units_since, size_since = now - first[0], done - first[1], sizes - first[2]
            rates = ""
            if units_since and seconds:
                left = seconds * (total - done) / units_since
                rates = f", {_rate(units_since / seconds, unit, size_since / seconds)}, {duration(left)} left"
            say(f"{description}: {done:,}/{total:,} {unit}{rates}")

    yield advance
    seconds = time.monotonic() - start
    rates = _rate(done / max(seconds, 1e-9), unit, sizes / max(seconds, 1e-9))
    say(f"{description}: {done:,} {unit} in {seconds:.1f} s ({rates})")


def _rate(units: float, unit: str, size: float) -> str:
    """Per second."""
    return f"{units:,.0f} {unit}/s" + (f", {size / 1e6:,.1f} MB/s" if size else "")


def duration(seconds: float) -> str:
    """A time in words: seconds up to two hours, then hours and minutes.

    Examples
    --------
    >>> duration(5400), duration(41_341)
    ('5,400 s', '11 h 29 min')
    """
    if seconds < 2 * 3600:
        return f"{seconds:,.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02} min"


def counted(number: int, unit: str) -> str:
    """A number of things whose plural ends in s.

    Examples
    --------
    >>> counted(1, "member"), counted(1000, "member")
    ('1 member', '1,000 members')
    """
    return f"{number:,} {unit}" + ("" if number == 1 else "s")


def printable(source: str) -> str:
    r"""Text for display: anything unprintable, as line breaks and a terminal's commands are, is escaped.

    Examples
    --------
    >>> printable("cats/one\ntwo.png"), printable("b\udcff.png")
    ('cats/one\\ntwo.png', 'b\\xff.png')
    """
    if source.isprintable():
        return source
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in source)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")
