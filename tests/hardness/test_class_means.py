import numpy as np
import pytest

from hbr_fast.hardness.class_means import class_means

SCORES = np.array([1.0, np.nan, 4.0, 7.0, np.nan])
LABELS = np.array([0, 0, 0, 1, 2])


def test_class_means_exclude_unobserved_samples() -> None:
    for labels in (LABELS, LABELS.astype(np.uint64), LABELS.astype(np.uint8)):
        assert class_means(SCORES[:4], labels[:4], 2).tolist() == [2.5, 7.0]


def test_class_means_unscored_classes_raise_or_are_nan() -> None:
    np.testing.assert_array_equal(class_means(SCORES, LABELS, 4, unscored="nan"), [2.5, 7.0, np.nan, np.nan])
    with pytest.raises(ValueError, match="no sample of class 2 or class 3 has a score"):
        class_means(SCORES, LABELS, 4)
    with pytest.raises(ValueError, match="no sample of class 'c' has a score"):
        class_means(SCORES, LABELS, 3, classes=["a", "b", "c"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:4], "4 labels but 5 scores"),
        (LABELS + 1, r"labels must be classes in \[0, 3\), got some from 1 to 3"),
        (LABELS - 1, r"labels must be classes in \[0, 3\), got some from -1 to 1"),
    ],
)
def test_class_means_reject_mismatched_labels(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_means(SCORES, labels, 3)
