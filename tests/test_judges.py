"""The scripts that compare hardness with outside judges, on a small dataset (method: docs/cifar-10.md)."""

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from hbr_fast import cli
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset
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


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, float]]:
    parsed: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out.splitlines()[-1])
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


def test_wrong_labels_are_found_by_every_method(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = script("wrong_labels", monkeypatch)
    made.main([str(place / "run"), "--truth", str(place / "clean.hbr")])
    found = last_line(capsys)
    assert found["aum"]["auroc"] > 0.95
    assert found["aum"]["average_precision"] > 0.8
    data: Dataset = open_dataset(place / "worse.hbr")
    folds = made.folds_of(data, 3)
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(300))
    # cleanlab is a package of its own: what it is given is tested, and its call where it is installed.
    rows, logits, _ = made.trained_without(folds[0], data, place / "run", place / "folds")
    truth = open_dataset(place / "clean.hbr").train.labels
    assert (logits.argmax(1) == truth[rows]).mean() > 0.6, "it has learnt from the other folds"
    if importlib.util.find_spec("cleanlab"):
        made.main(
            [
                str(place / "run"),
                "--truth",
                str(place / "clean.hbr"),
                "--cleanlab",
                str(place / "folds"),
                "--folds",
                "3",
            ]
        )
        assert last_line(capsys)["cleanlab self_confidence"]["auroc"] > 0.95
