"""A fuzzer for every file format that the package reads: mutated files in processes with bounded memory and time.

A target (`targets/`) writes a whole example of a format and reads it. A case is (target, file, number): the mutation is
a function of these, so that the same seed repeats it. A reading process takes cases in turn and is replaced when it
crashes or hangs.

Outcomes:

refused     a ValueError or OSError of one line that names the file or its directory
unchanged   accepted, with the content of the original
changed     accepted with other content; allowed only for formats without a checksum, where no reader can tell
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast import progress

from .attempts import ROOT
from .mutations import mutated
from .targets import TARGETS

RIGHT = ("ValueError", "FileNotFoundError", "FileExistsError", "BadPicture")
BAD = ("unnamed", "several lines", "wrong exception", "silent", "memory", "hang", "crash")
MEMORY = 1 << 30  # addresses beyond those of the imported libraries
FIFO = -1  # a case's number: the file is replaced by a pipe that nobody writes to
WATCHDOG_S = 60.0  # only against hangs: a case takes milliseconds


@dataclasses.dataclass(frozen=True)
class Case:
    """A mutation of one file of a target."""

    target: str
    file: str
    number: int


def content_of(value: Any) -> str:
    """A hash of nested values, arrays and tensors."""
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        for name in sorted(value, key=str):
            yield f"{name}:".encode(errors="replace")
            yield from _parts(value[name])
    elif isinstance(value, list | tuple):
        yield f"{len(value)}[".encode()
        for one in value:
            yield from _parts(one)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        yield array.tobytes()
    else:
        yield repr(value).encode(errors="replace")


def examples(directory: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Write an example of each target into its own directory; the files of each, relative to it."""
    files = {}
    for number, name in enumerate(names):
        place = directory / str(number) / "in"
        place.mkdir(parents=True)
        TARGETS[name].write(place)
        found = (path for path in place.rglob(TARGETS[name].changed) if path.is_file())
        files[name] = sorted(str(path.relative_to(place)) for path in found)
    return files


def cases(files: dict[str, list[str]], count: int, *, seed: int) -> list[Case]:
    """As many cases, spread evenly over the targets and then over their files."""
    names = list(files)
    return [
        Case(name, files[name][number // len(names) % len(files[name])], seed * 1_000_000 + number)
        for number in range(count)
        for name in [names[number % len(names)]]
    ]


def read_cases(directory: str, names: list[str]) -> None:
    """The reading process: a case on each line of input, its outcome on each line of output."""
    import resource

    import hbr_fast.members.ensemble
    import hbr_fast.report.tables

    del hbr_fast
    places = {name: Path(directory) / str(number) / "in" for number, name in enumerate(names)}
    right = {name: content_of(TARGETS[name].read(place)) for name, place in places.items()}
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    print("ready", file=answers)
    for line in sys.stdin:
        case = Case(**json.loads(line))
        print(json.dumps(_outcome(case, places[case.target], right[case.target])), file=answers)


def _outcome(case: Case, place: Path, right: str) -> tuple[str, str]:
    path, target = place / case.file, TARGETS[case.target]
    before = path.read_bytes()
    rng = random.Random(f"{case.target} {case.file} {case.number}")
    other = sorted(one for one in place.rglob("*") if one.is_file())
    if case.number == FIFO:
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(mutated(before, rng.choice(other).read_bytes(), rng))
    try:
        found = content_of(target.read(place))
    except MemoryError as error:
        return "memory", repr(error)[:300]
    except BaseException as error:
        return _kind_of(error, case), f"{type(error).__name__}: {error}"[:300]
    finally:
        if case.number == FIFO:
            path.unlink(missing_ok=True)
        path.write_bytes(before)
    if found == right:
        return "unchanged", ""
    return ("silent" if target.sealed else "changed"), ""


def _kind_of(error: BaseException, case: Case) -> str:
    message = str(error)
    if type(error).__name__ not in RIGHT:
        return "wrong exception"
    if "\n" in message:
        return "several lines"
    named = Path(case.file).name in message or "/in" in message
    return "refused" if named else "unnamed"


@dataclasses.dataclass
class Results:
    """How many cases of each target ended how, and those that ended badly."""

    counts: Counter[tuple[str, str]]
    bad: list[tuple[Case, str, str]]

    def totals(self) -> dict[str, int]:
        """Cases by outcome."""
        totals: Counter[str] = Counter()
        for (_, kind), count in self.counts.items():
            totals[kind] += count
        return {kind: totals[kind] for kind in ("refused", "unchanged", "changed", *BAD)}


def run(directory: Path, count: int, *, seed: int = 0, names: Iterable[str] | None = None) -> Results:
    """Write examples into an empty directory and try this many mutations of them."""
    chosen = list(TARGETS if names is None else names)
    return run_cases(directory, chosen, cases(examples(directory, chosen), count, seed=seed))


def run_cases(directory: Path, chosen: list[str], todo: list[Case]) -> Results:
    """Try these cases of the examples of `chosen` targets in a directory."""
    places = {name: directory / str(number) / "in" for number, name in enumerate(chosen)}
    whole = {name: shutil.copytree(place, place.parent / "whole") for name, place in places.items()}
    results = Results(Counter(), [])
    with progress.task("fuzz", total=len(todo), unit="cases") as advance:
        while todo:
            program = f"from trust.fuzzing import read_cases; read_cases({str(directory)!r}, {chosen!r})"
            reader = _Reader(directory, program=program)
            try:
                while todo:
                    case = todo.pop(0)
                    kind, message = reader.outcome(case)
                    advance(1)
                    results.counts[case.target, kind] += 1
                    if kind in BAD:
                        results.bad.append((case, kind, message))
                    if kind in ("hang", "crash"):
                        shutil.rmtree(places[case.target])  # left as mutated
                        shutil.copytree(whole[case.target], places[case.target])
                        break
            finally:
                reader.end()
    return results


class _Reader:
    """A process that reads mutated files."""

    def __init__(self, directory: Path, *, program: str) -> None:
        paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._said = directory / "stderr"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said.open("wb"),
            text=True,
            env=environment,
            cwd=directory,
        )
        started = self._line(10 * WATCHDOG_S)
        assert started == "ready\n", f"the reader did not start: {self._said.read_text()[-2000:]}"

    def outcome(self, case: Case) -> tuple[str, str]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(case)) + "\n")
        self._process.stdin.flush()
        line = self._line(WATCHDOG_S)
        if line is None:
            return "hang", f"no answer within {WATCHDOG_S} s"
        if not line:
            return "crash", f"exit code {self._process.wait()}"
        kind, message = json.loads(line)
        return kind, message

    def _line(self, seconds: float) -> str | None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
