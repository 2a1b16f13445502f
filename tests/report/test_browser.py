"""The page in a real browser: it opens from disk without an error, filters, and shows the right image for an id."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from PIL import Image

from hbr_fast.report import browser as report_browser
from hbr_fast.report import figures
from hbr_fast.report.page import write_report
from hbr_fast.report.reading import read_study

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

StudyWriter = Callable[..., Path]
# The browser itself must not use the network.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def study(study_writer: StudyWriter) -> Path:
    return study_writer(changed="hbr: Shirt")


@pytest.fixture
def page(browser: Any, study: Path, dataset: SimpleNamespace) -> Iterator[Any]:
    """The report, opened from disk; a test fails if the page logs an error or requests anything but its own files."""
    index = write_report(study, dataset=dataset)
    opened = browser.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "request",
        lambda request: (
            None if request.url.startswith(("data:", "blob:", index.parent.as_uri())) else wrong.append(request.url)
        ),
    )
    opened.goto(index.as_uri())
    yield opened
    opened.close()
    assert wrong == []


HOSTILE = (
    '<img src=x onerror="window.ran=1">',
    "</script><script>window.ran=1</script>",
    "line\nbreak\r\x00",
    "\u202eesrever\u202c",
    "\"'`${window.ran=1}`{{7*7}}",
    "w" * 100_000,
    r"$\frac{x}{$ %s",
    '<a href="javascript:window.ran=1">%{y}</a>',
    "&lt;b&gt;\u2028",
    "Bag",
)


@pytest.fixture
def hostile(study_writer: StudyWriter) -> Path:
    """A study whose classes, and with them the files of its samples, have names made to break the page."""
    return study_writer(classes=HOSTILE, sources=True)


def test_page_shows_hostile_names_as_text(browser: Any, hostile: Path, dataset: SimpleNamespace) -> None:
    index = write_report(hostile, dataset=dataset)
    opened = browser.new_page(viewport={"width": 900, "height": 800})
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: None if ":" in request.url[:6] else wrong.append(request.url))
    opened.goto(index.as_uri())
    form = opened.locator("#browser")
    names = [option.inner_text() for option in form.locator("select[name=class] option").all()]
    text = opened.locator("main").inner_text()
    for name in (
        HOSTILE[0],
        HOSTILE[1],
        r"line\nbreak\r\x00",
        r"\u202eesrever\u202c",
        HOSTILE[4],
        HOSTILE[6],
        HOSTILE[7],
    ):
        assert name in names
        assert name in text
    assert max(map(len, names)) == 100
    assert "\u202e" not in opened.content()
    for place in ("#chart_recall", "#chart_confusion"):
        opened.locator(place).scroll_into_view_if_needed()
        opened.locator(place).hover()
    assert opened.locator("main a[href^='javascript']").count() == 0
    assert opened.evaluate("typeof window.ran") == "undefined"
    assert opened.evaluate("document.documentElement.scrollWidth") <= 900, "only tables scroll sideways"
    opened.close()
    assert wrong == []
    for picture in index.parent.glob("*.svg"):
        ElementTree.parse(picture)


def shown(page: Any) -> list[int]:
    """Ids of the images on show, in order."""
    return [int(tile.get_attribute("data-sample")) for tile in page.locator("#tiles li").all()]


def expected(study: Path, estimator: str, *, class_index: int, descending: bool) -> list[int]:
    samples = read_study(study).samples.filter((pl.col("class_index") == class_index) & pl.col(estimator).is_finite())
    return samples.sort([estimator, "sample_id"], descending=[descending, False])["sample_id"].to_list()


def test_page_draws_charts_for_chosen_measure(page: Any) -> None:
    assert page.locator(".chart .main-svg").count() >= 4
    marks = "#chart_gaps .scatterlayer .trace"
    before = page.locator(marks).count()
    assert before == 2 * 2  # members and mean of two arms, of one measure at a time
    where = page.locator(f"{marks} path.point").first.get_attribute("transform")
    page.get_by_label("measure of the gap").select_option("std")
    assert page.locator(marks).count() == before
    assert page.locator(f"{marks} path.point").first.get_attribute("transform") is not None
    assert page.evaluate("document.getElementById('chart_gaps').data.filter(t => t.visible).length") == before
    visible = page.evaluate("document.getElementById('chart_gaps').data.map(t => t.visible)")
    assert visible.index(True) == 3 * before  # std is the fourth measure
    assert where is not None


def test_page_filters_and_orders_samples(page: Any, study: Path) -> None:
    form = page.locator("#browser")
    assert len(shown(page)) == 60, "a screenful"
    form.locator("select[name=class]").select_option("Shirt")
    # The one that was never seen comes last.
    assert [i for i in shown(page) if i] == [i for i in expected(study, "aum", class_index=6, descending=False) if i]
    form.get_by_label("by").select_option("forgetting")
    assert shown(page) == expected(study, "forgetting", class_index=6, descending=True)
    assert "high is hard" in page.locator("#meaning").inner_text()
    form.get_by_label("show").select_option("easiest")
    assert shown(page) == expected(study, "forgetting", class_index=6, descending=False)
    form.get_by_label("by").select_option("aum")
    scores = dict(read_study(study).samples.select("sample_id", "aum").rows())
    form.get_by_label("suspected mislabelled").check()
    suspected = [i for i in expected(study, "aum", class_index=6, descending=True) if scores[i] < 0]
    assert shown(page) == suspected
    form.get_by_label("score from").fill("-1.5")
    form.get_by_label("to", exact=True).fill("-0.5")
    assert shown(page) == [i for i in suspected if -1.5 <= round(scores[i], 4) <= -0.5] != suspected


def test_page_filters_what_an_arm_predicts_differently(page: Any) -> None:
    page.get_by_label("changed between arms").check()
    assert sorted(shown(page)) == list(range(3, 500, 50))
    assert "hbr: Shirt" in page.locator("#tiles li").first.inner_text()


def test_page_says_for_which_samples_predictions_are_known(browser: Any, study: Path, dataset: SimpleNamespace) -> None:
    table = pl.read_csv(study / "samples.csv")
    first = pl.when(pl.col("sample_id") < 40).then(pl.lit("Sandal")).alias("predicted")
    table.with_columns(first).write_csv(study / "samples.csv")
    opened = browser.new_page()
    opened.goto(write_report(study, dataset=dataset).as_uri())
    found, all_of_them = opened.locator("#found"), "500 of 500 samples."
    assert found.inner_text() == all_of_them
    opened.get_by_label("predicted as another class").check()
    assert found.inner_text().endswith(" Predictions are known for 40 samples, the hardest of each class.")
    assert 0 < len(shown(opened)) < 40
    opened.close()


def test_page_says_what_it_shows_of_many_samples(
    browser: Any, study: Path, dataset: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "pictures_of", lambda *args, **named: [])
    monkeypatch.setattr(report_browser, "MOST_SAMPLES", 200)
    opened = browser.new_page()
    opened.goto(write_report(study, dataset=dataset).as_uri())
    found = opened.locator("#found")
    assert found.inner_text() == "The 200 hardest samples, as many of each class, of 500 in all."
    opened.locator("#browser select[name=class]").select_option("3")
    assert found.inner_text() == "20 of the 200 hardest samples, as many of each class, of 500 in all."
    assert opened.get_by_text("as CLASS, what the trained baseline takes it for").is_visible()
    opened.close()


def test_page_counts_arms_that_predict_differently(
    browser: Any, study_writer: StudyWriter, dataset: SimpleNamespace
) -> None:
    opened = browser.new_page()
    opened.goto(write_report(study_writer(changed="hbr: Shirt; balanced: Bag"), dataset=dataset).as_uri())
    opened.get_by_label("changed between arms").check()
    first = opened.locator("#tiles li").first
    assert "2 arms differ" in first.inner_text()
    assert {"hbr: Shirt", "balanced: Bag"} <= set(first.get_attribute("title").splitlines())
    opened.close()


def test_page_shows_more_samples_on_request(page: Any) -> None:
    assert page.locator("#found").inner_text() == "500 of 500 samples."
    page.get_by_role("button", name="Show more (440 left)").click()
    assert len(set(shown(page))) == 120


def test_page_shows_image_and_scores_of_an_id(page: Any, study: Path, dataset: SimpleNamespace) -> None:
    wanted = expected(study, "aum", class_index=3, descending=False)[2]
    page.get_by_label("file name or sample id").fill(str(wanted))
    assert shown(page) == [wanted]
    image = page.locator("#tiles .thumbnail")
    assert image.get_attribute("aria-label") == f"sample {wanted}, class Dress"
    image.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.thumbnail').style.backgroundImage !== ''")
    page.wait_for_load_state("networkidle")
    pixels = np.asarray(Image.open(io.BytesIO(image.screenshot())))[:, :, :3].astype(int)
    middle = pixels[20:-20, 20:-20]
    assert np.abs(middle - int(dataset.train.images[wanted, 0, 0, 0])).max() <= 6  # a lossy thumbnail of one grey
    score = dict(read_study(study).samples.select("sample_id", "aum").rows())[wanted]
    assert page.locator("#tiles p").first.inner_text() == f"{wanted}: {score:.2f}"
    page.get_by_label("file name or sample id").fill("123456")
    assert shown(page) == []
    assert page.locator("#found").inner_text() == "0 of 500 samples."


def test_page_sorts_tables_by_a_click(page: Any) -> None:
    heading = page.get_by_role("columnheader", name="hardness").first
    heading.get_by_role("button").click()
    table = page.locator("main table").first
    first = [float(cell) for cell in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]
    assert first == sorted(first, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    heading.get_by_role("button").click()
    assert [float(cell) for cell in table.locator("tbody tr td:nth-child(2)").all_inner_texts()] == sorted(first)


def test_page_sorts_names_from_the_first_and_their_numbers_by_size(
    browser: Any, study_writer: StudyWriter, dataset: SimpleNamespace
) -> None:
    arms = ["baseline", "random-10", "random-2", "random-0.5", "random-1", "smote-1"]
    settings = {arm: {"alpha": float(arm.partition("-")[2])} for arm in arms[1:]}
    study = study_writer(recall={arm: np.full((2, 10), 0.9) for arm in arms}, settings=settings)
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.goto(write_report(study, dataset=dataset).as_uri())
    table = opened.locator("section[aria-label=Arms] table")
    assert table.evaluate("table => table.scrollWidth <= table.parentElement.clientWidth"), "no column is cut off"
    table.get_by_role("button", name="arm", exact=True).click()
    named = table.locator("tbody th").all_inner_texts()
    assert named == ["baseline", "random-0.5", "random-1", "random-2", "random-10", "smote-1"]
    opened.close()


def test_page_fits_a_narrow_screen(page: Any) -> None:
    page.set_viewport_size({"width": 420, "height": 800})
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= 420, "only tables scroll sideways"
    assert max(caption.bounding_box()["width"] for caption in page.locator("main table caption").all()) <= 420


@pytest.mark.parametrize("width", [1100, 1280])
def test_page_shows_whole_tables_where_the_window_has_room(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    cut_off = [
        table.get_attribute("aria-label")
        for table in page.locator(".scroll").all()
        if table.evaluate("one => one.scrollWidth > one.clientWidth")
    ]
    assert cut_off == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_shades_the_side_on_which_a_table_goes_on(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 420, "height": 800})
    table = page.locator("section[aria-label^=Classes] .scroll")

    def shades() -> list[int]:
        """How far the pixels beside both edges are from the paper, in a row of the caption without text."""
        pixels = np.asarray(Image.open(io.BytesIO(table.screenshot())).convert("L"), dtype=int)
        paper = np.median(pixels)
        return [int(np.median(np.abs(pixels[:, edge] - paper))) for edge in (3, -4)]

    start = shades()
    table.evaluate("one => one.scrollBy(10_000, 0)")
    end = shades()
    assert start[0] < 10 < start[1]
    assert end[1] < 10 < end[0]


@pytest.mark.parametrize("width", [420, 1100])
def test_charts_of_many_arms_are_readable(
    browser: Any, study_writer: StudyWriter, dataset: SimpleNamespace, width: int
) -> None:
    arms = ["baseline", *(f"weighted-hard-{i}" for i in range(17))]
    recall = {arm: np.linspace(0.6, 0.9, 20).reshape(2, 10) for arm in arms}
    opened = browser.new_page(viewport={"width": width, "height": 900})
    opened.goto(write_report(study_writer(recall=recall), dataset=dataset).as_uri())
    for chart in ("gaps", "recall", "hardness"):
        legend = opened.locator(f"#chart_{chart} .legend")
        assert legend.locator(".traces").count() == 18
        assert legend.locator(".scrollbar").get_attribute("height") == "0", "no arm is hidden"
    low, high = opened.evaluate("document.getElementById('chart_recall').layout.yaxis.range")
    assert 50 < low < 60 < 90 < high < 100
    marks = opened.locator("#chart_recall .trace").all()
    places = [mark.locator(".point").first.bounding_box()["x"] for mark in marks]
    assert places == sorted(places)
    assert len(set(places)) == 18, "arms stand side by side"
    title = opened.locator("#chart_confusion .ytitle").bounding_box()
    ticks = [tick.bounding_box() for tick in opened.locator("#chart_confusion .ytick").all()]
    assert title["x"] + title["width"] <= min(tick["x"] for tick in ticks)
    opened.close()


def test_dark_page_inverts_plots_but_no_photographs(browser: Any, study: Path, dataset: SimpleNamespace) -> None:
    opened = browser.new_page(color_scheme="dark")
    opened.goto(write_report(study, dataset=dataset).as_uri())
    inverted = {
        figure.get_attribute("id"): figure.locator("img").evaluate("image => getComputedStyle(image).filter") != "none"
        for figure in opened.locator("figure").all()
    }
    opened.close()
    assert {name for name, dark in inverted.items() if not dark} == {
        "hardest_images", "easiest_images", "confidence_against_margin",
    }  # fmt: skip
    assert inverted["cumulative_aum"]


def test_page_is_usable_by_keyboard(page: Any) -> None:
    reached = []
    for _ in range(200):  # links to the figure files come first
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.tagName"))
        if reached[-1] == "class":
            break
    assert {"A", "SELECT", "order", "estimator", "class"} <= set(reached)
    before = shown(page)
    page.keyboard.press("ArrowDown")  # from "all" to the first class
    assert 0 < len(shown(page)) < len(before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_text_has_contrast_in_light_and_dark(browser: Any, study: Path, scheme: str) -> None:
    opened = browser.new_page(color_scheme=scheme)
    opened.goto(write_report(study).as_uri())

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ink, paper = (opened.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    axis = opened.evaluate("getComputedStyle(document.querySelector('#chart_recall .xtick text')).fill")
    opened.close()
    for text in (ink, axis):
        low, high = sorted((luminance(text), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 7
    assert (luminance(paper) > 0.5) == (scheme == "light")
