import csv
import html.parser
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hbr_fast.evaluation.statistics import combined_interval
from hbr_fast.report.table_formats import Table, print_tables, to_csv, to_html, to_latex, to_text
from hbr_fast.report.tables import summary_tables

StudyWriter = Callable[..., Path]
NAMES = ("T-shirt/top", "<b>", "50%_x", "a & b", r"$\alpha^2$", "~#{}", "[x]", "*")
AWKWARD = Table("odd", "Odd names", ("class", "n"), ("", "+.1f"), tuple((name, -0.25) for name in NAMES))


class Cells(html.parser.HTMLParser):
    """The text of every row heading, and all tags met."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.headings: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.inside = tag == "th" and ("scope", "row") in attrs

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.headings.append(data)


def study_of_two_members() -> dict[str, np.ndarray]:
    baseline = np.full((2, 10), 0.9)
    hbr = np.full((2, 10), 0.88)
    baseline[:, 6], hbr[:, 6] = [0.6, 0.7], [0.70, 0.76]
    return {"baseline": baseline, "hbr": hbr}


def test_class_table_by_hand(study_writer: StudyWriter) -> None:
    table = summary_tables(study_writer(recall=study_of_two_members()))[0]
    assert table.columns == (
        "class",
        "hardness",
        "samples baseline",
        "samples HBR",
        *("recall baseline (%)", "95 % low baseline", "95 % high baseline"),
        *("recall HBR (%)", "95 % low HBR", "95 % high HBR"),
        "change (points)",
    )
    name, *numbers = table.rows[0]
    # Shirt is the hardest. Recalls 60 and 70: mean 65; 70 and 76: mean 73. Test noise of a recall of 1000 samples.
    assert name == "Shirt"
    before, after = (
        100 * np.array(combined_interval(np.array(recalls), np.sqrt(mean * (1 - mean) / 1000)))
        for recalls, mean in (([0.6, 0.7], 0.65), ([0.7, 0.76], 0.73))
    )
    expected = [0.3, 50, 150, 65, *np.clip(before, 0, 100), 73, *np.clip(after, 0, 100), 8]
    np.testing.assert_allclose(np.array(numbers, float), expected, rtol=1e-9)
    assert [row[0] for row in table.rows[:3]] == ["Shirt", "Coat", "T-shirt/top"]
    assert table.rows[-1][0] == "Trouser"
    assert "class mean of AUM" in table.note
    assert "2 baseline members and 2 HBR members" in table.note


def test_gap_table_by_hand(study_writer: StudyWriter) -> None:
    table = summary_tables(study_writer(recall=study_of_two_members()))[1]
    rows = {row[0]: np.array(row[1:], float) for row in table.rows}
    # Gaps 30 and 20 before, 18 and 12 after: differences -12 and -8.
    found = rows["recall gap: max - min"]
    np.testing.assert_allclose(found[:5], [25, np.sqrt(50), 15, np.sqrt(18), -10], rtol=1e-5)
    # t(0.975, 1) = 12.7062, standard error 2; the test set's noise adds little to it.
    assert found[6] - found[5] == pytest.approx(2 * 25.4, rel=0.01)
    assert found[5] + found[6] == pytest.approx(-20)
    assert (found[7], found[8]) == (0.5, 1.0)
    # Accuracy here is the mean recall: 87 and 88 before, 86.2 and 86.8 after.
    np.testing.assert_allclose(rows["accuracy"][[0, 2, 4]], [87.5, 86.5, -1.0], rtol=1e-9)
    np.testing.assert_allclose(rows["recall: mean over classes"], rows["accuracy"])
    assert len(rows) == 9
    assert "the smallest p that this design can give is 0.500" in table.note


def test_tables_of_one_member_and_one_variant_show_no_spread_or_interval(study_writer: StudyWriter) -> None:
    recall = {arm: values[:1] for arm, values in study_of_two_members().items()}
    classes, gaps, tests = summary_tables(study_writer(recall=recall))
    assert tests.note.endswith("Where there is no interval: one resampled variant gives no interval.")
    assert {cell for row in tests.shown() for cell in row[4:10]} == {"n/a"}
    assert classes.shown()[0][5] == "n/a"
    assert "p" not in gaps.columns
    assert "No interval: one resampled variant gives no interval." in gaps.note


def test_tables_of_every_other_arm_and_of_baseline_alone(study_writer: StudyWriter) -> None:
    recall = study_of_two_members()
    three = {"baseline": recall["baseline"], "hbr alpha=0.5": recall["hbr"], "smote": recall["hbr"]}
    names = [table.name for table in summary_tables(study_writer("three", recall=three))]
    assert names == [
        "table_arms",
        "table_classes_hbr_alpha_0.5",
        "table_gaps_hbr_alpha_0.5",
        "table_classes_smote",
        "table_gaps_smote",
        "table_tests",
    ]
    alone = summary_tables(study_writer("alone", recall={"baseline": recall["baseline"]}))
    assert [table.name for table in alone] == ["table_classes_baseline", "table_gaps_baseline"]
    assert "change (points)" not in alone[0].columns


def test_many_arms_share_two_tables(study_writer: StudyWriter) -> None:
    recall = study_of_two_members()
    arms = {"baseline": recall["baseline"], **{f"arm-{i}": recall["hbr"] for i in range(5)}}
    arms_table, tests = summary_tables(study_writer(recall=arms))
    assert (arms_table.name, tests.name) == ("table_arms", "table_tests")
    assert [row[0] for row in arms_table.rows] == list(arms)
    for name, row in zip(arms, arms_table.rows, strict=True):
        recall_mc = arms[name]
        assert row[1] == 2
        assert row[2] == pytest.approx(100 * recall_mc.mean())  # the writer's accuracy
        assert row[6] == pytest.approx(100 * (recall_mc.max(axis=1) - recall_mc.min(axis=1)).mean())
    assert [(row[0], row[2]) for row in tests.rows[:10]] == [
        ("arm-0", "recall gap: max - min"),
        ("arm-0", "recall gap: quantile"),
        ("arm-0", "recall gap: easy - hard"),
        ("arm-0", "recall gap: std"),
        ("arm-0", "recall gap: MAD"),
        ("arm-0", "recall: mean over classes"),
        ("arm-0", "recall: worst class"),
        ("arm-0", "recall: worst few classes"),
        ("arm-0", "accuracy"),
        ("arm-1", "recall gap: max - min"),
    ]


def test_tests_table_shows_rows_of_comparisons_csv(study_writer: StudyWriter) -> None:
    path = study_writer()
    table = summary_tables(path)[-1]
    stored = pl.read_csv(path / "comparisons.csv").row(by_predicate=pl.col("quantity") == "recall_std", named=True)
    row = dict(zip(table.columns, next(row for row in table.rows if row[2] == "recall gap: std"), strict=True))
    assert (row["difference"], row["95 % low"], row["95 % high"]) == pytest.approx(
        (100 * stored["difference"], 100 * stored["combined_low"], 100 * stored["combined_high"])
    )
    shown = ("d_z", "p", "p (Holm)", "smallest p", "direction", "paper's t", "paper's p")
    written = ("effect_size", "p", "p_holm", "smallest_p", "direction", "paper_t", "paper_p")
    assert [row[column] for column in shown] == [stored[column] for column in written]


def test_trap_08_class_never_predicted_is_reported(study_writer: StudyWriter) -> None:
    path = study_writer()
    text = (path / "per_class.csv").read_text()
    assert "never predicts" not in summary_tables(path)[0].note
    (path / "per_class.csv").write_text(re.sub(r"(baseline,0,1,.*Coat.*),False", r"\1,True", text))
    assert "Some baseline member never predicts class Coat." in summary_tables(path)[0].note


def test_text_table_is_aligned(study_writer: StudyWriter) -> None:
    lines = to_text(summary_tables(study_writer())[0]).splitlines()
    rule = lines[1]
    assert set(rule) == {"-"}
    body = lines[lines.index(rule, 2) + 1 : lines.index(rule, 6)]
    assert len(body) == 10
    assert {len(line) for line in body} == {len(rule)}
    assert body[0].split()[:4] == ["Shirt", "0.30", "50", "150"]


def test_csv_table_keeps_names_and_full_precision() -> None:
    table = Table("t", "T", ("class", "x"), ("", ".1f"), (('a,"b"', 1 / 3), ("c", float("nan"))))
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows[0] == ["class", "x"]
    assert rows[1][0] == 'a,"b"'
    assert float(rows[1][1]) == 1 / 3
    assert rows[2] == ["c", ""]


def test_html_table_escapes_names() -> None:
    parser = Cells()
    parser.feed(to_html(AWKWARD))
    parser.close()
    assert "b" not in parser.tags
    assert "".join(parser.headings) == "".join(NAMES)


def test_html_table_has_an_interval_in_one_column_and_the_files_in_two() -> None:
    columns = ("class", "95 % low HBR", "95 % high HBR", "95 % low", "n")
    rows = (("a", 1.0, 2.0, 3.0, 4.0), ("b", float("nan"), float("nan"), 3.0, 4.0))
    table = Table("t", "T", columns, ("", "+.1f", "+.1f", ".1f", ".0f"), rows)
    text = to_html(table)
    heads = re.findall("<th scope=.col.[^>]*>(.*?)</th>", text)
    assert heads == ["class", "95 % interval HBR", "95 % low", "n"], "an end without the other stays"
    assert re.findall("<td class=.number.>(.*?)</td>", text) == ["+1.0 to +2.0", "3.0", "4", "n/a", "3.0", "4"]
    assert to_csv(table).splitlines()[0] == ",".join(columns)


def test_latex_table_escapes_names() -> None:
    text = to_latex(AWKWARD)
    for wanted in (
        "T-shirt/top & $-0.2$",
        r"\textless{}b\textgreater{} &",
        r"50\%\_x &",
        r"a \& b &",
        r"\$\textbackslash{}alpha\textasciicircum{}2\$ &",
        r"\textasciitilde{}\#\{\} &",
        "{[}x{]} &",
        "{*} &",
    ):
        assert wanted in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    # One unescaped & a row: the separator of the two columns.
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body.strip().splitlines()] == [1] * len(NAMES)


def test_a_table_longer_than_a_page_goes_on_over_pages() -> None:
    def latex(rows: int) -> str:
        return to_latex(Table("t", "T", ("class", "x"), ("", ".1f"), tuple((f"c{row}", 1.0) for row in range(rows))))

    assert r"\begin{table}" in latex(40)
    long = latex(41)
    assert r"\begin{longtable}{lr}" in long
    assert "{table}" not in long  # a float cannot go on over pages
    assert long.count("class & x") == 2  # the headings of the first page, and of those that follow
    assert long.index("c0 &") > long.index(r"\endhead")


@pytest.mark.parametrize(
    ("cell", "spec", "shown"),
    [(-0.04, "+.1f", "+0.0"), (float("nan"), ".2f", "n/a"), (2.0, ".0f", "2"), ("x", "", "x")],
)
def test_cell_format(cell: str | float, spec: str, shown: str) -> None:
    assert Table("t", "T", ("a",), (spec,), ((cell,),)).shown() == [[shown]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_print_table_uses_rich_on_a_terminal_and_text_elsewhere() -> None:
    plain, terminal = io.StringIO(), Terminal()
    table = Table("t", "T", ("class", "x"), ("", ".1f"), (("[bold]", 1.0),), note="A note.")
    print_tables([table], file=plain)
    print_tables([table], file=terminal)
    assert plain.getvalue() == to_text(table)
    assert terminal.getvalue() != plain.getvalue()
    assert "[bold]" in terminal.getvalue()  # a name is text, not markup
