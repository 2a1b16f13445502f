"""The page in a real browser: it opens from disk without an error, filters, and shows the right image for an id."""

import base64
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from hbr_fast.report.page import write_report
from hbr_fast.report.study_files import read_study

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

StudyWriter = Callable[..., Path]
# Nothing of the browser's own may reach for the network.
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
    return study_writer()


@pytest.fixture
def page(browser: Any, study: Path, dataset: SimpleNamespace) -> Iterator[Any]:
    """The report, opened from disk; a test fails where the page logs an error or asks for anything else."""
    index = write_report(study, dataset=dataset)
    opened = browser.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "request",
        lambda request: (
            None if request.url.startswith(("data:", "blob:", index.as_uri())) else wrong.append(request.url)
        ),
    )
    opened.goto(index.as_uri())
    yield opened
    opened.close()
    assert wrong == []


def shown(page: Any) -> list[int]:
    """Ids of the images on show, in order."""
    return [int(tile.get_attribute("data-sample")) for tile in page.locator("#tiles li").all()]


def expected(study: Path, estimator: str, *, class_index: int, descending: bool) -> list[int]:
    samples = read_study(study).samples.filter((pl.col("class_index") == class_index) & pl.col(estimator).is_finite())
    return samples.sort([estimator, "sample_id"], descending=[descending, False])["sample_id"].head(8).to_list()


def test_charts_are_drawn_and_follow_the_choice_of_measure(page: Any) -> None:
    assert page.locator(".chart .main-svg").count() >= 3
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


def test_images_are_those_of_the_class_estimator_and_end(page: Any, study: Path) -> None:
    form = page.locator("#explorer")
    form.get_by_label("class").select_option("Shirt")
    assert shown(page) == expected(study, "aum", class_index=6, descending=False)
    form.get_by_label("by").select_option("forgetting")
    assert shown(page) == expected(study, "forgetting", class_index=6, descending=True)
    assert "high is hard" in page.locator("#meaning").inner_text()
    form.get_by_label("show").select_option("easiest")
    assert shown(page) == expected(study, "forgetting", class_index=6, descending=False)
    form.get_by_label("show").select_option("suspected")
    assert form.get_by_label("by").input_value() == "aum"
    suspected = expected(study, "aum", class_index=6, descending=False)
    scores = dict(read_study(study).samples.select("sample_id", "aum").rows())
    assert shown(page) == [i for i in suspected if scores[i] < 0]
    form.get_by_label("class").select_option("all")
    assert len(shown(page)) > len(suspected)


def test_an_id_shows_its_image_and_scores(page: Any, study: Path, dataset: SimpleNamespace) -> None:
    wanted = expected(study, "aum", class_index=3, descending=False)[2]
    page.get_by_label("or sample id").fill(str(wanted))
    assert shown(page) == [wanted]
    image = page.locator("#tiles img")
    assert image.get_attribute("alt") == f"sample {wanted}, class Dress"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.get_attribute("src").partition(",")[2]))))
    assert (pixels == dataset.train.images[wanted, 0, 0, 0]).all()
    score = dict(read_study(study).samples.select("sample_id", "aum").rows())[wanted]
    assert page.locator("#tiles p").inner_text() == f"{wanted}: {score:.2f}"
    page.get_by_label("or sample id").fill("123456")
    assert shown(page) == []
    assert "not among the images" in page.locator("#found").inner_text()


def test_everything_can_be_reached_and_changed_by_keyboard(page: Any) -> None:
    reached = []
    for _ in range(200):  # links of the pictures' files come before
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.tagName"))
        if reached[-1] == "class":
            break
    assert {"A", "SELECT", "kind", "estimator", "class"} <= set(reached)
    before = shown(page)
    page.keyboard.press("ArrowDown")  # from "all" to the first class
    assert 0 < len(shown(page)) < len(before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page_in_light_and_dark(browser: Any, study: Path, scheme: str) -> None:
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
