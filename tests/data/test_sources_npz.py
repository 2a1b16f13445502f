"""Arrays from an `.npz` file: layouts, splits and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.sources import Source, npz
from hbr_fast.data.sources.opening import open_source


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path / "mine.npz", **arrays)
    return path / "mine.npz"


def whole(**changes: Any) -> dict[str, Any]:
    arrays = {
        "images": images(6, 5, 4, 3),
        "labels": np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "test_images": images(3, 5, 4, 3, seed=1),
        "test_labels": np.array([2, 1, 0]),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def images_of(source: Source, split: str) -> np.ndarray:
    return np.concatenate(list(source.splits[split].blocks()))


def test_npz_channels_last_becomes_planar(tmp_path: Path) -> None:
    source = npz(root=save(tmp_path, **whole()))
    assert (source.name, source.classes) == ("mine", ("0", "1", "2"))
    np.testing.assert_array_equal(images_of(source, "train"), whole()["images"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(images_of(source, "test"), whole()["test_images"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(source.splits["test"].labels_n, [2, 1, 0])


def test_npz_other_layouts(tmp_path: Path) -> None:
    planar = whole(images=images(6, 3, 5, 4), test_images=images(3, 3, 5, 4))
    np.testing.assert_array_equal(images_of(npz(root=save(tmp_path, **planar)), "train"), planar["images"])
    gray = whole(images=images(6, 5, 4), test_images=images(3, 5, 4))
    np.testing.assert_array_equal(images_of(npz(root=save(tmp_path, **gray)), "train")[:, 0], gray["images"])


def test_npz_ambiguous_shape_asks_for_layout(tmp_path: Path) -> None:
    path = save(tmp_path, **whole(images=images(6, 3, 4, 3), test_images=images(3, 3, 4, 3)))
    with pytest.raises(
        ValueError, match=r"images has shape \[6, 3, 4, 3\], which could be either layout: say --layout"
    ):
        npz(root=path)
    assert npz(root=path, layout="nhwc").splits["train"].shape == (3, 3, 4)
    assert npz(root=path, layout="nchw").splits["train"].shape == (3, 4, 3)
    with pytest.raises(ValueError, match="layout must be nhwc or nchw, got 'hwc'"):
        npz(root=path, layout="hwc")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"images": None}, "lacks the array 'images'"),
        ({"labels": None}, "lacks the array 'labels'"),
        ({"test_labels": None}, "lacks the array 'test_labels'"),
        ({"images": np.zeros((6, 5, 4, 3))}, "images is float64, not uint8"),
        ({"images": images(6, 5, 4, 2)}, r"images has shape \[6, 5, 4, 2\]: no place for 1 or 3 channels"),
        ({"images": images(6, 5)}, r"images has shape \[6, 5\]: it must be"),
        ({"images": images(5, 5, 4, 3)}, r"images has shape \[5, 5, 4, 3\] but labels has 6"),
        ({"images": np.uint8(3)}, r"images has shape \[\] but labels has 6"),
        ({"labels": np.zeros(6)}, r"labels is float64 \[6\], not whole numbers"),
        ({"labels": np.zeros((6, 2), np.int64)}, r"labels is int64 \[6, 2\], not whole numbers"),
        ({"labels": np.array([0, 1, 2, 0, -1, 2])}, r"labels: the label at position 4 is -1, outside 0\.\.2"),
        ({"labels": np.array([0, 1, 2, 0, 10**12, 2])}, "labels go up to 1000000000000 with 9 samples"),
        ({"classes": np.array(["a", "b"])}, r"labels: the label at position 2 is 2, outside 0\.\.1"),
        ({"classes": np.array([1, 2, 3])}, "classes is int64"),
        ({"labels": np.array([0, None, 2, 0, 1, 2], dtype=object)}, "array 'labels' holds Python objects"),
    ],
)
def test_npz_names_invalid_arrays(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    path = save(tmp_path, **whole(**changes))
    with pytest.raises(ValueError, match=f"mine.npz.*{complaint}") as raised:
        npz(root=path)
    assert "\n" not in str(raised.value)


def test_npz_label_255(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8)
    arrays = {
        "images": images(256, 2, 2),
        "labels": labels,
        "test_images": images(256, 2, 2),
        "test_labels": labels,
    }
    assert len(npz(root=save(tmp_path, **arrays)).classes) == 256


def test_npz_class_names(tmp_path: Path) -> None:
    assert npz(root=save(tmp_path, **whole(classes=np.array(["a", "b", "c"])))).classes == ("a", "b", "c")
    path = save(tmp_path, **whole(classes=np.array(["a", "b", "c", "d"])))
    with pytest.raises(ValueError, match=r"class 'd' \(label 3\) has no sample in train"):
        convert("npz", tmp_path / "out.hbr", root=path)
    path = save(tmp_path, **whole(classes=np.array(["a", "b", "a"])))
    with pytest.raises(ValueError, match="two classes are named 'a'"):
        convert("npz", tmp_path / "out.hbr", root=path)


def test_npz_names_damaged_files(tmp_path: Path) -> None:
    path = save(tmp_path, **whole())
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[200] ^= 255
    for damaged in (b"", b"text", content[: len(content) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"mine\.npz is not a readable \.npz file"):
            npz(root=path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"is not a readable \.npz file"):
        npz(root=path)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        npz(root=tmp_path)


def test_npz_without_test_arrays(tmp_path: Path) -> None:
    """The test share is exact per class, rounds half up, is disjoint from train and deterministic."""
    labels = np.repeat([0, 1, 2], [10, 25, 50])
    pixels = np.arange(85, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    path = save(tmp_path, images=pixels, labels=labels)
    with pytest.raises(ValueError, match=r"lacks test_images and test_labels: .*--test-fraction"):
        open_source("npz", root=path)
    source = open_source("npz", root=path, test_fraction=0.1)
    train, test = source.splits["train"], source.splits["test"]
    np.testing.assert_array_equal(np.bincount(test.labels_n), [1, 3, 5])
    ids = {name: images_of(source, name)[:, 0, 0, 0] for name in ("train", "test")}
    np.testing.assert_array_equal(np.sort(np.concatenate(list(ids.values()))), np.arange(85))
    np.testing.assert_array_equal(train.labels_n, labels[ids["train"]])
    np.testing.assert_array_equal(test.labels_n, labels[ids["test"]])
    again = open_source("npz", root=path, test_fraction=0.1)
    np.testing.assert_array_equal(ids["test"], images_of(again, "test")[:, 0, 0, 0])
    assert not np.array_equal(ids["test"][-5:], np.arange(80, 85)), "not simply the last ones"


def test_trap_12_fraction_of_a_class_is_exact(tmp_path: Path) -> None:
    """0.29 * 100 is 28.999... in floating point, but must give 29; half a sample rounds up."""
    path = save(tmp_path, images=images(110, 2, 2), labels=np.repeat([0, 1], [100, 10]))
    for fraction, expected in ((0.29, [29, 3]), (0.35, [35, 4]), (0.57, [57, 6])):
        counts = np.bincount(open_source("npz", root=path, test_fraction=fraction).splits["test"].labels_n)
        np.testing.assert_array_equal(counts, expected)


def test_npz_rejects_invalid_test_fraction(tmp_path: Path) -> None:
    path = save(tmp_path, **whole())
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="test_fraction must be between 0 and 1"):
            open_source("npz", root=path, test_fraction=fraction)
    with pytest.raises(ValueError, match="has a test split of its own"):
        open_source("npz", root=path, test_fraction=0.5)
    with pytest.raises(ValueError, match="--root"):
        npz()


MADE_BY = {
    "Keras": ("x_train", "y_train", "x_test", "y_test"),
    "MedMNIST": ("train_images", "train_labels", "test_images", "test_labels"),
}


@pytest.mark.parametrize("maker", MADE_BY)
@pytest.mark.parametrize("form", ["plain", "column", "one-hot", "from 1"])
def test_npz_names_and_labels_of_other_libraries(tmp_path: Path, maker: str, form: str) -> None:
    arrays = whole()
    for name in ("labels", "test_labels"):
        labels_n = arrays[name]
        if form == "column":
            arrays[name] = labels_n[:, None]
        elif form == "one-hot":
            arrays[name] = np.eye(3, dtype=np.float32)[labels_n]
        elif form == "from 1":
            arrays[name] = labels_n + 1
    renamed = dict(
        zip(MADE_BY[maker], (arrays[n] for n in ("images", "labels", "test_images", "test_labels")), strict=True)
    )
    source = npz(root=save(tmp_path, **renamed))
    np.testing.assert_array_equal(source.splits["train"].labels_n, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(source.splits["test"].labels_n, [2, 1, 0])
    np.testing.assert_array_equal(images_of(source, "test"), arrays["test_images"].transpose(0, 3, 1, 2))
    assert source.classes == (("1", "2", "3") if form == "from 1" else ("0", "1", "2"))


def test_npz_keeps_validation_and_names_ignored_arrays(tmp_path: Path) -> None:
    held_out = images(2, 5, 4, 3)
    arrays = whole(val_images=held_out, val_labels=np.array([0, 1]), extra_images=held_out)
    source = npz(root=save(tmp_path, **arrays))
    assert source.findings is not None
    assert list(source.findings().notes) == ["passed over the arrays extra_images"]
    np.testing.assert_array_equal(images_of(source, "validation"), held_out.transpose(0, 3, 1, 2))
    del arrays["test_images"], arrays["test_labels"]
    source = npz(root=save(tmp_path, **arrays))
    assert list(source.splits) == ["train", "test"]
    np.testing.assert_array_equal(images_of(source, "test"), held_out.transpose(0, 3, 1, 2))


def test_npz_reports_missing_and_found_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks the array 'images' \(it has data, target\)"):
        npz(root=save(tmp_path, data=images(2, 3, 3), target=np.array([0, 1])))
    with pytest.raises(ValueError, match=r"lacks the array 'images' \(it has da\\nta, target\)"):
        npz(root=save(tmp_path, **{"da\nta": images(2, 3, 3), "target": np.array([0, 1])}))


def test_npz_rejects_multilabel(tmp_path: Path) -> None:
    several = np.array([[0, 1, 1]] * 6)
    with pytest.raises(ValueError, match=r"labels is int64 \[6, 3\], not whole numbers"):
        npz(root=save(tmp_path, **whole(labels=several)))


def test_npz_fraction_depends_on_seed(tmp_path: Path) -> None:
    path = save(tmp_path, images=images(40, 3, 3), labels=np.arange(40) % 2)
    first, again, other = (
        images_of(open_source("npz", root=path, test_fraction=0.25, seed=seed), "test") for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("twice", [("", "b", "c"), ("a", " \t", "c")])
def test_convert_refuses_class_without_name(tmp_path: Path, twice: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"mine: class [01] has no name \(1 such\)"):
        convert("npz", tmp_path / "a.hbr", root=save(tmp_path, **whole(classes=np.array(twice))))


def test_convert_refuses_class_names_that_look_the_same(tmp_path: Path) -> None:
    twice = np.array(["caf\u00e9", "cafe\u0301", "c"])
    with pytest.raises(ValueError, match=r"mine: two classes are named 'caf\u00e9'"):
        convert("npz", tmp_path / "a.hbr", root=save(tmp_path, **whole(classes=twice)))
