from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from hbr_fast.report import drawing, figures, gallery
from hbr_fast.report.study_files import read_study

StudyWriter = Callable[..., Path]


def line(figure: Figure, gid: str) -> np.ndarray:
    """Points `[n, 2]` of the drawn line of that name."""
    (found,) = [artist for artist in figure.axes[0].lines if artist.get_gid() == gid]
    return np.column_stack([np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)])


def tick_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_recall_csv_is_what_is_drawn(study_writer: StudyWriter) -> None:
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


def test_recall_is_sorted_by_the_baseline_and_right_by_hand(study_writer: StudyWriter) -> None:
    recall = np.tile(np.linspace(0.99, 0.9, 10), (2, 1))
    recall[:, 0] = 0.5, 0.6
    data = figures.recall_per_class(read_study(study_writer(recall={"baseline": recall}))).data
    assert data["class_index"].to_list() == [0, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    np.testing.assert_allclose(
        data.select(pl.col("^recall_.*$")).row(0), [55, 100 * np.sqrt(0.005), 50, 60], rtol=1e-12
    )


def test_samples_csv_is_what_is_drawn(study_writer: StudyWriter) -> None:
    picture = figures.samples_per_class(read_study(study_writer()))
    drawn = [bar.get_width() for bar in picture.figure.axes[0].patches if isinstance(bar, Rectangle)]
    np.testing.assert_array_equal(drawn, picture.data["samples"])
    assert tick_labels(picture.figure)[0] == "Shirt"
    assert picture.data.filter(pl.col("arm") == "hbr")["samples"][0] == 150


def test_gap_csv_is_what_is_drawn(study_writer: StudyWriter) -> None:
    picture = figures.gap_metrics(read_study(study_writer()))
    for (arm, metric), rows in picture.data.group_by("arm", "metric"):
        members = rows.filter(pl.col("what") == "member")["points"]
        mean = rows.filter(pl.col("what") == "mean")["points"]
        np.testing.assert_array_equal(line(picture.figure, f"members {arm} {metric}")[:, 0], members)
        np.testing.assert_array_equal(line(picture.figure, f"mean {arm} {metric}")[:, 0], mean)
        np.testing.assert_allclose(mean[0], members.to_numpy().mean())
    assert picture.data.height == 2 * 5 * (3 + 1)


def test_hardness_csv_is_what_is_drawn(study_writer: StudyWriter) -> None:
    picture = figures.class_hardness_against_recall(read_study(study_writer()))
    for arm in ("baseline", "hbr"):
        rows = picture.data.filter(pl.col("arm") == arm).select("hardness", "recall_mean_percent")
        np.testing.assert_array_equal(line(picture.figure, f"points {arm}"), rows.to_numpy())
    assert "lower is harder" in picture.caption
    names = {text.get_text() for text in picture.figure.axes[0].texts}
    assert {"Shirt", "T-shirt/top", "Trouser"} <= names


def test_trap_15_galleries_show_the_right_end(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    study = read_study(study_writer())
    for hardest in (True, False):
        data = gallery.gallery(study, dataset.train.images, hardest=hardest, per_class=4).data
        for index in range(10):
            scores = study.samples.filter(pl.col("class_index") == index)["aum"].drop_nans().sort()
            wanted = scores[:4] if hardest else scores.reverse()[:4]
            assert data.filter(pl.col("class_index") == index)["aum"].to_list() == wanted.to_list()
    assert 0 not in data["sample_id"]  # its score is NaN: never observed


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 300, 200), (1, 1, 1)])
def test_gallery_pixels_are_those_of_the_sample(
    study_writer: StudyWriter, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    images = np.random.default_rng(3).integers(0, 256, (500, *shape), dtype=np.uint8)
    picture = gallery.gallery(read_study(study_writer()), images, hardest=True)
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


def test_a_class_with_few_scores_gets_a_short_row(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    path = study_writer()
    samples = pl.read_csv(path / "samples.csv")
    few = pl.concat([samples.filter(pl.col("class_index") != 6), samples.filter(pl.col("class_index") == 6)[:3]])
    few.write_csv(path / "samples.csv")
    data = gallery.gallery(read_study(path), dataset.train.images, hardest=True).data
    assert data.filter(pl.col("class_index") == 6).height == 3
    assert data.height == 9 * 8 + 3


def test_a_sample_that_the_images_lack_is_named(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"samples.csv has sample 499, the dataset 400 training images"):
        gallery.gallery(read_study(study_writer()), dataset.train.images[:400], hardest=True)


def test_same_results_give_the_same_bytes(study_writer: StudyWriter, dataset: SimpleNamespace, tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
        for picture in figures.pictures_of(read_study(study_writer()), images=dataset.train.images):
            drawing.save(picture, folder)
    names = sorted(file.name for file in folders[0].iterdir())
    assert len(names) == 6 * 3
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_drawing_changes_nothing_global(study_writer: StudyWriter, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    drawing.save(figures.recall_per_class(read_study(study_writer())), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_many_arms_one_member_and_odd_names_are_drawn(study_writer: StudyWriter, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    recall = {arm: rng.uniform(0.5, 1, (1, 10)) for arm in ("baseline", "a", "b", "a long name of an arm $x$")}
    classes = [r"$\frac$", "$", "_^{", "x" * 80, " ", "\\frac", "$a$ $", "é", "<&>", "100 %"]
    study = read_study(study_writer(recall=recall, classes=classes))
    for picture in figures.pictures_of(study):
        drawing.save(picture, tmp_path)
        assert set(picture.data["arm"]) == set(recall)
    recall_picture = figures.recall_per_class(study)
    assert recall_picture.data["recall_std_percent"].is_nan().all()
    assert "thick bar" not in recall_picture.caption


def test_words_carry_the_main_numbers(study_writer: StudyWriter, dataset: SimpleNamespace) -> None:
    study = read_study(study_writer())
    for picture in figures.pictures_of(study, images=dataset.train.images):
        assert picture.alt.strip()
        assert picture.caption.strip()
        assert any(letter.isdigit() for letter in picture.alt)
    shirt = 100 * study.class_metric("baseline", "recall")[:, 6].mean()
    assert f"Shirt {shirt:.1f} %" in figures.recall_per_class(study).alt
    assert "members: baseline 3, hbr 3" in figures.recall_per_class(study).caption.lower()
