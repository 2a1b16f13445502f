"""The answer of a study in sentences: did the gap between classes close, by how much, and what else moved."""

from __future__ import annotations

import numpy as np

from hbr_fast.evaluation.measures import METRICS
from hbr_fast.evaluation.resolution import few_samples
from hbr_fast.progress import counted
from hbr_fast.report.controls import controls_answers
from hbr_fast.report.study_files import BASELINE, Comparison, StudyFiles, arm_label, compare
from hbr_fast.studies.infeasible import by_reason, named

MOST_ANSWERS = 4  # most arms with their own sentence
LEVEL = 0.05  # of significance


def answers(study: StudyFiles) -> list[str]:
    """Whether the gap between classes closed, by how much, and how accuracy changed: one sentence per arm if there are
    few, else one for all and one each for the smallest and the largest gap.

    They follow a sentence on the trainings left out because they diverged, one on classes with few samples, and one on
    the chosen alpha, if any; one on hardness that was shifted before ratios were made of it comes after them.
    """
    first = [*_left_out(study), *_infeasible(study), *_coarse(study)]
    return [*first, *_choice(study), *_answers(study), *controls_answers(study), *_shifted(study)]


def glossary(study: StudyFiles) -> str:
    """What the words of the answers mean, for a reader who has not met them."""
    words = [
        "Member: one training.",
        f"{study.metric_title} gap: {study.metric_words} of the best class minus that of the worst.",
    ]
    if study.treatments:
        words = [
            "HBR: hardness-based resampling, more samples for hard classes and fewer for easy ones, at the same total.",
            "Baseline: the set as it is.",
            "Variant: one resampled set, drawn with a seed of its own; variants are the independent observations.",
            *words,
            f"{study.metric_title} MAD: how far a class lies from the median class, in the median.",
            "Holm's correction: raises p-values, since many questions are asked at once.",
        ]
    return " ".join(words)


def _left_out(study: StudyFiles) -> list[str]:
    failed = study.meta.get("failed", [])
    if not failed:
        return []
    which = "; ".join(
        f"{arm_label(f['arm'])}, variant {f['variant']}, member {f['member']}: {f['error']}" for f in failed
    )
    return [f"Trainings that diverged are left out of everything below ({which})."]


def _infeasible(study: StudyFiles) -> list[str]:
    groups = by_reason(study.meta.get("infeasible", {}))
    told = "; ".join(f"{named([arm_label(arm) for arm in arms])} ({why})" for arms, why in groups)
    return [f"Infeasible and left out: {told}."] if told else []


def _shifted(study: StudyFiles) -> list[str]:
    arms = [arm for arm in study.meta["arms"] if arm.get("shifted") and arm["alpha"]]
    if not arms:
        return []
    some = "" if len(arms) == len(study.treatments) else f" (in {', '.join(arm_label(arm['name']) for arm in arms)})"
    if all(arm["shifted"] == "shift" for arm in arms):
        effect = "so the hardest class weighs 21 times the easiest, whatever they were, and gets most of what is added"
    else:
        effect = "as the paper's code does, so the hardest class gets nearly all of what is added"
    return [
        "The mean hardness of some classes gives no ratio or an extreme one: the same amount was added to that of "
        f"every class first{some}, {effect}."
    ]


def choice_answer(study: StudyFiles) -> str:
    """Which alpha was chosen, by what, and what it does on the test split; empty where none was to be chosen."""
    chosen = study.meta.get("choice")
    if chosen is None:
        return ""
    test, tolerance = chosen["test"], chosen["tolerance"]
    share = chosen["validation_share"]
    where = "the validation split" if share is None else f"{100 * share:g} % of each class held out of training"
    which = "the full set (alpha 0)" if chosen["arm"] == BASELINE else f"alpha {chosen['alpha']:g}"
    if chosen["arm"] != BASELINE and chosen["alpha"] == 0:
        which = f"the arm {arm_label(chosen['arm'])}"
    gap, accuracy = f"{test['gap']:.1f} points", f"{test['accuracy']:.1f} %"
    if chosen["arm"] != BASELINE:
        gap += f", the baseline's {test['gap_baseline']:.1f}"
        accuracy += f", the baseline's {test['accuracy_baseline']:.1f} %"
    return (
        f"Chosen on {where}: {which}, the smallest gap that costs at most {tolerance:g} points of accuracy there. On "
        f"the test set its {chosen.get('metric', 'recall')} gap is {gap}; its accuracy is {accuracy}."
    )


def _choice(study: StudyFiles) -> list[str]:
    said = choice_answer(study)
    return [f"{said} Everything below refers to {study.evaluated}."] if said else []


def _answers(study: StudyFiles) -> list[str]:
    if not study.treatments:
        gap = 100 * study.member_metric(BASELINE, f"{study.metric}_max_min").mean()
        accuracy = 100 * study.member_metric(BASELINE, "accuracy").mean()
        return [
            f"Only the baseline was trained ({_members(study, BASELINE)}): its best and its worst class lie "
            f"{gap:.1f} points of {study.metric_words} apart, at an accuracy of {accuracy:.1f} %."
        ]
    if len(study.treatments) <= MOST_ANSWERS:
        return [answer(study, arm) for arm in study.treatments]
    return [overview(study), *(answer(study, arm) for arm in extremes(study))]


def overview(study: StudyFiles) -> str:
    """One sentence on many arms: in how many the max-min gap narrowed or widened beyond chance."""
    gaps = [compare(study, arm, f"{study.metric}_max_min") for arm in study.treatments]
    narrowed = sum(gap.distinguishable and gap.difference < 0 for gap in gaps)
    widened = sum(gap.distinguishable and gap.difference > 0 for gap in gaps)
    unclear = len(gaps) - narrowed - widened
    kept = sum(gap.p_holm <= LEVEL for gap in gaps)
    return (
        f"Of {len(gaps)} arms, {narrowed} narrowed the {study.metric_words} gap between the best and the worst "
        "class and "
        f"{widened} widened it by a 95 % interval that excludes zero; {unclear} show no clear change. One arm in "
        "twenty "
        f"would pass by chance alone; after Holm's correction for all tests of the study, {kept} "
        f"{'is' if kept == 1 else 'are'} significant at {LEVEL:g}."
    )


def extremes(study: StudyFiles) -> list[str]:
    """The arms with the smallest and the largest mean max-min gap."""
    quantity = f"{study.metric}_max_min"
    by_gap = sorted(study.treatments, key=lambda arm: float(study.member_metric(arm, quantity).mean()))
    return [by_gap[0], by_gap[-1]]


def answer(study: StudyFiles, arm: str) -> str:
    """What `arm` did to the max-min gap, the accuracy and two other gaps, against its comparison arm.

    A gap whose 95 % interval includes zero is not called narrowed or widened; one that is, comes with its p-values.
    Without an interval the change may be chance, and the sentence says why there is none.
    """
    gap, accuracy = compare(study, arm, f"{study.metric}_max_min"), compare(study, arm, "accuracy")
    name, other, kind = arm_label(arm), study.against(arm), study.kind_evaluated
    if other != BASELINE:
        name = f"{name}, against {arm_label(other)},"
    what = f"the {study.metric_words} gap between the best and the worst class"
    values = f"from {gap.baseline:.1f} to {gap.treatment:.1f} percentage points"
    size = f"{gap.difference:+.1f} points"
    if gap.baseline > 0:
        size += f", {100 * gap.difference / gap.baseline:+.0f} %"
    change = "narrowed" if gap.difference < 0 else "widened"
    if gap.no_test:
        verdict = f"{name} {change} {what} {values} ({size}), which may be chance: {gap.no_test}"
        if gap.difference == 0:
            verdict = f"{name} left {what} at {gap.treatment:.1f} percentage points: {gap.no_test}"
    elif gap.distinguishable:
        verdict = f"{name} {change} {what} {values} ({size}; {_interval(gap, kind)}; {_p_values(gap)})"
    else:
        verdict = (
            f"{name} moved {what} {values}, which is not distinguishable from no change with {gap.variants} "
            f"variants ({size}; {_interval(gap, kind)})"
        )
    if study.members(arm) == study.members(other):
        who = f"With {_members(study, arm)} per arm"
    else:
        first = "the baseline" if other == BASELINE else arm_label(other)
        who = f"With {_members(study, other)} of {first} and {_members(study, arm)} of {arm_label(arm)}"
    return f"{who}, {verdict}. {_accuracy(accuracy, kind)} {_others(study, arm)}"


def _p_values(gap: Comparison) -> str:
    least = f", the least that {gap.variants} variants can give" if gap.p <= gap.smallest_p * (1 + 1e-9) else ""
    return f"p = {gap.p:.3g}{least}, {gap.p_holm:.3g} after Holm's correction"


def _accuracy(accuracy: Comparison, kind: str) -> str:
    change = round(accuracy.treatment, 1) - round(accuracy.baseline, 1)
    if round(change, 1) == 0:
        text = f"Accuracy stayed at {accuracy.treatment:.1f} %"
    else:
        verb = "rose" if change > 0 else "fell"
        text = f"Accuracy {verb} from {accuracy.baseline:.1f} % to {accuracy.treatment:.1f} %"
    text += f" ({accuracy.difference:+.1f} points"
    if accuracy.no_test:
        return f"{text})."
    if accuracy.distinguishable:
        return f"{text}; {_interval(accuracy, kind)})."
    return f"{text}; {_interval(accuracy, kind)}: not distinguishable from no change)."


def _others(study: StudyFiles, arm: str) -> str:
    """What happened to the median deviation of the metric, and to the gap of the metric that it trades against."""
    rival = "precision" if study.metric != "precision" else "recall"
    said = [
        f"{words} {_moved(compare(study, arm, quantity))}"
        for words, quantity in (
            (f"{study.metric_words} MAD", f"{study.metric}_mad"),
            (f"the {METRICS[rival].words} gap", f"{rival}_max_min"),
        )
    ]
    return f"Other gaps: {'; '.join(said)}."


def _moved(gap: Comparison) -> str:
    values = f"from {gap.baseline:.1f} to {gap.treatment:.1f} points"
    if gap.distinguishable:
        return f"{'narrowed' if gap.difference < 0 else 'widened'} {values}"
    if gap.no_test and gap.difference == 0:
        return f"stayed at {gap.treatment:.1f} points"
    return f"went {values} ({'no interval' if gap.no_test else 'within chance'})"


def _interval(comparison: Comparison, kind: str) -> str:
    """The interval; `kind` is what samples were evaluated, in a word."""
    low, high = comparison.interval
    over = f"{comparison.variants} variants"
    if np.isfinite(comparison.combined_low):
        over += f" and {kind} samples"
    return f"95 % interval {low:+.1f} to {high:+.1f} over {over}"


def _coarse(study: StudyFiles) -> list[str]:
    """Classes with too few evaluated samples to tell small changes."""
    tested = np.array(study.meta.get("evaluated_samples", []))
    warning = few_samples(study.classes, tested, kind=study.kind_evaluated)
    return [] if warning is None else [warning]


def _members(study: StudyFiles, arm: str) -> str:
    return counted(study.members(arm), "member")
