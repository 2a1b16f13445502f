"""The tables of a study: classes before and after and the gaps between them, as text, CSV, HTML, LaTeX."""

from __future__ import annotations

import csv
import html
import io
import math
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from hbr_fast.report.study_files import (
    BASELINE,
    GAPS,
    LEVELS,
    Comparison,
    StudyFiles,
    arm_label,
    compare,
    estimator_label,
    read_study,
    spread,
    tests_of,
)

Cell = str | float

MOST_ARMS = 4  # most treatments with their own tables; more share one


@dataclass(frozen=True)
class Table:
    """A table and the formats of its numbers.

    Attributes
    ----------
    name : stem of its files
    title : one line
    columns : headings, all different
    formats : one per column: "" for text, else a format specification for its numbers, such as ".2f"
    rows : cells; NaN is shown as "n/a"
    note : what the numbers mean, one paragraph
    """

    name: str
    title: str
    columns: tuple[str, ...]
    formats: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        assert len(set(self.columns)) == len(self.columns) == len(self.formats)
        assert all(len(row) == len(self.columns) for row in self.rows)

    def shown(self) -> list[list[str]]:
        """The formatted cells, as unescaped text."""
        return [[_shown(*pair) for pair in zip(row, self.formats, strict=True)] for row in self.rows]


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
    if len(arms) > MOST_ARMS:
        return [arms_table(study), *grouped, tests_table(study)]
    tables = [table for arm in arms for table in (class_table(study, arm), gap_table(study, arm))]
    if len(study.treatments) > 1:
        tables.insert(0, arms_table(study))  # side by side
    tables += grouped
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
        f"Hardness: class mean of {estimator_label(study)} over the baseline members. " if study.has_hardness else ""
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
    return ", and the noise of the test set" if study.metric == "recall" else ""


def print_tables(tables: Sequence[Table], *, file: IO[str] | None = None) -> None:
    """Print tables for a reader: drawn by rich on a terminal, as plain text elsewhere."""
    out = sys.stdout if file is None else file
    if not out.isatty():
        out.write("\n".join(to_text(table) for table in tables))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=out)
    for table in tables:
        drawn = RichTable(title=Text(table.title), caption=Text(table.note), box=box.SIMPLE_HEAD)
        drawn.title_justify = drawn.caption_justify = "left"
        for column, spec in zip(table.columns, table.formats, strict=True):
            drawn.add_column(Text(column), justify="right" if spec else "left")
        for row in table.shown():
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)


def to_text(table: Table) -> str:
    """Plain text with aligned columns; headings are wrapped to the width of their numbers."""
    rows = table.shown()
    heads = []
    for i, column in enumerate(table.columns):
        widest = max((len(row[i]) for row in rows), default=0)
        width = max(widest, *(len(word) for word in column.split()))
        heads.append(textwrap.wrap(column, width))
    height = max(len(head) for head in heads)
    lines = [[*[""] * (height - len(head)), *head] for head in heads]
    grid = [[head[i] for head in lines] for i in range(height)] + rows
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]

    def line(cells: Sequence[str]) -> str:
        pads = [
            f"{cell:>{width}}" if spec else f"{cell:<{width}}"
            for cell, width, spec in zip(cells, widths, table.formats, strict=True)
        ]
        return "  ".join(pads).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    text = [table.title, rule, *map(line, grid[:height]), rule, *map(line, rows), rule]
    if table.note:
        text += textwrap.wrap(table.note, max(len(rule), 60), break_on_hyphens=False)
    return "\n".join(text) + "\n"


def to_csv(table: Table) -> str:
    """CSV with a heading; numbers in full precision, NaN as an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow(["" if _is_nan(cell) else cell for cell in row])
    return buffer.getvalue()


def to_html(table: Table) -> str:
    """A `<table>` with a caption and row and column headings; all text escaped."""
    kinds = ["number" if spec else "text" for spec in table.formats]
    head = "".join(
        f'<th scope="col" class="{kind}">{html.escape(column)}</th>'
        for column, kind in zip(table.columns, kinds, strict=True)
    )
    body = []
    for first, *rest in table.shown():
        cells = "".join(
            f'<td class="{kind}">{html.escape(cell)}</td>' for cell, kind in zip(rest, kinds[1:], strict=True)
        )
        body.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    return (
        f"<table>\n<caption>{html.escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody>\n</table>"
    )


def to_latex(table: Table) -> str:
    """A LaTeX `table` float; needs the packages booktabs and, for names beyond ASCII, a Unicode engine."""
    body = [" & ".join(map(_latex, table.columns)) + r" \\", r"\midrule"]
    for row in table.shown():
        cells = [
            f"${cell}$" if spec and cell[0] in "+-" else _latex(cell)
            for cell, spec in zip(row, table.formats, strict=True)
        ]
        body.append(" & ".join(cells) + r" \\")
    caption = _latex(f"{table.title}.")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{table.name.removeprefix('table_').replace('_', '-')}}}",
            rf"\begin{{tabular}}{{{''.join('r' if spec else 'l' for spec in table.formats)}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {line}" for line in textwrap.wrap(table.note, 100)),
            r"\end{table}",
            "",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    # Braces keep a class named "[x]" from being read as the optional argument of the row before it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _is_nan(cell: Cell) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def _shown(cell: Cell, spec: str) -> str:
    if isinstance(cell, str):
        return cell
    if math.isnan(cell):
        return "n/a"
    # Rounded first, so that a value that rounds to zero is shown without a minus sign.
    return f"{round(cell, int(spec[-2])) + 0.0:{spec}}"


def _members(study: StudyFiles, arms: Sequence[str]) -> str:
    return " and ".join(
        f"{study.members(arm)} {arm_label(arm)} member{'s' if study.members(arm) != 1 else ''}" for arm in arms
    )


def _slug(arm: str) -> str:
    """An arm's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", arm)
