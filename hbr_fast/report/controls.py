"""What does the work: arms that resample by hardness beside their controls, which resample as much without it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hbr_fast.report.study_files import BASELINE, StudyFiles, arm_label, compare
from hbr_fast.report.table_formats import Cell, Table


def controls_of(study: StudyFiles) -> dict[str, list[str]]:
    """The arms that resample by hardness, each with the controls that are compared with it."""
    found: dict[str, list[str]] = {}
    for arm in study.treatments:
        if is_control(study, arm) and study.against(arm) != BASELINE:
            found.setdefault(study.against(arm), []).append(arm)
    return found


def is_control(study: StudyFiles, arm: str) -> bool:
    """Whether an arm resamples by the hardness of other classes, or weighs classes instead of resampling."""
    return bool(study.setting(arm, "other_class") or study.setting(arm, "reweight"))


def controls_table(study: StudyFiles) -> Table | None:
    """The gap of every arm with controls and of those: its change, and how they differ; None without any."""
    controls = controls_of(study)
    if not controls:
        return None
    quantity = f"{study.metric}_max_min"
    rows: list[tuple[Cell, ...]] = []

    def add(arm: str, *differs: float) -> None:
        gap, accuracy = _mean(study, arm, quantity), _mean(study, arm, "accuracy")
        numbers = (gap, gap - _mean(study, BASELINE, quantity), *(differs or [math.nan] * 4), accuracy)
        rows.append((arm_label(arm), float(study.setting(arm, "alpha")), *numbers))

    add(BASELINE)
    for arm, of_arm in controls.items():
        add(arm)
        for control in of_arm:
            test = compare(study, control, quantity)
            add(control, test.difference, *test.interval, test.p)
    return Table(
        "table_controls",
        "What does the work: resampling by hardness and its controls",
        ("arm", "alpha", "gap (points)", "change", "minus by hardness", "95 % low", "95 % high", "p", "accuracy (%)"),
        ("", ".3g", ".2f", "+.2f", "+.2f", "+.2f", "+.2f", ".3f", ".2f"),
        tuple(rows),
        f"The {study.metric_words} gap between the best and the worst class, means over members; change: from the "
        "baseline. Below each arm that resamples by hardness are its controls: as much resampling by the hardness of "
        "other classes, and class weights in the loss in place of resampling. Minus by hardness: the control's gap "
        "minus that arm's, with its 95 % interval and sign-flip p. Above zero, hardness narrows the gap more than the "
        "control does.",
    )


def controls_answers(study: StudyFiles) -> list[str]:
    """A sentence for every arm with controls: whether the gap is closed because of hardness."""
    quantity = f"{study.metric}_max_min"
    base = _mean(study, BASELINE, quantity)
    answers = []
    for arm, controls in controls_of(study).items():
        own, *theirs = (f"{_mean(study, one, quantity) - base:+.1f}" for one in (arm, *controls))
        named = " and ".join(f"{arm_label(one)} by {by}" for one, by in zip(controls, theirs, strict=True))
        said = f"{arm_label(arm)} moved the gap by {own} points, its controls {named}"
        others = [one for one in controls if study.setting(one, "other_class")]
        answers.append(f"Is it hardness? {said[0].upper()}{said[1:]}. {_verdict(study, arm, others)}".strip())
    return answers


def _verdict(study: StudyFiles, arm: str, others: Sequence[str]) -> str:
    quantity = f"{study.metric}_max_min"
    effect = compare(study, arm, quantity)
    if effect.no_test:
        return f"No verdict: {effect.no_test}."
    if not (effect.distinguishable and effect.difference < 0):
        return "Resampling by hardness did not narrow the gap beyond chance, so there is no effect to explain."
    for other in others:
        test = compare(study, other, quantity)
        if test.distinguishable and test.difference > 0:
            return "As much resampling without hardness leaves a wider gap: hardness does the work."
        return (
            f"With {test.variants} variants, resampling by hardness cannot be told from as much resampling without it."
        )
    return ""


def _mean(study: StudyFiles, arm: str, quantity: str) -> float:
    return float(100 * study.member_metric(arm, quantity).mean())
