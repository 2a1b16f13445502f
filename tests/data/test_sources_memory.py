"""Conversion takes little memory: less than 200 bytes a file, whatever the layout."""

from __future__ import annotations

import gc
import importlib.util
import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbr_fast.data.convert import write_dataset
from hbr_fast.data.sources import encoded
from hbr_fast.data.sources.members import Members
from hbr_fast.data.sources.opening import open_source

FEW, MANY = 400, 4400  # a file's share is the growth between the two, without what any run takes


def names(count: int) -> list[str]:
    """In an order of their own, so that sorting is part of it."""
    return [f"picture_{row * 7919 % count:06d}.jpg" for row in range(count)]


def table(count: int) -> str:
    return "file,label\n" + "".join(f"{name},{'ab'[row % 2]}\n" for row, name in enumerate(names(count)))


def write_flat(root: Path, count: int) -> dict[str, Any]:
    (root / "flat").mkdir()
    for name in names(count):
        (root / "flat" / name).touch()
    (root / "labels.csv").write_text(table(count))
    return {"root": root / "flat", "labels": str(root / "labels.csv")}


def write_zip(root: Path, count: int) -> dict[str, Any]:
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        for row, name in enumerate(names(count)):
            archive.writestr(f"{'ab'[row % 2]}/{name}", b"")
    return {"root": root / "a.zip"}


def write_tar(root: Path, count: int) -> dict[str, Any]:
    """Flat, with the table inside."""
    with tarfile.open(root / "a.tar", "w") as archive:
        for name in names(count):
            archive.addfile(tarfile.TarInfo(name))
        listed = tarfile.TarInfo("labels.csv")
        listed.size = len(table(count))
        archive.addfile(listed, io.BytesIO(table(count).encode()))
    return {"root": root / "a.tar", "labels": "labels.csv"}


@pytest.mark.parametrize("write", [write_flat, write_zip, write_tar])
def test_sources_keep_little_of_each_file(tmp_path: Path, write: Callable[[Path, int], dict[str, Any]]) -> None:
    peaks: list[int] = []
    for count in (FEW, FEW, MANY):  # the first time only warms caches
        root = tmp_path / str(len(peaks))
        root.mkdir()
        options = write(root, count)
        tracemalloc.start()
        source = open_source("folder", **options, test_fraction=0.25, size=(4, 4), mode="rgb")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(source.splits["test"]) == count / 4
    assert (peaks[2] - peaks[1]) / (MANY - FEW) < 200


def test_conversion_keeps_little_of_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads get few files at a time, so that their results take little memory."""
    monkeypatch.setattr(encoded, "_LEAST_ROWS", 16)
    monkeypatch.setattr(encoded, "_MOST_ROWS", 16)
    peaks: list[int] = []
    for count in (100, 500, 2500):  # the first time only warms caches
        root = tmp_path / str(count)
        for number in range(count):
            folder = root / ("test", "train")[number % 10 > 0] / ("ape", "zebra")[number // 10 % 2]
            folder.mkdir(parents=True, exist_ok=True)
            content = b"P5 2 2 255\n" + number.to_bytes(4, "little")
            (folder / f"a-photograph-with-a-long-name-{number:06d}.pgm").write_bytes(content)
        gc.collect()
        tracemalloc.start()
        write_dataset(open_source("folder", root=root, mode="gray", size=(2, 2)), tmp_path / f"{count}.hbr")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 2000 < 200


def test_memory_script_converts_as_many_files_as_asked() -> None:
    """`scripts/convert_memory.py`, whose number the docs give."""
    path = Path(__file__).parents[2] / "scripts" / "convert_memory.py"
    spec = importlib.util.spec_from_file_location("convert_memory", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.peak(20) > 10 * 2**20


def test_members_lists_and_finds_like_a_folder() -> None:
    rng = np.random.default_rng(0)
    letters = list("ab.c")
    paths = ["/".join("".join(rng.choice(letters, 2)) for _ in range(1 + row % 3)) for row in range(300)]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.split("/"))]
    files = [path for path in paths if not any(other.startswith(f"{path}/") for other in paths)]
    members = Members()
    for path in files:
        members.add(path)
    members.sort()
    folders = {path.rpartition("/")[0] for path in files} | {path.split("/")[0] for path in files if "/" in path} | {""}
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        below = {path.removeprefix(prefix) for path in files if path.startswith(prefix)}
        wanted = sorted({(part.split("/")[0], "/" in part) for part in below})
        assert [(entry.name, entry.is_folder) for entry in members.entries(folder, None)] == wanted
    last = {path: row for row, path in enumerate(files)}
    assert {path: members.find(path) for path in files} == last
    assert [members.find(path) for path in ("", "zz", "zz/a", "ab/zz", *folders - {""})] == [None] * (3 + len(folders))
