import html.parser
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

from hbr_fast.report import drawing, figures, tables
from hbr_fast.report.page import answer, answers, write_report
from hbr_fast.report.study_files import read_study

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
    """One picture instead of all, for what does not depend on them."""
    monkeypatch.setattr(figures, "pictures_of", lambda study, images: [figures.gap_metrics(study)])


def recalls(before: list[float], after: list[float]) -> dict[str, np.ndarray]:
    """Both arms at recall 0.9 but for class 6, one value a member."""
    baseline, hbr = np.full((len(before), 10), 0.9), np.full((len(after), 10), 0.9)
    baseline[:, 6], hbr[:, 6] = before, after
    return {"baseline": baseline, "hbr": hbr}


def sentence(path: Path) -> str:
    return answer(read_study(path), "hbr")


def test_answer_narrowed(study_writer: StudyWriter) -> None:
    path = study_writer(recall=recalls([0.60, 0.61, 0.62], [0.70, 0.71, 0.72]))
    assert sentence(path) == (
        "With 3 members an arm, HBR narrowed the recall gap between the best and the worst class from 29.0 "
        "to 19.0 percentage points (-10.0 points, -34 %; 95 % interval -10.0 to -10.0 over 3 variants). "
        "Accuracy rose from 87.1 % to 88.1 % (+1.0 points; 95 % interval +1.0 to +1.0 over 3 variants)."
    )


def test_answer_widened(study_writer: StudyWriter) -> None:
    text = sentence(study_writer(recall=recalls([0.70, 0.71, 0.72], [0.60, 0.62, 0.62])))
    assert "HBR widened the recall gap between the best and the worst class from 19.0 to 28.7" in text
    assert "(+9.7 points, +51 %; 95 % interval +8.2 to +11.1 over 3 variants)" in text
    assert "Accuracy fell from 88.1 % to 87.1 %" in text


def test_answer_not_distinguishable(study_writer: StudyWriter) -> None:
    text = sentence(study_writer(recall=recalls([0.60, 0.65, 0.62], [0.66, 0.60, 0.65])))
    assert "not distinguishable from no change with 3 variants" in text
    assert "narrowed" not in text
    assert "widened" not in text
    assert "Accuracy went from 87.2 % to 87.4 % (+0.1 points; 95 % interval -1.3 to +1.5 over 3 variants: " in text


def test_answer_of_one_variant_claims_nothing(study_writer: StudyWriter) -> None:
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
    assert "Accuracy went from 87.0 % to 87.0 % (+0.0 points)." in same


def test_an_arm_is_told_against_the_one_it_is_compared_with(study_writer: StudyWriter) -> None:
    """Resampling what pruning left is judged against pruning alone, not against the whole set."""
    recall = recalls([0.60, 0.61, 0.62], [0.50, 0.51, 0.52])
    recall["resampled"] = recalls([0], [0.55, 0.56, 0.57])["hbr"]
    study = read_study(study_writer(recall=recall, settings={"resampled": {"against": "hbr"}}))
    assert answer(study, "resampled").startswith(
        "With 3 members an arm, resampled, against HBR, narrowed the recall gap between the best and the worst class "
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


def test_a_chosen_alpha_is_told_first_with_its_test_figures(study_writer: StudyWriter) -> None:
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
        "is 90.3 %, the baseline's 90.3 %. Everything below is of the held-out samples."
    )
    assert answers(study)[1].startswith("With ")
    assert "recall on held-out training samples (%)" in figures.recall_per_class(study).figure.axes[0].get_xlabel()


def test_a_baseline_alone_has_an_answer(study_writer: StudyWriter) -> None:
    recall = recalls([0.6], [0.6])
    del recall["hbr"]
    (text,) = answers(read_study(study_writer(recall=recall)))
    assert "Only the baseline was trained (1 member)" in text
    assert "30.0 points" in text


def test_the_report_is_whole_and_its_links_resolve(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
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
        assert {f"{stem}.png", f"{stem}.svg", f"{stem}.csv"} <= names
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
    assert linked == everything - {"index.html"}
    assert len(page.ids) == len(set(page.ids))
    assert len(page.alts) == len(shown) > 10
    assert all(page.alts)
    assert page.tags.count("h1") == 1


def test_the_page_says_what_was_run(study_writer: StudyWriter, quick: None) -> None:
    study = study_writer()
    page = Page(write_report(study))
    assert sentence(study).replace(" %", "\u00a0%") in page.text
    for wanted in (
        "f" * 64,
        "fashion-mnist",
        "312.25",
        "optimiser.lr",
        "hbr_fast",
        "1000, 1001, 1002",
        "max alpha",
    ):
        assert wanted in page.text
    assert "<b>50%_x" in page.text  # as text: the name is escaped
    assert "b" not in page.tags


def test_the_tables_on_the_page_are_those_on_disk(study_writer: StudyWriter, quick: None) -> None:
    index = write_report(study_writer())
    for table in tables.summary_tables(index.parent.parent):
        assert tables.to_html(table) in index.read_text(encoding="utf-8")
        assert (index.parent / f"{table.name}.csv").read_text(encoding="utf-8") == tables.to_csv(table)
        assert (index.parent / f"{table.name}.tex").read_text(encoding="utf-8") == tables.to_latex(table)


def test_same_results_give_the_same_bytes(study_writer: StudyWriter, quick: None, tmp_path: Path) -> None:
    study = study_writer()
    folders = [write_report(study, out=tmp_path / name).parent for name in ("one", "two")]
    files = sorted(file.relative_to(folders[0]) for file in folders[0].rglob("*") if file.is_file())
    assert files
    for name in files:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_a_report_moved_elsewhere_still_works(study_writer: StudyWriter, quick: None, tmp_path: Path) -> None:
    study = study_writer()
    moved = shutil.move(write_report(study).parent, tmp_path / "moved")
    shutil.rmtree(study)
    for link in Page(Path(moved) / "index.html").links:
        if urlparse(link).path and not link.startswith("data:"):
            assert (Path(moved) / unquote(urlparse(link).path)).is_file()


def test_without_the_dataset_the_page_says_why(study_writer: StudyWriter) -> None:
    index = write_report(study_writer())
    assert "No images are shown: the dataset could not be opened (" in Page(index).text
    assert not list(index.parent.glob("*_images.*"))


def test_a_changed_dataset_is_not_shown(
    study_writer: StudyWriter, dataset: SimpleNamespace, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_writer()
    monkeypatch.setattr("hbr_fast.report.page.open_dataset", lambda path: dataset)
    assert "No images" not in Page(write_report(study)).text
    dataset.fingerprint = "e" * 64
    assert "No images are shown: the dataset was changed after the study." in Page(write_report(study)).text
    with pytest.raises(ValueError, match="give the dataset that the study used"):
        write_report(study, dataset=dataset)


def test_a_failing_report_leaves_the_old_one(
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
    assert sorted(path.name for path in study.iterdir()) == sorted(
        ["study.json", "per_class.csv", "per_member.csv", "samples.csv", "report"]
    )


def test_a_new_report_replaces_an_old_one_and_nothing_else(
    study_writer: StudyWriter, quick: None, tmp_path: Path
) -> None:
    study = study_writer()
    folder = write_report(study).parent
    (folder / "stale.txt").write_text("old")
    write_report(study)
    assert not (folder / "stale.txt").exists()

    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "index.html").write_text("<p>my own page</p>")
    with pytest.raises(FileExistsError, match="home exists and is not a report: choose another folder"):
        write_report(study, out=precious)
    assert (precious / "index.html").read_text() == "<p>my own page</p>"
