import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hbr_fast.data.dataset import Dataset
from hbr_fast.members import telemetry
from hbr_fast.members.ensemble import train_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.members.telemetry import Board, MemberLine, board
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.state import EpochRecord


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(epoch: int, loss: float, memory: float | None = None) -> EpochRecord:
    return EpochRecord(epoch, 0.1, loss, 0.25, 1.0, 100.0, memory, None if memory is None else 97.0)


def cells(shown: Board) -> list[list[str]]:
    """Lines of the table, without the head."""
    return [list(line) for line in zip(*(column.cells for column in shown.table("title").columns), strict=True)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_telemetry_line_shows_member_progress(clock: SimpleNamespace) -> None:
    shown = Board([MemberLine(4, rows=1000, epochs=10), MemberLine(7, rows=1000, epochs=10), MemberLine(9, 1000, 10)])
    assert cells(shown) == [], "nothing has begun"
    shown.advance(500, place=0)  # restored from a checkpoint: does not count for this run's speed
    clock.now += 2
    shown.advance(100, place=0)
    shown.epoch(record(5, 1.25), place=0)
    shown.advance(10, place=1)
    # 100 images in 2 s: 50 a second; 400 to go.
    assert cells(shown) == [["4", "6/10", "50", "1.2500", "0.2500", "0:00:08"], ["7", "0/10", "", "", "", ""]]
    assert shown.table("title").caption == "0 of 3 members finished, 610 of 3,000 images, 305 images/s, 0:00:08 left"
    shown.advance(400, place=0)
    assert ["4", "10/10", "250", "1.2500", "0.2500", "done"] in cells(shown)


def test_telemetry_shows_gpu_columns_only_with_a_gpu() -> None:
    shown = Board([MemberLine(0, rows=10, epochs=1), MemberLine(1, rows=10, epochs=1)])
    for place in (0, 1):
        shown.advance(5, place=place)
    assert len(cells(shown)[0]) == 6
    shown.epoch(record(0, 1.0, memory=1234.4), place=1)
    assert [line[6:] for line in cells(shown)] == [["", ""], ["1,234 MB", "97 %"]]


def test_telemetry_counts_rows_without_a_member(clock: SimpleNamespace) -> None:
    shown = Board([MemberLine(0, rows=10, epochs=1)])
    clock.now += 1
    shown.advance(5)
    assert cells(shown) == []
    assert "5 of 10 images, 5 images/s, 0:00:01 left" in str(shown.table("title").caption)


def test_telemetry_limits_lines_for_many_members() -> None:
    shown = Board([MemberLine(number, rows=10, epochs=1) for number in range(40)])
    for place in range(40):
        shown.advance(10 if place % 2 else 5, place=place)
    numbers = [int(line[0]) for line in cells(shown)]
    assert len(numbers) == telemetry.LINES
    assert all(number % 2 == 0 for number in numbers), "those in training come first"


@pytest.mark.parametrize("at_once", [1, 2])
def test_telemetry_writes_table_to_terminal_and_history_to_tensorboard(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    ensemble = train_ensemble(tiny, recipe, members=2, out=tmp_path, execution=Execution(at_once, tensorboard=True))
    last = terminal.getvalue().rpartition("train: 2 members")[2]
    assert "2 of 2 members finished, 480 of 480 images" in last
    for member in ensemble.members:
        history = member.history()
        assert f"{history['train_loss'][-1]:.4f}" in last
        read = EventAccumulator(str(tmp_path / "tensorboard" / member.key)).Reload()
        for tag, column in (("loss", "train_loss"), ("accuracy", "train_accuracy"), ("learning_rate", "learning_rate")):
            found = read.Scalars(f"train/{tag}")
            assert [event.step for event in found] == [0, 1]
            assert [event.value for event in found] == pytest.approx(history[column].to_list())
        assert "train/gpu_memory_mb" not in read.Tags()["scalars"]


def test_telemetry_writes_plain_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with board("train: 1 member", [MemberLine(0, rows=10, epochs=1)]) as shown:
        shown.advance(10, place=0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: 1 member: 10 images in")


def test_telemetry_tensorboard_missing_extra(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'hbr-fast\[tensorboard\]'"):
        train_ensemble(tiny, recipe, members=1, out=tmp_path, execution=Execution(tensorboard=True))
    assert not list(tmp_path.glob("members/*"))


@pytest.mark.parametrize(
    ("outlook", "said"),
    [
        (telemetry.ALONE, "a: these trainings take about 2 h 47 min\n"),
        (telemetry.Outlook(100_000, ": how"), "a: these trainings and those that follow take about 5 h 33 min: how\n"),
    ],
)
def test_hours_are_foretold_once_from_the_first_seconds(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str], outlook: telemetry.Outlook, said: str
) -> None:
    with telemetry.board("a", [MemberLine(0, rows=150_000, epochs=10)], outlook) as shown:
        shown.advance(50_000, place=0)  # restored from a checkpoint
        clock.now += telemetry.FORECAST_AFTER_S - 1
        shown.advance(10, place=0)
        assert capsys.readouterr().err == ""
        clock.now += 1
        shown.advance(90, place=0)  # 100 images in 10 s: 10 a second
        assert capsys.readouterr().err == said
        clock.now += 5
        shown.advance(10, place=0)
        assert capsys.readouterr().err == ""


def test_less_than_an_hour_is_not_foretold(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with telemetry.board("a", [MemberLine(0, rows=36_000, epochs=10)], telemetry.ALONE) as shown:
        shown.advance(1, place=0)
        clock.now += 10
        shown.advance(101, place=0)
        assert capsys.readouterr().err == ""
