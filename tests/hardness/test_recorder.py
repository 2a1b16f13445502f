import functools
import math
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch

from hardness.agreement import assert_agree
from hardness.histories import RIGHT, WRONG, record_history
from hbr_fast.hardness import (
    ESTIMATORS,
    RECORDED,
    HardnessRecorder,
    NeverLearnt,
    estimator,
    hardness_cross_entropy,
)

LN2 = math.log(2)


def test_recorder_two_epochs_by_hand() -> None:
    # Softmax of ln p + 3 is p, so probabilities can be chosen. Sample i has class i.
    p = np.array(
        [
            [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25]],  # epoch 0: right, wrong, wrong
            [[0.125, 0.5, 0.375], [0.25, 0.5, 0.25], [0.5, 0.375, 0.125]],  # epoch 1: wrong, right, wrong
        ]
    )
    recorder = HardnessRecorder(3, 3)
    for epoch in range(2):
        recorder.record(torch.from_numpy(np.log(p[epoch]) + 3), torch.arange(3), torch.arange(3), epoch=epoch)
    expected = {
        # ln of the own p over the largest other: (ln 2 - 2 ln 2) / 2, (-ln 2 + ln 2) / 2, (-ln 2 - 2 ln 2) / 2
        "aum": [-0.5 * LN2, 0.0, -1.5 * LN2],
        # (0.25 - 0.375) / 2, (-0.25 + 0.25) / 2, (-0.25 - 0.375) / 2
        "aum_softmax": [-0.0625, 0.0, -0.3125],
        # (0.5 + 0.125) / 2, (0.25 + 0.5) / 2, (0.25 + 0.125) / 2
        "confidence": [0.3125, 0.375, 0.1875],
        # 3 + ln p: p is 2^-1 and 2^-3, 2^-2 and 2^-1, 2^-2 and 2^-3
        "confidence_logit": [3 - 2 * LN2, 3 - 1.5 * LN2, 3 - 2.5 * LN2],
        # of two values, half their distance
        "variability": [0.1875, 0.125, 0.0625],
        "correctness": [0.5, 0.5, 0.0],
        # (0.5 * 0.5 + 0.125 * 0.875) / 2, (0.25 * 0.75 + 0.5 * 0.5) / 2, (0.25 * 0.75 + 0.125 * 0.875) / 2
        "dataiq": [0.1796875, 0.21875, 0.1484375],
        # -ln p
        "loss": [2 * LN2, 1.5 * LN2, 2.5 * LN2],
        # sums of squares of p - onehot: 0.5^2 + 2 * 0.25^2 = 0.375 where p_y is 0.5 and the others equal,
        # 0.875^2 + 0.5^2 + 0.375^2 = 1.15625 where it is 0.125, 0.75^2 + 0.5^2 + 0.25^2 = 0.875 where it is 0.25
        "el2n": [
            (math.sqrt(0.375) + math.sqrt(1.15625)) / 2,
            (math.sqrt(0.875) + math.sqrt(0.375)) / 2,
            (math.sqrt(0.875) + math.sqrt(1.15625)) / 2,
        ],
        # right then wrong once; never; never right at all: one more than the largest of the others
        "forgetting": [1.0, 0.0, 2.0],
        # never: the number of epochs
        "first_learned": [0.0, 1.0, 2.0],
    }
    scores = recorder.scores()
    assert list(scores.values) == list(expected) == list(RECORDED)
    for name, values in expected.items():
        np.testing.assert_allclose(scores.per_sample(name), values, rtol=1e-6, atol=1e-7, err_msg=name)
        assert scores.values[name].dtype == np.float64
    assert scores.observations.tolist() == [[2, 2, 2]]
    assert scores.never_learnt.tolist() == [[False, False, True]]
    assert (scores.members, len(scores)) == (1, 3)


def test_trap_10_confidence_is_a_probability_not_a_logit() -> None:
    recorder = HardnessRecorder(1, 2)
    recorder.record(torch.tensor([[5.0, 2.0]]), torch.tensor([0]), torch.tensor([0]), epoch=0)
    scores = recorder.scores()
    assert scores.per_sample("confidence")[0] == pytest.approx(1 / (1 + math.exp(-3)), rel=1e-6)
    assert scores.per_sample("confidence_logit")[0] == 5.0
    assert scores.per_sample("aum")[0] == 3.0


@pytest.mark.parametrize(("policy", "value"), [("max+1", 3.0), ("zero", 0.0), ("inf", math.inf)])
def test_trap_11_never_learnt_samples_are_not_the_easiest(policy: NeverLearnt, value: float) -> None:
    recorder = record_history("rrrrr", "rwrwr", "wwwww", "wwwwr", num_samples=5)
    scores = recorder.scores(never_learnt=policy)
    np.testing.assert_array_equal(scores.per_sample("forgetting"), [0, 2, value, 0, math.nan])
    assert scores.never_learnt.tolist() == [[False, False, True, False, False]]  # the last was never seen
    assert scores.provenance["never_learnt"] == policy
    if policy == "max+1":
        assert recorder.scores().per_sample("forgetting")[2] == value, "it is the default"


def test_forgetting_when_no_sample_was_learnt() -> None:
    scores = record_history("www", "www").scores()
    np.testing.assert_array_equal(scores.per_sample("forgetting"), [0, 0])
    assert scores.never_learnt.all()


def test_scores_rejects_unknown_never_learnt_policy() -> None:
    with pytest.raises(ValueError, match=r"never_learnt must be 'max\+1', 'zero' or 'inf', got 'max'"):
        record_history("r").scores(never_learnt="max")  # type: ignore[arg-type]


def test_trap_13_every_estimator_has_a_hard_end() -> None:
    # Sample 0 is learnt at once and kept; sample 1 comes late, is unsure and is forgotten again.
    recorder = HardnessRecorder(2, 3)
    for epoch, (easy, hard) in enumerate([(3, -1), (4, -1.2), (5, 0.8), (5, -0.9), (6, 0.7), (6, -0.8)]):
        logits = torch.tensor([[float(easy), 0.0, 0.0], [hard, 0.0, -0.5]])
        recorder.record(logits, torch.tensor([0, 0]), torch.tensor([0, 1]), epoch=epoch)
    scores = recorder.scores()
    for name in scores.values:
        easy_score, hard_score = scores.per_sample(name)
        assert easy_score != hard_score, name
        assert estimator(name).hard_is == ("low" if hard_score < easy_score else "high"), name


def test_estimator_lookup_by_name() -> None:
    assert estimator("aum").hard_is == "low"
    assert all(name == entry.name for name, entry in ESTIMATORS.items())
    with pytest.raises(ValueError, match=r"unknown estimator 'AUM': available are aum, "):
        estimator("AUM")


@pytest.mark.parametrize("order", ["by epoch", "by sample"])
def test_trap_17_forgetting_continues_across_batches_and_epochs(order: str) -> None:
    # Each visit is its own batch or shares one; each transition lies between two epochs.
    scores = record_history("rwrwrw", "rrrwww", "wrwrrr", "rrrrrr", order=order).scores()
    np.testing.assert_array_equal(scores.per_sample("forgetting"), [3, 1, 1, 0])
    np.testing.assert_array_equal(scores.per_sample("first_learned"), [0, 0, 1, 0])


def test_forgetting_is_counted_between_actual_visits() -> None:
    # Drawn in epochs 0 and 5 only: right, then wrong.
    recorder = HardnessRecorder(1, 2)
    for epoch, logits in ((0, RIGHT), (5, WRONG)):
        recorder.record(torch.tensor([logits]), torch.tensor([0]), torch.tensor([0]), epoch=epoch)
    assert recorder.scores().per_sample("forgetting").tolist() == [1]


@pytest.mark.parametrize("batch", [1, 7, 64, 200])
def test_record_is_independent_of_batching(batch: int) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 3, (2, 200, 10)).astype(np.float32))
    ids = torch.from_numpy(np.stack([rng.permutation(50).repeat(4), rng.integers(0, 50, 200)]))
    whole, split = HardnessRecorder(50, 10), HardnessRecorder(50, 10)
    for epoch in range(2):
        whole.record(logits[epoch], ids[epoch] % 10, ids[epoch], epoch=epoch)
        for first in range(0, 200, batch):
            part = slice(first, first + batch)
            split.record(logits[epoch, part], ids[epoch, part] % 10, ids[epoch, part], epoch=epoch)
    for name, values in whole.scores().values.items():
        np.testing.assert_array_equal(split.scores().values[name], values, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_record_converts_other_logit_dtypes(dtype: torch.dtype) -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels, ids = torch.arange(8) % 5, torch.arange(8)
    given, converted = HardnessRecorder(8, 5), HardnessRecorder(8, 5)
    given.record(logits, labels.int(), ids.int(), epoch=0)
    converted.record(logits.float(), labels, ids, epoch=0)
    assert torch.equal(given.sums, converted.sums)
    assert given.sums.any()


def test_record_does_not_affect_training_step() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    logits = torch.ones(2, 4) @ weight
    before = logits.detach().clone()
    HardnessRecorder(2, 3).record(logits, torch.tensor([0, 1]), torch.tensor([0, 1]), epoch=0)
    assert torch.equal(logits, before)
    logits.sum().backward()
    assert torch.equal(weight.grad, torch.full((4, 3), 2.0))  # type: ignore[arg-type]


def test_recorder_returns_only_requested_estimators() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    chosen, full = HardnessRecorder(6, 4, estimators=["loss", "aum"]), HardnessRecorder(6, 4)
    for recorder in (chosen, full):
        recorder.record(logits, torch.arange(6) % 4, torch.arange(6), epoch=0)
    assert list(chosen.scores().values) == ["aum", "loss"]
    for name, values in chosen.scores().values.items():
        np.testing.assert_array_equal(values, full.scores().values[name])
    np.testing.assert_array_equal(chosen.scores().never_learnt, full.scores().never_learnt)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["margin"], "unknown estimator 'margin': available are aum, "),
        (["aum_final"], "aum_final is not recorded in the loop: choose from aum, "),
        ([], r"estimators must be a list of at least one name, got \[\]"),
        ("aum", "estimators must be a list of at least one name, got 'aum'"),
    ],
)
def test_recorder_rejects_invalid_estimators(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardnessRecorder(6, 4, estimators=names)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_record_rejects_invalid_logit_dtypes(dtype: torch.dtype) -> None:
    labels, recorder = torch.zeros(2, dtype=torch.int64), HardnessRecorder(4, 3)
    logits = torch.ones(2, 3).to(dtype)
    expected = f"logits must be float32, float64, float16 or bfloat16, got {dtype}"
    with pytest.raises(ValueError, match=expected):
        recorder.record(logits, labels, labels, epoch=0)
    with pytest.raises(ValueError, match=expected):
        hardness_cross_entropy(logits, labels, labels, recorder, epoch=0)


def test_record_accepts_only_integer_labels_and_ids() -> None:
    ids, logits, recorder = torch.arange(3), torch.eye(3), HardnessRecorder(3, 3)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        recorder.record(logits, ids.to(dtype), ids.to(dtype), epoch=0)
    assert recorder.scores().observations.tolist() == [[5, 5, 5]]
    assert recorder.scores().per_sample("correctness").tolist() == [1, 1, 1]
    for dtype in (torch.bool, torch.float32, torch.complex64):
        for labels, samples in ((ids.to(dtype), ids), (ids, ids.to(dtype))):
            with pytest.raises(ValueError, match=f"labels and ids must be integers, got .*{dtype}"):
                recorder.record(logits, labels, samples, epoch=0)


@pytest.mark.parametrize("place", range(3))
def test_record_names_argument_that_is_not_a_tensor(place: int) -> None:
    arguments: list[Any] = [torch.eye(3), torch.arange(3), torch.arange(3)]
    arguments[place] = arguments[place].numpy()
    names = ", ".join("ndarray" if place == i else "Tensor" for i in range(2))
    with pytest.raises(ValueError, match=f"logits, labels and ids must be torch tensors, got {names} and "):
        HardnessRecorder(3, 3).record(*arguments, epoch=0)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda logits: logits.to("meta"), "the logits are on meta"),
        (0, lambda logits: logits.int(), "logits must be float32"),
        (0, lambda logits: logits[:, :2], r"logits must be \[B, 3\], got \[4, 2\]"),
        (0, lambda logits: logits[None], r"logits must be \[B, 3\], got \[1, 4, 3\]"),
        (1, lambda labels: labels.to("meta"), "the labels are on meta"),
        (1, lambda labels: labels.double(), "labels and ids must be integers, got torch.float64"),
        (1, lambda labels: labels[:3], r"labels and ids must be \[4\], got \[3\] and \[4\]"),
        (1, lambda labels: labels.tolist(), "must be torch tensors, got Tensor, list and Tensor"),
        (2, lambda ids: ids.to("meta"), "the ids are on meta"),
        (2, lambda ids: ids[:, None], r"labels and ids must be \[4\], got \[4\] and \[4, 1\]"),
    ],
)
def test_record_checks_every_batch(place: int, change: Any, message: str) -> None:
    recorder, alone = HardnessRecorder(4, 3), HardnessRecorder(4, 3)
    good = [torch.eye(4, 3), torch.arange(4) % 3, torch.arange(4)]
    for one in (recorder, alone):
        one.record(*good, epoch=0)
    bad = [change(given) if place == i else given for i, given in enumerate(good)]
    for call in (recorder.record, functools.partial(hardness_cross_entropy, recorder=recorder)):
        with pytest.raises(ValueError, match=message):
            call(*bad, epoch=0)
    assert torch.equal(recorder.sums, alone.sums)


def test_record_batches_of_many_sizes() -> None:
    recorder = HardnessRecorder(200, 2)
    for size in range(1, 201):
        ids = torch.arange(size)
        recorder.record(torch.eye(size, 2), ids % 2, ids, epoch=0)
    assert recorder.scores().observations.tolist() == [list(range(200, 0, -1))]
    assert len(recorder._fitting) < 100


def test_record_rejects_logits_on_another_device() -> None:
    recorder = HardnessRecorder(4, 3, device="meta")
    with pytest.raises(ValueError, match="the logits are on cpu, but this recorder is on meta: move them there"):
        recorder.record(torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2).long(), epoch=0)
    with pytest.raises(ValueError, match="the ids are on meta, but this recorder is on cpu"):
        HardnessRecorder(4, 3).record(
            torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2, device="meta").long(), epoch=0
        )


def test_record_accumulated_micro_batches() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 3)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    inputs, labels, ids = torch.randn(12, 8), torch.arange(12) % 3, torch.arange(12)
    whole, parts = HardnessRecorder(12, 3), HardnessRecorder(12, 3)
    for epoch in range(2):
        whole.record(model(inputs), labels, ids, epoch=epoch)
        for x, y, i in zip(inputs.split(4), labels.split(4), ids.split(4), strict=True):
            logits = model(x)
            parts.record(logits, y, i, epoch=epoch)
            (torch.nn.functional.cross_entropy(logits, y) / 3).backward()
        optimiser.step()
        optimiser.zero_grad()
    for name, values in whole.scores().values.items():
        np.testing.assert_allclose(parts.scores().values[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_record_uses_hard_label_with_mixup_and_smoothing() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 3)
    inputs, labels, ids = torch.randn(6, 8), torch.arange(6) % 3, torch.arange(6)
    partner = ids.roll(1)
    logits = model(0.7 * inputs + 0.3 * inputs[partner])
    targets = 0.7 * torch.nn.functional.one_hot(labels, 3) + 0.3 * torch.nn.functional.one_hot(labels[partner], 3)
    torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1).backward()
    recorder = HardnessRecorder(6, 3)
    recorder.record(logits, labels, ids, epoch=0)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none").detach()
    np.testing.assert_allclose(recorder.scores().per_sample("loss"), loss.numpy(), rtol=1e-6)


def test_recorder_to_frame(tmp_path: Path) -> None:
    recorder = record_history("rwr", "www", num_samples=3)
    frame = recorder.to_frame()
    assert frame.columns == ["sample_id", *RECORDED, "observations", "never_learnt"]
    assert frame["sample_id"].to_list() == [0, 1, 2]
    assert frame["forgetting"].to_list()[:2] == [1, 2]
    assert frame["aum"].is_nan().to_list() == [False, False, True]
    assert frame["observations"].to_list() == [3, 3, 0]
    assert frame["never_learnt"].to_list() == [0, 1, 0]
    recorder.to_csv(tmp_path / "hardness.csv")
    assert polars.read_csv(tmp_path / "hardness.csv").equals(frame)


def test_scores_take_little_memory_besides_state_and_result() -> None:
    # All columns were converted at once: 4.4 GB for 10^7 samples, whose state is 0.96 GB and whose scores are as large.
    recorder = HardnessRecorder(400_000, 2)
    recorder.record(torch.eye(2), torch.arange(2), torch.tensor([0, 399_999]), epoch=0)
    state = recorder.sums.nbytes + recorder.counters.nbytes
    tracemalloc.start()
    try:
        scores = recorder.scores()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    result = sum(array.nbytes for array in (*scores.values.values(), scores.observations, scores.never_learnt))
    assert result > 30_000_000
    assert state + peak < 1.15 * (state + result)
    assert scores.per_sample("aum")[[0, 399_999]].tolist() == [1, 1]


def test_scores_carry_provenance() -> None:
    recorder = HardnessRecorder(2, 2, el2n_epochs=5, provenance={"dataset": "abc", "seed": 4})
    recorder.record(torch.tensor([RIGHT, [math.nan, 0]]), torch.tensor([0, 0]), torch.tensor([0, 1]), epoch=6)
    assert recorder.scores().provenance == {
        "dataset": "abc",
        "seed": 4,
        "epochs": 7,
        "el2n_epochs": 5,
        "never_learnt": "max+1",
        "rows_not_finite": 1,
        "first_id_not_finite": 1,
    }


def test_scores_are_a_snapshot() -> None:
    recorder = HardnessRecorder(1, 2)
    recorder.record(torch.tensor([RIGHT]), torch.tensor([0]), torch.tensor([0]), epoch=0)
    early = recorder.scores()
    recorder.record(torch.tensor([WRONG]), torch.tensor([0]), torch.tensor([0]), epoch=1)
    assert early.per_sample("aum")[0] == 2
    assert early.observations[0, 0] == 1
    assert recorder.scores().per_sample("aum")[0] == 0


@pytest.mark.parametrize(
    ("logits", "labels", "ids", "message"),
    [
        ((4,), (4,), (4,), r"logits must be \[B, 3\], got \[4\]"),
        ((4, 2), (4,), (4,), r"logits must be \[B, 3\], got \[4, 2\]"),
        ((4, 3), (3,), (4,), r"labels and ids must be \[4\], got \[3\] and \[4\]"),
        ((4, 3), (4,), (4, 1), r"labels and ids must be \[4\], got \[4\] and \[4, 1\]"),
    ],
)
def test_record_rejects_mismatched_shapes(
    logits: tuple[int, ...], labels: tuple[int, ...], ids: tuple[int, ...], message: str
) -> None:
    recorder = HardnessRecorder(9, 3)
    with pytest.raises(ValueError, match=message):
        recorder.record(torch.zeros(logits), torch.zeros(labels).long(), torch.zeros(ids).long(), epoch=0)


@pytest.mark.parametrize(
    ("label", "sample", "message"),
    [
        (3, 0, r"row 1 has label 3, outside \[0, 3\)"),
        (-1, 0, r"row 1 has label -1, outside \[0, 3\)"),
        (0, 9, r"row 1 has id 9, outside \[0, 9\): was the recorder made for this dataset\?"),
        (0, -1, r"row 1 has id -1, outside \[0, 9\)"),
    ],
)
def test_record_names_invalid_label_or_id_and_records_nothing(label: int, sample: int, message: str) -> None:
    recorder = HardnessRecorder(9, 3)
    with pytest.raises(ValueError, match=message):
        recorder.record(torch.zeros(2, 3), torch.tensor([0, label]), torch.tensor([0, sample]), epoch=0)
    assert not recorder.scores().observations.any()


def test_record_rejected_batch_does_not_count_as_epoch() -> None:
    recorder = record_history("w")
    with pytest.raises(ValueError, match="row 0 has label 2"):
        recorder.record(torch.zeros(1, 2), torch.tensor([2]), torch.tensor([0]), epoch=50)
    assert recorder.scores().per_sample("first_learned")[0] == 1


def test_record_epochs_count_from_zero() -> None:
    recorder = HardnessRecorder(1, 2)
    with pytest.raises(ValueError, match="epoch"):
        recorder.record(torch.tensor([RIGHT]), torch.tensor([0]), torch.tensor([0]), epoch=-1)


def test_record_accepts_any_integer_type_as_epoch(tmp_path: Path) -> None:
    recorder, zero = HardnessRecorder(1, 2), torch.tensor([0])
    epochs: tuple[Any, ...] = (np.int64(3), torch.tensor(4))
    for epoch in epochs:
        recorder.record(torch.tensor([RIGHT]), zero, zero, epoch=epoch)
    recorder.scores().save(tmp_path / "scores")  # NumPy numbers are not valid JSON
    assert recorder.scores().provenance["epochs"] == 5
    with pytest.raises(ValueError, match=r"epoch must be a whole number, got 0\.5"):
        recorder.record(torch.tensor([RIGHT]), zero, zero, epoch=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [object(), np.int64(3), math.nan])
def test_recorder_rejects_unserializable_provenance(value: Any) -> None:
    with pytest.raises(ValueError, match="the provenance must be JSON values: "):
        HardnessRecorder(1, 2, provenance={"seed": value})


@pytest.mark.parametrize("arguments", [(0, 2, 20), (3, 1, 20), (3, 2, 0)])
def test_recorder_rejects_out_of_range_sizes(arguments: tuple[int, int, int]) -> None:
    samples, classes, window = arguments
    with pytest.raises(ValueError, match=rf"got {samples}, {classes} and {window}"):
        HardnessRecorder(samples, classes, el2n_epochs=window)


def test_record_ignore_unknown_ids_leaves_no_trace() -> None:
    rng = np.random.default_rng(0)
    logits, labels = torch.tensor(rng.normal(size=(40, 3)), dtype=torch.float32), torch.tensor(rng.integers(0, 3, 40))
    ids = torch.tensor(rng.integers(0, 12, 40))
    own = ids < 8
    one, other = HardnessRecorder(8, 3, ignore_unknown_ids=True), HardnessRecorder(8, 3)
    for epoch in range(3):
        one.record(logits + epoch, labels, ids, epoch=epoch)
        other.record(logits[own] + epoch, labels[own], ids[own], epoch=epoch)
    assert len(one.scores()) == 8
    for name, values in other.scores().values.items():
        np.testing.assert_array_equal(one.scores().values[name], values, err_msg=name)
    with pytest.raises(ValueError, match="was the recorder made for this dataset"):
        other.record(logits, labels, ids, epoch=3)


# --- masked classes and rows that are not recorded ---

INF = math.inf
MASKED = [  # logits of a sample of class 0, and whether they are recorded
    ([1.0, -INF, 0.5], True),
    ([1.0, -INF, 2.5], True),
    ([1.0, 1.0, -INF], True),
    ([1.0, -INF, -INF], False),  # no other class to compare with
    ([-INF, 1.0, 0.5], False),
    ([1.0, INF, 0.5], False),
    ([1.0, math.nan, -INF], False),
    ([INF, -INF, -INF], False),
    ([-INF, -INF, -INF], False),
]


@pytest.mark.parametrize("classes", [3, 16, 17, 40, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_record_masked_classes(classes: int, dtype: torch.dtype) -> None:
    # torch's loss with a masked class is finite; ours was NaN, and silently recorded nothing.
    rows = torch.tensor([logits for logits, _ in MASKED])
    logits = torch.cat([rows, torch.full((len(rows), classes - 3), -INF)], 1).to(dtype)
    labels, ids = torch.zeros(len(rows)).long(), torch.arange(len(rows))
    recorded = [kept for _, kept in MASKED]
    recorder, with_loss = HardnessRecorder(9, classes), HardnessRecorder(9, classes)
    logged = HardnessRecorder(9, classes, distributed=True)
    for epoch in range(2):
        recorder.record(logits, labels, ids, epoch=epoch)
        logged.record(logits, labels, ids, epoch=epoch)
        leaf = logits.clone().requires_grad_()
        loss = hardness_cross_entropy(leaf, labels, ids, with_loss, epoch=epoch, reduction="none")
        loss[:4].sum().backward()
    logged.merge_ranks()
    with pytest.warns(UserWarning, match="12 rows were not recorded, the first of sample 3: a logit was NaN or"):
        scores = recorder.scores()
    with warnings.catch_warnings(action="error"):
        recorder.to_frame()  # once is enough
    assert (scores.observations[0] > 0).tolist() == recorded
    for other in (with_loss, logged):
        with pytest.warns(UserWarning, match="12 rows"):
            found = other.scores()
        for name, values in scores.values.items():
            np.testing.assert_array_equal(found.values[name], values, err_msg=name)
    visits = {i: [(epoch, row.double().numpy(), 0) for epoch in range(2)] for i, row in enumerate(logits)}
    assert_agree(visits, recorder)
    # The loss equals torch's, even where all other classes are masked.
    reference = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(reference, labels, reduction="none")
    expected[:4].sum().backward()
    torch.testing.assert_close(loss[:4].double(), expected[:4], rtol=1e-6, atol=1e-7)
    tolerance = 1e-6 if dtype in (torch.float32, torch.float64) else 1e-2
    torch.testing.assert_close(leaf.grad[:4].double(), reference.grad[:4], rtol=tolerance, atol=1e-6)  # type: ignore[index]
    assert not loss[4:].isfinite().any()


def test_record_float64_logits_beyond_float32_on_ranks() -> None:
    # The visit log treated a float64 of 1e39 as finite, the kernels as infinite: forgetting counted it.
    alone, rank = HardnessRecorder(2, 2), HardnessRecorder(2, 2, distributed=True)
    for epoch, logits in enumerate(([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1e39], [1.0, -1e39]], [[1.0, 0.0], [0.0, 1.0]])):
        for recorder in (alone, rank):
            recorder.record(torch.tensor(logits).double(), torch.zeros(2).long(), torch.arange(2), epoch=epoch)
    rank.merge_ranks()
    assert alone.nonfinite.tolist() == rank._whole()[2].tolist()
    with pytest.warns(UserWarning, match=r"2 rows were not recorded, the first of sample 0"):
        scores = rank.scores()
    assert scores.per_sample("forgetting").tolist() == [0, 1]
