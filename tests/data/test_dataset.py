"""Opening, verifying and describing a dataset: every change after conversion is detected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import fingerprint_of, open_dataset
from hbr_fast.data.description import describe
from hbr_fast.data.verify import verify_dataset
from hbr_fast.files import sha256_of_file


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("original") / "toy.hbr"
    convert("synthetic", out, classes=3, train_per_class=6, test_per_class=2, shape=(3, 8, 8))
    return out


@pytest.fixture
def toy(original: Path, tmp_path: Path) -> Path:
    """A copy for tests to damage."""
    return Path(shutil.copytree(original, tmp_path / "toy.hbr"))


def change_meta(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change `meta.json` as an earlier version would have written it: without a checksum."""
    meta = json.loads((path / "meta.json").read_text())
    meta.pop("sha256", None)
    change(meta)
    (path / "meta.json").write_text(json.dumps(meta))


def replace_array(path: Path, name: str, array: np.ndarray) -> None:
    """Replace a file and update checksums and fingerprint, as a forger would."""
    np.save(path / name, array)

    def update(meta: dict[str, Any]) -> None:
        file = path / name
        meta["files"][name] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
        meta["fingerprint"] = fingerprint_of(meta["files"], meta["classes"])

    change_meta(path, update)


def test_open_dataset_reads_splits_and_metadata(original: Path) -> None:
    dataset = open_dataset(original)
    train = dataset.train
    assert (train.name, len(train), train.num_classes) == ("train", 18, 3)
    assert isinstance(train.images, np.memmap)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64
    np.testing.assert_array_equal(train.class_counts(), [6, 6, 6])
    np.testing.assert_array_equal(dataset.test.class_counts(), [2, 2, 2])
    assert train.classes == dataset.classes == ("class_0", "class_1", "class_2")
    assert len(dataset.mean) == len(dataset.std) == 3
    assert len(dataset.fingerprint) == 64


def test_open_dataset_is_read_only(original: Path) -> None:
    dataset = open_dataset(original)
    for array in (dataset.train.images, dataset.train.labels, dataset.train.truth):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(FrozenInstanceError):
        dataset.train.name = "other"  # type: ignore[misc]


def test_open_dataset_counts_zero_for_class_without_test_samples(toy: Path) -> None:
    replace_array(toy, "test.labels.npy", np.zeros(6, dtype=np.int64))
    np.testing.assert_array_equal(open_dataset(toy).test.class_counts(), [6, 0, 0])
    verify_dataset(toy)


def test_verify_dataset_reports_what_it_read(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = verify_dataset(original)
    assert (report.files, report.samples) == (6, 24)
    assert report.bytes == sum(path.stat().st_size for path in original.glob("*.npy"))
    assert report.fingerprint == open_dataset(original).fingerprint
    assert capsys.readouterr().out == ""


def test_open_dataset_missing_files(tmp_path: Path, toy: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no dataset at .*absent"):
        open_dataset(tmp_path / "absent")
    (toy / "test.labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.labels\.npy is missing: convert it again with --force"):
        open_dataset(toy)
    (toy / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"meta\.json is missing"):
        open_dataset(toy)


def test_open_dataset_rejects_truncated_and_grown_files(toy: Path) -> None:
    path = toy / "train.images.npy"
    content = path.read_bytes()
    for changed in (content[:-1], content + b"x", b""):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"train\.images\.npy has {len(changed)} bytes instead of {len(content)}"):
            open_dataset(toy)


def test_open_dataset_rejects_other_schema(toy: Path) -> None:
    change_meta(toy, lambda meta: meta.update(schema=4))
    with pytest.raises(ValueError, match=r"meta\.json has schema 4 but this version of hbr-fast reads 3 and older: "):
        open_dataset(toy)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda meta: meta.pop("schema"), "it has no schema"),
        (lambda meta: meta.pop("classes"), "field classes is missing or not a list"),
        (lambda meta: meta.update(mean=["a"]), r"field mean\[0\] is missing or not a float"),
        (lambda meta: meta.update(std=meta["std"][:2]), r"shape \(3, 8, 8\) of split 'train' does not fit"),
        (lambda meta: meta["splits"].pop("test"), r"field splits\.test is missing"),
        (lambda meta: meta["splits"]["train"].pop("samples"), r"field splits\.train\.samples is missing"),
        (lambda meta: meta["splits"]["train"].update(shape=[3, 8, "8"]), r"splits\.train\.shape\[2\]"),
        (lambda meta: meta["splits"]["train"].update(shape=[3, 64]), r"does not fit"),
        (
            lambda meta: meta["splits"]["train"]["files"].pop("labels"),
            r"splits\.train\.files\.labels is missing",
        ),
        (
            lambda meta: meta["splits"]["train"]["files"].update(labels="x.npy"),
            r"'x\.npy' that is not under files",
        ),
        (lambda meta: meta["files"].update({"../x": {"sha256": "", "bytes": 0}}), "is not a plain file name"),
        (lambda meta: meta["files"]["train.images.npy"].pop("sha256"), "sha256 is missing"),
        (
            lambda meta: meta["splits"]["train"].update(samples=17),
            r"train\.images\.npy holds uint8 \[18, 3, 8, 8\]",
        ),
    ],
)
def test_open_dataset_names_damaged_metadata(
    toy: Path, change: Callable[[dict[str, Any]], Any], complaint: str
) -> None:
    change_meta(toy, change)
    with pytest.raises(ValueError, match=complaint) as raised:
        open_dataset(toy)
    assert "\n" not in str(raised.value)
    assert "toy.hbr" in str(raised.value)


def test_open_dataset_rejects_metadata_that_is_not_json(toy: Path) -> None:
    for content in (b"{", b"\xff\xfe", b""):
        (toy / "meta.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"meta\.json is not valid JSON"):
            open_dataset(toy)
    (toy / "meta.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"meta\.json is not a dataset's description"):
        open_dataset(toy)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train.labels.npy", np.zeros(18, dtype=np.int32)),
        ("train.labels.npy", np.zeros((18, 1), dtype=np.int64)),
        ("train.images.npy", np.zeros((18, 3, 8, 8), dtype=np.int8)),
        ("train.images.npy", np.zeros((18, 3, 8, 9), dtype=np.uint8)),
        ("train.images.npy", np.asfortranarray(np.zeros((18, 3, 8, 8), dtype=np.uint8))),
        ("test.hardness.npy", np.zeros(6, dtype=np.float32)),
    ],
)
def test_open_dataset_names_wrong_dtype_or_shape(toy: Path, name: str, array: np.ndarray) -> None:
    replace_array(toy, name, array)
    with pytest.raises(ValueError, match=rf"{name} holds {array.dtype} .* instead of"):
        open_dataset(toy)


def test_open_dataset_names_damaged_array_header(toy: Path) -> None:
    for name in ("train.images.npy", "test.labels.npy"):
        content = bytearray((toy / name).read_bytes())
        content[0] ^= 255
        (toy / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.images\.npy is not a readable \.npy file"):
        open_dataset(toy)


@pytest.mark.parametrize("name", ["train.images.npy", "train.labels.npy", "test.images.npy", "test.hardness.npy"])
def test_verify_dataset_finds_flipped_bit(toy: Path, name: str) -> None:
    content = bytearray((toy / name).read_bytes())
    content[-1] ^= 1
    (toy / name).write_bytes(content)
    refusal = rf"{name} was changed after conversion .*convert it again with --force"
    if "images" in name:
        open_dataset(toy)  # cheap: does not read that far
    else:
        with pytest.raises(ValueError, match=refusal):
            open_dataset(toy)
    with pytest.raises(ValueError, match=refusal):
        verify_dataset(toy)


@pytest.mark.parametrize("field", ["name", "classes", "mean", "std"])
def test_open_dataset_finds_edited_metadata(toy: Path, field: str) -> None:
    meta = json.loads((toy / "meta.json").read_text())
    meta[field] = meta[field][::-1]
    (toy / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"meta\.json was changed after it was written .*convert it again"):
        open_dataset(toy)


def test_verify_dataset_finds_swapped_class_names(toy: Path) -> None:
    change_meta(toy, lambda meta: meta["classes"].reverse())
    with pytest.raises(ValueError, match=r"meta\.json was changed after conversion"):
        verify_dataset(toy)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_verify_dataset_finds_changed_statistics(toy: Path, field: str) -> None:
    change_meta(toy, lambda meta: meta[field].__setitem__(1, meta[field][1] + 1e-9))
    with pytest.raises(ValueError, match=rf"meta\.json: {field} .* does not match the pixels"):
        verify_dataset(toy)


def test_verify_dataset_finds_forged_contents(toy: Path) -> None:
    labels = np.load(toy / "test.labels.npy")
    labels[4] = 3
    replace_array(toy, "test.labels.npy", labels)
    with pytest.raises(ValueError, match=r"test\.labels\.npy: the label at position 4 is 3, outside 0\.\.2"):
        verify_dataset(toy)
    labels[4] = 2
    replace_array(toy, "test.labels.npy", labels)
    replace_array(toy, "train.labels.npy", np.arange(18) % 2)
    with pytest.raises(ValueError, match=r"train\.labels\.npy: class 'class_2' has no sample"):
        verify_dataset(toy)
    replace_array(toy, "train.labels.npy", np.arange(18) % 3)
    verify_dataset(toy)
    replace_array(toy, "train.hardness.npy", np.full(18, np.nan))
    with pytest.raises(ValueError, match=r"train\.hardness\.npy has values outside 0\.\.1"):
        verify_dataset(toy)


def test_dataset_fingerprint_changes_only_with_content(original: Path, tmp_path: Path) -> None:
    dataset = open_dataset(original)
    copy = Path(shutil.copytree(original, tmp_path / "renamed.hbr"))
    change_meta(copy, lambda meta: meta.update(name="renamed"))
    assert open_dataset(copy).fingerprint == dataset.fingerprint
    change_meta(copy, lambda meta: meta["classes"].reverse())
    assert open_dataset(copy).fingerprint != dataset.fingerprint
    files = {name: dict(entry) for name, entry in dataset.meta["files"].items()}
    files["test.images.npy"]["sha256"] = "0" * 64
    assert fingerprint_of(files, dataset.classes) != dataset.fingerprint


def test_dataset_describe(original: Path) -> None:
    dataset = open_dataset(original)
    facts = describe(dataset)
    assert facts.name == "synthetic"
    assert facts.source["kind"] == "synthetic"
    assert facts.splits["train"].samples == 18
    assert facts.splits["test"].shape == (3, 8, 8)
    assert facts.splits["test"].class_counts == (2, 2, 2)
    assert facts.splits["train"].has_truth
    assert facts.fingerprint == dataset.fingerprint
    assert facts.bytes == sum(path.stat().st_size for path in original.iterdir())
