"""Recorders of several ranks merge into one recording, equal to that of a single process."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from two_processes import WORLD, join_group, run_by_two

from hbr_fast.hardness import HardnessRecorder, HardnessScores

N, C, EPOCHS, BATCH = 40, 5, 4, 7
Epoch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
MERGES = ("every epoch", "at the end", "through a checkpoint")
COUNTED = ("correctness", "forgetting", "first_learned")


def epochs() -> list[Epoch]:
    """Logits, labels and ids by position for each epoch; samples occur never, once or several times."""
    rng = np.random.default_rng(3)
    made = []
    for _ in range(EPOCHS):
        ids = torch.from_numpy(rng.permutation(np.concatenate([np.arange(N - 4), rng.integers(0, 12, 25)])))
        logits = torch.from_numpy(rng.normal(0, 2, (len(ids), C)).astype(np.float32))
        made.append((logits, ids % C, ids))
    made[1][0][5, 2] = float("nan")
    made[1][0][12, 0] = float("inf")
    made[2][0][14, int(made[2][1][14])] = float("-inf")  # the sample's own class is masked: not recorded
    made[2][0][15, int(made[2][1][15]) - 1] = float("-inf")  # another class is masked
    return made


def record_part(recorder: HardnessRecorder, epoch: int, part: Epoch) -> None:
    for batch in zip(*(tensor.split(BATCH) for tensor in part), strict=True):
        recorder.record(*batch, epoch=epoch)


def one_process() -> HardnessScores:
    recorder = HardnessRecorder(N, C, el2n_epochs=2)
    for epoch, data in enumerate(epochs()):
        record_part(recorder, epoch, data)
    return recorder.scores()


def record_all_ways(folder: Path) -> None:
    join_group(folder)
    rank = torch.distributed.get_rank()
    for merges in MERGES:
        scores_of_rank(rank, merges).save(folder / f"{merges} {rank}")
    torch.distributed.destroy_process_group()


def scores_of_rank(rank: int, merges: str) -> HardnessScores:
    recorder = HardnessRecorder(N, C, el2n_epochs=2, distributed=True)
    for epoch, data in enumerate(epochs()):
        record_part(recorder, epoch, tuple(tensor[rank::WORLD] for tensor in data))  # type: ignore[arg-type]
        if merges == "every epoch":
            recorder.merge_ranks()
        if merges == "through a checkpoint" and epoch == 1:
            recorder.merge_ranks()
            state = recorder.state_dict()
            recorder = HardnessRecorder(N, C, el2n_epochs=2, distributed=True)
            recorder.load_state_dict(state)
    if merges != "every epoch":
        recorder.merge_ranks()
    return recorder.scores()


@pytest.fixture(scope="module")
def folder_of_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores that two processes saved: one file per way of merging and rank."""
    folder = tmp_path_factory.mktemp("ranks")
    run_by_two(record_all_ways, folder)
    return folder


@pytest.mark.parametrize("merges", MERGES)
def test_merge_ranks_equals_one_process(merges: str, folder_of_ranks: Path) -> None:
    expected = one_process()
    assert expected.never_learnt.any()
    assert (expected.per_sample("forgetting") > 1).any()
    for number in range(WORLD):
        scores = HardnessScores.load(folder_of_ranks / f"{merges} {number}")
        np.testing.assert_array_equal(scores.observations, expected.observations)
        np.testing.assert_array_equal(scores.never_learnt, expected.never_learnt)
        assert scores.provenance == expected.provenance
        for name, values in expected.values.items():
            if name in COUNTED:
                np.testing.assert_array_equal(scores.values[name], values, err_msg=name)
            else:
                np.testing.assert_allclose(scores.values[name], values, rtol=1e-12, atol=1e-14, err_msg=name)


def test_merge_ranks_without_process_group() -> None:
    recorder = HardnessRecorder(N, C, el2n_epochs=2, distributed=True)
    for epoch, data in enumerate(epochs()):
        record_part(recorder, epoch, data)
        recorder.merge_ranks()
    expected = one_process()
    for name, values in recorder.scores().values.items():
        np.testing.assert_allclose(values, expected.values[name], rtol=1e-12, atol=1e-14, err_msg=name)
    assert recorder.scores().provenance == expected.provenance


def test_merge_ranks_of_processes_that_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """E.g. Accelerator() under torchrun without a GPU: each process would keep its own half."""
    recorder = HardnessRecorder(N, C, distributed=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE says that 2 processes were launched"):
        recorder.merge_ranks()


def test_scores_and_state_of_a_rank_require_merge() -> None:
    recorder = HardnessRecorder(N, C, distributed=True)
    record_part(recorder, 0, epochs()[0])
    for ask in (recorder.scores, recorder.state_dict):
        with pytest.raises(ValueError, match=r"this rank recorded 61 visits since the last merge: call merge_ranks"):
            ask()
    recorder.merge_ranks()
    assert recorder.scores().observations.sum() == 61


def test_merge_ranks_requires_distributed_recorder() -> None:
    with pytest.raises(ValueError, match="made with distributed=True"):
        HardnessRecorder(N, C).merge_ranks()


def test_merge_recorders_of_disjoint_samples_is_exact() -> None:
    whole, halves = HardnessRecorder(N, C), [HardnessRecorder(N, C), HardnessRecorder(N, C)]
    for epoch, data in enumerate(epochs()):
        record_part(whole, epoch, data)
        for number, half in enumerate(halves):
            mine = data[2] % 2 == number
            record_part(half, epoch, tuple(tensor[mine] for tensor in data))  # type: ignore[arg-type]
    halves[0].merge(halves[1])
    assert halves[0].scores().provenance["rows_not_finite"] == 3
    for name, values in whole.scores().values.items():
        np.testing.assert_array_equal(halves[0].scores().values[name], values, err_msg=name)


def test_merge_rejects_samples_visited_by_both() -> None:
    one, other = HardnessRecorder(N, C), HardnessRecorder(N, C)
    for recorder, ids in ((one, [3, 4, 5]), (other, [4, 5, 6])):
        recorder.record(torch.zeros(3, C), torch.zeros(3, dtype=torch.int64), torch.tensor(ids), epoch=0)
    before = one.state_dict()
    with pytest.raises(ValueError, match=r"sample 4 and 1 more were visited by both recorders.*merge_ranks"):
        one.merge(other)
    assert all(torch.equal(before[name], one.state_dict()[name]) for name in ("sums", "counters"))


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (HardnessRecorder(N + 1, C), "num_samples 40, the other 41"),
        (HardnessRecorder(N, C + 1), "num_classes 5, the other 6"),
        (HardnessRecorder(N, C, el2n_epochs=3), "el2n_epochs 20, the other 3"),
        (HardnessRecorder(N, C, ignore_index=255), "ignore_index -100, the other 255"),
        (HardnessRecorder(N, C, estimators=["aum"]), r"estimators \['aum', .*, the other \['aum'\]"),
        (HardnessRecorder(N, C, provenance={"dataset": "xyz"}), "dataset abc, the other xyz"),
    ],
)
def test_merge_and_load_reject_different_recorders(other: HardnessRecorder, what: str) -> None:
    recorder = HardnessRecorder(N, C, provenance={"dataset": "abc"})
    if other.provenance == {}:
        other.provenance["dataset"] = "abc"
    with pytest.raises(ValueError, match=what):
        recorder.merge(other)
    with pytest.raises(ValueError, match=what):
        recorder.load_state_dict(other.state_dict())


@pytest.mark.parametrize("stop", range(EPOCHS))
def test_state_dict_resumes_recording(stop: int) -> None:
    first = HardnessRecorder(N, C, el2n_epochs=2)
    for epoch, data in itertools.islice(enumerate(epochs()), stop):
        record_part(first, epoch, data)
    state = first.state_dict()
    first.record(torch.zeros(1, C), torch.tensor([0]), torch.tensor([0]), epoch=9)  # the state is a copy
    second = HardnessRecorder(N, C, el2n_epochs=2)
    second.load_state_dict(state)
    for epoch, data in itertools.islice(enumerate(epochs()), stop, None):
        record_part(second, epoch, data)
    expected = one_process()
    assert second.scores().provenance == expected.provenance
    for name, values in expected.values.items():
        np.testing.assert_array_equal(second.scores().values[name], values, err_msg=name)


@pytest.mark.parametrize("name", ["sums", "counters", "nonfinite"])
def test_load_state_dict_rejects_truncated_or_converted_state(name: str) -> None:
    recorder = HardnessRecorder(N, C)
    record_part(recorder, 0, epochs()[0])
    before = recorder.state_dict()
    for damaged in (before[name][:3], before[name].half()):
        with pytest.raises(ValueError, match=f"the state's {name} must be torch\\..*, got torch\\."):
            recorder.load_state_dict({**before, name: damaged})
    assert torch.equal(recorder.sums, before["sums"])


def test_state_dict_survives_torch_weights_only_checkpoint(tmp_path: Path) -> None:
    recorder = HardnessRecorder(N, C)
    record_part(recorder, 0, epochs()[0])
    torch.save(recorder.state_dict(), tmp_path / "checkpoint")
    loaded = HardnessRecorder(N, C)
    loaded.load_state_dict(torch.load(tmp_path / "checkpoint", weights_only=True))
    assert torch.equal(loaded.sums, recorder.sums)
    with pytest.raises(ValueError, match="not the state of a recorder: it holds weights"):
        loaded.load_state_dict({"weights": 1})
