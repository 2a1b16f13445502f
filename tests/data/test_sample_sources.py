"""Sample sources: stored byte for byte, read one at a time, no effect on the dataset's fingerprint."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbr_fast.data.convert import convert, write_dataset
from hbr_fast.data.dataset import Dataset, fingerprint_of, open_dataset
from hbr_fast.data.description import describe
from hbr_fast.data.meta_json import META
from hbr_fast.data.pool import open_pool
from hbr_fast.data.relabel import relabel
from hbr_fast.data.sample_sources import (
    NamedSources,
    NumberedSources,
    RowsOf,
    SampleSources,
    packed_names,
)
from hbr_fast.data.sources import Source, array_split
from hbr_fast.data.verify import verify_dataset
from hbr_fast.files import sha256_of_file
from hbr_fast.json_schema import write_sealed_json
from hbr_fast.progress import printable

HOSTILE = [
    "new\nline.png",
    'tab\t,"quote".png',
    "\udcff\udcfe no UTF-8.png",
    "Katze/ä 猫 🐈.png",
    "\u202egnp.exe",
    "a" * 300,
]
TINY: dict[str, Any] = {"classes": 3, "train_per_class": 6, "test_per_class": 2, "shape": (3, 8, 8)}


def every(sources: SampleSources | None) -> list[str]:
    assert sources is not None
    return [sources[row] for row in range(len(sources))]


def write(out: Path, origins: SampleSources | None, *, count: int = 6) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    train = array_split(images, np.arange(count) % 2, origins=origins)
    test = array_split(images[:2] ^ 1, np.array([0, 1]))
    return write_dataset(Source("mine", ("a", "b"), {"train": train, "test": test}), out)


@pytest.fixture
def named(tmp_path: Path) -> Path:
    write(tmp_path / "a.hbr", HOSTILE)
    return tmp_path / "a.hbr"


def test_sample_sources_keep_names_byte_for_byte(named: Path) -> None:
    dataset = open_dataset(named)
    sources = dataset.train.sources
    assert isinstance(sources, NamedSources)
    assert isinstance(sources.names, np.memmap), "read when asked for"
    assert isinstance(sources.offsets, np.memmap)
    assert every(sources) == HOSTILE
    assert every(dataset.test.sources) == ["test[0]", "test[1]"]
    # Readable without hbr_fast, as plain arrays.
    offsets = np.load(named / "train.source_offsets.npy", allow_pickle=False)
    names = np.load(named / "train.sources.npy", allow_pickle=False).tobytes()
    assert names[offsets[2] : offsets[3]] == b"\xff\xfe no UTF-8.png"
    assert describe(dataset).splits["train"].sources == (HOSTILE[0], HOSTILE[-1])
    for row in (-1, 6):
        with pytest.raises(IndexError, match=f"sample {row} of 6"):
            sources[row]


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5))
def test_sample_sources_pack_arbitrary_bytes(names: list[bytes]) -> None:
    decoded = [name.decode("utf-8", "surrogateescape") for name in names]
    packed = packed_names(decoded)
    assert every(packed) == decoded
    assert [printable(name).isprintable() for name in decoded] == [True] * len(decoded)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["a", "b", "\ud800", "d", "e", "f"], r"the source '\\ud800' of sample 2 cannot be stored: rename it"),
        (["a", "", "c", "d", "e", "f"], "the source of sample 1 has no name: give it one"),
    ],
)
def test_sample_sources_reject_unstorable_names(tmp_path: Path, names: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        write(tmp_path / "a.hbr", names)
    assert list(tmp_path.iterdir()) == []


def test_sample_sources_do_not_change_fingerprint(tmp_path: Path) -> None:
    with_names, plain = write(tmp_path / "a.hbr", HOSTILE), write(tmp_path / "b.hbr", None)
    assert with_names.fingerprint == plain.fingerprint
    files = {"train.images.npy": {"sha256": "0"}, "train.labels.npy": {"sha256": "1"}}
    # The hash of conversions before schema 2, by which members and plans identify datasets.
    assert fingerprint_of(files, ["a"]) == "28e0746253ffa6a93014afefedbab64131a08bf159c2a87dffff98d3b33c845b"
    more = {**files, "train.sources.npy": {"sha256": "2"}, "train.source_offsets.npy": {"sha256": "3"}}
    assert fingerprint_of(more, ["a"]) == fingerprint_of(files, ["a"])
    assert fingerprint_of({**files, "train.hardness.npy": {"sha256": "2"}}, ["a"]) != fingerprint_of(files, ["a"])


def test_open_dataset_schema_1_has_no_sample_sources(named: Path) -> None:
    after = open_dataset(named)
    meta = json.loads((named / META).read_text())
    meta["schema"] = 1
    for part in ("sources", "source_offsets"):
        file = meta["splits"]["train"]["files"].pop(part)
        del meta["files"][file]
        (named / file).unlink()
    del meta["splits"]["test"]["sources"]
    write_sealed_json(named / META, meta)
    before = open_dataset(named)
    assert before.train.sources is before.test.sources is describe(before).splits["train"].sources is None
    assert verify_dataset(named).fingerprint == before.fingerprint == after.fingerprint
    again = relabel(before, 1 - before.train.labels, named.parent / "b.hbr")
    assert again.train.sources is None


def test_verify_dataset_finds_damaged_sample_sources(named: Path, tmp_path: Path) -> None:
    verify_dataset(named)
    for name in ("train.sources.npy", "train.source_offsets.npy"):
        copy = Path(shutil.copytree(named, tmp_path / "copy.hbr"))
        content = bytearray((copy / name).read_bytes())
        content[-9] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} (was changed after conversion|.* does not rise)"):
            verify_dataset(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("offsets", "complaint"),
    [
        (np.array([0, 3, 2, 9, 12, 14, 15]), r"train\.source_offsets\.npy does not rise from 0: convert it again"),
        (np.array([1, 2, 3, 9, 12, 14, 15]), "does not rise from 0"),
        (np.array([0, 1, 2, 9, 12, 14, 16]), r"train\.sources\.npy holds uint8 \[15\] instead of uint8 \[16\]"),
        (np.array([0, 1, 2, 9, 12, 15]), r"train\.source_offsets\.npy holds int64 \[6\] instead of int64 \[7\]"),
    ],
)
def test_sample_sources_reject_forged_offsets(tmp_path: Path, offsets: np.ndarray, complaint: str) -> None:
    path = tmp_path / "a.hbr"
    write(path, ["a", "b", "cc", "ddd", "eeee", "ffff"])
    np.save(path / "train.source_offsets.npy", offsets)
    meta = json.loads((path / META).read_text())
    file = path / "train.source_offsets.npy"
    meta["files"][file.name] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
    write_sealed_json(path / META, meta)
    with pytest.raises(ValueError, match=complaint):
        verify_dataset(path)


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ("x", r"field splits\.test\.sources is not a list of \[name, rows\]"),
        ([["test"]], r"is not a list of \[name, rows\]"),
        ([["test", 0], ["b", 2]], r"is not a list of \[name, rows\]"),
        ([["test", 3]], r"field splits\.test\.sources is of 3 samples, not 2"),
    ],
)
def test_sample_sources_reject_forged_runs(named: Path, runs: Any, complaint: str) -> None:
    meta = json.loads((named / META).read_text())
    meta["splits"]["test"]["sources"] = runs
    write_sealed_json(named / META, meta)
    with pytest.raises(ValueError, match=complaint):
        open_dataset(named)


def test_sample_sources_number_rows_of_several_files(tmp_path: Path) -> None:
    dataset = write(tmp_path / "a.hbr", NumberedSources([("x.bin", 4), ("y.bin", 2)]))
    assert every(dataset.train.sources) == ["x.bin[0]", "x.bin[1]", "x.bin[2]", "x.bin[3]", "y.bin[0]", "y.bin[1]"]
    assert not (tmp_path / "a.hbr" / "train.sources.npy").exists(), "two runs say it"
    assert every(RowsOf("images", np.array([5, 2]))) == ["images[5]", "images[2]"]


def test_sample_sources_survive_relabel_and_pool(named: Path, tmp_path: Path) -> None:
    dataset = open_dataset(named)
    other = relabel(dataset, 1 - dataset.train.labels, tmp_path / "b.hbr")
    assert every(other.train.sources) == HOSTILE
    verify_dataset(tmp_path / "b.hbr")
    assert every(open_pool(tmp_path / "b.hbr", dataset=dataset).split.sources) == HOSTILE
    np.savez(tmp_path / "more.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.array([0, 1, 1]))
    pool = open_pool(tmp_path / "more.npz", dataset=dataset, cache=tmp_path / "cache")
    assert every(pool.split.sources) == ["more.npz[0]", "more.npz[1]", "more.npz[2]"]


def test_sample_sources_of_npz_are_array_rows(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20) % 2)
    dataset = convert("npz", tmp_path / "a.hbr", root=tmp_path / "a.npz", test_fraction=0.3)
    for split in (dataset.train, dataset.test):
        for row, source in enumerate(every(split.sources)):
            number = int(source.removeprefix("images[").removesuffix("]"))
            np.testing.assert_array_equal(split.images[row, 0], images[number])
    assert len(dataset.test) == 6


def test_sample_sources_of_synthetic_are_numbers(tmp_path: Path) -> None:
    dataset = convert("synthetic", tmp_path / "a.hbr", **TINY)
    assert dataset.train.sources is not None
    assert (dataset.train.sources[17], len(dataset.train.sources)) == ("train[17]", 18)
