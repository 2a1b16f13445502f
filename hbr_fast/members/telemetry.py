"""Progress of trainings while they run: a live table on a terminal, plain lines elsewhere, TensorBoard.

Everything goes to standard error or to files; the numbers of finished epochs also end up in a member's `history.csv`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hbr_fast import progress
from hbr_fast.training.state import EpochRecord

if TYPE_CHECKING:
    from rich.table import Table

OnEpoch = Callable[[EpochRecord], None]

LINES = 16  # members shown at most; the caption counts all
REFRESH_PER_SECOND = 2
FORECAST_AFTER_S = 10.0  # the first batches are slower
LONG_S = 3600.0


@dataclass
class MemberLine:
    """Progress of one member.

    Attributes
    ----------
    number : int
        Of the member in its ensemble.
    rows, epochs : int
        Of its whole training.
    done : int
        Rows trained so far, also those of an earlier run.
    record : EpochRecord, optional
        The last finished epoch.
    began : (float, int), optional
        When it reported first in this run, and the rows done then.
    """

    number: int
    rows: int
    epochs: int
    done: int = 0
    record: EpochRecord | None = None
    began: tuple[float, int] | None = None

    def rate(self, now: float) -> float:
        """Images per second in this run; 0 while unknown."""
        if self.began is None or now <= self.began[0]:
            return 0.0
        return (self.done - self.began[1]) / (now - self.began[0])


@dataclass(frozen=True)
class Outlook:
    """What follows the trainings at hand.

    Attributes
    ----------
    rows : int
        Images that the trainings after these pass through the network.
    advice : str
        What to add to the forecast of more than an hour, e.g. how to make it shorter.
    """

    rows: int = 0
    advice: str = ""


ALONE = Outlook()


class Board:
    """Takes what members report, from any thread.

    Parameters
    ----------
    lines : sequence of MemberLine
    advance : callable, optional
        Called with the number of rows just trained, by any member.
    forecast : callable, optional
        Called once with the images per second of all members, when that has been measured for a while.
    """

    def __init__(
        self,
        lines: Sequence[MemberLine],
        advance: progress.Advance | None = None,
        forecast: Callable[[float], None] | None = None,
    ) -> None:
        self._lines, self._advance, self._forecast = lines, advance, forecast
        self._done, self._start = 0, time.monotonic()
        self._lock = threading.Lock()

    def advance(self, rows: int, *, place: int | None = None) -> None:
        """Count trained rows, for the member at that index of the lines if it is known."""
        with self._lock:
            self._done += rows
            if place is not None:
                line = self._lines[place]
                line.done += rows
                if line.began is None:
                    line.began = (time.monotonic(), line.done)
            if self._advance is not None:
                self._advance(rows)
            self._foretell()

    def _foretell(self) -> None:
        began = [line.began[0] for line in self._lines if line.began is not None]
        if self._forecast is None or not began or (now := time.monotonic()) < min(began) + FORECAST_AFTER_S:
            return
        if rate := sum(line.rate(now) for line in self._lines):
            self._forecast(rate)
            self._forecast = None

    def epoch(self, record: EpochRecord, *, place: int) -> None:
        """Record that a member finished an epoch."""
        with self._lock:
            self._lines[place].record = record

    def table(self, title: str) -> Table:
        """Members that train now, or did last, one per line, with totals below."""
        from rich.table import Table

        with self._lock:
            now = time.monotonic()
            table = Table(title=title, title_justify="left", caption=self._caption(now), caption_justify="left")
            for column in ("member", "epoch", "images/s", "loss", "accuracy", "remaining"):
                table.add_column(column, justify="right")
            gpu = any(line.record is not None and line.record.gpu_memory_mb is not None for line in self._lines)
            if gpu:
                table.add_column("GPU memory", justify="right")
                table.add_column("GPU use", justify="right")
            begun = [line for line in self._lines if line.began is not None]
            begun.sort(key=lambda line: (line.done < line.rows, line.number))
            for line in begun[-LINES:]:
                table.add_row(*_cells(line, now), *(_gpu_cells(line.record) if gpu else ()))
        return table

    def _caption(self, now: float) -> str:
        total = sum(line.rows for line in self._lines)
        rate = self._done / max(now - self._start, 1e-9)
        finished = sum(line.done >= line.rows for line in self._lines)
        left = _duration((total - self._done) / rate) if rate else "?"
        members = progress.counted(len(self._lines), "member")
        images = f"{self._done:,} of {total:,} images, {rate:,.0f} images/s"
        return f"{finished} of {members} finished, {images}, {left} left"


def _cells(line: MemberLine, now: float) -> tuple[str, ...]:
    rate, record = line.rate(now), line.record
    epochs = min(line.epochs, line.done * line.epochs // line.rows)
    return (
        str(line.number),
        f"{epochs}/{line.epochs}",
        f"{rate:,.0f}" if rate else "",
        f"{record.train_loss:.4f}" if record else "",
        f"{record.train_accuracy:.4f}" if record else "",
        "done" if line.done >= line.rows else _duration((line.rows - line.done) / rate) if rate else "",
    )


def _gpu_cells(record: EpochRecord | None) -> tuple[str, str]:
    if record is None or record.gpu_memory_mb is None:
        return "", ""
    use = "" if record.gpu_utilisation is None else f"{record.gpu_utilisation:.0f} %"
    return f"{record.gpu_memory_mb:,.0f} MB", use


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


@contextlib.contextmanager
def board(title: str, lines: Sequence[MemberLine], outlook: Outlook = ALONE) -> Iterator[Board]:
    """A board that shows a live table on a terminal, and a plain line from time to time elsewhere."""
    total = sum(line.rows for line in lines)

    def forecast(rate: float) -> None:
        done = sum(line.began[1] for line in lines if line.began is not None)  # in an earlier run
        if (seconds := (total - done + outlook.rows) / rate) > LONG_S:
            hours, minutes = divmod(round(seconds / 60), 60)
            whole = "these trainings and those that follow take" if outlook.rows else "these trainings take"
            progress.say(f"{title}: {whole} about {hours:,} h {minutes:02} min{outlook.advice}")

    if not sys.stderr.isatty():
        with progress.task(title, total=sum(line.rows for line in lines), unit="images") as advance:
            yield Board(lines, advance, forecast)
        return
    from rich.console import Console
    from rich.live import Live

    shown = Board(lines, forecast=forecast)
    with Live(
        get_renderable=lambda: shown.table(title),
        console=Console(stderr=True),
        refresh_per_second=REFRESH_PER_SECOND,
    ):
        yield shown


def require_tensorboard() -> None:
    """Raise if TensorBoard's writer is not installed.

    Raises
    ------
    ImportError
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise ImportError("writing for TensorBoard needs it: pip install 'hbr-fast[tensorboard]'") from None


@contextlib.contextmanager
def events(directory: Path) -> Iterator[OnEpoch]:
    """Write the numbers of a training's epochs for TensorBoard into its own directory."""
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None

    def write(record: EpochRecord) -> None:
        nonlocal writer
        if writer is None:  # drop what an earlier run wrote about epochs that are trained again
            writer = SummaryWriter(str(directory), purge_step=record.epoch)
        for name, value in (
            ("loss", record.train_loss),
            ("accuracy", record.train_accuracy),
            ("learning_rate", record.learning_rate),
            ("images_per_second", record.images_per_second),
            ("gpu_memory_mb", record.gpu_memory_mb),
            ("gpu_utilisation", record.gpu_utilisation),
        ):
            if value is not None:
                writer.add_scalar(f"train/{name}", value, record.epoch)
        writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
