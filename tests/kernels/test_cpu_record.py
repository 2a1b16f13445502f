import math
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numba as nb
import numpy as np
import pytest
import torch
from hardness.agreement import Visit, assert_agree

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.hardness.state import empty_state
from hbr_fast.kernels import reference
from hbr_fast.kernels.hardness import cpu_record as k
from hbr_fast.kernels.hardness import layout, ops
from hbr_fast.kernels.hardness.row_vectors import row_exp_sums, row_rival

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def record_all(
    recorder: HardnessRecorder,
    batches: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]],
    dtype: torch.dtype = torch.float32,
) -> dict[int, list[Visit]]:
    """Record batches (epoch, logits, labels, ids); returns the visits of each sample in order."""
    visits: dict[int, list[Visit]] = defaultdict(list)
    for epoch, logits, labels, ids in batches:
        given = torch.from_numpy(logits).to(dtype)
        recorder.record(given, torch.from_numpy(labels), torch.from_numpy(ids), epoch=epoch)
        for z, y, i in zip(given.float().numpy(), labels, ids, strict=True):
            visits[int(i)].append((epoch, z, int(y)))
    return visits


def record_one(logits: list[float] | np.ndarray, label: int) -> dict[str, float]:
    recorder = HardnessRecorder(1, len(logits))
    recorder.record(torch.tensor(np.array([logits], np.float32)), torch.tensor([label]), torch.tensor([0]), epoch=0)
    return {name: float(values[0, 0]) for name, values in recorder.scores().values.items()}


CASES = [  # every type with every number of classes, and of rows
    (classes, rows, (torch.float32, torch.bfloat16, torch.float16)[(i + j) % 3])
    for i, classes in enumerate((2, 3, 7, 10, 15, 16, 17, 128, 1000, 4097))
    for j, rows in enumerate((1, 3, 128, 1000))
    if classes * rows < 100_000 or rows == 128
]


@pytest.mark.parametrize(("classes", "batch", "dtype"), CASES)
def test_record_matches_reference(classes: int, batch: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng((classes, batch))
    samples = max(2 * batch // 3, 2)  # so batches repeat samples, and some samples are never seen
    recorder = HardnessRecorder(samples + 1, classes, el2n_epochs=2)
    labels_n = rng.integers(0, classes, samples + 1)
    batches = []
    for epoch in range(4):
        for _ in range(2 if batch < 1000 else 1):
            ids = rng.integers(0, samples, batch)
            logits = rng.normal(0, 3, (batch, classes)).astype(np.float32)
            right = rng.random(batch) < 0.5  # otherwise hardly any is right among many classes
            logits[right, labels_n[ids[right]]] += 12
            batches.append((epoch, logits, labels_n[ids], ids))
    visits = record_all(recorder, batches, dtype)
    assert_agree(visits, recorder)
    assert recorder.scores().observations[0, samples] == 0


@pytest.mark.parametrize("classes", [2, 5, 16, 17, 33])
def test_record_ties_are_correct_only_for_lowest_index(classes: int) -> None:
    # Logits of 0 and 1 alone: most rows are tied. One sample a row, its own class each in turn.
    rng = np.random.default_rng(classes)
    logits = rng.integers(0, 2, (200, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 200)
    recorder = HardnessRecorder(200, classes)
    record_all(recorder, [(0, logits, labels, np.arange(200))])
    expected = logits.argmax(axis=1) == labels
    tied = (logits == logits.max(axis=1, keepdims=True)).sum(axis=1) > 1
    assert (expected & tied).any()
    assert (~expected & tied & (logits[np.arange(200), labels] == 1)).any()
    np.testing.assert_array_equal(recorder.scores().values["correctness"][0], expected)


def test_record_tie_of_two_in_both_orders() -> None:
    assert record_one([1.0, 1.0], 0)["correctness"] == 1
    assert record_one([1.0, 1.0], 1)["correctness"] == 0
    assert record_one([1.0, 1.0], 1)["aum"] == 0
    assert record_one([-0.0, 0.0], 1)["correctness"] == 0  # zeros of either sign are equal


@pytest.mark.parametrize("own", [0, 1, 16])
@pytest.mark.parametrize("size", [1e4, 1e30, 1.5e38])
def test_record_extreme_logits(size: float, own: int) -> None:
    classes = 17
    z = np.full(classes, -size, np.float32)
    z[own] = size
    sure = record_one(z, own)
    assert sure["aum"] == pytest.approx(2 * float(z[own]), rel=1e-7)
    assert (sure["confidence"], sure["loss"], sure["dataiq"], sure["correctness"]) == (1, 0, 0, 1)
    assert sure["el2n"] < 1e-35
    wrong = record_one(-z, own)  # all the others tie far above
    assert wrong["confidence"] == 0
    assert wrong["loss"] == pytest.approx(2 * float(z[own]) + math.log(16), rel=1e-7)
    assert wrong["aum"] == pytest.approx(-2 * float(z[own]), rel=1e-7)
    assert wrong["el2n"] == pytest.approx(math.sqrt(1 + 1 / 16), rel=1e-6)
    level = record_one(np.full(classes, size), own)
    assert level["confidence"] == pytest.approx(1 / 17, rel=1e-6)
    assert level["loss"] == pytest.approx(math.log(17), rel=1e-6)


@pytest.mark.parametrize("size", [3.0e38, 3.4e38])
def test_record_accepts_largest_finite_logits(size: float) -> None:
    # Their sum is not finite: the check must not depend on it.
    recorder = HardnessRecorder(1, 32)
    recorder.record(torch.full((1, 32), size), torch.tensor([3]), torch.tensor([0]), epoch=0)
    scores = recorder.scores()
    assert scores.provenance["rows_not_finite"] == 0
    assert scores.per_sample("confidence")[0] == pytest.approx(1 / 32, rel=1e-6)


def test_record_ignores_classes_masked_by_lowest_float() -> None:
    z = np.full(20, np.finfo(np.float32).min)
    z[[3, 7]] = [1.0, 2.5]
    got, expected = record_one(z, 3), reference.observation(z, 3)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-6, abs=1e-30), name


def test_record_rivals_may_all_be_lowest_float() -> None:
    lowest = float(np.finfo(np.float32).min)
    assert record_one([1.0, lowest], 0)["aum"] == pytest.approx(-lowest, rel=1e-6)
    assert record_one([lowest, lowest], 0)["correctness"] == 1


@pytest.mark.parametrize("margin", [5.0, 20.0, 40.0])
def test_record_el2n_and_loss_are_precise_for_confident_models(margin: float) -> None:
    # 1 - p of p near 1 has none left in float64 from a margin of 37 on. Worked: with q = e^-margin the rest is 9 q
    # and the norm is sqrt((9 q)^2 + 9 q^2) / (1 + 9 q). (From 44 on the float32 squares are zero and 5 % are lost.)
    q = math.exp(-margin)
    logits = np.array([margin, *[0.0] * 9], np.float32)
    for got, rtol in ((record_one(logits, 0), 3e-6), (reference.observation(logits, 0), 1e-12)):
        assert got["el2n"] == pytest.approx(math.sqrt(90) * q / (1 + 9 * q), rel=rtol, abs=0)
        assert got["loss"] == pytest.approx(math.log1p(9 * q), rel=rtol, abs=0)


def test_record_unseen_samples_are_nan() -> None:
    recorder = HardnessRecorder(3, 4)
    record_all(recorder, [(0, np.eye(4, dtype=np.float32)[:1], np.array([0]), np.array([1]))])
    scores = recorder.scores()
    assert scores.observations[0].tolist() == [0, 1, 0]
    for name, values in scores.values.items():
        assert np.isnan(values[0, [0, 2]]).all(), name
        assert np.isfinite(values[0, 1]), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 2, 16])
def test_record_skips_and_counts_nonfinite_rows(bad: float, column: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 17)).astype(np.float32)
    logits[[1, 4], column] = bad
    labels = np.array([2, 2, 0, 16, 2, 0])
    recorder = HardnessRecorder(6, 17)
    visits = record_all(recorder, [(0, logits, labels, np.array([0, 5, 1, 0, 2, 5]))])
    assert_agree(visits, recorder)
    scores = recorder.scores()
    # A class of -inf is masked: only rows of that class are skipped. Here both have class 2.
    kept = bad == -math.inf and column != 2
    assert scores.observations[0].tolist() == [2, 1, int(kept), 0, 0, 1 + kept]
    assert scores.provenance["rows_not_finite"] == (0 if kept else 2)
    assert scores.provenance["first_id_not_finite"] == (-1 if kept else 5)


def test_record_keeps_first_nonfinite_id_over_batches() -> None:
    recorder = HardnessRecorder(9, 2)
    nan = np.full((1, 2), np.nan, np.float32)
    for sample in (7, 3):
        record_all(recorder, [(0, nan, np.array([0]), np.array([sample]))])
    assert recorder.scores().provenance["rows_not_finite"] == 2
    assert recorder.scores().provenance["first_id_not_finite"] == 7


@pytest.mark.parametrize(
    ("labels", "ids", "message"),
    [
        ([0, 1, 3], [0, 1, 2], r"row 2 has label 3, outside \[0, 3\)"),
        ([0, -1, 0], [0, 1, 2], r"row 1 has label -1, outside \[0, 3\)"),
        ([0, 1, 2], [0, 5, 2], r"row 1 has id 5, outside \[0, 5\): was the recorder made for this dataset\?"),
        ([0, 1, 2], [-1, 0, 2], r"row 0 has id -1, outside"),
    ],
)
def test_record_rejects_whole_batch_with_bad_label_or_id(labels: list[int], ids: list[int], message: str) -> None:
    recorder = HardnessRecorder(5, 3)
    before = [recorder.sums.clone(), recorder.counters.clone(), recorder.nonfinite.clone()]
    logits = torch.ones(3, 3)
    logits[0, 0] = math.nan
    with pytest.raises(ValueError, match=message):
        recorder.record(logits, torch.tensor(labels), torch.tensor(ids), epoch=0)
    for old, now in zip(before, [recorder.sums, recorder.counters, recorder.nonfinite], strict=True):
        assert torch.equal(old, now)


def test_record_finds_nonfinite_rows_of_all_threads() -> None:
    logits = torch.randn(1024, 12, generator=torch.Generator().manual_seed(2))
    ids = torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:1024]
    bad = [3, 700, 701, 1023]
    recorder = HardnessRecorder(2000, 12)
    for b in bad:
        logits[b, b % 12] = math.inf
    for _ in range(2):  # the same pass again
        recorder.record(logits, torch.zeros(1024, dtype=torch.int64), ids, epoch=0)
    assert recorder.nonfinite.tolist() == [8, int(ids[3]), 0, 0]
    assert int(recorder.counters[..., layout.OBSERVATIONS].sum()) == 2 * (1024 - len(bad))
    assert all(int(recorder.counters[ids[b], layout.OBSERVATIONS]) == 0 for b in bad)


@pytest.mark.parametrize("owners", [2, 8, 64])
@pytest.mark.parametrize("stride", [1, 2, 3, 64])
def test_record_owners_share_ids_evenly(owners: int, stride: int) -> None:
    shares = np.bincount([k.owner_of(i * stride, owners) for i in range(100 * owners)], minlength=owners)
    assert shares.min() > 50
    assert shares.max() < 150


def test_record_skips_ignored_labels() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    logits[3] = math.nan
    recorder, expected = HardnessRecorder(5, 3), HardnessRecorder(5, 3)
    labels, ids = np.array([0, -100, 2, -100, 1]), np.array([0, 77, 2, 3, 4])  # nor does an ignored row need an id
    record_all(recorder, [(0, logits, labels, ids)])
    kept = labels >= 0
    record_all(expected, [(0, logits[kept], labels[kept], ids[kept])])
    assert torch.equal(recorder.sums, expected.sums)
    assert torch.equal(recorder.counters, expected.counters)
    assert recorder.scores().provenance["rows_not_finite"] == 0


def record_with(estimators: int, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, samples: int) -> State:
    state = empty_state(samples, "cpu")
    ops.record(logits, labels, ids, 0, 20, estimators, *state)
    return state


def batch(rows: int, classes: int, *, samples: int) -> State:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return logits, labels, torch.randint(samples, (rows,), generator=generator)


@pytest.mark.parametrize("column", range(7))
def test_record_mask_zeroes_other_columns(column: int) -> None:
    logits, labels, ids = batch(40, 7, samples=9)
    everything, counters, _ = record_with(layout.ALL_COLUMNS, logits, labels, ids, 9)
    chosen, same_counters, _ = record_with(1 << column, logits, labels, ids, 9)
    assert torch.equal(chosen[:, column], everything[:, column])
    assert everything[:, column].all()
    chosen[:, column] = 0
    assert not chosen.any()
    assert torch.equal(counters, same_counters)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_record_does_not_depend_on_threads(threads: int) -> None:
    logits, labels, ids = batch(1000, 17, samples=30)  # each sample some 30 times: order decides
    logits[100] = math.nan
    logits[7, 2] = math.inf
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = record_with(layout.ALL_COLUMNS, logits, labels, ids, 30)
        torch.set_num_threads(threads)
        for _ in range(5):
            got = record_with(layout.ALL_COLUMNS, logits, labels, ids, 30)
            assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    finally:
        torch.set_num_threads(before)
    assert got[2].tolist() == [2, int(ids[7]), 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strides", ["plain", "columns first", "every second", "expanded"])
def test_record_reads_logits_of_any_type_and_stride(dtype: torch.dtype, strides: str) -> None:
    logits, labels, ids = batch(20, 33, samples=30)
    logits = logits.to(dtype)
    if strides == "columns first":
        logits = logits.T.contiguous().T
    elif strides == "every second":
        logits = logits.repeat_interleave(2, dim=1)[:, ::2]
    elif strides == "expanded":
        logits = logits[:1].expand(20, 33)
    got = record_with(layout.ALL_COLUMNS, logits, labels.int(), ids.int(), 30)
    expected = record_with(layout.ALL_COLUMNS, logits.float().contiguous(), labels, ids, 30)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_record_reads_strided_labels_and_ids() -> None:
    logits, labels, ids = batch(20, 4, samples=30)
    pairs = torch.stack([labels, ids], dim=1)
    got = record_with(layout.ALL_COLUMNS, logits, pairs[:, 0], pairs[:, 1], 30)
    expected = record_with(layout.ALL_COLUMNS, logits, labels, ids, 30)
    assert torch.equal(got[0], expected[0])


def test_record_of_no_rows() -> None:
    sums, _, _ = record_with(layout.ALL_COLUMNS, torch.empty(0, 3), torch.empty(0).long(), torch.empty(0).long(), 2)
    assert not sums.any()


def test_record_of_a_hundred_thousand_classes() -> None:
    logits, labels, _ = batch(2, 100_000, samples=2)
    recorder = HardnessRecorder(2, 100_000)
    visits = record_all(recorder, [(0, logits.numpy(), labels.numpy(), np.arange(2))])
    assert_agree(visits, recorder)


def test_record_a_hundred_thousand_visits() -> None:
    # 0.1 is no binary fraction: float32 sums would be off in the fourth digit by now.
    recorder = HardnessRecorder(1, 2)
    logits = torch.tensor([[0.1, 0.0]]).expand(1000, 2)
    zeros = torch.zeros(1000, dtype=torch.int64)
    for _ in range(100):
        recorder.record(logits, zeros, zeros, epoch=0)
    assert recorder.scores().observations[0, 0] == 100_000
    assert recorder.scores().per_sample("aum")[0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_record_el2n_covers_first_epochs_only() -> None:
    rng = np.random.default_rng(1)
    recorder = HardnessRecorder(2, 3, el2n_epochs=3)
    batches = [(epoch, rng.normal(size=(1, 3)).astype(np.float32), np.array([0]), np.array([0])) for epoch in range(5)]
    # Sample 1 is first seen after the window: EL2N has no score for it, every other estimator does.
    batches += [(3, rng.normal(size=(1, 3)).astype(np.float32), np.array([1]), np.array([1]))]
    visits = record_all(recorder, batches)
    assert_agree(visits, recorder)
    window = [reference.observation(z[0], 0)["el2n"] for _, z, _, _ in batches[:3]]
    scores = recorder.scores()
    assert scores.per_sample("el2n")[0] == pytest.approx(np.mean(window), rel=1e-6)
    assert math.isnan(scores.per_sample("el2n")[1])
    assert not math.isnan(scores.per_sample("aum")[1])


def test_record_counts_repeated_sample_in_order() -> None:
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    for order, forgotten in (((right, wrong, right, wrong), 2), ((wrong, wrong, right, right), 0)):
        recorder = HardnessRecorder(1, 2)
        logits = np.array(order, np.float32)
        record_all(recorder, [(0, logits, np.zeros(4, np.int64), np.zeros(4, np.int64))])
        assert recorder.scores().observations[0, 0] == 4
        assert recorder.scores().per_sample("correctness")[0] == 0.5
        assert recorder.scores().per_sample("forgetting")[0] == forgotten


def test_record_leaves_noncontiguous_logits_unchanged() -> None:
    whole = np.random.default_rng(2).normal(size=(40, 24)).astype(np.float32)
    logits = torch.from_numpy(whole)[::2, 1::3]
    before = logits.clone()
    labels = np.arange(20) % 8
    strided, plain = HardnessRecorder(20, 8), HardnessRecorder(20, 8)
    strided.record(logits, torch.from_numpy(labels), torch.arange(20), epoch=0)
    plain.record(logits.contiguous(), torch.from_numpy(labels), torch.arange(20), epoch=0)
    assert torch.equal(logits, before)
    assert torch.equal(strided.sums, plain.sums)
    assert torch.equal(strided.counters, plain.counters)


@nb.njit
def _exp_sums(row, top):  # type: ignore[no-untyped-def]
    at = np.uint64(row.ctypes.data)
    return row_exp_sums(at, row.shape[0], -1, np.float32(top), 16, at, False)  # type: ignore[call-arg]


@nb.njit
def _kept_exp_sums(row, label, kept):  # type: ignore[no-untyped-def]
    at, out = np.uint64(row.ctypes.data), np.uint64(kept.ctypes.data)
    return row_exp_sums(at, row.shape[0], label, np.float32(0.0), 16, out, True)  # type: ignore[call-arg]


@nb.njit
def _rival(row, label):  # type: ignore[no-untyped-def]
    return row_rival(np.uint64(row.ctypes.data), row.shape[0], label, 16)  # type: ignore[call-arg]


def test_exp_sums_over_whole_range() -> None:
    grid = np.linspace(-90, 0, 60_001).astype(np.float32)
    got = np.array([_exp_sums(np.full(16, x, np.float32), 0.0) for x in grid]) / 16
    expected = np.exp(grid.astype(np.float64))
    error = abs(got[:, 0] / expected - 1)
    # The exponent x / ln 2 is a float32: its own rounding leaves 2**-24 of |x|, relative to a result that is e**x.
    assert (error[grid > -87] < 1.2e-7 + 8e-8 * abs(grid[grid > -87])).all()
    assert error[grid > -2].max() < 3e-7
    below = grid <= -87.5
    assert (got[below, 0] < 1.3e-38).all()
    assert (got[below, 0] > 0).all()
    squared = grid > -40
    assert (abs(got[squared, 1] / expected[squared] ** 2 - 1) < 2.1 * error[squared] + 3e-7).all()


def test_exp_sums_are_relative_to_maximum() -> None:
    row = np.array([100.0, 99.0, 98.5] + [-3.0e38] * 13, np.float32)
    first, second = _exp_sums(row, 100.0)
    e = np.exp([0.0, -1.0, -1.5])
    assert first == pytest.approx(e.sum(), rel=3e-7)
    assert second == pytest.approx((e**2).sum(), rel=3e-7)


@pytest.mark.parametrize("classes", [2, 3, 15, 16, 17, 32, 40])
def test_row_rival_finds_maximum_in_every_lane(classes: int) -> None:
    logits = np.full(classes + 1, 9.0, np.float32)  # memory past the row is never read
    for label in range(classes):
        for place in range(classes):
            logits[:classes] = -5.0
            logits[place] = -4.0
            assert _rival(logits[:classes], label) == (-4.0 if place != label else -5.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_row_rival_finds_nonfinite_logit_in_every_lane(bad: float) -> None:
    for place in range(40):
        row = np.zeros(40, np.float32)
        row[place] = bad
        assert np.isnan(_rival(row, 3)[1]) == (bad != -np.inf)


@pytest.mark.parametrize("classes", [2, 3, 15, 16, 17, 40])
def test_row_rival_of_masked_classes(classes: int) -> None:
    row = np.full(classes, -np.inf, np.float32)
    assert _rival(row, 1) == (-np.inf, 0.0)
    row[0] = np.finfo(np.float32).min
    assert _rival(row, 1) == (row[0], 0.0)


@pytest.mark.parametrize("classes", [2, 15, 16, 17, 40])
def test_exp_sums_leave_out_own_class_and_keep_values(classes: int) -> None:
    logits = -np.arange(classes, dtype=np.float32) / 4
    for label in range(classes):
        kept = np.full(classes + 1, 7.0, np.float32)
        first, second = _kept_exp_sums(logits, label, kept)
        e = np.exp(logits.astype(np.float64))
        np.testing.assert_allclose(np.delete(kept[:classes], label), np.delete(e, label), rtol=3e-7 + 8e-8 * 10)
        assert kept[classes] == 7.0
        e[label] = 0.0
        assert (first, second) == pytest.approx((e.sum(), (e**2).sum()), rel=3e-7)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are protected by Linux's calls")
def test_record_stays_within_memory_of_batch() -> None:
    script = Path(__file__).with_name("at_page_ends.py")  # in a separate process, which it may kill
    # Scratch has its own pages, unmapped once freed: a kernel that uses it afterwards is killed too.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1024", "MALLOC_MMAP_MAX_": "1000000"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing else" in done.stdout
