"""The tables of a study: classes before and after, the gaps between them, tests and controls."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from hbr_fast.progress import counted
from hbr_fast.report.controls import controls_table
from hbr_fast.report.reading import read_study
from hbr_fast.report.study_files import (
    BASELINE,
    GAPS,
    LEVELS,
    Comparison,
    StudyFiles,
    arm_label,
    compare,
    estimator_label,
    spread,
    tests_of,
)
from hbr_fast.report.table_formats import Cell, Table

MOST_ARMS = 4  # most treatments with their own tables; more share one


def summary_tables(study_dir: str | os.PathLike[str]) -> list[Table]:
    """The tables of a finished study: for each arm beside its comparison arm, its classes and its gaps.

    Raises
    ------
    FileNotFoundError, ValueError
        See `read_study`.
    """
    return tables_of(read_study(study_dir))


def tables_of(study: StudyFiles) -> list[Table]:
    """`summary_tables` for a study already read. A study of only a baseline has one of each."""
    arms: Sequence[str | None] = study.treatments or [None]
    grouped = [] if study.groups is None else [group_table(study)]
    controls = [table for table in [controls_table(study)] if table is not None]
    if len(arms) > MOST_ARMS:
        return [arms_table(study), *controls, *grouped, tests_table(study)]
    tables = [table for arm in arms for table in (class_table(study, arm), gap_table(study, arm))]
    if len(study.treatments) > 1:
        tables.insert(0, arms_table(study))  # side by side
    tables += [*controls, *grouped]
    if study.treatments:
        tables.append(tests_table(study))
    assert len({table.name for table in tables}) == len(tables), "arm names differ in letters or digits"
    return tables


def class_table(study: StudyFiles, arm: str | None) -> Table:
    """Per class, the hardest first: hardness, samples and the metric of `arm` and its comparison arm, or of the
    baseline."""
    shown = [BASELINE] if arm is None else [study.against(arm), arm]
    columns, formats = ["class"], [""]
    numbers = []
    if study.has_hardness:
        columns.append("hardness")
        formats.append(".2f")
        numbers.append(study.class_hardness())
    for name in shown if study.has_samples else ():
        columns.append(f"samples {arm_label(name)}")
        formats.append(".0f")
        numbers.append(study.class_metric(name, "samples").mean(axis=0))
    means = []
    for name in shown:
        low, high = study.class_interval(name, study.metric)
        label = arm_label(name)
        columns += [f"{study.metric_words} {label} (%)", f"95 % low {label}", f"95 % high {label}"]
        formats += [".1f", ".1f", ".1f"]
        means.append(100 * study.class_metric(name, study.metric).mean(axis=0))
        numbers += [means[-1], 100 * low, 100 * high]
    if arm is not None:
        columns.append("change (points)")
        formats.append("+.1f")
        numbers.append(means[1] - means[0])
    rows = tuple((study.classes[c], *(float(column[c]) for column in numbers)) for c in study.hard_to_easy().tolist())
    hardness = (
        f"Hardness: class mean of {estimator_label(study)} over {study.hardness_from}. " if study.has_hardness else ""
    )
    note = (
        f"{study.order_words[0].upper()}{study.order_words[1:]}. {hardness}{study.metric_title} on "
        f"{study.evaluated}: mean and 95 % interval over "
        f"{_members(study, shown)}{_and_test_set(study)}."
    )
    never = study.per_class.filter(study.per_class["never_predicted"].str.to_lowercase().is_in(["true", "1"]))
    for name, who in never.select("class_name", "arm").unique(maintain_order=True).rows():
        if who in shown:
            note += f" Some {arm_label(who)} member never predicts class {name}."
    return Table(
        f"table_classes_{_slug(arm or BASELINE)}",
        "Classes" if arm is None else f"Classes: {arm_label(arm)} against {arm_label(shown[0])}",
        tuple(columns),
        tuple(formats),
        rows,
        note,
    )


def gap_table(study: StudyFiles, arm: str | None) -> Table:
    """Every measure of the metric, and accuracy: `arm` and its comparison arm, or the baseline;
    difference, interval, p."""
    metrics = study.quantities
    shown = [BASELINE] if arm is None else [study.against(arm), arm]
    columns = ["metric", f"{arm_label(shown[0])} (%)", f"std {arm_label(shown[0])}"]
    formats = ["", ".2f", ".2f"]
    share = "fifth" if len(study.classes) <= 20 else "tenth"
    note = f"Quantile: mean of the best {share} of the classes minus mean of the worst {share}. "
    note += "Easy - hard: classes that got no more samples than the mean against those that got more, signed. "
    comparisons: dict[str, Comparison] = {}
    if arm is not None:
        columns += [f"{arm_label(arm)} (%)", f"std {arm_label(arm)}", "difference (points)"]
        formats += [".2f", ".2f", "+.2f"]
        comparisons = {metric: compare(study, arm, metric) for metric in metrics}
    best = next((c for c in comparisons.values() if not c.no_test), None)
    if best is not None:
        columns += ["95 % low", "95 % high", "p", "p (Holm)"]
        formats += ["+.2f", "+.2f", ".3f", ".3f"]

    rows = []
    for metric, words in metrics.items():
        row: list[Cell] = [words]
        for name in shown:
            values_m = 100 * study.member_metric(name, metric)
            row += [float(values_m.mean()), float(spread(values_m))]
        if arm is not None:
            comparison = comparisons[metric]
            row.append(comparison.difference)
            if best is not None:
                row += [*comparison.interval, comparison.p, comparison.p_holm]
        rows.append(tuple(row))

    note += f"Mean and standard deviation (std) over {_members(study, shown)}. "
    if best is not None:
        note += (
            f"Interval and sign-flip p of the paired difference over {best.variants} resampled variants"
            f"{_and_test_set(study)}; the smallest p that this design can give is {best.smallest_p:.3f}. p (Holm): "
            "corrected for all tests of the study."
        )
    elif arm is not None:
        note += f"No interval: {comparisons['accuracy'].no_test}."
    return Table(
        f"table_gaps_{_slug(arm or BASELINE)}",
        "Gaps" if arm is None else f"Gaps: {arm_label(arm)} against {arm_label(shown[0])}",
        tuple(columns),
        tuple(formats),
        tuple(rows),
        note.strip(),
    )


def arms_table(study: StudyFiles) -> Table:
    """One row per arm: accuracy and every measure of the metric, means over members."""
    words = {f"{study.metric}_{name}": said for name, said in (LEVELS | GAPS).items()}
    metrics = {"accuracy": "accuracy", **words}
    rows: list[tuple[Cell, ...]] = [
        (
            arm_label(arm),
            float(study.members(arm)),
            *(float(100 * study.member_metric(arm, metric).mean()) for metric in metrics),
        )
        for arm in study.arms
    ]
    return Table(
        "table_arms",
        "Arms",
        ("arm", "members", *metrics.values()),
        ("", ".0f", *([".2f"] * len(metrics))),
        tuple(rows),
        f"Means over the members of an arm, on {study.evaluated}. Accuracy and {study.metric_words} (mean, worst "
        "class, "
        "worst few) in percent; then its gaps between classes, in percentage points.",
    )


def group_table(study: StudyFiles) -> Table:
    """Accuracy of every group of test samples, arm by arm, the worst of the baseline first."""
    assert study.groups is not None
    columns, formats = ["attribute", "group", "samples"], ["", "", ".0f"]
    for arm in study.arms:
        columns += [f"{arm_label(arm)} (%)", f"95 % low {arm_label(arm)}", f"95 % high {arm_label(arm)}"]
        formats += [".1f"] * 3
    by_group: dict[tuple[str, str], list[Cell]] = {}
    of_baseline: dict[tuple[str, str], float] = {}
    for arm in study.arms:
        for row in study.groups.filter(arm=arm).iter_rows(named=True):
            key = row["attribute"], row["group"]
            cells = by_group.setdefault(key, [*key, float(row["samples"])])
            cells += [100 * row[name] for name in ("accuracy", "low", "high")]
            of_baseline.setdefault(key, row["accuracy"])
    order = sorted(by_group, key=lambda key: (key[0], of_baseline[key]))
    return Table(
        "table_groups",
        "Groups of test samples",
        tuple(columns),
        tuple(formats),
        tuple(tuple(by_group[key]) for key in order),
        f"Accuracy of groups of {study.evaluated}: mean over the members of an arm, and its 95 % interval over "
        "training "
        "and over the samples of the group. The worst group of the baseline first.",
    )


def tests_table(study: StudyFiles) -> Table:
    """Every arm against its comparison arm in every gap, mean recall and accuracy: what can be claimed, and what the
    paper's test would say."""
    tests = tests_of(study)
    names = study.quantities
    rows = []
    for arm, metric, test in tests:
        rows.append(
            (
                arm_label(arm), arm_label(study.against(arm)), names[metric], test.difference, *test.interval,
                test.effect_size, test.p, test.p_holm, test.smallest_p, test.direction, test.paper_t, test.paper_p,
            )
        )  # fmt: skip
    reasons = dict.fromkeys(test.no_test for _, _, test in tests if test.no_test)
    note = (
        "Arm minus its comparison arm, in points, paired by training seed; interval and tests over the means "
        f"of the resampled variants, the independent observations{_and_test_set(study)}. d_z: difference over their "
        "standard deviation. p: "
        "sign-flip test, with the smallest value that this number of variants can give; p (Holm): corrected for all "
        "tests of the study, which are the rows of comparisons.csv. For a gap, smaller is better, and easy - hard, "
        "which has a sign, is judged by its absolute value. The last two columns "
        "are the paper's paired t-test, which treats members that share a resampled set as independent and corrects "
        "nothing: they are for comparison with the paper, not evidence."
    )
    if reasons:
        note += f" Where there is no interval: {'; '.join(reasons)}."
    return Table(
        "table_tests",
        f"Tests of every arm against {study.compared_with}",
        ("arm", "against", "metric", "difference", "95 % low", "95 % high", "d_z", "p", "p (Holm)", "smallest p",
         "direction", "paper's t", "paper's p"),
        ("", "", "", "+.2f", "+.2f", "+.2f", "+.2f", ".3f", ".3f", ".3f", "", "+.2f", ".3f"),
        tuple(rows),
        note,
    )  # fmt: skip


def _and_test_set(study: StudyFiles) -> str:
    """What the intervals cover besides training, for the end of a sentence."""
    return f", and the noise of {study.evaluated}" if study.metric == "recall" else ""


def _members(study: StudyFiles, arms: Sequence[str]) -> str:
    return " and ".join(counted(study.members(arm), f"{arm_label(arm)} member") for arm in arms)


def _slug(arm: str) -> str:
    """An arm's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", arm)
