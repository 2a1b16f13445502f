"""The scripts that compare hardness with outside judges, on a small dataset (method: docs/cifar-10.md)."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

from hbr_fast import cli
from hbr_fast.data.convert import convert
from hbr_fast.members.store import open_member
from hbr_fast.resampling.noise import inject_noise

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RECIPE = ["--members-at-once", "1", "--set", "model=cnn-8-16", "epochs=6", "batch_size=50", "lr=0.05", "augment.flip=0",
          "augment.pad=0", "precision=float32"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a copy with wrong labels, and two members trained on each."""
    place = tmp_path_factory.mktemp("judges")
    data = convert("synthetic", place / "clean.hbr", classes=3, train_per_class=100, test_per_class=5, shape=(1, 8, 8))
    noisy = inject_noise(data.train.labels, 0.2, num_classes=3, seed=1)
    np.savez(place / "judges.npz", worse=noisy.labels, easy=~noisy.wrong * 1.0)
    cli.main(
        ["relabel", str(data.path), str(place / "worse.hbr"), "--labels", str(place / "judges.npz"), "--key", "worse"]
    )
    cli.main(["train", str(place / "worse.hbr"), str(place / "run"), "--members", "2", *RECIPE])
    return place


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    parsed: dict[str, dict[str, Any]] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return parsed


def test_time_to_hardness_finds_what_the_judge_says(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script("time_to_hardness", monkeypatch).main
    judge = ["--judge", str(place / "judges.npz"), "--key", "easy"]
    main([str(place / "worse.hbr"), str(place / "run"), *judge, "--out", str(place / "rows.csv")])
    found = last_line(capsys)
    assert set(found) == {"run x1", "run x2"}
    # A judge of two values can at most agree by 0.69 with a ranking without ties.
    assert 0.6 < found["run x2"]["samples"] < 0.75
    assert found["run x2"]["seconds"] >= found["run x1"]["seconds"]
    rows = pl.read_csv(place / "rows.csv")
    assert rows.height == 2 * rows["estimator"].n_unique()
    main([str(place / "worse.hbr"), str(place / "run"), *judge, "--high-is", "hard", "--out", str(place / "other.csv")])
    other = pl.read_csv(place / "other.csv")
    np.testing.assert_allclose(other["samples"], -rows["samples"])
    capsys.readouterr()
    np.save(place / "short.npy", np.zeros(5))
    with pytest.raises(SystemExit):
        main([str(place / "worse.hbr"), str(place / "run"), "--judge", str(place / "short.npy")])
    assert "holds [5] values for 300 train samples" in capsys.readouterr().err


def test_networks_of_parts_judge_the_samples_they_did_not_see(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = script("time_to_hardness", monkeypatch)
    held_out = made.parts_of(10, parts=3, rounds=2)
    assert len(held_out) == 6
    for one in (held_out[:3], held_out[3:]):
        np.testing.assert_array_equal(np.bincount(np.concatenate(one)), 2)  # each sample is in one part of a round
    assert not np.array_equal(held_out[0], held_out[3])
    words = [str(place / "worse.hbr"), str(place / "run"), "--judge", str(place / "judges.npz"), "--key", "easy"]
    words += ["--held-out", str(place / "parts"), "--recipe", "small-cnn", *RECIPE, "--parts", "2", "--rounds", "2"]
    made.main(words)
    found = last_line(capsys)
    # One network judges half the samples, so the first row is that of two.
    assert set(found) == {"run x1", "run x2", "parts x2", "parts x3", "parts x4"}
    assert found["parts x4"]["estimator"].startswith("held-out")
    assert 0.6 < found["parts x4"]["samples"] < 0.75
    assert found["parts x4"]["seconds"] >= found["parts x2"]["seconds"]

    members = [open_member(place / "parts", one.name) for one in (place / "parts" / "members").iterdir()]
    assert [len(member.scores().per_sample("aum")) for member in members] == [300] * 4
    assert [np.isfinite(member.scores().per_sample("aum")).sum() for member in members] == [150] * 4
    made.main(words)
    assert last_line(capsys) == found, "nothing is trained again"
    with pytest.raises(SystemExit, match="--parts must be at least 2"):
        made.main([*words, "--parts", "1"])


def run_wrong_labels(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> dict[str, dict[str, Any]]:
    script("wrong_labels", monkeypatch).main([str(place / "run"), "--truth", str(place / "clean.hbr"), *words])
    return last_line(capsys)


def test_wrong_labels_are_found_by_every_estimator(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_wrong_labels(place, monkeypatch, capsys)
    assert found["aum"]["auroc"] > 0.95
    assert found["aum"]["average_precision"] > 0.8
    assert found["aum"]["trainings"] == 2
    alone = run_wrong_labels(place, monkeypatch, capsys, "--members", "1")
    assert alone["aum"]["trainings"] == 1
    assert alone["aum"]["auroc"] != found["aum"]["auroc"]


def test_two_trainings_judge_each_others_threshold_samples(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(name: str, seed: int) -> str:
        extra, run = place / f"{name}-{seed}.hbr", place / f"{name}-{seed}"
        cli.main(["relabel", str(place / f"{name}.hbr"), str(extra), "--threshold-samples", "--seed", str(seed)])
        cli.main(["train", str(extra), str(run), "--members", "1", *RECIPE])
        return str(run)

    runs = [trained("worse", seed=0), trained("worse", seed=1)]
    found = run_wrong_labels(place, monkeypatch, capsys, "--threshold-samples", *runs)["aum, threshold samples"]
    assert found["trainings"] == 2
    assert found["auroc"] > 0.9
    assert found["recall"] > 0.6, "most of the wrong labels are below the cut"
    assert found["precision"] > 0.2
    assert 0 < found["suspects"] < 300
    with pytest.raises(ValueError, match="clean-0 was not trained on what relabel --threshold-samples makes of"):
        run_wrong_labels(place, monkeypatch, capsys, "--threshold-samples", trained("clean", seed=0))


def test_cleanlab_judges_by_networks_that_did_not_see_the_sample(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cleanlab")
    made = script("wrong_labels", monkeypatch)
    folds = made.folds_of(300, 3)
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(300))
    words = ["--cleanlab", str(place / "folds"), "--folds", "3", "--members-at-once", "1"]
    found = run_wrong_labels(place, monkeypatch, capsys, *words)
    members = [open_member(place / "folds", one.name) for one in (place / "folds" / "members").iterdir()]
    unseen = [np.flatnonzero(member.scores().observations[0] == 0) for member in members]
    assert sorted(map(tuple, unseen)) == sorted(map(tuple, folds))
    assert found["cleanlab self_confidence"]["auroc"] > 0.9
    assert found["held-out margin"]["auroc"] > 0.9
    assert found["held-out margin"]["trainings"] == 2
    assert found["cleanlab find_label_issues"]["average_precision"] is None
    assert found["cleanlab find_label_issues"]["precision"] > 0.5
    assert run_wrong_labels(place, monkeypatch, capsys, *words) == found, "nothing is trained again"
