import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy import stats

from hardness.histories import record_history
from hbr_fast.hardness import HardnessScores, stack_scores


def some_scores(*, dataset: str | None = "abc", samples: int = 3, seed: int = 0) -> HardnessScores:
    rng = np.random.default_rng(seed)
    return HardnessScores(
        values={"aum": rng.normal(size=(1, samples)), "loss": rng.random((1, samples))},
        observations=np.full((1, samples), 7),
        never_learnt=np.zeros((1, samples), bool),
        provenance={"dataset": dataset, "seed": seed},
    )


def test_per_sample_averages_over_members_that_saw_the_sample() -> None:
    scores = HardnessScores(
        values={"aum": np.array([[1.0, math.nan, math.nan], [3.0, 5.0, math.nan]])},
        observations=np.array([[1, 0, 0], [1, 1, 0]]),
        never_learnt=np.zeros((2, 3), bool),
    )
    np.testing.assert_array_equal(scores.per_sample("aum"), [2, 5, math.nan])
    with pytest.raises(ValueError, match="no scores of estimator 'loss': these hold aum"):
        scores.per_sample("loss")


def test_class_means_average_observed_samples() -> None:
    scores = HardnessScores(
        values={"aum": np.array([[1.0, math.nan, 4.0, 7.0, 6.0]])},
        observations=np.array([[1, 0, 1, 1, 1]]),
        never_learnt=np.zeros((1, 5), bool),
    )
    labels = np.array([0, 0, 1, 0, 1])
    np.testing.assert_array_equal(scores.class_means("aum", labels, 2), [4, 5])
    with pytest.raises(ValueError, match="no sample of class 2 has a score"):
        scores.class_means("aum", labels, 3)
    with pytest.raises(ValueError, match="no sample of class 0 "):
        scores.class_means("aum", np.array([1, 0, 1, 1, 1]), 2)
    with pytest.raises(ValueError, match="4 labels for scores of 5 samples"):
        scores.class_means("aum", labels[:4], 2)


def test_class_means_reject_out_of_range_labels() -> None:
    with pytest.raises(ValueError, match="class"):
        some_scores().class_means("aum", np.array([0, 1, 2]), 2)


def test_scores_accept_any_integer_sequence_as_labels() -> None:
    scores = scores_of(aum=[[1.0, 3.0, 4.0, 7.0]])
    for labels in ([0, 0, 1, 1], np.array([0, 0, 1, 1], np.uint8), torch.tensor([0, 0, 1, 1])):
        np.testing.assert_array_equal(scores.class_means("aum", labels, 2), [2, 5.5])
        assert scores.top("aum", 1, class_=1, labels_n=labels).tolist() == [2]
        assert scores.to_frame(labels, ["a", "b"])["class_name"].to_list() == ["a", "a", "b", "b"]
    for ask in (
        lambda labels: scores.class_means("aum", labels, 2),
        lambda labels: scores.top("aum", 1, class_=0, labels_n=labels),
        scores.to_frame,
    ):
        with pytest.raises(ValueError, match="labels must be integers, got float64"):
            ask(np.array([0.0, 0, 1, 1]))
        with pytest.raises(ValueError, match=r"an array \[4, 2\] of labels for scores of 4 samples"):
            ask(np.eye(4, 2, dtype=np.int64))
    for label in (-1, 2):
        with pytest.raises(ValueError, match=f"2 class names for labels {min(label, 0)} to {max(label, 1)}"):
            scores.to_frame(np.array([0, label, 1, 1]), ["a", "b"])


def test_require_dataset_rejects_scores_of_another_dataset() -> None:
    some_scores(dataset="f" * 64).require_dataset("f" * 64)
    with pytest.raises(ValueError, match=r"recorded on dataset ffffffffffff, not on eeeeeeeeeeee: record them again"):
        some_scores(dataset="f" * 64).require_dataset("e" * 64)
    with pytest.raises(ValueError, match="do not say which dataset they were recorded on"):
        some_scores(dataset=None).require_dataset("e" * 64)


def test_stack_scores_keeps_members_in_order() -> None:
    one, two = some_scores(seed=1), some_scores(seed=2)
    stacked = stack_scores([two, one, one])
    assert (stacked.members, len(stacked)) == (3, 3)
    np.testing.assert_array_equal(
        stacked.values["loss"], np.concatenate([m.values["loss"] for m in (two, one, one)])
    )  # fmt: skip
    assert [member["seed"] for member in stacked.provenance["members"]] == [2, 1, 1]
    stacked.require_dataset("abc")


def test_stack_scores_rejects_mismatched_scores() -> None:
    with pytest.raises(ValueError, match="no scores to stack"):
        stack_scores([])
    with pytest.raises(ValueError, match=r"their samples differ \(3 and 4\)"):
        stack_scores([some_scores(), some_scores(samples=4)])
    with pytest.raises(ValueError, match=r"their dataset differ \(abc and xyz\)"):
        stack_scores([some_scores(), some_scores(dataset="xyz")])
    fewer = some_scores()
    fewer = HardnessScores({"aum": fewer.values["aum"]}, fewer.observations, fewer.never_learnt, fewer.provenance)
    with pytest.raises(ValueError, match="their estimators differ"):
        stack_scores([some_scores(), fewer])


def test_scores_save_and_load_round_trip(tmp_path: Path) -> None:
    recorder = record_history("rwr", "www", num_samples=3)
    recorder.provenance["dataset"] = "abc"
    scores = recorder.scores(never_learnt="inf")  # infinity and NaN are among the values
    scores.save(tmp_path / "scores")
    loaded = HardnessScores.load(tmp_path / "scores")
    assert set(loaded.values) == set(scores.values)
    for name, values in scores.values.items():
        assert loaded.values[name].dtype == np.float64
        np.testing.assert_array_equal(loaded.values[name], values)
    np.testing.assert_array_equal(loaded.observations, scores.observations)
    np.testing.assert_array_equal(loaded.never_learnt, scores.never_learnt)
    assert loaded.never_learnt.dtype == bool
    assert loaded.provenance == scores.provenance
    assert [file.name for file in tmp_path.iterdir()] == ["scores"]


def test_scores_save_and_load_user_defined_estimators(tmp_path: Path) -> None:
    # `load` silently dropped them.
    own = {
        "zeal": np.array([[1.0, 3.0, 2.0]]),
        "aum": np.array([[0.1, 0.3, 0.2]]),
        "entropy": np.array([[5.0, 1.0, 2.0]]),
    }
    seen, never = np.ones((1, 3), np.int64), np.zeros((1, 3), bool)
    scores = HardnessScores(own, seen, never, hard_is={"entropy": "high", "zeal": "low"})
    scores.save(tmp_path / "scores")
    loaded = HardnessScores.load(tmp_path / "scores")
    assert list(loaded.values) == ["aum", "entropy", "zeal"]
    for name, values in own.items():
        np.testing.assert_array_equal(loaded.values[name], values)
    assert loaded.hard_is == scores.hard_is
    assert loaded.top("entropy", 1).tolist() == loaded.top("zeal", 1).tolist() == [0]
    assert loaded.ranks("entropy").tolist() == [1, 3, 2]
    assert stack_scores([loaded, loaded]).top("entropy", 1).tolist() == [0]
    unknown = HardnessScores({"zeal": own["zeal"]}, seen, never)
    with pytest.raises(ValueError, match="which end of 'zeal' is hard"):
        unknown.ranks("zeal")
    with pytest.raises(ValueError, match="their hard ends differ"):
        stack_scores([scores, HardnessScores(own, seen, never)])
    with pytest.raises(ValueError, match="an estimator cannot be called observations"):
        HardnessScores({"observations": own["zeal"]}, seen, never).save(tmp_path / "taken")


def test_scores_file_is_plain_safetensors(tmp_path: Path) -> None:
    some_scores().save(tmp_path / "scores")
    content = (tmp_path / "scores").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["hbr_fast"])["provenance"] == {"dataset": "abc", "seed": 0}
    assert set(load_file(tmp_path / "scores")) == {"aum", "loss", "observations", "never_learnt"}


def test_scores_load_rejects_invalid_files(tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match=r"garbage does not hold hardness scores \(.*\): record them again"):
        HardnessScores.load(tmp_path / "garbage")
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere with hardness scores: record them again"):
        HardnessScores.load(tmp_path / "nowhere")
    good = {"observations": np.ones((1, 2), np.int64), "never_learnt": np.ones((1, 2), bool), "aum": np.ones((1, 2))}
    fewer = {name: array for name, array in good.items() if name != "observations"}
    for arrays, about, fault in (
        (good, {"schema": 2, "provenance": {}}, "schema is 2, not 1"),
        (good, {"schema": 1}, "provenance is NoneType, not dict"),
        (fewer, {}, "observations is missing"),
        ({**good, "aum": np.ones((1, 3))}, {}, r"aum is float64 \[1, 3\], not float64 \[1, 2\]"),
        ({**good, "aum": np.ones((1, 2), np.float32)}, {}, r"aum is float32 \[1, 2\], not float64"),
        ({**good, "observations": -good["observations"]}, {}, "there are fewer than 0 observations"),
        (good, {"hard_is": {"aum": ["low"]}}, "hard_is is {'aum'"),
    ):
        whole = about if "schema" in about else {"schema": 1, "provenance": {}, **about}
        save_file(arrays, tmp_path / "wrong", metadata={"hbr_fast": json.dumps(whole)})
        with pytest.raises(ValueError, match=rf"wrong does not hold hardness scores \({fault}.*: record them again"):
            HardnessScores.load(tmp_path / "wrong")


def test_scores_save_rejects_scores_of_another_shape(tmp_path: Path) -> None:
    seen = np.ones((1, 3), np.int64)
    scores = HardnessScores({"aum": np.ones((1, 2))}, seen, seen > 1)
    with pytest.raises(ValueError, match=r"the scores of aum must be \[1, 3\], as observations"):
        scores.save(tmp_path / "scores")
    assert list(tmp_path.iterdir()) == []


# --- ranks, agreement and extremes ---


def scores_of(**values: list[list[float]]) -> HardnessScores:
    arrays = {name: np.array(value) for name, value in values.items()}
    seen = ~np.isnan(next(iter(arrays.values())))
    return HardnessScores(arrays, seen.astype(np.int64), np.zeros(seen.shape, bool))


def test_ranks_start_at_the_hardest_and_average_ties() -> None:
    nan = math.nan
    scores = scores_of(aum=[[3.0, -1.0, 3.0, nan, 2.0]], loss=[[3.0, -1.0, 3.0, nan, 2.0]])
    np.testing.assert_array_equal(scores.ranks("aum"), [3.5, 1, 3.5, nan, 2])  # low is hard
    np.testing.assert_array_equal(scores.ranks("loss"), [1.5, 4, 1.5, nan, 3])  # high is hard


def test_ranks_use_mean_over_members() -> None:
    scores = scores_of(aum=[[0.0, 1.0, 2.0], [9.0, 1.0, 2.0]])
    np.testing.assert_array_equal(scores.ranks("aum"), [3, 1, 2])


def test_ranks_put_infinite_forgetting_first() -> None:
    np.testing.assert_array_equal(scores_of(forgetting=[[0.0, math.inf, 2.0]]).ranks("forgetting"), [3, 1, 2])


def test_correlations_are_spearman() -> None:
    rng = np.random.default_rng(0)
    aum = rng.integers(0, 20, 60).astype(float)  # with ties
    loss = -aum + rng.normal(0, 5, 60)
    loss[7] = math.nan
    flat = np.ones(60)
    table = scores_of(aum=[aum], loss=[loss], el2n=[flat]).correlations(["loss", "aum", "el2n"])  # type: ignore[list-item]
    assert table.columns == ["estimator", "loss", "aum", "el2n"]
    assert table["estimator"].to_list() == ["loss", "aum", "el2n"]
    matrix = table.drop("estimator").to_numpy()
    seen = ~np.isnan(loss)
    expected = stats.spearmanr(-aum[seen], loss[seen]).statistic
    assert expected > 0.3, "low aum and high loss agree"
    np.testing.assert_allclose(matrix[:2, :2], [[1, expected], [expected, 1]], rtol=1e-12)
    assert np.isnan(matrix[2]).all()
    assert np.isnan(matrix[:, 2]).all()
    assert scores_of(aum=[aum], loss=[loss]).correlations().columns == ["estimator", "aum", "loss"]  # type: ignore[list-item]


def test_top_returns_extremes_overall_or_of_a_class() -> None:
    scores = scores_of(aum=[[5.0, -2.0, math.nan, 0.0, -2.0, 7.0]], loss=[[5.0, -2.0, math.nan, 0.0, -2.0, 7.0]])
    labels = np.array([0, 1, 0, 0, 1, 1])
    assert scores.top("aum", 3).tolist() == [1, 4, 3]
    assert scores.top("aum", 2, hardest=False).tolist() == [5, 0]
    assert scores.top("loss", 2).tolist() == [5, 0]
    assert scores.top("loss", 2, hardest=False).tolist() == [1, 4], "ties go by the smaller id"
    assert scores.top("aum", 2, class_=0, labels_n=labels).tolist() == [3, 0]
    assert scores.top("aum", 1, class_=1, hardest=False, labels_n=labels).tolist() == [5]
    with pytest.raises(ValueError, match="cannot give 3 samples of class 0: 2 were observed"):
        scores.top("aum", 3, class_=0, labels_n=labels)
    with pytest.raises(ValueError, match="cannot give 0 samples: 5 were observed"):
        scores.top("aum", 0)
    with pytest.raises(ValueError, match="cannot give 1 sample of class 9: 0 were observed"):
        scores.top("aum", 1, class_=9, labels_n=labels)
    with pytest.raises(ValueError, match="need the labels of all 6 samples, got none"):
        scores.top("aum", 1, class_=0)
    with pytest.raises(ValueError, match="5 labels for scores of 6 samples"):
        scores.top("aum", 1, class_=0, labels_n=labels[:5])


def test_to_frame_names_classes_with_labels() -> None:
    frame = some_scores().to_frame(np.array([1, 0, 1]), ["cat", "dog"])
    assert frame.columns == ["sample_id", "class_index", "class_name", "aum", "loss", "observations", "never_learnt"]
    assert frame["class_name"].to_list() == ["dog", "cat", "dog"]
    with pytest.raises(ValueError, match="2 labels for scores of 3 samples"):
        some_scores().to_frame(np.array([1, 0]))
