"""Label noise: injected, detected, scored; and relabelled copies of a dataset."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hbr_fast import cli
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import open_dataset
from hbr_fast.data.plan import Plan
from hbr_fast.data.relabel import relabel
from hbr_fast.data.verify import verify_dataset
from hbr_fast.loaders.augment import Augment
from hbr_fast.members.ensemble import open_ensemble, train_ensemble
from hbr_fast.resampling.noise import (
    NoisyLabels,
    inject_noise,
    score_detection,
    score_ranking,
    suspects,
    threshold_labels,
    threshold_of,
)
from hbr_fast.training.recipe import Recipe

LABELS = np.arange(3000) % 3


def test_inject_noise_uniform_is_exact_per_class_and_even_over_others() -> None:
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


def test_inject_noise_pairwise_moves_class_to_next() -> None:
    noisy = inject_noise(LABELS, 0.25, num_classes=3, kind="pairwise", seed=1)
    assert noisy.wrong.sum() == 750
    np.testing.assert_array_equal(noisy.labels[noisy.wrong], (LABELS[noisy.wrong] + 1) % 3)


def test_suspects_by_count_and_threshold_are_the_hard_end() -> None:
    scores = np.array([0.5, np.nan, -1.0, 2.0, -3.0])
    assert suspects(scores, hard_is="low", count=2).tolist() == [2, 4]
    assert suspects(scores, hard_is="high", count=2).tolist() == [0, 3]
    assert suspects(scores, hard_is="low", count=0).tolist() == []
    assert suspects(scores, hard_is="low", threshold=-1.0).tolist() == [2, 4]
    assert suspects(scores, hard_is="high", threshold=0.5).tolist() == [0, 3]


def test_score_detection_by_hand() -> None:
    noisy = inject_noise(LABELS, 0.1, num_classes=3, seed=1)
    wrong = np.flatnonzero(noisy.wrong)
    found = score_detection(np.r_[wrong[:150], np.flatnonzero(~noisy.wrong)[:50]], noisy)
    assert (found.precision, found.recall) == (0.75, 0.5)
    assert np.isnan(score_detection(wrong[:0], noisy).precision)


def test_threshold_samples_form_one_more_class_of_average_size() -> None:
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


def test_relabel_links_images_in_a_new_dataset(tmp_path: Path) -> None:
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


def test_relabel_takes_labels_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = convert("synthetic", "a.hbr", classes=3, train_per_class=10, test_per_class=4, shape=(1, 8, 8))
    human = data.train.labels.copy()
    human[[3, 17]] = 2
    assert data.train.labels[[3, 17]].tolist() != [2, 2]
    np.savez("labels.npz", worse=human.astype(np.int8), score=human / 3, short=human[:5], fourth=human + 1)
    np.save("labels.npy", human)
    for name, words in (("b.hbr", ["labels.npz", "--key", "worse"]), ("c.hbr", ["labels.npy"])):
        capsys.readouterr()
        cli.main(["relabel", "a.hbr", name, "--labels", *words])
        wrong = int((human != data.train.labels).sum())
        assert capsys.readouterr().out == f"{name}: {wrong} of 30 train labels are not those of a.hbr\n"
        np.testing.assert_array_equal(open_dataset(name).train.labels, human)
    for words, message in (
        (["labels.npz"], r"name of its array \(--key\)"),
        (["labels.npy", "--key", "worse"], r"name of its array \(--key\)"),
        (["labels.npz", "--key", "aggre"], "has no array 'aggre': it has worse, score, short, fourth"),
        (["labels.npz", "--key", "score"], r"holds float64 \[30\]: a.hbr needs whole numbers \[30\]"),
        (["labels.npz", "--key", "short"], r"holds int64 \[5\]"),
        (["labels.npz", "--key", "fourth"], "has labels from 1 to 3: classes are 0 to 2"),
        (["labels.csv"], "labels come from a .npy file"),
        (["gone.npy"], "gone.npy"),
        (["labels.npy", "--noise", "0.1"], "give one of --noise RATE, --labels FILE and --threshold-samples"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["relabel", "a.hbr", "x.hbr", "--labels", *words])
        assert re.search(message, capsys.readouterr().err)
    assert not Path("x.hbr").exists()


def test_score_ranking_by_hand() -> None:
    noisy = NoisyLabels(labels=np.array([0, 1, 1, 0, 1]), truth=np.array([0, 0, 1, 1, 1]))  # 1 and 3 are wrong
    scores = np.array([0.2, -1.0, -0.5, 0.1, np.nan])  # from hard to easy: wrong, right, wrong, right
    found = score_ranking(scores, noisy, hard_is="low")
    assert found.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.auroc == pytest.approx(3 / 4)
    assert found.precision_at_count == 1 / 2
    assert score_ranking(-scores, noisy, hard_is="high") == found
    with pytest.raises(ValueError, match="0 of 4 are wrong"):
        score_ranking(scores, NoisyLabels(noisy.truth, noisy.truth), hard_is="low")


def test_suspects_are_wrong_labels_by_count_and_threshold_samples(tmp_path: Path) -> None:
    """On easy data 1 in 10 labels is wrong: AUM finds them, and the threshold samples say how many there are."""
    recipe = Recipe(
        name="t", model="cnn-8-16", epochs=6, batch_size=50, lr=0.05, schedule="triangular", augment=Augment()
    )
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


SMALL = [
    "--members-at-once",
    "1",
    "--set",
    "model=cnn-8-16",
    "epochs=6",
    "batch_size=50",
    "lr=0.05",
    "augment.flip=0",
    "augment.pad=0",
]


def train_scores(run: str) -> np.ndarray:
    return open_ensemble(run)[0].scores().per_sample("aum")


def test_noise_commands_from_injection_to_cleaned_training(
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
    lines = said("suspects", "run", "rest", "--count", "60", "--truth", "clean.hbr", "--csv", "suspects.csv")
    assert lines[0] == "rest: 540 rows; 60 of 600 samples are suspects by aum"
    cli.main(["suspects", "run", "little", "--count", "599"])
    warning = capsys.readouterr().err.splitlines()[-1]
    left = noisy.labels[Plan.load("little").index[0]]
    gone = " and ".join(data.classes[c] for c in range(3) if c != left)
    assert warning == f"warning: little leaves no sample of {gone}"
    found = np.setdiff1d(np.arange(600), Plan.load("rest").index)
    assert [int(line.split()[0]) for line in lines[1:4]] == np.bincount(noisy.labels[found], minlength=3).tolist()
    share = score_detection(found, noisy).precision
    assert share > 0.5
    assert lines[4].startswith(f"wrong labels: {100 * share:.1f} % of the suspects have one, {100 * share:.1f} % of")
    listed = pl.read_csv("suspects.csv")
    assert listed.columns == ["sample_id", "class_index", "class_name", "source", "aum"]
    assert sorted(listed["sample_id"].to_list()) == found.tolist()
    assert listed["aum"].is_sorted()
    assert listed["source"].to_list() == [f"train[{sample}]" for sample in listed["sample_id"]]
    first = listed.row(0, named=True)
    ranked = score_ranking(train_scores("run"), NoisyLabels(noisy.labels, data.train.labels), hard_is="low")
    assert lines[5] == (
        f"ranking by aum: average precision {ranked.average_precision:.3f}, AUROC {ranked.auroc:.3f}, precision at the "
        f"true count {ranked.precision_at_count:.3f}"
    )
    assert f"{ranked.precision_at_count:.3f}" == f"{share:.3f}", "60 were suspected, and 60 are wrong"
    assert lines[6].split() == [
        f"{first['aum']:.4f}", "sample", str(first["sample_id"]), first["class_name"], first["source"]
    ]  # fmt: skip
    assert lines[16:] == [f"{'':>12}  and 50 more", "60 suspects: suspects.csv"]
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
    assert "wrong labels: " in lines[1 + 3], "the extra class is no class of the data"
    judged = NoisyLabels(np.where(np.isin(np.arange(600), moved), noisy.truth, noisy.labels), noisy.truth)
    detection = score_detection(np.setdiff1d(np.arange(600), kept), judged)
    assert detection.recall > 0.5
    assert f"{100 * detection.recall:.1f} % of the wrong labels are suspects" in lines[4]
    said("train", "noisy.hbr", "more-cleaned", "--plan", "more", *SMALL)  # the plan is for the set without the class

    other = convert("synthetic", "other.hbr", classes=3, train_per_class=201, test_per_class=5, shape=(1, 8, 8))
    for words, message in (
        (["suspects", "run", "x"], "run was trained without threshold samples"),
        (["suspects", "run", "x", "--count", "601"], r"count must be in \[0, 600\]"),
        (["suspects", "run", "x", "--count", "6", "--truth", str(other.path)], "has different train images from"),
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
        (lambda: suspects(np.zeros(3), hard_is="low"), "by count or by threshold: give exactly one"),
        (lambda: suspects(np.zeros(3), hard_is="low", count=4), r"count must be in \[0, 3\]"),
        (lambda: suspects(np.zeros(3), hard_is="lo", count=1), "hard_is must be"),
    ],
)
def test_noise_refuses_invalid_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_suspects_exclude_unseen_samples() -> None:
    scores = np.array([0.5, np.nan, -1.0, np.nan])
    assert suspects(scores, hard_is="low", count=2).tolist() == [0, 2]
    assert suspects(scores, hard_is="high", threshold=-np.inf).tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"count must be in \[0, 2\], the samples scored of 4, got 3"):
        suspects(scores, hard_is="low", count=3)
