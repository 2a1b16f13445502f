"""Batches other than rows of logits: tokens, pixels, one logit, ids of any kind; and mean probabilities."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast.hardness import GrowingRecorder, HardnessRecorder, hardness_cross_entropy
from hbr_fast.hardness.state_file import load_state, save_state
from hbr_fast.integrations.batches import require_distributed
from hbr_fast.integrations.ids import WithIds


def assert_same(one: HardnessRecorder, other: HardnessRecorder) -> None:
    for name, values in other.scores().values.items():
        np.testing.assert_array_equal(one.scores().values[name], values, err_msg=name)
    np.testing.assert_array_equal(one.scores().observations, other.scores().observations)


@pytest.mark.parametrize("places", [(7,), (3, 4)], ids=["tokens", "pixels"])
@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_record_tokens_and_pixels(places: tuple[int, ...], per_token: bool, ignore_index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = math.prod(places)
    samples = 5 * tokens if per_token else 5
    options: dict[str, Any] = {"ignore_index": ignore_index}
    recorder, with_loss = (HardnessRecorder(samples, 6, **options) for _ in range(2))
    by_hand = HardnessRecorder(samples, 6)
    for epoch in range(2):
        logits = torch.randn(5, *places, 6, generator=generator)
        labels = torch.randint(6, (5, *places), generator=generator)
        labels[1, -1] = ignore_index
        ids = torch.arange(samples).reshape(5, *places) if per_token else torch.arange(5)
        for _ in range(2):  # a shape seen before is looked up
            recorder.record(logits, labels, ids, epoch=epoch)
            leaf = logits.clone().requires_grad_()
            loss = hardness_cross_entropy(leaf, labels, ids, with_loss, epoch=epoch, reduction="none")
            loss.sum().backward()
            kept = labels.flatten() != ignore_index
            rows = ids.flatten() if per_token else ids.repeat_interleave(tokens)
            by_hand.record(logits.reshape(-1, 6)[kept], labels.flatten()[kept], rows[kept], epoch=epoch)
        reference = logits.clone().requires_grad_()
        expected = torch.nn.functional.cross_entropy(
            reference.movedim(-1, 1), labels, ignore_index=ignore_index, reduction="none"
        )
        expected.sum().backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(leaf.grad, reference.grad, rtol=1e-5, atol=1e-6)
    assert_same(recorder, by_hand)
    assert_same(with_loss, by_hand)


def test_record_class_dimension_not_last() -> None:
    recorder = HardnessRecorder(5, 6)
    with pytest.raises(
        ValueError, match=r"must be \[B, 6\], got \[5, 6, 4, 4\]: for tokens or pixels the classes come last"
    ):
        recorder.record(torch.zeros(5, 6, 4, 4), torch.zeros(5, 4, 4).long(), torch.arange(5), epoch=0)
    with pytest.raises(ValueError, match=r"got \[5, 4, 6\]: for tokens or pixels .* labels are \[B, ...\]"):
        recorder.record(torch.zeros(5, 4, 6), torch.zeros(5, 4).long(), torch.arange(4), epoch=0)


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("labels_type", [torch.int64, torch.float32])
def test_record_binary_classifier_with_one_logit(column: bool, labels_type: torch.dtype) -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0))
    labels, ids = torch.arange(9) % 2, torch.arange(9)
    recorder, with_loss, by_hand = (HardnessRecorder(9, 2) for _ in range(3))
    shaped = logits[:, None] if column else logits
    for shape in ((9, 1), (9,)) if column else ((9,),):
        own = labels.to(labels_type).reshape(shape)
        recorder.record(shaped, own, ids, epoch=0)
        leaf = shaped.clone().requires_grad_()
        loss = hardness_cross_entropy(leaf, own, ids, with_loss, epoch=0)
        loss.backward()
        by_hand.record(torch.stack([torch.zeros(9), logits], 1), labels, ids, epoch=0)
    assert_same(recorder, by_hand)
    assert_same(with_loss, by_hand)
    reference = shaped.clone().requires_grad_()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(reference, labels.float().reshape(shaped.shape))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(leaf.grad, reference.grad)


@pytest.mark.parametrize("ignore_index", [-100, -1])
@pytest.mark.parametrize("as_loss", [False, True])
def test_record_float_labels_that_are_ignored(ignore_index: int, as_loss: bool) -> None:
    # A float -100 was taken for class 0.
    recorder, by_hand = HardnessRecorder(4, 2, ignore_index=ignore_index), HardnessRecorder(4, 2)
    logits, labels = torch.tensor([2.0, -1.0, 0.5, 1.0]), torch.tensor([float(ignore_index), 1.0, 0.0, -100.0])
    if as_loss:
        hardness_cross_entropy(logits, labels, torch.arange(4), recorder, epoch=0)
    else:
        recorder.record(logits, labels, torch.arange(4), epoch=0)
    by_hand.record(logits[1:3], labels[1:3], torch.arange(1, 3), epoch=0)
    assert_same(recorder, by_hand)


@pytest.mark.parametrize("label", [math.nan, 2.0, -1.0])
def test_record_float_labels_out_of_range(label: float) -> None:
    recorder = HardnessRecorder(2, 2)
    with pytest.raises(ValueError, match=r"row 1 has label 2, outside \[0, 2\)"):
        recorder.record(torch.zeros(2), torch.tensor([0.9, label]), torch.arange(2), epoch=0)
    assert recorder.scores().observations.sum() == 0


def test_hardness_cross_entropy_of_smoothed_float_labels() -> None:
    # The loss of hard labels was returned for them.
    recorder = HardnessRecorder(2, 2)
    with pytest.raises(ValueError, match="row 1 has label 2"):
        hardness_cross_entropy(torch.zeros(2), torch.tensor([1.0, 0.9]), torch.arange(2), recorder, epoch=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_record_one_hot_labels_of_two_classes(dtype: torch.dtype) -> None:
    # They have the shape of the logits, and were taken for two tokens of one logit each.
    labels = torch.tensor([[1, 0], [0, 1], [0, 1]]).to(dtype)
    with pytest.raises(ValueError, match=r"labels and ids must be \[3\], got \[3, 2\] and \[3\]"):
        HardnessRecorder(3, 2).record(torch.zeros(3, 2), labels, torch.arange(3), epoch=0)


def test_record_other_shapes_in_a_compiled_step() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 3, 2, generator=generator), torch.randint(2, (4, 3), generator=generator)
    eager, compiled = (HardnessRecorder(4, 2, ignore_index=1, mean_probabilities=True) for _ in range(2))

    def step(recorder: HardnessRecorder) -> torch.Tensor:
        recorder.record(2 * logits, labels, torch.arange(4), epoch=0)
        recorder.record(2 * logits[:, 0, :1], labels[:, 0], torch.arange(4), epoch=0)
        return logits.sum()

    step(eager)
    torch.compile(step, fullgraph=True, backend="aot_eager")(compiled)
    assert_same(compiled, eager)
    np.testing.assert_array_equal(compiled.mean_probabilities(), eager.mean_probabilities())


# --- mean probabilities ---


def test_mean_probabilities_average_over_visits() -> None:
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"mean_probabilities": True}
    recorder, resumed = (HardnessRecorder(6, 4, **options) for _ in range(2))
    rank = HardnessRecorder(6, 4, distributed=True, **options)
    seen: list[list[torch.Tensor]] = [[] for _ in range(6)]
    for epoch in range(3):
        logits = torch.randn(8, 4, generator=generator)
        labels, ids = torch.arange(8) % 4, torch.tensor([0, 1, 1, 2, 3, 0, 4, 2])
        labels[6], logits[7, 1], logits[0, 3] = -100, math.nan, -math.inf
        for one in (recorder, rank):
            one.record(logits, labels, ids, epoch=epoch)
        rank.merge_ranks()
        for row in range(6):
            seen[int(ids[row])].append(logits[row].softmax(0))
    found = recorder.mean_probabilities()
    assert found.dtype == np.float32
    for sample, visits in enumerate(seen):
        if visits:
            np.testing.assert_allclose(found[sample], torch.stack(visits).mean(0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(found[:4].sum(1), 1, rtol=1e-6)
    assert np.isnan(found[4:]).all()
    np.testing.assert_allclose(rank.mean_probabilities(), found, rtol=1e-6)
    resumed.load_state_dict(recorder.state_dict())
    np.testing.assert_array_equal(resumed.mean_probabilities(), found)
    with pytest.raises(ValueError, match="make the recorder with mean_probabilities=True"):
        HardnessRecorder(6, 4).mean_probabilities()


def test_mean_probabilities_of_merged_recorders_and_of_the_loss() -> None:
    logits, ids = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    whole, *halves = (HardnessRecorder(6, 3, mean_probabilities=True) for _ in range(3))
    hardness_cross_entropy(logits, ids % 3, ids, whole, epoch=0)
    for part, half in zip((ids[:2], ids[2:]), halves, strict=True):
        half.record(logits[part], part % 3, part, epoch=0)
    halves[0].merge(halves[1])
    np.testing.assert_array_equal(halves[0].mean_probabilities(), whole.mean_probabilities())
    with pytest.raises(ValueError, match="mean_probabilities True, the other False"):
        whole.merge(HardnessRecorder(6, 3))


# --- ids of any kind ---


def test_growing_recorder_of_strings_and_hashes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"image-{i}.png" for i in range(3000)]  # more than the initial capacity
    hashes = torch.tensor([hash_of(i) for i in range(3000)])
    by_name, by_hash = (GrowingRecorder(4, mean_probabilities=True) for _ in range(2))
    by_row = HardnessRecorder(3000, 4, mean_probabilities=True)
    for epoch in range(2):
        for rows in torch.randperm(3000, generator=generator).split(500):
            logits = torch.randn(500, 4, generator=generator)
            by_row.record(logits, rows % 4, rows, epoch=epoch)
            by_name.record(logits, rows % 4, [names[i] for i in rows], epoch=epoch)
            hardness_cross_entropy(logits, rows % 4, hashes[rows], by_hash, epoch=epoch)
        path = tmp_path / "state.safetensors"
        save_state(path, by_name.state_dict())
        by_name = GrowingRecorder(4, mean_probabilities=True)
        by_name.load_state_dict(load_state(path)[0])
    assert by_hash.ids == [hash_of(names.index(str(name))) for name in by_name.ids]
    rows_of_ids = [names.index(str(name)) for name in by_name.ids]
    for recorder in (by_name, by_hash):
        assert len(recorder.scores()) == 3000
        for name, values in by_row.scores().values.items():
            np.testing.assert_array_equal(recorder.scores().values[name], values[:, rows_of_ids], err_msg=name)
        np.testing.assert_array_equal(recorder.mean_probabilities(), by_row.mean_probabilities()[rows_of_ids])
    assert by_name.to_frame()["sample_id"].to_list() == by_name.ids


def test_load_state_refuses_sums_that_are_not_finite(tmp_path: Path) -> None:
    recorder = HardnessRecorder(3, 2)
    recorder.sums[1, 0] = math.nan
    save_state(tmp_path / "state", recorder.state_dict(), step=3)
    with pytest.raises(
        ValueError, match=r"state does not hold the state of a recorder \(sums not finite\): resume from"
    ):
        load_state(tmp_path / "state")
    save_state(tmp_path / "state", {"options": {}})
    with pytest.raises(ValueError, match="sums is missing; counters is missing; nonfinite is missing"):
        load_state(tmp_path / "state")


def hash_of(number: int) -> int:
    return (number + 1) * 0x9E3779B97F4A7C15 % 2**64 - 2**63


def test_growing_recorder_accepts_ids_of_a_stream() -> None:
    data = WithIds(iter([(torch.zeros(2), i % 2, f"file-{i}") for i in range(6)]), id_of=lambda item: item[2])
    recorder = GrowingRecorder(2)
    for _, labels, _, ids in torch.utils.data.DataLoader(data, batch_size=4):
        recorder.record(torch.eye(2)[labels], labels, ids, epoch=0)
    assert recorder.ids == [f"file-{i}" for i in range(6)]
    assert recorder.scores().per_sample("correctness").tolist() == [1] * 6


def test_growing_recorder_rejects_unsupported_options() -> None:
    recorder, logits, labels = GrowingRecorder(2), torch.eye(2), torch.arange(2)
    with pytest.raises(ValueError, match="ids must be integers or strings, got float"):
        recorder.record(logits, labels, [0.5, 1.5], epoch=0)
    with pytest.raises(ValueError, match=r"ids must be integers or strings, got torch.float32"):
        recorder.record(logits, labels, torch.zeros(2), epoch=0)
    with pytest.raises(ValueError, match=r"labels and ids must be \[2\], got \[2\] and \[3\]"):
        recorder.record(logits, labels, ["a", "b", "c"], epoch=0)
    with pytest.raises(ValueError, match="has no option ignore_unknown_ids"):
        GrowingRecorder(2, ignore_unknown_ids=True)
    with pytest.raises(ValueError, match="number samples as they come"):
        recorder.merge(GrowingRecorder(2))
    with pytest.raises(ValueError, match="not the state of a growing recorder: it holds options"):
        recorder.load_state_dict(HardnessRecorder(3, 2).state_dict())
    step = torch.compile(lambda: recorder.record(2 * logits, labels, labels, epoch=0), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="record outside what is compiled"):
        step()


@pytest.mark.parametrize("as_loss", [False, True])
def test_growing_recorder_keeps_no_id_of_a_refused_batch(as_loss: bool) -> None:
    # They were listed, with scores of NaN, and took the places of samples to come.
    recorder, clean = GrowingRecorder(2), GrowingRecorder(2)

    def record(one: GrowingRecorder, labels: list[int], ids: list[str]) -> None:
        names: Any = ids
        if as_loss:
            hardness_cross_entropy(torch.eye(2), torch.tensor(labels), names, one, epoch=0)
        else:
            one.record(torch.eye(2), torch.tensor(labels), names, epoch=0)

    for labels, ids in (([0, 9], ["a", "b"]), ([0, 1], ["c", "d"]), ([2, 0], ["a", "c"]), ([0, 1], ["e", "c"])):
        if max(labels) > 1:
            with pytest.raises(ValueError, match=r"row \d has label \d, outside"):
                record(recorder, labels, ids)
        else:
            record(recorder, labels, ids)
            record(clean, labels, ids)
    assert recorder.ids == clean.ids == ["c", "d", "e"]
    assert_same(recorder, clean)
    assert len(recorder.scores()) == 3


@pytest.mark.parametrize(("first", "then"), [([1, 2], ["1", "2"]), (["1", "2"], [1, 2]), (["3"], [1, "1"])])
def test_growing_recorder_of_integers_and_strings(first: list[Any], then: list[Any]) -> None:
    # 1 and "1" were two samples, and alike in the table.
    recorder = GrowingRecorder(2)
    recorder.record(torch.eye(2)[: len(first)], torch.zeros(len(first)).long(), first, epoch=0)
    with pytest.raises(ValueError, match="all integers or all strings, got both: 1 and '1' look alike"):
        recorder.record(torch.eye(2), torch.zeros(2).long(), then, epoch=0)
    assert recorder.ids == first


@pytest.mark.parametrize("ids", [[2**63 + 5, 1], [2**63 + 5, -1], [-(2**63), 5]])
def test_growing_recorder_writes_any_64_bit_hash_to_a_table(ids: list[int]) -> None:
    recorder = GrowingRecorder(2)
    recorder.record(torch.eye(2), torch.zeros(2).long(), ids, epoch=0)
    assert recorder.to_frame()["sample_id"].to_list() == ids


def test_growing_recorder_loads_no_state_with_an_id_twice() -> None:
    recorder = GrowingRecorder(2)
    recorder.record(torch.eye(2), torch.zeros(2).long(), ["a", "b"], epoch=0)
    state = recorder.state_dict()
    with pytest.raises(ValueError, match="an id occurs twice"):
        recorder.load_state_dict({**state, "ids": ["a", "a"]})
    assert recorder.ids == ["a", "b"]


def test_growing_recorder_names_first_unrecorded_sample() -> None:
    recorder = GrowingRecorder(2)
    recorder.record(torch.tensor([[1.0, 0.0], [math.nan, 0.0]]), torch.zeros(2).long(), ["a", "b"], epoch=0)
    with pytest.warns(UserWarning, match="1 rows were not recorded, the first of sample b"):
        assert recorder.scores().provenance["first_id_not_finite"] == "b"


def test_growing_recorder_writes_its_ids_to_a_table(tmp_path: Path) -> None:
    # The file had row numbers in their place.
    recorder = GrowingRecorder(2)
    recorder.record(torch.eye(2), torch.zeros(2).long(), ["b.png", "a.png"], epoch=0)
    recorder.to_csv(tmp_path / "hardness.csv")
    lines = (tmp_path / "hardness.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["sample_id", "b.png", "a.png"]


def test_growing_recorder_takes_numpy_ids() -> None:
    recorder = GrowingRecorder(2)
    recorder.record(torch.eye(2), torch.zeros(2).long(), np.array([5, 2**62]), epoch=0)
    assert recorder.ids == [5, 2**62]


@pytest.mark.parametrize("ids", ["ab", b"ab", None, 3])
def test_growing_recorder_of_what_is_no_list_of_ids(ids: Any) -> None:
    # A string of B letters was taken for B samples.
    with pytest.raises(ValueError, match=f"ids must be a list, one for each sample, got {type(ids).__name__}"):
        GrowingRecorder(2).record(torch.eye(2), torch.zeros(2).long(), ids, epoch=0)


def test_growing_recorder_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"GrowingRecorder .* records in one process: number the samples and make a"):
        GrowingRecorder(2, distributed=True)
    recorder = GrowingRecorder(2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"GrowingRecorder .* records in one process"):
        recorder.record(torch.eye(2), torch.zeros(2).long(), ["a", "b"], epoch=0)
    assert recorder.ids == []
    with pytest.raises(ValueError, match="has 2 processes, and GrowingRecorder records in one: number the samples"):
        require_distributed(recorder, 2)
