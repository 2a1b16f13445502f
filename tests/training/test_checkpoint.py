"""A training killed at any moment resumes to the same bits as an undisturbed one."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hbr_fast import files
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.plan import Plan
from hbr_fast.loaders.augment import Augment
from hbr_fast.members import store
from hbr_fast.members.ensemble import train_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.members.store import StoredMember, checkpoint_path, member_key, train_and_store
from hbr_fast.training import checkpoint, signals, step, trainer
from hbr_fast.training.checkpoint import CheckpointEvery, Checkpoints
from hbr_fast.training.recipe import Recipe

EVERY_STEP = CheckpointEvery(minutes=0)
LONG = Recipe(
    name="long",
    model="cnn-4-8",
    epochs=220,
    batch_size=25,
    lr=0.05,
    schedule="triangular",
    augment=Augment(flip=0.5, pad=1),
    precision="float32",
)
KILLS = 22


def assert_same(a: StoredMember, b: StoredMember) -> None:
    assert a.key == b.key
    np.testing.assert_array_equal(a.test_logits(), b.test_logits())
    first, second = (load_file(member.path / "weights.safetensors") for member in (a, b))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, values in a.scores().values.items():
        np.testing.assert_array_equal(values, b.scores().values[name], err_msg=name)
    np.testing.assert_array_equal(a.scores().observations, b.scores().observations)
    columns = ["epoch", "learning_rate", "train_loss", "train_accuracy"]
    assert a.history()[columns].equals(b.history()[columns])


class Stop(Exception):
    """The training stops here, as if the machine had gone down."""


def stop_after(rows: int) -> Any:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done >= rows:
            raise Stop

    return advance


@pytest.mark.parametrize("rows", [50, 100, 120, 170, 240])
@pytest.mark.parametrize(
    "change", [{}, {"precision": "bfloat16"}, {"online_every": 1, "epochs": 3}, {"momentum": 0.0}], ids=str
)
def test_train_member_resumes_to_same_bits(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, rows: int, change: dict[str, Any]
) -> None:
    changed = dataclasses.replace(recipe, **change)
    whole = train_and_store(tiny, changed, seed=5, plan=None, store=tmp_path / "whole")
    cut = tmp_path / "cut"
    options: Any = {"seed": 5, "plan": None, "store": cut, "checkpoint": EVERY_STEP}
    with pytest.raises(Stop):
        train_and_store(tiny, changed, **options, advance=stop_after(rows))
    advanced: list[int] = []
    resumed = train_and_store(tiny, changed, **options, advance=advanced.append)
    assert sum(advanced) == changed.epochs * 120, "the rows of the checkpoint count too"
    assert advanced[0] > 0
    assert_same(whole, resumed)
    assert not list((cut / "checkpoints").iterdir()), "a finished member needs no checkpoint"


def test_train_member_resumes_from_checkpoint(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"seed": 5, "plan": Plan.of_rows(np.arange(100)), "store": tmp_path, "checkpoint": EVERY_STEP}
    with pytest.raises(Stop):
        train_and_store(tiny, recipe, **options, advance=stop_after(150))
    steps = []
    real = step.train_step

    def counted(*args: Any, **kwargs: Any) -> None:
        steps.append(kwargs["epoch"])
        real(*args, **kwargs)

    monkeypatch.setattr(step, "train_step", counted)
    train_and_store(tiny, recipe, **options)
    # Stopped in the report of the third step, whose checkpoint was not written: two of the four are left to do.
    assert steps == [1, 1]


def test_checkpoint_due(tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    never = Checkpoints(tmp_path / "a", {}, CheckpointEvery(epochs=0, minutes=float("inf")))
    epochs = Checkpoints(tmp_path / "a", {}, CheckpointEvery(epochs=2, minutes=float("inf")))
    minutes = Checkpoints(tmp_path / "a", {}, CheckpointEvery(minutes=1.5))
    assert not minutes.due()
    now += 89
    assert not minutes.due(epochs_done=2)
    now += 2
    assert minutes.due()
    assert minutes.due(epochs_done=1)
    assert [epochs.due(epochs_done=n) for n in (1, 2, 3, 4)] == [False, True, False, True]
    assert not epochs.due()
    assert not never.due(epochs_done=2)
    for wrong in ({"epochs": -1}, {"minutes": -0.1}, {"minutes": float("nan")}):
        with pytest.raises(ValueError, match="must be >= 0"):
            CheckpointEvery(**wrong)


def test_checkpoint_of_another_training_names_what_differs(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    options: Any = {"seed": 5, "plan": None, "store": tmp_path, "checkpoint": EVERY_STEP}
    with pytest.raises(Stop):
        train_and_store(tiny, recipe, **options, advance=stop_after(100))
    own = checkpoint_path(tmp_path, member_key(tiny, recipe, seed=5, plan=None))
    for changed, seed, message in (
        (dataclasses.replace(recipe, lr=0.07), 5, r"another training \(recipe lr 0\.05, not 0\.07\)"),
        (recipe, 6, r"another training \(seed 5, not 6\)"),
    ):
        other = checkpoint_path(tmp_path, member_key(tiny, changed, seed=seed, plan=None))
        other.write_bytes(own.read_bytes())
        with pytest.raises(ValueError, match=message):
            train_and_store(tiny, changed, **{**options, "seed": seed})


def test_unfinished_run_directory_of_another_recipe_is_refused(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.train_member
    with monkeypatch.context() as patch:
        patch.setattr(store, "train_member", lambda *a, **k: real(*a, **{**k, "advance": stop_after(100)}))
        with pytest.raises(Stop):
            train_ensemble(tiny, recipe, members=1, out=tmp_path, execution=Execution(checkpoint_minutes=0))
    before = (tmp_path / "recipe.json").read_bytes()
    with pytest.raises(ValueError, match=r"the run directory of another recipe \(lr 0\.05, not 0\.01\)"):
        train_ensemble(tiny, dataclasses.replace(recipe, lr=0.01), members=1, out=tmp_path)
    assert (tmp_path / "recipe.json").read_bytes() == before
    assert len(train_ensemble(tiny, recipe, members=1, out=tmp_path).members) == 1


@pytest.mark.parametrize("damage", ["cut short", "no checkpoint", "other schema", "a tensor missing"])
def test_checkpoint_names_damaged_file(tiny: Dataset, recipe: Recipe, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    options: Any = {"seed": 5, "plan": None, "store": tmp_path, "checkpoint": EVERY_STEP}
    with pytest.raises(Stop):
        train_and_store(tiny, recipe, **options, advance=stop_after(100))
    (path,) = (tmp_path / "checkpoints").iterdir()
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["hbr_fast"])
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "no checkpoint":
        path.write_bytes(b"hello")
    elif damage == "other schema":
        del about["sha256"]
        save_file(tensors, path, {"hbr_fast": json.dumps({**about, "schema": 99})})
    else:
        del tensors["recorder.sums"], about["sha256"]
        save_file(tensors, path, {"hbr_fast": json.dumps(about)})
    with pytest.raises(ValueError, match=r"checkpoints/.*remove it to start again") as caught:
        train_and_store(tiny, recipe, **options)
    assert "\n" not in str(caught.value)


def test_checkpoint_with_one_bit_flipped_is_refused(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    options: Any = {"seed": 5, "plan": None, "store": tmp_path, "checkpoint": EVERY_STEP}
    with pytest.raises(Stop):
        train_and_store(tiny, recipe, **options, advance=stop_after(100))
    (path,) = (tmp_path / "checkpoints").iterdir()
    content = path.read_bytes()
    epoch = content.index(b'\\"epoch\\":') + len(b'\\"epoch\\":')
    for place in (epoch, len(content) - 1000, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"changed after it was written.*: remove it to start again"):
            train_and_store(tiny, recipe, **options)


def test_checkpoint_without_a_checksum_resumes_unverified(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    options: Any = {"seed": 5, "plan": None, "checkpoint": EVERY_STEP}
    whole = train_and_store(tiny, recipe, **options, store=tmp_path / "whole")
    with pytest.raises(Stop):
        train_and_store(tiny, recipe, **options, store=tmp_path, advance=stop_after(100))
    (path,) = (tmp_path / "checkpoints").iterdir()
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["hbr_fast"])
    del about["sha256"]
    save_file(load_file(path), path, {"hbr_fast": json.dumps(about)})
    resumed = train_and_store(tiny, recipe, **options, store=tmp_path)
    assert "has no checksum, as an earlier hbr-fast wrote it: resuming from it unverified" in capfd.readouterr().err
    assert resumed.info["files"]["weights.safetensors"] == whole.info["files"]["weights.safetensors"]


def test_restore_refuses_a_checkpoint_of_schema_1_by_name(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    options: Any = {"seed": 5, "plan": None, "store": tmp_path, "checkpoint": EVERY_STEP}
    with pytest.raises(Stop):
        train_and_store(tiny, recipe, **options, advance=stop_after(100))
    (path,) = (tmp_path / "checkpoints").iterdir()
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["hbr_fast"])
    del about["sha256"]
    save_file(tensors, path, {"hbr_fast": json.dumps({**about, "schema": 1})})
    with pytest.raises(ValueError, match=r"schema 1, which an earlier hbr-fast wrote: finish this .* or remove it"):
        train_and_store(tiny, recipe, **options)


def test_checkpoint_survives_full_disk_and_training_resumes(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    whole = train_and_store(tiny, recipe, seed=5, plan=None, store=tmp_path / "whole")
    options: Any = {"seed": 5, "plan": None, "store": tmp_path, "checkpoint": EVERY_STEP}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept: list[bytes] = []

    def full_after_two(count: int) -> None:
        found = list((tmp_path / "checkpoints").glob("*.safetensors"))
        if found:
            kept.append(found[0].read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        with pytest.raises(OSError, match=r"no space left for the checkpoint .*the previous one is kept"):
            train_and_store(tiny, recipe, **options, advance=full_after_two)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert left.read_bytes() == kept[0]
    assert_same(whole, train_and_store(tiny, recipe, **options))


def test_checkpoint_other_write_errors_are_not_reported_as_full_disk(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="the disk is broken"):
        train_and_store(tiny, recipe, seed=5, plan=None, store=tmp_path, checkpoint=EVERY_STEP)


def test_ctrl_c_saves_checkpoint_first(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    whole = train_and_store(tiny, recipe, seed=5, plan=None, store=tmp_path / "whole")
    advance = iter(range(99))
    with pytest.raises(KeyboardInterrupt):
        train_and_store(
            tiny,
            recipe,
            seed=5,
            plan=None,
            store=tmp_path,
            advance=lambda _: os.kill(os.getpid(), signal.SIGINT) if next(advance) == 1 else None,
        )
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert_same(whole, train_and_store(tiny, recipe, seed=5, plan=None, store=tmp_path))


def test_signal_handlers_are_restored(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in signals.HANDLED]
    train_ensemble(tiny, recipe, members=1, out=tmp_path)
    assert [signal.getsignal(number) for number in signals.HANDLED] == before


# --- killed from outside


def begin_lives(connection: Any, data: Path, scratch: Path) -> None:
    """A process that has imported and compiled everything, on one thread, and forks a training for every job.

    It writes no member: polars, which does that, cannot be forked once it has run.
    """
    torch.set_num_threads(1)
    checkpoints = Checkpoints(scratch, {}, EVERY_STEP)
    trainer.train_member(open_dataset(data), dataclasses.replace(LONG, epochs=1), seed=0, checkpoints=checkpoints)
    while (job := connection.recv()) is not None:
        pid = os.fork()
        if pid == 0:
            live(data, *job)
        connection.send(pid)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def live(data: Path, run: Path, die_in: tuple[str, int] | None) -> None:
    """One life of a training; `die_in`: killed in the n-th call of a function of `os` that writing a file makes."""
    if die_in is not None:
        name, calls_left = die_in
        real = getattr(files.os, name)

        def deadly(*args: Any, **options: Any) -> Any:
            nonlocal calls_left
            calls_left -= 1
            if calls_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(files.os, name, deadly)
    code = 1
    try:
        train_ensemble(open_dataset(data), LONG, members=1, out=run, execution=Execution(checkpoint_minutes=0.0005))
        code = 0
    except signals.Terminated:
        code = signals.EXIT_CODE
    finally:
        os._exit(code)


@pytest.fixture
def lives(tiny_path: Path, tmp_path: Path) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=begin_lives, args=(there, tiny_path, tmp_path / "scratch"))
    process.start()
    yield here
    here.send(None)
    process.join()


def one_life(lives: Any, run: Path, kill: signal.Signals | None, after: float, die_in: Any) -> int:
    """Resume the training and kill it some time after its first checkpoint; returns its exit code."""
    stamp = time.time()
    lives.send((run, die_in))
    pid = lives.recv()
    while kill is not None and not lives.poll():
        found = list((run / "checkpoints").glob("*.safetensors"))
        if found and found[0].stat().st_mtime > stamp:
            time.sleep(after)
            if not lives.poll():
                os.kill(pid, kill)
            break
        time.sleep(0.001)
    return int(lives.recv())


@pytest.mark.slow
def test_train_member_killed_at_random_moments_matches_undisturbed(tiny_path: Path, tmp_path: Path, lives: Any) -> None:
    (whole,) = train_ensemble(open_dataset(tiny_path), LONG, members=1, out=tmp_path / "whole").members
    run, chance = tmp_path / "run", random.Random(7)
    writing = [(name, call) for name in ("fsync", "replace", "chmod") for call in (3, 6)]
    codes: list[int] = []
    while not (run / "ensemble.json").exists():
        assert len(codes) < 3 * KILLS
        kill: signal.Signals | None = chance.choice([signal.SIGKILL, signal.SIGTERM])
        die_in = None
        if len(codes) >= KILLS:
            kill = None
        elif len(codes) < len(writing):
            die_in, kill = writing[len(codes)], None
        codes.append(one_life(lives, run, kill, chance.uniform(0, 0.04), die_in))
        left = list((run / "checkpoints").glob("*.safetensors")) if run.exists() else []
        assert len(left) <= 1
    assert codes[-1] == 0
    assert len(codes) > 20
    assert set(codes) == {0, -signal.SIGKILL, signals.EXIT_CODE}
    (member,) = train_ensemble(open_dataset(tiny_path), LONG, members=1, out=run).members
    assert_same(whole, member)
    assert sorted(path.name for path in run.iterdir()) == [".lock", "ensemble.json", "members", "recipe.json"]
    assert [path.name for path in (run / "members").iterdir()] == [member.key], "nothing half-written is left"
