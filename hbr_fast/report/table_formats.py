"""A table, and its forms: drawn on a terminal, plain text, CSV, HTML, LaTeX."""

from __future__ import annotations

import csv
import html
import io
import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

Cell = str | float
_LOW, _HIGH = "95 % low", "95 % high"  # columns of the ends of an interval begin so


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
    """A `<table>` with a caption and row and column headings; all text escaped. An interval is one column."""
    columns, rows = _with_intervals(table)
    kinds = ["number" if spec else "text" for _, spec in columns]
    head = "".join(
        f'<th scope="col" class="{kind}">{html.escape(column)}</th>'
        for (column, _), kind in zip(columns, kinds, strict=True)
    )
    body = []
    for first, *rest in rows:
        cells = "".join(
            f'<td class="{kind}">{html.escape(cell)}</td>' for cell, kind in zip(rest, kinds[1:], strict=True)
        )
        body.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    return (
        f"<table>\n<caption>{html.escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody>\n</table>"
    )


def _with_intervals(table: Table) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Columns (heading, format) and shown cells, the two ends of each interval in one: a page is narrow."""
    columns = list(zip(table.columns, table.formats, strict=True))
    rows = table.shown()
    for place in reversed(range(len(columns) - 1)):
        low, high = columns[place][0], columns[place + 1][0]
        if low.startswith(_LOW) and high == low.replace(_LOW, _HIGH, 1):
            columns[place : place + 2] = [(low.replace(_LOW, "95 % interval", 1), columns[place][1])]
            for row in rows:
                row[place : place + 2] = [_interval(*row[place : place + 2])]
    return columns, rows


def _interval(low: str, high: str) -> str:
    return "n/a" if low == high == "n/a" else f"{low} to {high}"


def to_latex(table: Table) -> str:
    """A LaTeX `table` float, or a `longtable`, which goes on over pages, for more rows than a page holds.

    They need the packages booktabs and longtable and, for names beyond ASCII, a Unicode engine.
    """
    head = [r"\toprule", " & ".join(map(_latex, table.columns)) + r" \\", r"\midrule"]
    body = []
    for row in table.shown():
        cells = [
            f"${cell}$" if spec and cell[0] in "+-" else _latex(cell)
            for cell, spec in zip(row, table.formats, strict=True)
        ]
        body.append(" & ".join(cells) + r" \\")
    caption = rf"\caption{{{_latex(f'{table.title}.')}}}"
    label = rf"\label{{tab:{table.name.removeprefix('table_').replace('_', '-')}}}"
    columns = "".join("r" if spec else "l" for spec in table.formats)
    note = [f"% {line}" for line in textwrap.wrap(table.note, 100)]
    if len(body) > _ROWS_OF_A_PAGE:
        lines = [
            rf"\begin{{longtable}}{{{columns}}}",
            rf"{caption}{label}\\",
            *head,
            r"\endfirsthead",
            *head,
            r"\endhead",
            *body,
            r"\bottomrule",
            r"\end{longtable}",
            *note,
        ]
    else:
        lines = [
            r"\begin{table}",
            r"\centering",
            caption,
            label,
            rf"\begin{{tabular}}{{{columns}}}",
            *head,
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *note,
            r"\end{table}",
        ]
    return "\n".join([*lines, ""])


_ROWS_OF_A_PAGE = 40  # at the usual 11 points, with caption and headings
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
