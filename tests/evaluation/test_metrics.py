import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from hbr_fast.evaluation.measures import MEASURES, gaps
from hbr_fast.evaluation.metrics import evaluate, evaluate_predictions


def logits_of(predicted: list[int], num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[predicted]


@st.composite
def predictions(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    num_classes = draw(st.integers(1, 6))
    one = st.integers(0, num_classes - 1)
    labels = [*range(num_classes), *draw(st.lists(one, max_size=20))]
    return num_classes, labels, draw(st.lists(one, min_size=len(labels), max_size=len(labels)))


@pytest.mark.filterwarnings("ignore:A single label was found")  # from sklearn with a single class
@given(predictions())
def test_evaluate_agrees_with_sklearn(problem: tuple[int, list[int], list[int]]) -> None:
    num_classes, labels, predicted = problem
    evaluation = evaluate(logits_of(predicted, num_classes), np.array(labels))
    names = list(range(num_classes))
    assert evaluation.confusion.dtype == np.int64
    np.testing.assert_array_equal(evaluation.confusion, sk.confusion_matrix(labels, predicted, labels=names))
    assert evaluation.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted, labels=names, zero_division=0.0)
    np.testing.assert_allclose(evaluation.precision, precision)
    np.testing.assert_allclose(evaluation.recall, recall)
    np.testing.assert_allclose(evaluation.f1, f1)
    for c in names:
        one_vs_rest = sk.matthews_corrcoef(np.equal(labels, c), np.equal(predicted, c)) if num_classes > 1 else 0
        assert evaluation.mcc[c] == pytest.approx(one_vs_rest, abs=1e-12)
    np.testing.assert_array_equal(evaluation.never_predicted, [c not in predicted for c in names])


def test_evaluate_by_hand() -> None:
    # True 0 0 0 1 1 2, predicted 0 0 1 1 0 1.
    evaluation = evaluate(logits_of([0, 0, 1, 1, 0, 1], 3), np.array([0, 0, 0, 1, 1, 2]))
    assert evaluation.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert evaluation.accuracy == 0.5
    np.testing.assert_allclose(evaluation.recall, [2 / 3, 1 / 2, 0])
    np.testing.assert_allclose(evaluation.precision, [2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(evaluation.f1, [2 / 3, 2 / 5, 0])
    # Class 0: tp 2, fp 1, fn 1, tn 2 -> 3 / 9. Class 1: tp 1, fp 2, fn 1, tn 2 -> 0.
    np.testing.assert_allclose(evaluation.mcc, [1 / 3, 0, 0])


def test_evaluate_breaks_ties_by_lowest_class() -> None:
    evaluation = evaluate(np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 3.0, 3.0]]), np.array([0, 1, 2]))
    assert evaluation.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_trap_08_unpredicted_class_has_precision_0_and_a_flag() -> None:
    evaluation = evaluate(logits_of([0, 0, 0], 2), np.array([0, 0, 1]))
    assert evaluation.precision.tolist() == [2 / 3, 0]
    assert evaluation.f1.tolist() == [0.8, 0]
    assert evaluation.mcc.tolist() == [0, 0]  # one class is always predicted, the other never
    assert evaluation.never_predicted.tolist() == [False, True]


def test_evaluate_does_not_flag_predicted_class_that_is_never_right() -> None:
    evaluation = evaluate(logits_of([1, 0], 2), np.array([0, 1]))
    assert evaluation.precision.tolist() == [0, 0]
    assert evaluation.mcc.tolist() == [-1, -1]
    assert not evaluation.never_predicted.any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_evaluate_dtypes(dtype: type) -> None:
    logits: np.ndarray = logits_of([0, 1, 1], 2).astype(dtype)
    assert evaluate(logits, np.array([0, 1, 0], dtype=np.uint8)).accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 3)), [0, 0, 2], "class 'b' has no test samples"),
        (np.zeros((3, 3)), [0, 1, 3], "label 3 of sample 2 is outside the 3 classes"),
        (np.zeros((3, 3)), [0, -1, 2], "label -1 of sample 1 is outside"),
        (np.zeros((3, 2)), [0, 1, 1], "logits have 2 classes but 3 class names"),
        (np.zeros((2, 3)), [0, 1, 2], r"must be \[N, C\].*got \(2, 3\) and int64 \(3,\)"),
        (np.zeros(3), [0, 1, 2], r"must be \[N, C\]"),
        (np.zeros((3, 3)), [0.0, 1.0, 2.0], "labels whole numbers"),
        (
            np.array([[0, 1, 2], [np.nan, 0, 0], [0, 1, 2]]),
            [0, 1, 2],
            "logits of 1 sample are NaN, first sample 1",
        ),
    ],
)
def test_evaluate_rejects_invalid_input(logits: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(logits, np.array(labels), classes=["a", "b", "c"])


def test_evaluate_absent_classes_are_nan_on_request() -> None:
    logits, labels = logits_of([0, 1, 3, 0], 5), np.array([0, 1, 1, 0])
    with pytest.raises(ValueError, match=r"class 2, class 3, class 4 have no test samples.*absent=\"nan\""):
        evaluate(logits, labels)
    result = evaluate(logits, labels, absent="nan")
    np.testing.assert_array_equal(result.recall, [1, 0.5, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(result.precision, [1, 1, np.nan, np.nan, np.nan])
    assert np.isnan([result.f1[2:], result.mcc[2:]]).all()
    assert result.never_predicted.tolist() == [False, False, True, False, True]
    assert result.accuracy == 0.75
    present = evaluate(logits_of([0, 1, 2, 0], 3)[:, :3], np.array([0, 1, 1, 0]), absent="nan")
    np.testing.assert_array_equal(present.mcc[:2], result.mcc[:2])
    with pytest.raises(ValueError, match="absent must be 'error' or 'nan', got 'skip'"):
        evaluate(logits, labels, absent="skip")  # type: ignore[arg-type]


def test_evaluate_names_class_without_samples_by_index() -> None:
    with pytest.raises(ValueError, match="class 1 has no test samples"):
        evaluate(np.zeros((2, 2)), np.array([0, 0]))


def test_gaps_by_hand() -> None:
    result = gaps([0.9, 0.5, 0.8, 0.6, 0.7], counts_c=[8, 14, 10, 8, 10])
    # Mean count 10: class 1 is hard. Median 0.7, deviations 0.2, 0.2, 0.1, 0.1, 0: their median is 0.1.
    expected = {
        "max_min": 0.4,
        "quantile": 0.4,
        "easy_hard": 0.25,
        "std": math.sqrt(0.02),
        "mad": 0.1,
        "mean": 0.7,
        "worst": 0.5,
        "worst_k": 0.5,
    }
    assert result == pytest.approx(expected)
    assert list(result) == list(expected)


def test_easy_hard_gap_is_signed() -> None:
    assert gaps([0.9, 0.5], counts_c=[10, 20])["easy_hard"] == pytest.approx(0.4)
    assert gaps([0.9, 0.5], counts_c=[20, 10])["easy_hard"] == pytest.approx(-0.4)


def test_easy_hard_gap_needs_both_kinds_of_class() -> None:
    assert math.isnan(gaps([0.9, 0.5])["easy_hard"])
    assert math.isnan(gaps([0.9, 0.5], counts_c=[10, 10])["easy_hard"])


def test_easy_hard_gap_is_relative_to_the_base() -> None:
    # Class 0 has most samples and lost some: it is easy.
    assert gaps([0.9, 0.5], counts_c=[30, 20], base_c=[40, 10])["easy_hard"] == pytest.approx(0.4)
    assert gaps([0.9, 0.5], counts_c=[30, 20], base_c=[25, 25])["easy_hard"] == pytest.approx(-0.4)
    assert math.isnan(gaps([0.9, 0.5], counts_c=[30, 20], base_c=[3, 2])["easy_hard"])
    with pytest.raises(ValueError, match=r"base_c must have one size for each of 2 classes, got \(3,\)"):
        gaps([0.9, 0.5], counts_c=[30, 20], base_c=[1, 2, 3])


@pytest.mark.parametrize(("num_classes", "k"), [(1, 1), (4, 1), (10, 2), (14, 2), (20, 4), (21, 2), (99, 9), (100, 10)])
def test_quantile_gap_takes_k_classes(num_classes: int, k: int) -> None:
    values = np.random.default_rng(0).permutation(num_classes) ** 2.0
    ordered = sorted(values.tolist())
    expected = (sum(ordered[-k:]) - sum(ordered[:k])) / k
    assert gaps(values)["quantile"] == pytest.approx(expected)


def test_trap_07_zeros_are_not_dropped() -> None:
    result = gaps([0.0, 0.8, 0.6], counts_c=[20, 5, 5])
    assert result["max_min"] == pytest.approx(0.8)
    assert result["mean"] == pytest.approx(1.4 / 3)
    assert result["easy_hard"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("metric", "counts", "message"),
    [
        ([0.5, math.nan], None, "no NaN"),
        ([], None, "one value a class"),
        ([[0.5, 0.5]], None, "one value a class"),
        ([0.5, 0.6], [1, 2, 3], r"one count for each of 2 classes, got \(3,\)"),
    ],
)
def test_gaps_reject_invalid_input(metric: list[float], counts: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaps(metric, counts_c=counts)


@given(predictions(), st.integers(0, 2**32))
def test_auroc_agrees_with_sklearn(problem: tuple[int, list[int], list[int]], seed: int) -> None:
    num_classes, labels, _ = problem
    rng = np.random.default_rng(seed)
    # Ties are of equal rows: probabilities that are equal only in exact arithmetic may tie in one formula, not another.
    rows = rng.integers(0, len(labels) // 2 + 1, len(labels))
    logits = rng.normal(0, 3, (len(labels) // 2 + 1, num_classes))[rows]
    auroc = evaluate(logits, np.array(labels)).auroc
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for c in range(num_classes):
        if num_classes == 1:
            assert math.isnan(auroc[c])
        else:
            assert auroc[c] == pytest.approx(sk.roc_auc_score(np.equal(labels, c), probability[:, c]))


def test_calibration_errors_by_hand() -> None:
    # Probabilities of class 1: 0.9 three times, right twice; 0.3 once, right (it is class 0).
    probability = np.array([[0.1, 0.9], [0.1, 0.9], [0.1, 0.9], [0.7, 0.3]])
    found = evaluate(np.log(probability), np.array([1, 1, 0, 0]))
    # Bins of the class: three of mean 0.9 and frequency 2/3, one of 0.3 and frequency 0.
    assert found.ece[1] == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.3)
    assert found.ece[0] == pytest.approx(found.ece[1])
    # Of the predicted class: three of confidence 0.9, accuracy 2/3; one of 0.7, accuracy 1.
    assert found.calibration == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.3)


def test_calibration_error_of_a_perfect_and_a_bold_model() -> None:
    labels = np.repeat([0, 1], 500)
    sure = np.where(labels[:, None] == np.arange(2), np.inf, -np.inf)
    assert evaluate(sure, labels).calibration == 0
    assert evaluate(sure[::-1], labels).calibration == 1
    assert evaluate(sure, labels).auroc.tolist() == [1, 1]
    assert evaluate(sure[::-1], labels).auroc.tolist() == [0, 0]


def test_evaluate_predictions_matches_evaluate_but_for_probabilities() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1])
    by_logits = evaluate(logits_of(predicted.tolist(), 3), labels)
    found = evaluate_predictions(predicted, labels, num_classes=3)
    for name in ("confusion", "recall", "precision", "f1", "mcc", "never_predicted"):
        np.testing.assert_array_equal(getattr(found, name), getattr(by_logits, name))
    assert found.accuracy == by_logits.accuracy
    assert np.isnan([*found.auroc, *found.ece, found.calibration]).all()
    with pytest.raises(ValueError, match="class 3 has no test samples"):
        evaluate_predictions(predicted, labels, num_classes=4)


def test_worst_classes_follow_what_is_better() -> None:
    values = [0.9, 0.5, 0.8, 0.6, 0.7, 0.4, 0.95, 0.3, 0.2, 0.1]
    found = gaps(values)
    assert (found["worst"], found["worst_k"]) == (0.1, pytest.approx(0.15))
    error = gaps(values, better="smaller")
    assert (error["worst"], error["worst_k"]) == (0.95, pytest.approx(0.925))
    assert {name: error[name] for name in MEASURES if not name.startswith("worst")} == {
        name: pytest.approx(found[name], nan_ok=True) for name in MEASURES if not name.startswith("worst")
    }
