"""Reasons of infeasible arms, as a reader gets them."""

import pytest

from hbr_fast.studies.infeasible import by_reason, lines, remedy, said
from hbr_fast.studies.preview import ArmPreview, Preview, arm_lines
from hbr_fast.studies.runner import _say_left_out
from hbr_fast.studies.study import Arm, Pruning

NO_RATIO = "hardness of class 'Shirt 7' ({}) gives no ratio, which needs positive values"
MANY = {f"pruned-{rate}-{how}-1": NO_RATIO.format(-rate / 100) for rate in (33, 50, 75) for how in ("random", "smote")}


def test_reasons_that_differ_in_numbers_are_told_once_with_ranges() -> None:
    ((arms, reason),) = by_reason(MANY)
    assert arms == list(MANY)
    assert reason == NO_RATIO.format("-0.75 to -0.33")
    (line,) = lines(MANY)
    assert line.startswith("arms 'pruned-33-random-1', 'pruned-33-smote-1', 'pruned-50-random-1', 'pruned-50-smote-1' ")
    assert "and 2 more: hardness of" in line
    assert said({"a": "alpha 1.0 is too large", "b": "no pool"}) == "arm 'a': alpha 1.0 is too large; arm 'b': no pool"


def test_reasons_about_other_classes_are_not_merged() -> None:
    assert len(by_reason({"a": "class '1' has 3", "b": "class '2' has 3"})) == 2


def test_only_the_first_of_many_reasons_are_told() -> None:
    told = lines({f"arm-{n}": f"class '{n}' is too small" for n in range(9)})
    assert len(told) == 5
    assert told[-1] == "5 more for other reasons"


def test_the_remedy_comes_first_where_nothing_resamples(capsys: pytest.CaptureFixture[str]) -> None:
    pruned = Arm("pruned-33", undersample="none", oversample="none", prune=Pruning(0.33))
    _say_left_out([pruned], MANY)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("no arm that resamples by hardness is feasible: --nonpositive shift ")
    assert told[1] == "6 of 7 arms are infeasible and left out:"
    assert len(told) == 3
    _say_left_out([pruned, Arm("random-1", 1.0)], MANY)
    assert "no arm" not in capsys.readouterr().err
    assert remedy({"a": "alpha 2.0 is too large"}) == "the reasons say what would work"


def test_a_preview_tells_a_shared_reason_once() -> None:
    arms = [ArmPreview(name, 0, 0, f"infeasible: {reason}") for name, reason in MANY.items()]
    told = arm_lines(Preview((ArmPreview("baseline", 2, 2), *arms), 0))
    assert told[0].endswith("2 done")
    assert told[1].endswith(f"(infeasible: {NO_RATIO.format('-0.75 to -0.33')})")
    assert all(line.endswith("(infeasible: as pruned-33-random-1)") for line in told[2:])
