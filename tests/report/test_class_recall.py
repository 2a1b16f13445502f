"""The figure of every member's recall of every class."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from hbr_fast.report.class_recall import class_recall


def axes_of(recall_mc: np.ndarray, classes: list[str]) -> Axes:
    return class_recall(recall_mc, classes, evaluated="toy, 10 test images: accuracy 50.0 %").axes[0]


def test_classes_are_sorted_by_their_mean_recall() -> None:
    recall = np.array([[0.5, 0.9, 0.75], [0.7, 0.8, 0.85]])  # means 0.6, 0.85, 0.8
    axes = axes_of(recall, ["cat", "$car", "dog"])
    assert [label.get_text() for label in axes.get_xticklabels()] == [r"\$car", "dog", "cat"]
    lines = {str(line.get_gid()): np.asarray(line.get_ydata(), float) for line in axes.lines}
    np.testing.assert_allclose(lines["mean"], [85, 80, 60])
    np.testing.assert_allclose(lines["member 0"], [90, 75, 50])
    np.testing.assert_allclose(lines["member 1"], [80, 85, 70])
    # Best minus worst class: 40 points by one member, 15 by the other.
    assert axes.figure.texts[1].get_text() == "toy, 10 test images: accuracy 50.0 %, gap 27.5 points"


@pytest.mark.parametrize(("members", "classes"), [(1, 3), (2, 40)])
def test_one_member_and_many_classes(members: int, classes: int) -> None:
    axes = axes_of(np.full((members, classes), 0.5), [f"class {c}" for c in range(classes)])
    assert len(axes.lines) == (1 if members == 1 else members + 1)
    assert (axes.get_legend() is None) == (members == 1)
    assert axes.get_xlabel() == ("" if classes == 3 else "40 classes, from the highest mean recall to the lowest")
