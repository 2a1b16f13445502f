import io
import sys
from types import SimpleNamespace

import pytest

from hbr_fast import progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_progress_lines_give_rate_and_remaining_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 2.0)
    with progress.task("convert train", total=60_000, unit="images") as advance:
        clock.now += 1
        advance(5_000)
        assert capsys.readouterr().err == ""  # too early for a line
        clock.now += 4
        advance(5_000)
        # 5,000 since the first report, 4 s ago: 1,250 per second, so the other 50,000 take 40 s.
        line = "convert train: 10,000/60,000 images, 1,250 images/s, 40 s left\n"
        assert capsys.readouterr().err == line
        clock.now += 1
        advance(1_000)
        assert capsys.readouterr().err == ""  # the interval counts from the last line
        clock.now += 4
        advance(49_000)
        assert capsys.readouterr().err == ""  # the summary comes anyway
    captured = capsys.readouterr()
    assert captured.err == "convert train: 60,000 images in 10.0 s (6,000 images/s)\n"
    assert captured.out == ""


def test_progress_short_work_gives_one_line(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with progress.task("check", total=10, unit="files") as advance:
        for _ in range(10):
            clock.now += 0.05
            advance(1)
    captured = capsys.readouterr()
    assert captured.err == "check: 10 files in 0.5 s (20 files/s)\n"
    assert captured.out == ""


def test_progress_gives_bytes_where_they_are_told(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with progress.task("convert train", total=60, unit="images") as advance:
        clock.now += progress.PLAIN_INTERVAL_S
        advance(20, 30_000_000)
        clock.now += progress.PLAIN_INTERVAL_S
        advance(20, 50_000_000)
        clock.now += progress.PLAIN_INTERVAL_S
        advance(20, 40_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "convert train: 20/60 images",
        "convert train: 40/60 images, 2 images/s, 5.0 MB/s, 10 s left",
        "convert train: 60 images in 30.0 s (2 images/s, 4.0 MB/s)",
    ]


def test_progress_leaves_out_the_time_until_the_first_units(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with progress.task("train", total=1_000, unit="images") as advance:
        clock.now += 30  # processes start, kernels are compiled
        advance(10)
        assert capsys.readouterr().err == "train: 10/1,000 images\n"
        clock.now += 11
        advance(110)
        assert capsys.readouterr().err == "train: 120/1,000 images, 10 images/s, 88 s left\n"
        advance(880)


def test_progress_says_hours_of_long_work(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with progress.task("train", total=100_000, unit="images") as advance:
        advance(0)
        for _ in range(2):
            clock.now += 10
            advance(20)
        assert capsys.readouterr().err.endswith(", 2 images/s, 13 h 53 min left\n")
        advance(99_960)


def test_progress_failure_prints_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    def fail_halfway() -> None:
        with progress.task("convert", total=10, unit="images") as advance:
            advance(5)
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_halfway()
    assert capsys.readouterr().err == ""


def test_progress_advance_by_zero(clock: Clock) -> None:
    with progress.task("convert", total=10, unit="images") as advance:
        clock.now += progress.PLAIN_INTERVAL_S
        advance(0)


def test_progress_bar_on_terminal_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.task("training member 1", total=4, unit="epochs") as advance:
        for _ in range(4):
            advance(1)
    assert "training member 1" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()  # drawn in place
    assert capsys.readouterr().out == ""


def test_say_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("opening cifar10.hbr")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "opening cifar10.hbr\n")
