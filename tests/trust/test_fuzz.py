"""Mutated files of every format end in one right way; `scripts/fuzz.py` tries many more."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from . import fuzzing
from .targets.target import Target


def test_fuzz_finds_nothing(tmp_path: Path) -> None:
    """500 cases; over 5 s because importing torch under a memory limit takes most of it."""
    results = fuzzing.run(tmp_path, 500)
    assert results.bad == []
    totals = results.totals()
    assert sum(totals.values()) == 500
    assert totals["refused"] > 250


def test_pipes_in_place_of_files(tmp_path: Path) -> None:
    """Opening one waits for a writer: each is refused by name, or passed over where pictures are looked for."""
    # Not at a URL, where the server would wait; nor shards of a conversion, which the example copies first.
    names = [name for name in fuzzing.TARGETS if "URL" not in name and name != "unfinished shards"]
    files = fuzzing.examples(tmp_path, names)
    cases = [fuzzing.Case(name, file, fuzzing.FIFO) for name in names for file in files[name]]
    assert len(cases) > 100
    results = fuzzing.run_cases(tmp_path, names, cases)
    assert results.bad == []
    assert {target for (target, kind) in results.counts if kind == "changed"} <= {"pictures"}


def test_mutated_is_repeatable_and_changes_files() -> None:
    content, other = bytes(range(256)) * 4, b'{"a": 1}'
    made = [fuzzing.mutated(content, other, random.Random(seed)) for seed in range(50)]
    assert made == [fuzzing.mutated(content, other, random.Random(seed)) for seed in range(50)]
    assert sum(one != content for one in made) > 45
    for seed in range(50):
        fuzzing.mutated(b"", b"", random.Random(seed))


READERS: dict[str, Callable[[Path], object]] = {
    "silent": lambda path: None,
    "wrong exception": lambda path: dict[str, int]()["x"],
    "unnamed": lambda path: int("x"),
    "memory": lambda path: bytearray(1 << 62),
}


@pytest.mark.parametrize("kind", READERS)
def test_outcome_of_bad_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The fuzzer is able to fail: each kind of bad reader is found."""

    def read(path: Path) -> object:
        return "right" if (path / "file-1").read_bytes() == b"content" else READERS[kind](path)

    monkeypatch.setitem(fuzzing.TARGETS, "t", Target("t", lambda path: None, read, sealed=True))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file-1").write_text("content")
    outcome, _ = fuzzing._outcome(fuzzing.Case("t", "file-1", 1), tmp_path / "in", fuzzing.content_of("right"))
    assert outcome == kind
    assert (tmp_path / "in" / "file-1").read_text() == "content"


@pytest.mark.parametrize(("does", "kind"), [("sys.stdin.readline(); os.abort()", "crash"), ("time.sleep(600)", "hang")])
def test_reader_that_dies_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, kind: str) -> None:
    reader = fuzzing._Reader(tmp_path, program=f"import os, sys, time; print('ready', flush=True); {does}")
    monkeypatch.setattr(fuzzing, "WATCHDOG_S", 240.0 if kind == "crash" else 0.2)
    try:
        assert reader.outcome(fuzzing.Case("t", "a", 1))[0] == kind
    finally:
        reader.end()
