"""Label noise: put in, suspected, scored; and the same images under other labels."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast import cli
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import open_dataset, verify_dataset
from hbr_fast.data.relabel import relabel
from hbr_fast.noise import NoisyLabels, inject_noise, score_detection, suspects, threshold_labels, threshold_of
from hbr_fast.plan import Plan
from hbr_fast.training.ensemble import train_ensemble
from hbr_fast.training.recipe import Recipe

LABELS = np.arange(3000) % 3


def test_uniform_noise_is_an_exact_share_of_each_class_over_the_other_classes_alike() -> None:
    noisy = inject_noise(LABELS, 0.3, num_classes=3, seed=1)
    assert noisy.truth.tolist() == LABELS.tolist()
    for c in range(3):
        labels = noisy.labels[c == LABELS]
        assert (labels != c).sum() == 300
        counts = np.bincount(labels, minlength=3)[[(c + 1) % 3, (c + 2) % 3]]
        assert (np.abs(counts - 150) < 45).all()
    assert noisy.wrong.sum() == 900
    again, other = (inject_noise(LABELS, 0.3, num_classes=3, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(again.labels, noisy.labels)
    assert (other.labels != noisy.labels).any()


def test_pairwise_noise_turns_a_class_into_the_next() -> None:
    noisy = inject_noise(LABELS, 0.25, num_classes=3, kind="pairwise", seed=1)
    assert noisy.wrong.sum() == 750
    np.testing.assert_array_equal(noisy.labels[noisy.wrong], (LABELS[noisy.wrong] + 1) % 3)


def test_suspects_by_count_and_by_threshold_are_the_hard_end() -> None:
    scores = np.array([0.5, np.nan, -1.0, 2.0, -3.0])
    assert suspects(scores, hard_is="low", count=2).tolist() == [2, 4]
    assert suspects(scores, hard_is="high", count=2).tolist() == [0, 3]
    assert suspects(scores, hard_is="low", count=0).tolist() == []
    assert suspects(scores, hard_is="low", threshold=-1.0).tolist() == [2, 4]
    assert suspects(scores, hard_is="high", threshold=0.5).tolist() == [0, 3]


def test_detection_by_hand() -> None:
    noisy = inject_noise(LABELS, 0.1, num_classes=3, seed=1)
    wrong = np.flatnonzero(noisy.wrong)
    found = score_detection(np.r_[wrong[:150], np.flatnonzero(~noisy.wrong)[:50]], noisy)
    assert (found.precision, found.recall) == (0.75, 0.5)
    assert np.isnan(score_detection(wrong[:0], noisy).precision)


def test_threshold_samples_are_a_class_more_of_the_average_size() -> None:
    labels = threshold_labels(LABELS, num_classes=3, seed=4)
    assert (labels == 3).sum() == 750  # N / (C + 1)
    assert (labels[labels != 3] == LABELS[labels != 3]).all()
    assert (threshold_labels(np.zeros(10, np.int64), num_classes=3, seed=0) == 3).sum() == 3, "2.5 goes up"
    scores = np.arange(3000.0)
    own = scores[labels == 3]
    assert threshold_of(scores, labels, num_classes=3, hard_is="low") == np.percentile(own, 99)
    assert threshold_of(scores, labels, num_classes=3, hard_is="high") == np.percentile(own, 1)
    with pytest.raises(ValueError, match="no sample has the extra class 3"):
        threshold_of(scores, LABELS, num_classes=3, hard_is="low")


def test_relabelled_images_are_linked_and_the_dataset_is_another(tmp_path: Path) -> None:
    data = convert("synthetic", tmp_path / "a.hbr", classes=3, train_per_class=10, test_per_class=4, shape=(1, 8, 8))
    labels = threshold_labels(data.train.labels, num_classes=3, seed=0)
    made = relabel(data, labels, tmp_path / "b.hbr", classes=[*data.classes, "threshold"], origin={"kind": "threshold"})
    verify_dataset(tmp_path / "b.hbr")
    assert made.fingerprint != data.fingerprint
    assert made.classes == (*data.classes, "threshold")
    np.testing.assert_array_equal(made.train.labels, labels)
    np.testing.assert_array_equal(made.test.labels, data.test.labels)
    assert os.path.samefile(tmp_path / "a.hbr" / "train.images.npy", tmp_path / "b.hbr" / "train.images.npy")
    assert made.meta["source"]["relabelled"] == {"from": data.fingerprint, "kind": "threshold"}
    np.testing.assert_array_equal(open_dataset(data.path).train.labels, data.train.labels)
    for bad, message in (
        (labels, r"classes in \[0, 3\), got some from 0 to 3"),
        (labels[:5], r"whole numbers \[30\], got int64 \[5\]"),
        (np.zeros(30, np.int64), "class 'class_1' has no sample"),
    ):
        with pytest.raises(ValueError, match=message):
            relabel(data, bad, tmp_path / "c.hbr")
    assert not (tmp_path / "c.hbr").exists()


def test_wrong_labels_are_found_by_count_and_by_threshold_samples(tmp_path: Path) -> None:
    """On easy data 1 in 10 labels is wrong: AUM finds them, and the threshold samples say how many there are."""
    recipe = Recipe(name="t", model="cnn-8-16", epochs=6, batch_size=50, lr=0.05, schedule="triangular", flip=0.0)
    data = convert("synthetic", tmp_path / "a.hbr", classes=3, train_per_class=200, test_per_class=5, shape=(1, 8, 8))
    noisy = inject_noise(data.train.labels, 0.1, num_classes=3, seed=1)
    made = relabel(data, noisy.labels, tmp_path / "noisy.hbr")
    scores = train_ensemble(made, recipe, members=2, out=tmp_path / "run").scores().per_sample("aum")
    by_count = score_detection(suspects(scores, hard_is="low", count=60), noisy)
    assert by_count.precision == by_count.recall > 0.5, "a tenth would be chance"

    labels = threshold_labels(noisy.labels, num_classes=3, seed=2)
    extra = relabel(data, labels, tmp_path / "extra.hbr", classes=[*data.classes, "threshold"])
    aum = train_ensemble(extra, recipe, members=2, out=tmp_path / "extra").scores().per_sample("aum")
    cut = threshold_of(aum, labels, num_classes=3, hard_is="low")
    found = np.setdiff1d(suspects(aum, hard_is="low", threshold=cut), np.flatnonzero(labels == 3))
    assert score_detection(found, noisy).recall > 0.5
    assert len(found) < 300


SMALL = ["--members-at-once", "1", "--set", "model=cnn-8-16", "epochs=6", "batch_size=50", "lr=0.05", "flip=0", "pad=0"]


def test_from_noise_to_a_training_without_suspects_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = convert("synthetic", "clean.hbr", classes=3, train_per_class=200, test_per_class=5, shape=(1, 8, 8))

    def said(*words: str) -> list[str]:
        capsys.readouterr()
        cli.main(list(words))
        return capsys.readouterr().out.splitlines()

    assert said("relabel", "clean.hbr", "noisy.hbr", "--noise", "0.1", "--kind", "pairwise", "--seed", "1") == [
        "noisy.hbr: 60 of 600 train labels are wrong; the truth is in clean.hbr"
    ]
    noisy = inject_noise(data.train.labels, 0.1, num_classes=3, kind="pairwise", seed=1)
    np.testing.assert_array_equal(open_dataset("noisy.hbr").train.labels, noisy.labels)
    assert open_dataset("noisy.hbr").meta["source"]["relabelled"]["noise"] == "pairwise"

    said("train", "noisy.hbr", "run", "--members", "2", *SMALL)
    lines = said("suspects", "run", "rest", "--count", "60", "--truth", "clean.hbr")
    assert lines[0] == "rest: 540 rows; 60 of 600 samples are suspects by aum"
    found = np.setdiff1d(np.arange(600), Plan.load("rest").index)
    assert [int(line.split()[0]) for line in lines[1:4]] == np.bincount(noisy.labels[found], minlength=3).tolist()
    share = score_detection(found, noisy).precision
    assert share > 0.5
    assert lines[4].startswith(f"wrong labels: {100 * share:.1f} % of the suspects have one, {100 * share:.1f} % of")
    assert "suspects by aum <= 0\n" in "\n".join(said("suspects", "run", "below", "--threshold", "0"))
    said("train", "noisy.hbr", "cleaned", "--plan", "rest", *SMALL)

    assert said("relabel", "noisy.hbr", "extra.hbr", "--threshold-samples", "--seed", "2") == [
        "extra.hbr: 150 of 600 train samples are threshold samples"
    ]
    said("train", "extra.hbr", "extra", "--members", "2", *SMALL)
    lines = said("suspects", "extra", "more", "--truth", "clean.hbr")
    plan = Plan.load("more")
    kept, moved = plan.index, np.flatnonzero(open_dataset("extra.hbr").train.labels == 3)
    assert np.isin(moved, kept).all(), "nobody judged them"
    assert f"{600 - len(kept)} of 450 samples are suspects by aum <= " in lines[0]
    assert len(lines) == 1 + 3 + 1, "the extra class is no class of the data"
    judged = NoisyLabels(np.where(np.isin(np.arange(600), moved), noisy.truth, noisy.labels), noisy.truth)
    detection = score_detection(np.setdiff1d(np.arange(600), kept), judged)
    assert detection.recall > 0.5
    assert f"{100 * detection.recall:.1f} % of those that do are suspects" in lines[4]
    said("train", "noisy.hbr", "more-cleaned", "--plan", "more", *SMALL)  # the plan is of the set without the class

    other = convert("synthetic", "other.hbr", classes=3, train_per_class=201, test_per_class=5, shape=(1, 8, 8))
    for words, message in (
        (["suspects", "run", "x"], "run was trained without threshold samples"),
        (["suspects", "run", "x", "--count", "601"], r"count must be in \[0, 600\]"),
        (["suspects", "run", "x", "--count", "6", "--truth", str(other.path)], "has other train images than"),
        (["relabel", "extra.hbr", "x.hbr", "--threshold-samples"], "has threshold samples already"),
        (["relabel", "clean.hbr", "x.hbr", "--noise", "2"], r"a share in \[0, 1\], got 2.0"),
    ):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inject_noise(LABELS, 1.5, num_classes=3, seed=0), r"share in \[0, 1\], got 1.5"),
        (lambda: inject_noise(LABELS, 0.5, num_classes=2, seed=0), r"labels in \[0, 2\)"),
        (lambda: inject_noise(LABELS, 0.5, num_classes=3, kind="pair", seed=0), "uniform or pairwise, got 'pair'"),  # type: ignore[arg-type]
        (lambda: suspects(np.zeros(3), hard_is="low"), "by count or by threshold: give one"),
        (lambda: suspects(np.zeros(3), hard_is="low", count=4), r"count must be in \[0, 3\]"),
        (lambda: suspects(np.zeros(3), hard_is="lo", count=1), "hard_is must be"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
