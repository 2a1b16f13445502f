import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from hbr_fast.data.images import RawImages
from hbr_fast.report import (
    browser,
    confusion,
    drawing,
    figures,
    gallery,
    hardness_figures,
    stability,
    sweeps,
    tables,
    trade,
)
from hbr_fast.report.reading import read_study
from hbr_fast.report.study_files import GAPS, StudyFiles, compare

from .conftest import RECALL

StudyWriter = Callable[..., Path]


def line(figure: Figure, gid: str) -> np.ndarray:
    """Points `[n, 2]` of the drawn line of that name."""
    (found,) = [artist for artist in figure.axes[0].lines if artist.get_gid() == gid]
    return np.column_stack([np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)])


def tick_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_recall_figure_matches_its_csv(study_writer: StudyWriter) -> None:
    picture = figures.recall_per_class(read_study(study_writer()))
    data = picture.data
    for arm in ("baseline", "hbr"):
        rows = data.filter(pl.col("arm") == arm)
        np.testing.assert_array_equal(line(picture.figure, f"mean {arm}")[:, 0], rows["recall_mean_percent"])
        assert tick_labels(picture.figure) == rows["class_name"].to_list()
    spans = [
        np.array(segments)[:, :, 0]
        for artist in picture.figure.axes[0].collections
        if isinstance(artist, LineCollection) and (segments := artist.get_segments())
    ]
    mean, std = data["recall_mean_percent"].to_numpy(), data["recall_std_percent"].to_numpy()
    wanted_range = data.select("recall_min_percent", "recall_max_percent").to_numpy()
    wanted_std = np.column_stack([mean - std, mean + std])
    np.testing.assert_allclose(np.concatenate(spans[0::2]), wanted_range)
    np.testing.assert_allclose(np.concatenate(spans[1::2]), wanted_std)


def test_recall_figure_is_sorted_by_baseline(study_writer: StudyWriter) -> None:
    recall = np.tile(np.linspace(0.99, 0.9, 10), (2, 1))
    recall[:, 0] = 0.5, 0.6
    data = figures.recall_per_class(read_study(study_writer(recall={"baseline": recall}))).data
    assert data["class_index"].to_list() == [0, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    np.testing.assert_allclose(
        data.select(pl.col("^recall_.*$")).row(0), [55, 100 * np.sqrt(0.005), 50, 60], rtol=1e-12
    )


def test_samples_figure_matches_its_csv(study_writer: StudyWriter) -> None:
    picture = figures.samples_per_class(read_study(study_writer()))
    drawn = [bar.get_width() for bar in picture.figure.axes[0].patches if isinstance(bar, Rectangle)]
    np.testing.assert_array_equal(drawn, picture.data["samples"])
    assert tick_labels(picture.figure)[0] == "Shirt"
    assert picture.data.filter(pl.col("arm") == "hbr")["samples"][0] == 150


def test_gap_figure_matches_its_csv(study_writer: StudyWriter) -> None:
    picture = figures.gap_metrics(read_study(study_writer()))
    for (arm, metric), rows in picture.data.group_by("arm", "metric"):
        members = rows.filter(pl.col("what") == "member")["points"]
        mean = rows.filter(pl.col("what") == "mean")["points"]
        np.testing.assert_array_equal(line(picture.figure, f"members {arm} {metric}")[:, 0], members)
        np.testing.assert_array_equal(line(picture.figure, f"mean {arm} {metric}")[:, 0], mean)
        np.testing.assert_allclose(mean[0], members.to_numpy().mean())
    assert picture.data.height == 2 * 5 * (3 + 1)


def test_hardness_figure_matches_its_csv(study_writer: StudyWriter) -> None:
    picture = figures.class_hardness_against_recall(read_study(study_writer()))
    for arm in ("baseline", "hbr"):
        rows = picture.data.filter(pl.col("arm") == arm).select("hardness", "recall_mean_percent")
        np.testing.assert_array_equal(line(picture.figure, f"points {arm}"), rows.to_numpy())
    assert "lower is harder" in picture.caption
    names = {text.get_text() for text in picture.figure.axes[0].texts}
    assert {"Shirt", "T-shirt/top", "Trouser"} <= names


def test_class_names_stay_inside_the_picture() -> None:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    crowd_x, crowd_y = (axis.ravel() for axis in np.meshgrid(np.linspace(5, 9.7, 30), np.linspace(3, 7, 30)))
    x_ac, y_ac = np.append(9.8, crowd_x)[:, None], np.append(5, crowd_y)[:, None]
    drawing.label_points(axes, x_ac, y_ac, ["Ankle boot"])
    (name,) = axes.texts
    box = name.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert figure.bbox.x0 < box.x0 < box.x1 < figure.bbox.x1
    assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1


def test_trap_15_galleries_show_the_right_end(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    study = read_study(study_writer())
    for hardest in (True, False):
        data = gallery.gallery(study, dataset.train.store, hardest=hardest, per_class=4).data
        for index in range(10):
            scores = study.samples.filter(pl.col("class_index") == index)["aum"].drop_nans().sort()
            wanted = scores[:4] if hardest else scores.reverse()[:4]
            assert data.filter(pl.col("class_index") == index)["aum"].to_list() == wanted.to_list()
    assert 0 not in data["sample_id"]  # its score is NaN: never observed


def test_gallery_names_its_files(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    picture = gallery.gallery(read_study(study_writer(sources=True)), dataset.train.store, hardest=True)
    for sample, class_name, source in picture.data.select("sample_id", "class_name", "source").rows():
        assert source == f"photos/{class_name}/DSC_{sample:010}_WIDEMM.jpeg"
    picture.figure.draw_without_rendering()
    names = [text for text in picture.figure.axes[0].texts if text.get_text().endswith("MM")]
    assert len(names) == picture.data.height
    assert {text.get_text()[0] for text in names} == {"…"}, "a name is cut where it would reach its neighbour's"
    boxes = [text.get_window_extent() for text in names]
    for one, other in itertools.pairwise(boxes):
        assert one.y0 != other.y0 or one.x1 < other.x0
    assert "source" not in gallery.gallery(read_study(study_writer("plain")), dataset.train.store, hardest=True).data


def browser_data(folder: Path, study: StudyFiles, store: RawImages) -> dict[str, Any]:
    folder.mkdir()
    browser.write_browser(study, store, folder)
    text = (folder / "samples.js").read_text()
    assert text.startswith("const hbrSamples = ")
    data: dict[str, Any] = json.loads(text.removeprefix("const hbrSamples = ").removesuffix(";\n"))
    return data


def test_browser_has_every_sample_with_its_source_and_scores(
    study_writer: StudyWriter, dataset: SimpleNamespace, tmp_path: Path
) -> None:
    study = read_study(study_writer(sources=True))
    data = browser_data(tmp_path / "browser", study, dataset.train.store)
    assert data["ids"] == list(range(500))
    assert all(source.endswith(f"{i:010}_WIDEMM.jpeg") for i, source in enumerate(data["sources"]))
    assert data["scores"]["aum"][0] is None, "never observed"
    assert data["scores"]["aum"][1:] == [round(value, 4) for value in study.samples["aum"].to_list()[1:]]
    assert data["predicted"] == [-1] * 500
    assert browser_data(tmp_path / "other", read_study(study_writer("plain")), dataset.train.store)["sources"] is None


def test_browser_of_many_samples_has_the_hardest_of_each_class(
    study_writer: StudyWriter, dataset: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "MOST_SAMPLES", 70)
    study = read_study(study_writer())
    data = browser_data(tmp_path / "browser", study, dataset.train.store)
    assert (len(data["ids"]), data["total"]) == (70, 500)
    for c in range(10):
        hardest = study.samples.filter(pl.col("aum").is_finite(), class_index=c).sort("aum")["sample_id"][:7].to_list()
        assert [i for i, of in zip(data["ids"], data["class"], strict=True) if of == c] == sorted(hardest)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 300, 200), (1, 1, 1)])
def test_browser_thumbnails_match_the_sample(
    study_writer: StudyWriter, tmp_path: Path, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "PER_SHEET", 150)
    grey = np.random.default_rng(3).integers(0, 256, 500, dtype=np.uint8)
    images = np.broadcast_to(grey[:, None, None, None], (500, *shape))
    data = browser_data(tmp_path / "browser", read_study(study_writer()), RawImages(np.ascontiguousarray(images)))
    sheet = data["sheet"]
    assert max(sheet["width"], sheet["height"]) == min(64, max(shape[1:])) or shape[1] == 300
    for i in (0, 149, 150, 499):
        with Image.open(tmp_path / "browser" / "thumbnails" / f"{i // 150}.webp") as file:
            place = i % 150
            x = (place % sheet["columns"]) * sheet["width"] + sheet["width"] // 2
            y = (place // sheet["columns"]) * sheet["height"] + sheet["height"] // 2
            tolerance = 8 if min(shape[1:]) > 1 else 255
            assert abs(file.convert("L").getpixel((x, y)) - int(grey[i])) <= tolerance  # type: ignore[operator]


def test_gallery_says_what_the_hardest_are_predicted_as(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    path = study_writer()
    table = pl.read_csv(path / "samples.csv").with_columns(pl.lit("Sandal").alias("predicted"))
    table.write_csv(path / "samples.csv")
    picture = gallery.gallery(read_study(path), dataset.train.store, hardest=True)
    assert [text.get_text() for text in picture.figure.axes[0].texts].count("as Sandal") == picture.data.height
    assert picture.data["predicted"].unique().to_list() == ["Sandal"]
    assert "predicted" not in gallery.gallery(read_study(path), dataset.train.store, hardest=False).data


def test_confusion_pictures_show_shares_and_their_change(
    study_writer: StudyWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(study_writer())
    before, change = confusion.confusion_pictures(study)
    shirt = before.data.filter(true_class="Shirt")
    recall = 100 * study.class_metric("baseline", "recall")[:, 6].mean()
    assert shirt.filter(predicted_class="Shirt")["percent"].item() == pytest.approx(recall, abs=0.05)
    assert shirt.filter(predicted_class="Sneaker")["percent"].item() == pytest.approx(100 - recall, abs=0.05)
    assert before.data.group_by("true_class").agg(pl.col("percent").sum())["percent"].to_list() == pytest.approx(
        [100] * 10
    )
    gained = 100 * study.class_metric("hbr", "recall")[:, 6].mean() - recall
    moved = change.data.filter(true_class="Shirt", predicted_class="Shirt")["points"].item()
    assert moved == pytest.approx(gained, abs=0.05)
    monkeypatch.setattr(confusion, "MOST_LABELS", 9)
    assert confusion.confusion_pictures(study) == [], "too many classes to name"


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 300, 200), (1, 1, 1)])
def test_gallery_pixels_match_the_sample(
    study_writer: StudyWriter, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    images = np.random.default_rng(3).integers(0, 256, (500, *shape), dtype=np.uint8)
    picture = gallery.gallery(read_study(study_writer()), RawImages(images), hardest=True)
    sizes = drawing.save(picture, tmp_path)
    with Image.open(tmp_path / "hardest_images.png") as file:
        assert file.size == sizes["hardest_images.png"]
        pixels = np.asarray(file.convert("RGB"))
    (canvas,) = [np.asarray(image.get_array()) for image in picture.figure.axes[0].images]
    assert pixels.shape == canvas.shape
    _, _, height, width = images.shape
    step = -(-max(height, width) // 112)
    for row, rank in ((0, 0), (9, 7)):
        sample = picture.data.filter((pl.col("row") == row) & (pl.col("rank") == rank))["sample_id"][0]
        thin = np.moveaxis(images[sample][:, ::step, ::step], 0, -1)
        scale = 112 // max(thin.shape[:2])
        tile = np.repeat(np.repeat(thin, scale, 0), scale, 1)
        cell = max(tile.shape[1], 76) + 10
        top, left = 96 + row * (tile.shape[0] + 32), 200 + rank * cell
        shown = pixels[top : top + tile.shape[0], left : left + tile.shape[1]]
        np.testing.assert_array_equal(shown, np.broadcast_to(tile, shown.shape))


def test_gallery_of_a_class_with_few_scores_is_short(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    path = study_writer()
    samples = pl.read_csv(path / "samples.csv")
    few = pl.concat([samples.filter(pl.col("class_index") != 6), samples.filter(pl.col("class_index") == 6)[:3]])
    few.write_csv(path / "samples.csv")
    data = gallery.gallery(read_study(path), dataset.train.store, hardest=True).data
    assert data.filter(pl.col("class_index") == 6).height == 3
    assert data.height == 9 * 8 + 3


def test_gallery_names_sample_without_image(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"samples.csv has sample 499, the dataset 400 training images"):
        gallery.gallery(read_study(study_writer()), RawImages(dataset.train.images[:400]), hardest=True)


def test_figures_are_reproducible(study_writer: StudyWriter, dataset: SimpleNamespace, tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
        for picture in figures.pictures_of(read_study(study_writer()), images=dataset.train.store):
            drawing.save(picture, folder)
    names = sorted(file.name for file in folders[0].iterdir())
    assert len(names) == 14 * 4
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_figures_leave_matplotlib_state_unchanged(study_writer: StudyWriter, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    drawing.save(figures.recall_per_class(read_study(study_writer())), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_figures_of_many_arms_one_member_and_odd_names(study_writer: StudyWriter, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    recall = {arm: rng.uniform(0.5, 1, (1, 10)) for arm in ("baseline", "a", "b", "a long name of an arm $x$")}
    classes = [r"$\frac$", "$", "_^{", "x" * 80, " ", "\\frac", "$a$ $", "é", "<&>", "100 %"]
    study = read_study(study_writer(recall=recall, classes=classes))
    for picture in figures.pictures_of(study):
        drawing.save(picture, tmp_path)
        assert picture.data.height
    recall_picture = figures.recall_per_class(study)
    assert recall_picture.data["recall_std_percent"].is_nan().all()
    assert "thick bar" not in recall_picture.caption


def study_of_a_path(study_writer: StudyWriter, *, along: str) -> StudyFiles:
    """Three values along alpha or the pruning rate for each of two treatments, three variants of two members."""
    rng = np.random.default_rng(3)
    cells = [(v, m) for v in range(3) for m in range(2)]
    recall = {"baseline": RECALL + rng.normal(0, 0.005, (6, 10))}
    settings: dict[str, dict[str, Any]] = {}
    for what in ("random", "smote"):
        for value in (0.75, 0.25, 0.5):
            recall[f"{what}-{value}"] = RECALL + rng.normal(0, 0.01, (6, 10))
            settings[f"{what}-{value}"] = {along: value, "oversample": what}
            if along == "prune_rate":
                settings[f"{what}-{value}"] |= {"alpha": 0.25, "prune_level": "class", "prune_by": "hardness"}
    seeds = {arm: list(range(6)) for arm in recall}
    return read_study(
        study_writer(along, recall=recall, settings=settings, variants=dict.fromkeys(recall, cells), seeds=seeds)
    )


@pytest.mark.parametrize(
    ("along", "column", "draw"),
    [("alpha", "alpha", sweeps.gaps_by_alpha), ("prune_rate", "rate", sweeps.gaps_by_pruning_rate)],
)
def test_path_figure_matches_its_csv(
    study_writer: StudyWriter, along: str, column: str, draw: Callable[[StudyFiles], drawing.Picture | None]
) -> None:
    study = study_of_a_path(study_writer, along=along)
    picture = draw(study)
    assert picture is not None
    assert picture.data["line"].unique().len() == 2
    for axes, metric in zip(picture.figure.axes, picture.data["metric"].unique(maintain_order=True), strict=True):
        drawn = [np.asarray(bar.lines[0].get_xydata()) for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
        for (_, rows), points in zip(
            picture.data.filter(pl.col("metric") == metric).group_by("line", maintain_order=True), drawn, strict=True
        ):
            assert rows[column].is_sorted()
            np.testing.assert_allclose(points, rows.select(column, "mean_percent").to_numpy())
    row = picture.data.filter((pl.col("metric") == "recall_std") & (pl.col("arm") == "smote-0.5")).row(0, named=True)
    compared = compare(study, "smote-0.5", "recall_std")
    assert (row["difference_points"], row["difference_low"]) == (compared.difference, compared.interval[0])
    assert row["mean_percent"] == pytest.approx(100 * study.member_metric("smote-0.5", "recall_std").mean())
    assert row[column] == (0.5 if along == "alpha" else 50.0)


def test_path_figure_spaces_alphas_by_ratio(study_writer: StudyWriter) -> None:
    alphas = (0.0412, 0.233, 1.32)
    recall = {"baseline": np.tile(RECALL, (2, 1)), **{f"random-{a}": np.tile(RECALL, (2, 1)) for a in alphas}}
    settings = {f"random-{a}": {"alpha": a} for a in alphas}
    seeds = {arm: [0, 1] for arm in recall}
    picture = sweeps.gaps_by_alpha(read_study(study_writer(recall=recall, settings=settings, seeds=seeds)))
    assert picture is not None
    axes = picture.figure.axes[0]
    places = axes.transData.transform([(alpha, 20) for alpha in alphas])[:, 0]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], rel=0.01)
    left, right = axes.get_xlim()
    assert left < alphas[0] < alphas[-1] < right
    assert [label.get_text() for label in picture.figure.axes[-1].get_xticklabels()] == ["0.0412", "0.233", "1.32"]
    assert axes.get_legend_handles_labels()[1] == ["baseline (alpha 0)", "resampled"]
    crowded = sweeps.gaps_by_alpha(study_of_a_path(study_writer, along="alpha"))
    assert crowded is not None
    assert crowded.figure.axes[0].get_xscale() == "linear"


def test_path_figure_turns_labels_that_would_collide(study_writer: StudyWriter) -> None:
    alphas = (0.0674, 0.134, 0.269, 0.539, 1.07, 2.15)
    recall = {"baseline": np.tile(RECALL, (2, 1)), **{f"random-{a}": np.tile(RECALL, (2, 1)) for a in alphas}}
    settings = {f"random-{a}": {"alpha": a} for a in alphas}
    seeds = {arm: [0, 1] for arm in recall}
    picture = sweeps.gaps_by_alpha(read_study(study_writer(recall=recall, settings=settings, seeds=seeds)))
    assert picture is not None
    drawing.write_figure(picture.figure, study_writer("drawn") / "drawn.png")  # lays it out
    labels = picture.figure.axes[-1].get_xticklabels()
    assert [label.get_text() for label in labels] == [f"{alpha:g}" for alpha in alphas]
    ends = [label.get_window_extent().x1 for label in labels]
    room = np.diff(ends).min()  # of turned labels, the lines of text lie apart by their place across them
    height = float(labels[0].get_fontsize()) * picture.figure.dpi / 72
    if labels[0].get_rotation() == 0:
        starts = [label.get_window_extent().x0 for label in labels]
        assert all(end < start for end, start in zip(ends, starts[1:], strict=False))
    else:
        assert room * np.sin(np.radians(labels[0].get_rotation())) > height


@pytest.mark.parametrize(
    ("rates", "scale"),
    [((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "linear"), ((0.001, 0.002, 0.0021, 0.5), "log")],
)
def test_no_rate_is_printed_over_another(study_writer: StudyWriter, rates: tuple[float, ...], scale: str) -> None:
    recall = {"baseline": np.tile(RECALL, (2, 1)), **{f"p-{rate}": np.tile(RECALL, (2, 1)) for rate in rates}}
    pruned = {"alpha": 0.0, "prune_level": "class", "prune_by": "hardness"}
    settings = {f"p-{rate}": {**pruned, "prune_rate": rate} for rate in rates}
    seeds = {arm: [0, 1] for arm in recall}
    picture = sweeps.gaps_by_pruning_rate(read_study(study_writer(recall=recall, settings=settings, seeds=seeds)))
    assert picture is not None
    drawing.write_figure(picture.figure, study_writer("drawn") / "drawn.png")  # lays it out
    axes = picture.figure.axes[-1]
    assert axes.get_xscale() == scale
    shown = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(shown) >= 2
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(shown))


def many_arms(study_writer: StudyWriter, oversamplers: int) -> StudyFiles:
    """Two alphas for each of many oversamplers."""
    names = [f"how{i}-{alpha}" for i in range(oversamplers) for alpha in (0.1, 0.2)]
    recall = {arm: np.tile(RECALL, (2, 1)) for arm in ("baseline", *names)}
    settings = {arm: {"alpha": float(arm[-3:]), "oversample": arm.partition("-")[0]} for arm in names}
    return read_study(study_writer(recall=recall, settings=settings, seeds={arm: [0, 1] for arm in recall}))


def test_path_figure_has_room_for_every_line(study_writer: StudyWriter) -> None:
    picture = sweeps.gaps_by_alpha(many_arms(study_writer, 9))
    assert picture is not None
    drawing.write_figure(picture.figure, study_writer("drawn") / "drawn.png")  # lays it out
    for axes in picture.figure.axes:
        frame = axes.get_window_extent()
        bars = [bar.lines[0] for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
        assert len(bars) == 9
        for bar in bars:
            x = bar.get_transform().transform(bar.get_xydata())[:, 0]
            assert frame.x0 + 2 < x.min() < x.max() < frame.x1 - 2
        looks = {(bar.get_color(), bar.get_linestyle()) for bar in bars}
        assert len(looks) == 9, "lines of the same colour have another style"


def test_signed_gap_is_shaded_by_its_absolute_value(study_writer: StudyWriter) -> None:
    path = study_writer(recall={arm: np.tile(RECALL, (2, 1)) for arm in ("baseline", "a", "b", "c", "d", "e")})
    members = pl.read_csv(path / "per_member.csv")
    reversed_gap = pl.when(pl.col("arm") == "a").then(-pl.col("recall_easy_hard")).otherwise(pl.col("recall_easy_hard"))
    members.with_columns(reversed_gap).write_csv(path / "per_member.csv")
    picture = sweeps.gaps_of_arms(read_study(path))
    shades = np.asarray(picture.figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shades, 1)
    assert picture.data["easy_hard"][1] == pytest.approx(-picture.data["easy_hard"][0])


def test_any_gap_is_shaded_as_wider_than_none(study_writer: StudyWriter) -> None:
    path = study_writer(recall={arm: np.tile(RECALL, (2, 1)) for arm in ("baseline", "a", "b", "c", "d", "e")})
    members = pl.read_csv(path / "per_member.csv")
    mad = pl.when(pl.col("arm") == "a").then(0.05).otherwise(0.0).alias("recall_mad")
    tripled = pl.when(pl.col("arm") == "b").then(pl.col("recall_std") * 3).otherwise(pl.col("recall_std"))
    members.with_columns(mad, tripled).write_csv(path / "per_member.csv")
    figure = sweeps.gaps_of_arms(read_study(path)).figure
    shades = np.asarray(figure.axes[0].images[0].get_array())
    mads = shades[:, list(GAPS).index("mad")]
    np.testing.assert_allclose(mads, [1, 3, 1, 1, 1, 1])  # the end of the scale, which another gap sets
    assert figure.axes[1].get_ylim() == pytest.approx((0, 3))  # no gap is a negative share of another


def test_bar_figure_limits_percentages_and_reports_undefined_gap(study_writer: StudyWriter) -> None:
    unlike = np.stack([np.linspace(0, 1, 10), np.full(10, 0.5)])  # two variants as far apart as possible
    recall = {"baseline": np.tile(RECALL, (2, 1)), "a": unlike, "b": unlike}
    only_pruned: dict[str, Any] = {"alpha": 0.0, "prune_level": "class", "prune_by": "random"}
    settings = {arm: {**only_pruned, "prune_rate": rate} for arm, rate in (("a", 0.3), ("b", 0.5))}
    path = study_writer(recall=recall, settings=settings, seeds={arm: [0, 1] for arm in recall})
    members = pl.read_csv(path / "per_member.csv").with_columns(pl.lit(float("nan")).alias("recall_easy_hard"))
    members.write_csv(path / "per_member.csv")
    compared = pl.read_csv(path / "comparisons.csv")
    undefined = pl.col("quantity") == "recall_easy_hard"
    numbers = ("baseline", "treatment", "difference", "low", "high", "combined_low", "combined_high")
    nan = [pl.when(undefined).then(float("nan")).otherwise(pl.col(name)).alias(name) for name in numbers]
    compared.with_columns(nan).write_csv(path / "comparisons.csv")
    for gaps, shown in ((figures.gap_metrics, "not defined: no arm shares samples"), (sweeps.gaps_of_arms, "n/a")):
        drawn = gaps(read_study(path))
        assert any(shown in text.get_text() for text in drawn.figure.axes[0].texts)
        assert "No value for easy - hard: not defined: no arm shares samples out by hardness." in drawn.caption
    picture = sweeps.gaps_by_pruning_rate(read_study(path))
    assert picture is not None
    assert picture.data["difference_high"].drop_nans().max() > 100  # type: ignore[operator]
    for axes in picture.figure.axes:
        low, high = axes.get_ylim()
        if "easy" in axes.get_title(loc="left"):
            assert "not defined" in axes.texts[0].get_text()
        else:
            assert -3 <= low < high <= 103
            assert not axes.texts


def test_path_figure_needs_two_values(study_writer: StudyWriter) -> None:
    study = read_study(study_writer())
    assert sweeps.gaps_by_alpha(study) is None
    assert sweeps.gaps_by_pruning_rate(study) is None


def test_pareto_front_by_hand() -> None:
    accuracy, gap = [90, 91, 89, 90, 91, 88], [20, 25, 15, 22, 25, 15]
    assert trade.pareto_front(accuracy, gap) == [1, 4, 0, 2]  # 3 loses to 0, 5 to 2; 1 and 4 are equal


def test_gap_against_accuracy_figure_matches_its_csv(study_writer: StudyWriter) -> None:
    study = study_of_a_path(study_writer, along="alpha")
    picture = trade.gap_against_accuracy(study)
    assert picture is not None
    rows = picture.data
    assert rows["arm"].to_list() == ["baseline", *study.treatments]
    compared = compare(study, "smote-0.5", "recall_max_min")
    row = rows.filter(pl.col("arm") == "smote-0.5").row(0, named=True)
    assert (row["gap_points"], row["gap_difference_low"]) == (compared.treatment, compared.interval[0])
    front = rows.filter("on_front").sort("accuracy_percent", descending=True)
    assert 0 < front.height < rows.height
    np.testing.assert_allclose(line(picture.figure, "front"), front.select("accuracy_percent", "gap_points").to_numpy())
    assert trade.gap_against_accuracy(read_study(study_writer())) is None


def test_many_arms_become_heat_maps(study_writer: StudyWriter, tmp_path: Path) -> None:
    study = study_of_a_path(study_writer, along="alpha")
    names = [picture.name for picture in figures.pictures_of(study)]
    assert names == [
        "recall_per_class",
        "gap_metrics",
        "gaps_by_alpha",
        "gap_against_accuracy",
        "change_per_class",
        "samples_per_class",
        "precision_against_recall",
        "cumulative_aum",
        "confidence_against_margin",
        "suspected_noise",
        "estimator_overlap",
    ]
    recall = sweeps.recall_of_arms(study)
    shown = np.asarray(recall.figure.axes[0].images[0].get_array())
    means = recall.data["recall_mean_percent"].to_numpy().reshape(len(study.arms), -1)
    np.testing.assert_allclose(shown, means.T)
    shirt = recall.data.filter((pl.col("arm") == "smote-0.5") & (pl.col("class_name") == "Shirt")).row(0, named=True)
    own = 100 * study.class_metric("smote-0.5", "recall")[:, 6]
    spread = ("recall_mean_percent", "recall_std_percent", "recall_min_percent", "recall_max_percent")
    assert [shirt[name] for name in spread] == pytest.approx([own.mean(), own.std(ddof=1), own.min(), own.max()])
    assert recall.data.columns == figures.recall_per_class(study).data.columns, "one name, one form"
    gaps = sweeps.gaps_of_arms(study).data
    assert gaps["arm"].to_list() == list(study.arms)
    assert gaps["mad"][2] == pytest.approx(100 * study.member_metric(study.arms[2], "recall_mad").mean())
    samples = sweeps.samples_of_arms(study)
    assert samples.data.columns == ["class_index", "class_name", "baseline", "random-0.75"]  # the others equal it
    assert "random-0.75 also for random-0.25" in samples.caption


def test_change_per_class_figure_by_hand(study_writer: StudyWriter) -> None:
    before, after = np.full((1, 10), 0.9), np.full((1, 10), 0.9)
    before[0, 6], after[0, 6] = 0.6, 0.75
    data = sweeps.change_per_class(read_study(study_writer(recall={"baseline": before, "hbr": after})))
    assert data is not None
    rows = dict(data.data.select("class_name", "hbr").rows())
    assert rows.pop("Shirt") == pytest.approx(15)
    assert all(value == pytest.approx(0) for value in rows.values())


# --- hardness ---


def test_cumulative_aum_figure_is_the_distribution(study_writer: StudyWriter) -> None:
    study = read_study(study_writer())
    picture = hardness_figures.cumulative_aum(study)
    scores = study.samples.filter((pl.col("class_index") == 6) & pl.col("aum").is_finite())["aum"].to_numpy()
    drawn = line(picture.figure, "class 6")
    for aum, share in drawn[::40]:
        assert share == pytest.approx(100 * (scores <= aum + 1e-9).mean(), abs=100 / len(scores) + 0.5)
    assert picture.data["class_name"][0] == "Shirt"


def test_noise_figure_is_the_share_below_zero(study_writer: StudyWriter) -> None:
    study = read_study(study_writer())
    picture = hardness_figures.suspected_noise(study)
    for name, share in picture.data.select("class_name", "share_percent").rows():
        scores = study.samples.filter((pl.col("class_name") == name) & pl.col("aum").is_finite())["aum"]
        assert share == pytest.approx(100 * (scores < 0).sum() / len(scores))
    drawn = [bar.get_width() for bar in picture.figure.axes[0].patches if isinstance(bar, Rectangle)]
    np.testing.assert_allclose(drawn, picture.data["share_percent"])


def test_overlap_figure_of_equal_rankings_is_complete(study_writer: StudyWriter) -> None:
    data = hardness_figures.estimator_overlap(read_study(study_writer())).data
    assert data["estimator"].to_list() == ["aum", "confidence", "loss", "forgetting"]
    # Loss is minus AUM, and high is hard for it: the same tenth. Forgetting has nothing to do with them.
    aum = data.filter(pl.col("estimator") == "aum").row(0, named=True)
    assert (aum["aum"], aum["confidence"], aum["loss"]) == (1, 1, 1)
    assert aum["forgetting"] < 0.3


def test_confidence_against_margin_figure_has_examples(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    study = read_study(study_writer())
    picture = hardness_figures.confidence_against_margin(study, dataset.train.store)
    assert picture is not None
    assert picture.data["class_index"].n_unique() == picture.data.height == 8
    np.testing.assert_allclose(line(picture.figure, "examples"), picture.data.select("aum", "confidence").to_numpy())
    assert len(picture.figure.axes) == 2 + 8  # the plot, its scale and the images
    assert [text.get_text() for text in picture.figure.axes[0].texts] == [str(number) for number in range(1, 9)]
    first = picture.data["sample_id"][0]
    shown = np.asarray(picture.figure.axes[2].images[0].get_array())
    assert (shown == dataset.train.images[first, 0, 0, 0]).all()


def test_cells_of_confidence_against_margin_are_seen_where_all_are_alike(study_writer: StudyWriter) -> None:
    path = study_writer()
    table = pl.read_csv(path / "samples.csv")
    narrow = 0.2 + 0.001 * pl.col("confidence")
    table.with_columns(narrow.alias("confidence")).write_csv(path / "samples.csv")
    picture = hardness_figures.confidence_against_margin(read_study(path))
    assert picture is not None
    axes = picture.figure.axes[0]
    cell = axes.collections[0].get_paths()[0].get_extents()  # in the axes' units
    assert cell.height > 1 / 50


def test_precision_against_recall_figure_matches_its_csv(study_writer: StudyWriter) -> None:
    study = read_study(study_writer())
    picture = hardness_figures.precision_against_recall(study)
    for arm in study.arms:
        rows = picture.data.filter(pl.col("arm") == arm).select("recall_mean_percent", "precision_mean_percent")
        np.testing.assert_allclose(line(picture.figure, f"points {arm}"), rows.to_numpy())
    assert "no correlation can be told" in picture.caption  # the writer's precision is one number


# --- ensemble size ---


def test_ensemble_size_figures(study_writer: StudyWriter) -> None:
    assert stability.stability_pictures(read_study(study_writer("without"))) == []
    study = read_study(study_writer("with", ensemble_size=True))
    overlap, change, agreement = stability.stability_pictures(study)
    shown = np.asarray(overlap.figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, [[0.7, 0.85, 0.9]] * 2)
    np.testing.assert_allclose(change.figure.axes[0].lines[0].get_xydata(), [[2, 15], [3, 10]])  # type: ignore[arg-type]
    assert len(agreement.figure.axes[0].lines) == 4
    assert "from 2 members on" in change.caption
    assert agreement.data["estimator"].unique().to_list() == ["aum"]


def test_captions_state_the_main_numbers(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    study = read_study(study_writer())
    for picture in figures.pictures_of(study, images=dataset.train.store):
        assert picture.alt.strip()
        assert picture.caption.strip()
        assert any(letter.isdigit() for letter in picture.alt)
    shirt = 100 * study.class_metric("baseline", "recall")[:, 6].mean()
    assert f"Shirt {shirt:.1f} %" in figures.recall_per_class(study).alt
    assert "members: baseline 3, hbr 3" in figures.recall_per_class(study).caption.lower()


def test_suspected_noise_says_how_good_the_network_is(study_writer: StudyWriter) -> None:
    drawn = hardness_figures.suspected_noise(read_study(study_writer(recall={"baseline": np.full((2, 10), 0.41)})))
    assert "just what it has not learnt: this one is right for 41.0 % of the test set" in drawn.caption


def test_captions_of_scores_count_the_members_that_define_hardness(
    study_writer: StudyWriter, dataset: SimpleNamespace
) -> None:
    study = read_study(study_writer(recorded={"hardness_members": 2}))
    drawn = {one.name: one for one in figures.pictures_of(study, images=dataset.train.store)}
    scored = ("hardest_images", "easiest_images", "confidence_against_margin", "cumulative_aum", "suspected_noise")
    for name in (*scored, "estimator_overlap", "samples_per_class", "class_hardness_against_recall"):
        assert "the first 2 of the baseline's 3 members" in drawn[name].caption, name
    (note,) = {table.note for table in tables.tables_of(study) if table.name == "table_classes_hbr"}
    assert "over the first 2 of the baseline's 3 members" in note
