"""Pixels that changed after conversion are noticed before a result is made from them, and read once only."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hbr_fast import cli
from hbr_fast.data import beton_writer, checksums
from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset, open_dataset
from hbr_fast.data.pool import open_pool
from hbr_fast.data.verify import require_unchanged
from hbr_fast.files import sha256_of_file
from hbr_fast.hardness import HardnessScores
from hbr_fast.json_schema import write_sealed_json
from hbr_fast.members.scoring.confidence import own_confidence, rank_pool
from hbr_fast.members.scoring.final_model import stored_final_scores
from hbr_fast.members.store import StoredMember, train_and_store
from hbr_fast.report import page
from hbr_fast.resampling.pipeline import resample_by_hardness
from hbr_fast.training.recipes import named_recipe

CHANGED = r"train\.images\.npy changed after conversion \(another checksum\): convert it again with --force"


@pytest.fixture(autouse=True)
def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is remembered from other tests, and nothing is kept for them."""
    place = tmp_path / "private"
    place.mkdir()
    monkeypatch.setattr(checksums, "_checked", {})
    monkeypatch.setattr(checksums, "temporary_root", lambda: place)
    return place


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("original") / "a.hbr"
    return convert("synthetic", out, classes=2, train_per_class=8, test_per_class=2, shape=(1, 8, 8)).path


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Dataset:
    return open_dataset(shutil.copytree(original, tmp_path / "a.hbr"))


def zero_pixels(dataset: Dataset) -> None:
    """Without a trace in size or modification time."""
    path = dataset.path / "train.images.npy"
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []

    def counted(path: Any) -> str:
        read.append(Path(path).name)
        return sha256_of_file(path)

    monkeypatch.setattr(checksums, "sha256_of_file", counted)
    return read


def test_require_unchanged_reads_once(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_reads(monkeypatch)
    require_unchanged(data)
    files = {*data.meta["files"], "meta.json"}
    assert sorted(read) == sorted(files)
    require_unchanged(data)
    assert len(read) == len(files)
    zero_pixels(data)
    with pytest.raises(ValueError, match=CHANGED):
        require_unchanged(data)
    assert read[len(files) :] == ["train.images.npy"]


def test_require_unchanged_is_remembered_for_other_processes(
    data: Dataset, forgetful: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(monkeypatch)
    monkeypatch.setattr(checksums, "_YOUNG_NS", 0)
    time.sleep(0.01)
    require_unchanged(data)
    (record,) = forgetful.iterdir()
    monkeypatch.setattr(checksums, "_checked", {})  # another process
    require_unchanged(data)
    assert len(read) == len({*data.meta["files"], "meta.json"})
    for damaged in ("", "[]", '{"x": 1}', json.dumps(dict.fromkeys(json.loads(record.read_text()), 3))):
        record.write_text(damaged)
        monkeypatch.setattr(checksums, "_checked", {})
        require_unchanged(data)
    assert len(read) == 5 * len({*data.meta["files"], "meta.json"})


def test_require_unchanged_trusts_no_young_file(data: Dataset, forgetful: Path) -> None:
    os.utime(data.path / "train.images.npy", ns=(0, time.time_ns() + 10**12))  # the clock was set back
    require_unchanged(data)
    record = forgetful / "checked-files.json"
    assert not record.exists() or not any("train.images" in name for name in json.loads(record.read_text()))


def test_require_unchanged_without_a_private_directory(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Path:
        raise PermissionError("belongs to another user")

    monkeypatch.setattr(checksums, "temporary_root", refused)
    require_unchanged(data)
    zero_pixels(data)
    with pytest.raises(ValueError, match=CHANGED):
        require_unchanged(data)


@pytest.mark.parametrize("sealed", [False, True], ids=["an earlier version", "a checksum that was made to fit"])
def test_require_unchanged_checks_statistics(data: Dataset, sealed: bool) -> None:
    require_unchanged(data)
    meta = json.loads((data.path / "meta.json").read_text())
    del meta["sha256"]
    meta["mean"][0] += 1e-6
    if sealed:
        write_sealed_json(data.path / "meta.json", meta)
    else:
        (data.path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"meta\.json: mean .* does not match the pixels"):
        require_unchanged(open_dataset(data.path))


def made_scores(dataset: Dataset) -> HardnessScores:
    margins = np.where(dataset.train.labels == 0, 1.0, 2.0)[None]
    seen = np.ones_like(margins, dtype=np.int64)
    return HardnessScores({"aum": margins}, seen, seen == 0, {"dataset": dataset.fingerprint})


def test_results_are_not_made_from_changed_pixels(data: Dataset, tmp_path: Path) -> None:
    recipe = named_recipe("small-cnn", ["epochs=1", "batch_size=8", "precision=float32"])
    member = train_and_store(data, recipe, seed=0, plan=None, store=tmp_path / "run")
    pool = open_pool(shutil.copytree(data.path, tmp_path / "pool.hbr"), dataset=data)
    zero_pixels(data)
    results = {
        "training": lambda: trained_ensemble(data, recipe, tmp_path),
        "final": lambda: stored_final_scores(StoredMember(member.path, member.info), data),
        "smote": lambda: resample_by_hardness(data, made_scores(data), oversample="smote", seed=0),
        "rank": lambda: rank_pool(pool, data, [member], cache=tmp_path / "cache"),
    }
    for result in results.values():
        with pytest.raises(ValueError, match=CHANGED):
            result()
    assert own_confidence(pool.split, data, [member], label="pool").shape == (16,)


def test_evaluate_changed_pixels(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = named_recipe("small-cnn", ["epochs=1", "batch_size=8", "precision=float32"])
    trained_ensemble(data, recipe, tmp_path)
    other = open_dataset(shutil.copytree(data.path, tmp_path / "other.hbr"))
    zero_pixels(data)
    zero_pixels(other)
    for options in (["--split", "train"], ["--dataset", str(other.path)]):
        with pytest.raises(SystemExit):
            cli.main(["evaluate", str(tmp_path / "other"), *options])
        assert re.search(CHANGED, capsys.readouterr().err)


def test_report_shows_no_changed_pixels(data: Dataset, tmp_path: Path) -> None:
    about = {"fingerprint": data.fingerprint, "path": str(data.path)}
    study: Any = SimpleNamespace(meta={"dataset": about}, has_hardness=True, path=tmp_path)
    assert page._images(study, None)[1] == ""
    zero_pixels(data)
    shown, why = page._images(study, None)
    assert shown is None
    assert re.search(CHANGED, why)
    with pytest.raises(ValueError, match=CHANGED):
        page._images(study, data)


def test_beton_is_not_written_from_changed_pixels(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beton_writer, "require_ffcv", lambda: None)
    zero_pixels(data)
    with pytest.raises(SystemExit):
        cli.main(["convert", str(data.path), str(tmp_path / "b.hbr"), "--formats", "beton"])
    assert re.search(CHANGED, capsys.readouterr().err)
    assert list(tmp_path.glob("*.beton")) == []


def trained_ensemble(dataset: Dataset, recipe: Any, place: Path) -> Any:
    from hbr_fast.members.ensemble import train_ensemble

    return train_ensemble(dataset, recipe, members=1, out=place / "other")


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "pool.json"])
def test_open_pool_writes_damaged_arrays_again(
    data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    np.savez(tmp_path / "p.npz", images=data.train.images, labels=data.train.labels)
    made = open_pool(tmp_path / "p.npz", dataset=data, cache=tmp_path / "cache")
    content = (made.path / name).read_bytes()
    changed = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    (made.path / name).write_bytes(changed)
    with pytest.raises(ValueError, match=rf"{made.path.name}.*(changed|classes in|not valid JSON)"):
        open_pool(made.path, dataset=data)
    again = open_pool(tmp_path / "p.npz", dataset=data, cache=tmp_path / "cache")
    assert (again.path / name).read_bytes() == content
    assert str(made.path / name) in capfd.readouterr().err
