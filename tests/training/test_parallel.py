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
from hbr_fast.plan import Plan
from hbr_fast.training import jobs, parallel, processes
from hbr_fast.training.cluster import Cluster
from hbr_fast.training.jobs import Training
from hbr_fast.training.parallel import MembersDiverged, auto_members_at_once, obtain_members
from hbr_fast.training.recipe import Recipe

TRAININGS = [Training(1), Training(2), Training(1, Plan.of_rows(np.arange(60)))]


def no_children_within(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    return multiprocessing.active_children() == []


def test_two_at_once_are_the_same_members_as_one_after_another(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    single = obtain_members(tiny, recipe, TRAININGS, store=tmp_path / "one", label="one")
    several = obtain_members(tiny, recipe, TRAININGS, store=tmp_path / "two", members_at_once=2, label="two")
    assert [member.key for member in several] == [member.key for member in single]
    for a, b in zip(single, several, strict=True):
        np.testing.assert_array_equal(a.test_logits(), b.test_logits())
        first, second = (load_file(member.path / "weights.safetensors") for member in (a, b))
        assert all(torch.equal(first[name], second[name]) for name in first)
        for name, values in a.scores().values.items():
            np.testing.assert_array_equal(values, b.scores().values[name])
    assert len(list((tmp_path / "two" / "members").iterdir())) == 3
    assert no_children_within(5)
    # 2 epochs of 120, 120 and 60 rows: the workers' reports reach the progress of this process.
    assert "two: 3 members, 2 at once: 600 images" in capfd.readouterr().err


def test_stacked_members_are_those_trained_alone_to_rounding(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    short = Plan.of_rows(np.arange(60))  # in no stack with the others
    trainings = [Training(1), Training(2, short), Training(3), Training(4, Plan.of_rows(np.arange(120)[::-1]))]
    single = obtain_members(tiny, recipe, trainings, store=tmp_path / "one", label="one")
    stacked = obtain_members(
        tiny, recipe, trainings, store=tmp_path / "two", members_at_once=2, stacked=True, label="two"
    )
    assert [member.key for member in stacked] == [member.key for member in single]
    assert [member.info.get("stacked") for member in stacked] == [2, 1, 2, 1]
    for a, b in zip(single, stacked, strict=True):
        np.testing.assert_allclose(a.test_logits(), b.test_logits(), atol=2e-3)
        np.testing.assert_allclose(a.scores().values["aum"], b.scores().values["aum"], atol=2e-3)
        first, second = (load_file(member.path / "weights.safetensors") for member in (a, b))
        assert list(first) == list(second)
    assert not (tmp_path / "two" / "checkpoints").exists()
    assert "two: 4 members, 2 stacked: 840 images" in capfd.readouterr().err


def test_a_cluster_has_no_stacks(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out the cluster or the stack"):
        obtain_members(tiny, recipe, TRAININGS, store=tmp_path, stacked=True, cluster=Cluster("local"), label="none")


@pytest.mark.parametrize(("at_once", "stacked"), [(1, False), (2, False), (3, True)])
def test_a_member_that_diverges_is_named_once_the_others_are_finished(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, at_once: int, stacked: bool
) -> None:
    steep = dataclasses.replace(recipe, lr=1e8, epochs=1)
    single_step = Plan.of_rows(np.arange(50))  # too short an epoch to diverge in
    trainings = [Training(1), Training(1, single_step), Training(2, single_step)]
    with pytest.raises(MembersDiverged, match=r"steep: 1 of 3 members failed, .* member 0: .*epoch 0") as caught:
        obtain_members(tiny, steep, trainings, store=tmp_path, members_at_once=at_once, stacked=stacked, label="steep")
    first, *others = caught.value.members
    assert first is None
    assert [member.seed for member in others if member is not None] == [1, 2]
    assert list(caught.value.diverged) == [0]
    assert no_children_within(5)
    assert not (tmp_path / "checkpoints").exists()


def test_an_error_in_a_worker_arrives_as_itself_and_no_process_stays(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "check_fit", lambda *args: None)
    wrong = dataclasses.replace(recipe, batch_size=10_000)
    with pytest.raises(ValueError, match=r"batch_size must be in \[1, 120\]"):
        obtain_members(tiny, wrong, TRAININGS[:2], store=tmp_path, members_at_once=2, label="wrong")
    assert no_children_within(5)
    members = tmp_path / "members"
    assert not members.exists() or list(members.iterdir()) == []


def test_members_come_in_the_order_asked_for_and_only_missing_ones_are_trained(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trained: list[int] = []
    real = jobs.train_and_store

    def counting(*args: Any, seed: int, **options: Any) -> Any:
        trained.append(seed)
        return real(*args, seed=seed, **options)

    monkeypatch.setattr(jobs, "train_and_store", counting)
    obtain_members(tiny, recipe, [Training(7)], store=tmp_path, label="a")
    members = obtain_members(tiny, recipe, [Training(8), Training(7), Training(9)], store=tmp_path, label="b")
    assert [member.seed for member in members] == [8, 7, 9]
    assert trained == [7, 8, 9]
    assert "b: 1 of 3 members are there already" in capfd.readouterr().err


def test_one_missing_member_needs_no_process(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_workers(*args: Any) -> Any:
        raise AssertionError("started workers")

    monkeypatch.setattr(processes, "_workers", no_workers)
    (member,) = obtain_members(tiny, recipe, [Training(7)], store=tmp_path, members_at_once=4, label="a")
    assert member.seed == 7
    with pytest.raises(AssertionError, match="started workers"):
        obtain_members(tiny, recipe, TRAININGS, store=tmp_path, members_at_once=2, label="b")


@pytest.mark.parametrize("at_once", [0, -1])
def test_members_at_once_below_one_is_refused(tiny: Dataset, recipe: Recipe, tmp_path: Path, at_once: int) -> None:
    with pytest.raises(ValueError, match=f"members_at_once must be at least 1, got {at_once}"):
        obtain_members(tiny, recipe, TRAININGS, store=tmp_path, members_at_once=at_once, label="none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("members", "cpus", "device", "at_once"),
    [
        (1, 2, "cpu", 1),
        (4, 2, "cpu", 2),
        (2, 64, "cpu", 2),
        (16, 1, "cpu", 1),
        (0, 2, "cpu", 1),
        (16, 64, "cuda", 1),
    ],
)
def test_auto_is_one_member_a_core_and_one_on_a_gpu(members: int, cpus: int, device: str, at_once: int) -> None:
    assert auto_members_at_once(members, cpus=cpus, device=device) == at_once
