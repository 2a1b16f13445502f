"""Kill commands at their steps, run them again, and compare with a run that nobody disturbed.

A step is an event of Python's audit hooks that concerns a file in the working directory: opening one to write, renames,
removals, new directories, links. The process kills itself just before step N, which needs no clock: the same N is the
same moment on any machine, and every gap between two steps can be chosen. The commands run in forks of this process,
which has imported everything. Their temporary files are in the working directory, too.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from photographs import write_photographs

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
SMALL = ["--set", "model=cnn-4-8", "epochs=2", "batch_size=20", "augment.flip=0", "augment.pad=0", "precision=float32"]
ONE = ["--members-at-once", "1"]
# Fields and columns that hold times; everything else must be equal.
TIMES = {"seconds", "images_per_second", "train_seconds", "sha256", "files", "gpu_memory_mb", "gpu_utilisation"}
PHOTOS = "photos"
SHARD_BYTES = 8000  # of a few photographs, so that a conversion has several
TEMPORARY = "temporary"
PRIVATE = f"{TEMPORARY}/hbr-fast-{os.getuid()}"
CHECKED = "checked-files.json"  # there; depends on how old files were when they were checked, so it is left out
BYSTANDERS = {"notes.txt": b"mine", ".hidden": b"mine too", ".other.partial": b"of another program"}


@dataclass(frozen=True)
class Command:
    """A command line in a working directory, and what must be there before: other commands, by name.

    A heavy command draws a report and is killed half as often. Some need a `module` that may not be installed.
    """

    name: str
    words: tuple[str, ...]
    heavy: bool = False
    needs: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    module: str | None = None

    def is_possible(self) -> bool:
        """Whether the module is installed."""
        return self.module is None or importlib.util.find_spec(self.module) is not None


_CONVERT = ("convert", "synthetic", "a.hbr", "--classes", "2", "--train-per-class", "30", "--test-per-class", "5")
_SHAPE = ("--seed", "1")

COMMANDS = {
    command.name: command
    for command in (
        Command("convert", (*_CONVERT, *_SHAPE), again=("--force",)),
        Command("convert again", (*_CONVERT, "--seed", "2", "--force"), needs=("convert",)),
        Command(
            "convert encoded",
            ("convert", "folder", "p.hbr", "--root", PHOTOS, "--store", "encoded"),
            again=("--force",),
        ),
        Command(
            "convert to beton",
            (*_CONVERT, *_SHAPE, "--formats", "beton"),
            again=("--force",),
            module="ffcv",
        ),
        Command("train", ("train", "a.hbr", "run", "--members", "2", *ONE, *SMALL), needs=("convert",)),
        Command(
            "train with checkpoints",
            ("train", "a.hbr", "run", "--members", "1", "--checkpoint-every-epochs", "1", *ONE, *SMALL),
            needs=("convert",),
        ),
        Command(
            "study",
            (
                "study",
                "quickstart",
                "--dataset",
                "a.hbr",
                "--out",
                "st",
                "--members",
                "1",
                "--nonpositive",
                "shift",
                *ONE,
                *SMALL,
            ),
            heavy=True,
            needs=("convert",),
        ),
        Command("report", ("report", "st"), heavy=True, needs=("convert", "study")),
        Command("relabel", ("relabel", "a.hbr", "b.hbr", "--noise", "0.1"), needs=("convert",), again=("--force",)),
        Command(
            "suspects",
            ("suspects", "run", "plan.safetensors", "--count", "5", "--csv", "s.csv"),
            needs=("convert", "train"),
            again=("--force",),
        ),
    )
}


@contextlib.contextmanager
def _inside(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def forked(directory: Path, words: tuple[str, ...], *, kill_at: int | None = None) -> tuple[int, tuple[str, ...]]:
    """Run a command in a fork; its exit status (negative: a signal) and the events of the steps that it made.

    With `kill_at` it kills itself before that step, counted from 1.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.close(read)
            with open(directory / ".." / "output", "ab", buffering=0) as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            os.chdir(directory)
            code = _counted(words, directory, write, kill_at)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        steps = tuple(EVENTS[number] for number in pipe.read())
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), steps


def _counted(words: tuple[str, ...], directory: Path, pipe: int, kill_at: int | None) -> int:
    from hbr_fast import cli
    from hbr_fast.data import beton_writer, shards
    from hbr_fast.report import drawing

    drawing.FORMATS = {"png": drawing.FORMATS["png"]}  # the other formats only take longer
    shards.SHARD_BYTES = SHARD_BYTES
    beton_writer.usable_cpus = lambda: 1  # more write the pages in any sequence
    tempfile.tempdir = str(directory / TEMPORARY)
    process = os.getpid()
    private = str(directory / PRIVATE)
    inside = f"{directory}{os.sep}"
    done = 0
    busy = False

    def step(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done, busy
        if busy or event not in EVENTS or not arguments or isinstance(arguments[0], int) or os.getpid() != process:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        busy = True
        try:
            path = os.path.abspath(os.fsdecode(arguments[0]))
        finally:
            busy = False
        if path.startswith(inside) and path != private and CHECKED not in path:
            done += 1
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(pipe, bytes([EVENTS.index(event)]))

    sys.addaudithook(step)
    try:
        cli.main(list(words))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


@functools.cache
def prepared(shared: Path, needs: tuple[str, ...]) -> Path:
    """A working directory in `shared` in which these commands have run, one after another."""
    directory = Path(tempfile.mkdtemp(dir=shared))
    work = directory / "work"
    if not needs:
        (work / PRIVATE).mkdir(parents=True, mode=0o700)
        for name, content in BYSTANDERS.items():
            (work / name).write_bytes(content)
        write_photographs(work / PHOTOS, per_class=4)
        return work
    shutil.copytree(prepared(shared, needs[:-1]), work, symlinks=True)
    code, _ = forked(work, COMMANDS[needs[-1]].words)
    assert code == 0, f"{needs[-1]} ended with {code}: {(directory / 'output').read_text()[-2000:]}"
    return work


def state_of(work: Path) -> dict[str, str]:
    """Every file by name, with a hash of what must be equal in two runs."""
    found = {}
    for path in sorted(work.rglob("*")):
        if path.name == CHECKED:
            continue
        if path.is_symlink() or path.is_dir():
            found[str(path.relative_to(work))] = "link" if path.is_symlink() else "directory"
            continue
        found[str(path.relative_to(work))] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(content))).encode()
    if path.suffix == ".csv" and path.name in ("history.csv", "per_member.csv"):
        # Not with polars, whose threads do not survive a fork.
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        return repr([{name: cell for name, cell in row.items() if name not in TIMES} for row in rows]).encode()
    if "report" in path.parts:
        return b""  # shows times; made from files that are compared
    return content


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(one) for name, one in value.items() if name not in TIMES}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Undisturbed:
    """A command's run that nobody disturbed: where it began, its steps and the state that it left."""

    command: Command
    start: Path
    steps: tuple[str, ...]
    state: dict[str, str]


def undisturbed(directory: Path, name: str, *, shared: Path) -> Undisturbed:
    """Prepare a working directory and run the command once."""
    command = COMMANDS[name]
    start = Path(shutil.copytree(prepared(shared, command.needs), directory / "start", symlinks=True))
    work = Path(shutil.copytree(start, directory / "work", symlinks=True))
    code, steps = forked(work, command.words)
    assert code == 0, f"{name} ended with {code}: {(directory / 'output').read_text()[-2000:]}"
    return Undisturbed(command, start, steps, state_of(work))


def kills(run: Undisturbed, count: int, *, seed: int) -> list[int]:
    """Steps to kill before: by turns any one, and one that renames or removes."""
    rng = random.Random(f"{run.command.name} {seed}")
    every = range(1, len(run.steps) + 1)
    placed = [step for step in every if run.steps[step - 1] in ("os.rename", "os.remove", "os.rmdir")] or list(every)
    if run.command.heavy:
        count = (count + 1) // 2
    return [rng.choice(placed if number % 3 == 1 else every) for number in range(count)]


def first_steps(run: Undisturbed) -> range:
    """Ten steps near the beginning, when temporary files are there: the command is killed before each, in a row."""
    return range(2, min(12, len(run.steps) + 1))


def difference_after_kills(run: Undisturbed, directory: Path, *steps: int) -> str:
    """Start the command once for each of these steps and kill it before that, run it again, and say how the result
    differs; "" if it does not."""
    work = Path(shutil.copytree(run.start, directory / "work", symlinks=True))
    try:
        for number, step in enumerate(steps):
            again = run.command.again if number else ()
            code, _ = forked(work, (*run.command.words, *again), kill_at=step)
            if code != -signal.SIGKILL:
                return f"the command was not killed before step {step} but ended with {code}"
            for name, content in BYSTANDERS.items():
                if (work / name).read_bytes() != content:
                    return f"{name} was touched"
        code, _ = forked(work, (*run.command.words, *run.command.again))
        if code != 0:
            return f"run again, it ended with {code}: {(directory / 'output').read_text()[-500:]}"
        found = state_of(work)
        missing, left = sorted(set(run.state) - set(found)), sorted(set(found) - set(run.state))
        other = sorted(name for name in set(found) & set(run.state) if found[name] != run.state[name])
        return "; ".join(
            f"{what}: {names}" for what, names in (("missing", missing), ("left", left), ("other", other)) if names
        )
    finally:
        shutil.rmtree(work)


def warm_up(directory: Path) -> None:
    """Import what the commands import and load their kernels, so that forks need not.

    Nothing here calculates gradients: autograd refuses to work in forks of a process that used it.
    """
    import matplotlib.pyplot as plt
    import torch
    import torch._dynamo

    import hbr_fast.report.page
    import hbr_fast.studies.runner
    from hbr_fast import cli
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.hardness import HardnessRecorder, hardness_cross_entropy
    from hbr_fast.loaders.loader import Loader
    from hbr_fast.training.build import initial_model, make_optimizer
    from hbr_fast.training.recipes import named_recipe

    del hbr_fast
    with contextlib.suppress(ImportError):
        import ffcv.fields
        import ffcv.writer

        del ffcv
    torch.set_num_threads(1)
    figure, axes = plt.subplots()
    axes.set_title("a")
    figure.savefig(io.BytesIO())
    with _inside(directory):
        cli.main(list(COMMANDS["convert"].words))
        cli.main(list(COMMANDS["relabel"].words))
        train = open_dataset("a.hbr").train
    recipe = named_recipe("quickstart", SMALL[1:])
    model = initial_model(recipe, train, seed=0)
    optimizer = make_optimizer(recipe, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    recorder = HardnessRecorder(len(train), 2)
    with torch.no_grad():
        for batch in Loader(train, batch_size=20, seed=0):
            logits = model(batch.images)
            hardness_cross_entropy(logits, batch.labels, batch.ids, recorder, epoch=0)
    recorder.scores()
