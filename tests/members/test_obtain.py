import dataclasses
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.members import jobs
from hbr_fast.members import obtain as parallel
from hbr_fast.members.engines import processes
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job
from hbr_fast.members.obtain import MembersDiverged, obtain_members
from hbr_fast.members.store import checkpoint_path
from hbr_fast.training.recipe import Recipe

GUARD_S = 120  # against hangs; generous enough for a busy machine
ONE, TWO = Execution(), Execution(members_at_once=2)
JOBS = [Job(1), Job(2), Job(1, Plan.of_rows(np.arange(60)))]


def no_children_within(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    return multiprocessing.active_children() == []


@pytest.mark.slow  # each spawned process imports torch
def test_obtain_members_in_parallel_matches_sequential(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    single = obtain_members(tiny, recipe, JOBS, store=tmp_path / "one", execution=ONE, label="one")
    several = obtain_members(tiny, recipe, JOBS, store=tmp_path / "two", execution=TWO, label="two")
    assert [member.key for member in several] == [member.key for member in single]
    for a, b in zip(single, several, strict=True):
        np.testing.assert_array_equal(a.test_logits(), b.test_logits())
        first, second = (load_file(member.path / "weights.safetensors") for member in (a, b))
        assert all(torch.equal(first[name], second[name]) for name in first)
        for name, values in a.scores().values.items():
            np.testing.assert_array_equal(values, b.scores().values[name])
    assert len(list((tmp_path / "two" / "members").iterdir())) == 3
    assert no_children_within(GUARD_S)
    # 2 epochs of 120, 120 and 60 rows: the workers' reports reach the progress of this process.
    assert "two: 3 members, 2 at once: 600 images" in capfd.readouterr().err


@pytest.mark.parametrize("at_once", [1, 2])
def test_obtain_members_names_diverged_member_after_others_finish(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, at_once: int
) -> None:
    steep = dataclasses.replace(recipe, lr=1e8, epochs=1)
    single_step = Plan.of_rows(np.arange(50))  # too short an epoch to diverge in
    jobs_given = [Job(1), Job(1, single_step), Job(2, single_step)]
    with pytest.raises(MembersDiverged, match=r"steep: 1 of 3 members failed, .* member 0: .*epoch 0") as caught:
        obtain_members(tiny, steep, jobs_given, store=tmp_path, execution=Execution(at_once), label="steep")
    first, *others = caught.value.members
    assert first is None
    assert [member.seed for member in others if member is not None] == [1, 2]
    assert list(caught.value.diverged) == [0]
    assert no_children_within(GUARD_S)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow  # each spawned process imports torch
def test_obtain_members_reraises_worker_error_and_leaves_no_process(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "check_fit", lambda *args: None)
    wrong = dataclasses.replace(recipe, batch_size=10_000)
    with pytest.raises(ValueError, match=r"batch_size must be in \[1, 120\]"):
        obtain_members(tiny, wrong, JOBS[:2], store=tmp_path, execution=TWO, label="wrong")
    assert no_children_within(GUARD_S)
    members = tmp_path / "members"
    assert not members.exists() or list(members.iterdir()) == []


def test_obtain_members_keeps_order_and_trains_only_missing(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trained: list[int] = []
    real = jobs.train_and_store

    def counting(*args: Any, seed: int, **options: Any) -> Any:
        trained.append(seed)
        return real(*args, seed=seed, **options)

    monkeypatch.setattr(jobs, "train_and_store", counting)
    obtain_members(tiny, recipe, [Job(7)], store=tmp_path, execution=ONE, label="a")
    members = obtain_members(tiny, recipe, [Job(8), Job(7), Job(9)], store=tmp_path, execution=ONE, label="b")
    assert [member.seed for member in members] == [8, 7, 9]
    assert trained == [7, 8, 9]
    assert "b: 1 of 3 members finished already" in capfd.readouterr().err


def test_obtain_members_removes_checkpoint_of_finished_member(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    # Killed after the member was stored, before its checkpoint was removed.
    (member,) = obtain_members(tiny, recipe, [Job(1)], store=tmp_path, execution=ONE, label="first")
    left = [checkpoint_path(tmp_path, key) for key in (member.key, "unfinished")]
    left[0].parent.mkdir()
    for path in left:
        path.touch()
    obtain_members(tiny, recipe, [Job(1)], store=tmp_path, execution=ONE, label="second")
    assert [path.exists() for path in left] == [False, True]
    left[1].unlink()
    obtain_members(tiny, recipe, [Job(1)], store=tmp_path, execution=ONE, label="third")
    assert not left[0].parent.exists()


def test_obtain_members_trains_one_missing_member_in_process(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_workers(*args: Any) -> Any:
        raise AssertionError("started workers")

    monkeypatch.setattr(processes, "_workers", no_workers)
    (member,) = obtain_members(tiny, recipe, [Job(7)], store=tmp_path, execution=Execution(4), label="a")
    assert member.seed == 7
    with pytest.raises(AssertionError, match="started workers"):
        obtain_members(tiny, recipe, JOBS, store=tmp_path, execution=TWO, label="b")


@pytest.mark.parametrize("at_once", [0, -1])
def test_obtain_members_refuses_members_at_once_below_one(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, at_once: int
) -> None:
    with pytest.raises(ValueError, match=f"members_at_once must be at least 1, got {at_once}"):
        obtain_members(tiny, recipe, JOBS, store=tmp_path, execution=Execution(at_once), label="none")
    assert list(tmp_path.iterdir()) == []
