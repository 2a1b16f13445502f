import dataclasses
import html.parser
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import numpy as np
import polars as pl
import pytest

from hbr_fast.report import charts, drawing, figures, tables
from hbr_fast.report.answers import answer, answers
from hbr_fast.report.charts import charts_of
from hbr_fast.report.page import write_report
from hbr_fast.report.reading import read_study
from hbr_fast.report.study_files import FILES
from hbr_fast.report.table_formats import to_csv, to_html, to_latex

StudyWriter = Callable[..., Path]


class Page(html.parser.HTMLParser):
    """Links, sources, alternative texts, ids and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.alts: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [values[key] or "" for key in ("href", "src") if key in values]
        if tag == "img":
            self.alts.append(values["alt"] or "")
            assert {"width", "height"} <= values.keys()
        if "id" in values:
            self.ids.append(values["id"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One figure instead of all, for tests that do not depend on them."""
    monkeypatch.setattr(figures, "pictures_of", lambda study, images: [figures.gap_metrics(study)])


def recalls(before: list[float], after: list[float]) -> dict[str, np.ndarray]:
    """Both arms at recall 0.9 except class 6, which has one value per member."""
    baseline, hbr = np.full((len(before), 10), 0.9), np.full((len(after), 10), 0.9)
    baseline[:, 6], hbr[:, 6] = before, after
    return {"baseline": baseline, "hbr": hbr}


def sentence(path: Path) -> str:
    return answer(read_study(path), "hbr")


def test_answer_narrowed(study_writer: StudyWriter) -> None:
    path = study_writer(recall=recalls([0.60, 0.61, 0.62], [0.70, 0.71, 0.73]))
    assert sentence(path) == (
        "With 3 members per arm, HBR narrowed the recall gap between the best and the worst class from 29.0 to 18.7 "
        "percentage points (-10.3 points, -36 %; 95 % interval -12.6 to -8.1 over 3 variants and test samples; p = "
        "0.25, the least that 3 variants can give, 1 after Holm's correction). Accuracy rose from 87.1 % to 88.1 % "
        "(+1.0 points; 95 % interval +0.8 to +1.3 over 3 variants and test samples). Other gaps: recall MAD "
        "stayed at 0.0 points; the precision gap narrowed from 29.0 to 18.7 points."
    )


def test_answer_of_equal_differences_is_no_evidence(study_writer: StudyWriter) -> None:
    text = sentence(study_writer(recall=recalls([0.60, 0.61, 0.62], [0.70, 0.71, 0.72])))
    assert "which may be chance: all variants differ by the same amount, which gives no interval" in text
    assert "95 %" not in text


def test_answer_calls_a_fall_of_accuracy_one(study_writer: StudyWriter) -> None:
    text = sentence(study_writer(recall={"baseline": np.full((1, 10), 0.33), "hbr": np.full((1, 10), 0.09)}))
    assert "Accuracy fell from 33.0 % to 9.0 % (-24.0 points)." in text


def test_answers_warn_of_few_test_samples(study_writer: StudyWriter) -> None:
    path = study_writer()
    assert not any("Few test samples" in text for text in answers(read_study(path)))
    meta = json.loads((path / "study.json").read_text())
    (path / "study.json").write_text(json.dumps(meta | {"evaluated_samples": [60, 12, 50, 49, *[60] * 6]}))
    assert answers(read_study(path))[0] == (
        "Few test samples: Trouser 12, Dress 49. One sample moves the recall of Trouser by 8.3 points, and the "
        "best and "
        "the worst class are partly a matter of which samples happened to be tested."
    )


def test_page_is_about_the_metric_of_the_study(study_writer: StudyWriter) -> None:
    study = read_study(study_writer(metric="precision"))
    text = answer(study, "hbr")
    assert "the precision gap between the best and the worst class" in text
    assert "precision MAD" in text
    assert "the recall gap" in text
    assert tables.gap_table(study, "hbr").rows[0][0] == "precision gap: max - min"
    assert figures.recall_per_class(study).name == "precision_per_class"
    assert charts_of(study)[0].title == "Precision gap against accuracy"


def test_answer_widened(study_writer: StudyWriter) -> None:
    text = sentence(study_writer(recall=recalls([0.70, 0.71, 0.72], [0.60, 0.62, 0.62])))
    assert "HBR widened the recall gap between the best and the worst class from 19.0 to 28.7" in text
    assert "(+9.7 points, +51 %; 95 % interval +7.4 to +11.9 over 3 variants and test samples; p = 0.25" in text
    assert "Accuracy fell from 88.1 % to 87.1 %" in text


def test_answer_not_distinguishable(study_writer: StudyWriter) -> None:
    text = sentence(study_writer(recall=recalls([0.60, 0.65, 0.62], [0.66, 0.60, 0.65])))
    assert "not distinguishable from no change with 3 variants" in text
    first = text.split(". ")[0]
    assert "narrowed" not in first
    assert "widened" not in first
    assert "Accuracy rose from 87.2 % to 87.4 % (+0.1 points; 95 % interval -1.3 to +1.5 over 3 variants and" in text
    assert "test samples: not distinguishable from no change)" in text


def test_answer_of_one_variant_makes_no_claim(study_writer: StudyWriter) -> None:
    path = study_writer(recall=recalls([0.60, 0.61], [0.70, 0.71]), variants={"hbr": [(0, 0), (0, 1)]})
    text = sentence(path)
    assert "narrowed" in text
    assert "which may be chance: one resampled variant gives no interval" in text
    assert "95 %" not in text


def test_answer_of_different_sizes_and_of_no_change(study_writer: StudyWriter) -> None:
    text = sentence(study_writer("sizes", recall=recalls([0.6, 0.6, 0.6], [0.7, 0.7])))
    assert text.startswith("With 3 members of the baseline and 2 members of HBR, HBR narrowed")
    same = sentence(study_writer("same", recall=recalls([0.6], [0.6])))
    assert "HBR left the recall gap between the best and the worst class at 30.0" in same
    assert "Accuracy stayed at 87.0 % (+0.0 points)." in same


def test_answer_compares_arm_with_its_own_baseline(study_writer: StudyWriter) -> None:
    """Resampling after pruning is compared with pruning alone, not with the whole set."""
    recall = recalls([0.60, 0.61, 0.62], [0.50, 0.52, 0.51])
    recall["resampled"] = recalls([0], [0.55, 0.56, 0.57])["hbr"]
    study = read_study(study_writer(recall=recall, settings={"resampled": {"against": "hbr"}}))
    assert answer(study, "resampled").startswith(
        "With 3 members per arm, resampled, against HBR, narrowed the recall gap between the best and the worst class "
        "from 39.0 to 34.0 percentage points (-5.0 points"
    )
    assert "HBR widened the recall gap" in answer(study, "hbr")
    tests = tables.tests_table(study)
    first = {row[0]: row[1:4] for row in reversed(tests.rows)}
    assert first["HBR"] == ("baseline", "recall gap: max - min", pytest.approx(10))
    assert first["resampled"] == ("HBR", "recall gap: max - min", pytest.approx(-5))
    assert tests.title == "Tests of every arm against the arm compared with"
    gaps = tables.gap_table(study, "resampled")
    assert gaps.title == "Gaps: resampled against HBR"
    assert gaps.rows[0][1::2][:2] == (pytest.approx(39), pytest.approx(34))
    assert tables.class_table(study, "resampled").title == "Classes: resampled against HBR"


def test_answer_starts_with_chosen_alpha_and_its_test_results(study_writer: StudyWriter) -> None:
    path = study_writer()
    assert read_study(path).evaluated == "the test set"
    meta = json.loads((path / "study.json").read_text())
    test = {"gap": 21.39, "gap_baseline": 27.62, "accuracy": 90.27, "accuracy_baseline": 90.29}
    chosen = {"arm": "hbr", "alpha": 0.129, "tolerance": 0.5, "validation_share": 0.1, "test": test}
    (path / "study.json").write_text(json.dumps(meta | {"evaluated_on": "validation", "choice": chosen}))
    study = read_study(path)
    assert answers(study)[0] == (
        "Chosen on 10 % of each class held out of training: alpha 0.129, the smallest gap that costs at most 0.5 "
        "points of accuracy there. On the test set its recall gap is 21.4 points, the baseline's 27.6; its accuracy "
        "is 90.3 %, the baseline's 90.3 %. Everything below refers to held-out training samples."
    )
    assert answers(study)[1].startswith("With ")
    assert "over 3 variants and held-out samples" in answers(study)[1]
    assert "test s" not in answers(study)[1] + "".join(table.note for table in tables.tables_of(study))
    assert "recall on held-out training samples (%)" in figures.recall_per_class(study).figure.axes[0].get_xlabel()
    own = {"evaluated_on": "validation", "choice": chosen | {"validation_share": None}}
    (path / "study.json").write_text(json.dumps(meta | own))
    assert answers(read_study(path))[0].startswith("Chosen on the validation split: alpha 0.129")
    assert answers(read_study(path))[0].endswith("Everything below refers to the validation split.")
    (path / "study.json").write_text(json.dumps(meta | own | {"evaluated_samples": [12] * 10}))
    assert answers(read_study(path))[0].startswith("Few validation samples: "), "before the choice that they made"
    assert answers(read_study(path))[1].startswith("Chosen on the validation split: ")
    own["choice"] = chosen | {"arm": "baseline", "alpha": 0.0}
    (path / "study.json").write_text(json.dumps(meta | own))
    assert "the full set (alpha 0), the smallest" in answers(read_study(path))[0]
    assert "its recall gap is 21.4 points; its accuracy is 90.3 %. Every" in answers(read_study(path))[0]


@pytest.mark.usefixtures("quick")
def test_page_explains_its_words_before_anything_else(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    text = Page(write_report(study_writer(), dataset=dataset)).text
    top = text[: text.index("What was run")]
    for word in (
        "HBR: hardness-based resampling",
        "Variant: one resampled set",
        "Member: one training",
        "Recall MAD: ",
    ):
        assert word in top


def test_answer_of_baseline_alone(study_writer: StudyWriter) -> None:
    recall = recalls([0.6], [0.6])
    del recall["hbr"]
    (text,) = answers(read_study(study_writer(recall=recall)))
    assert "Only the baseline was trained (1 member)" in text
    assert "30.0 points" in text


def test_charts_of_confusion_and_learning_choose_an_arm_and_a_quantity(study_writer: StudyWriter) -> None:
    path = study_writer()
    assert [chart.name for chart in charts_of(read_study(path))][-1] == "chart_confusion"
    rows = [
        {"arm": arm, "epoch": epoch, "train_loss": 1 / (1 + epoch + member), "train_accuracy": 0.5 + epoch / 10}
        for arm in ("baseline", "hbr")
        for member in (0, 1)
        for epoch in (0, 1, 2)
    ]
    pl.DataFrame(rows).write_csv(path / "history.csv")
    confusion, learning = charts_of(read_study(path))[-2:]
    assert list(confusion.choices) == ["baseline", "HBR", "change: HBR against baseline"]
    assert confusion.traces[2]["z"][0][0] == pytest.approx(
        confusion.traces[1]["z"][0][0] - confusion.traces[0]["z"][0][0]
    )
    assert learning.choices == {"training loss": [0, 1], "training accuracy (%)": [2, 3]}
    assert learning.traces[0]["x"] == [1, 2, 3]
    assert learning.traces[0]["y"] == pytest.approx([(1 + 1 / 2) / 2, (1 / 2 + 1 / 3) / 2, (1 / 3 + 1 / 4) / 2])
    assert learning.traces[3]["y"] == pytest.approx([50, 60, 70])


def test_charts_cut_intervals_where_percentages_end(study_writer: StudyWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = SimpleNamespace(no_test="", interval=(-400.0, 400.0))
    monkeypatch.setattr(charts, "compare", lambda *_: wide)
    chart = charts.gaps_against_accuracy(read_study(study_writer()))
    ends = {}
    for words, traces in chart.choices.items():
        (bar,) = (chart.traces[i] for i in traces if "error_x" in chart.traces[i])
        (mean,), (less,), (more,) = bar["x"], bar["error_x"]["arrayminus"], bar["error_x"]["array"]
        ends[words] = round(mean - less, 9), round(mean + more, 9)
    assert ends == {words: (-100 if words == "easy - hard" else 0, 100) for words in chart.choices}


def test_report_is_complete_and_its_links_resolve(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    study = study_writer()
    index = write_report(study, dataset=dataset)
    assert index == study / "report" / "index.html"
    names = {file.name for file in index.parent.iterdir()}
    for stem in (
        "recall_per_class",
        "samples_per_class",
        "gap_metrics",
        "class_hardness_against_recall",
        "hardest_images",
        "easiest_images",
    ):
        assert {f"{stem}.png", f"{stem}.svg", f"{stem}.pdf", f"{stem}.csv"} <= names
    for stem in ("table_classes_hbr", "table_gaps_hbr"):
        assert {f"{stem}.csv", f"{stem}.tex"} <= names
    page = Page(index)
    linked = set()
    for link in page.links:
        target = urlparse(link)
        if target.scheme == "data":
            assert link.startswith("data:image/png;base64,")
            continue
        assert not target.scheme
        assert not target.netloc, "nothing may come from elsewhere"
        if target.path:
            assert (index.parent / unquote(target.path)).is_file(), link
            linked.add(target.path)
        else:
            assert target.fragment in page.ids
    everything = {str(file.relative_to(index.parent)) for file in index.parent.rglob("*") if file.is_file()}
    shown = {file for file in everything if file.endswith(".png")}
    assert shown <= linked
    sheets = {file for file in everything if file.startswith("thumbnails/")}  # loaded by the page's script
    assert sheets == {"thumbnails/0.webp"}
    assert linked == everything - {"index.html", "files.json"} - sheets
    assert len(page.ids) == len(set(page.ids))
    assert len(page.alts) == len(shown) > 10
    assert all(page.alts)
    assert page.tags.count("h1") == 1
    assert page.tags.count("details") == 4, "what a chart shows already is folded"


def test_page_says_what_was_run(study_writer: StudyWriter, quick: None) -> None:
    study = study_writer()
    page = Page(write_report(study))
    assert sentence(study).replace(" %", "\u00a0%") in page.text
    for wanted in (
        "f" * 64,
        "fashion-mnist",
        "312.25",
        "optimiser.lr",
        "hbr_fast",
        "The seed of every training: study.json",
        "max alpha",
    ):
        assert wanted in page.text
    assert "<b>50%_x" in page.text  # as text: the name is escaped
    assert "b" not in page.tags


def test_page_tables_match_files(study_writer: StudyWriter, quick: None) -> None:
    index = write_report(study_writer())
    for table in tables.summary_tables(index.parent.parent):
        assert to_html(table) in index.read_text(encoding="utf-8")
        assert (index.parent / f"{table.name}.csv").read_text(encoding="utf-8") == to_csv(table)
        assert (index.parent / f"{table.name}.tex").read_text(encoding="utf-8") == to_latex(table)


def test_report_is_reproducible(study_writer: StudyWriter, quick: None, tmp_path: Path) -> None:
    study = study_writer()
    folders = [write_report(study, out=tmp_path / name).parent for name in ("one", "two")]
    files = sorted(file.relative_to(folders[0]) for file in folders[0].rglob("*") if file.is_file())
    assert files
    for name in files:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_report_works_after_a_move(study_writer: StudyWriter, quick: None, tmp_path: Path) -> None:
    study = study_writer()
    moved = shutil.move(write_report(study).parent, tmp_path / "moved")
    shutil.rmtree(study)
    for link in Page(Path(moved) / "index.html").links:
        if urlparse(link).path and not link.startswith("data:"):
            assert (Path(moved) / unquote(urlparse(link).path)).is_file()


def test_page_without_dataset_says_why(study_writer: StudyWriter) -> None:
    index = write_report(study_writer())
    assert "No images are shown: the dataset could not be opened (" in Page(index).text
    assert not list(index.parent.glob("*_images.*"))


def test_page_omits_changed_dataset(
    study_writer: StudyWriter, dataset: SimpleNamespace, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_writer()
    monkeypatch.setattr("hbr_fast.report.page.open_recorded", lambda *_: dataset)
    assert "No images" not in Page(write_report(study)).text
    dataset.fingerprint = "e" * 64
    assert "No images are shown: the dataset was changed after the study." in Page(write_report(study)).text
    with pytest.raises(ValueError, match="give the dataset that the study used"):
        write_report(study, dataset=dataset)


def test_report_failure_keeps_the_old_report(
    study_writer: StudyWriter, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_writer()
    folder = write_report(study).parent
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    (study / "per_member.csv").rename(study / "kept.csv")
    with pytest.raises(FileNotFoundError, match=r"per_member\.csv is missing"):
        write_report(study)
    (study / "kept.csv").rename(study / "per_member.csv")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(drawing, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(study)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    assert sorted(path.name for path in study.iterdir()) == sorted([*FILES, "samples.csv", "comparisons.csv", "report"])


def test_report_replaces_only_an_old_report(study_writer: StudyWriter, quick: None, tmp_path: Path) -> None:
    study = study_writer()
    folder = write_report(study).parent
    written = json.loads((folder / "files.json").read_text())
    (folder / "stale.csv").write_text("of an older version")
    (folder / "files.json").write_text(json.dumps([*written, "stale.csv"]))
    write_report(study)
    assert not (folder / "stale.csv").exists()

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"report holds notes\.txt, which no report wrote \(1 such\)"):
        write_report(study)
    assert (folder / "notes.txt").read_text() == "mine"

    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "index.html").write_text("<p>my own page</p>")
    with pytest.raises(FileExistsError, match="home exists and is not a report: choose another folder"):
        write_report(study, out=precious)
    assert (precious / "index.html").read_text() == "<p>my own page</p>"


def test_charts_show_class_names_as_plain_text(study_writer: StudyWriter) -> None:
    """Plotly interprets links and template fields in any text of a chart."""
    study = read_study(study_writer())
    hostile = tuple(f'<a href="javascript:alert({index})">%{{y}}</a>' for index in range(len(study.classes)))
    charts = charts_of(dataclasses.replace(study, classes=hostile))
    traces = json.dumps([chart.traces for chart in charts])
    assert "<a" not in traces
    assert "%{y}<" not in traces
    assert "&lt;a href" in traces
    assert "%&#123;y}" in traces


def test_page_says_what_was_not_done(study_writer: StudyWriter) -> None:
    page = write_report(study_writer(settings={"hbr": {"reweight": True}})).read_text()
    assert "<td>none</td><td>none: class weights</td>" in page, "a reweighted arm is not resampled"
    assert "<dt>milestones</dt><dd>none</dd>" in page
