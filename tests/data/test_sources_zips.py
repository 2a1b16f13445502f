"""Zip archives: the same content as `zipfile` reads, and one kind of error for every damage."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from hbr_fast.data.sources.trees import PassedOver
from hbr_fast.data.sources.zips import ZipTree, open_zip

CONTENTS = {
    "cat/a.png": b"",
    "cat/b.png": bytes(range(256)) * 40,
    "gr\u00fcn/\u65e5.png": b"x" * 5000,
    "top.txt": b"top",
}


def write(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.comment = b"PK\5\6 is only said here"
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
        archive.mkdir("empty")
    return path


def contents(tree: ZipTree, folder: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in tree.entries(folder):
        path = f"{folder}/{entry.name}" if folder else entry.name
        found |= contents(tree, path) if entry.is_folder else {path: tree.read(path)}
    return found


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_contents(tmp_path: Path, method: int) -> None:
    tree = open_zip(write(tmp_path / "a.zip", method), PassedOver())
    assert contents(tree) == CONTENTS
    assert tree.head("cat/b.png", 300) == CONTENTS["cat/b.png"][:300]
    assert tree.head("cat/b.png", 10**6) == CONTENTS["cat/b.png"]
    assert [tree.has_file(name) for name in ("cat/b.png", "cat", "cat/z.png", "dog/b.png")] == [True, *[False] * 3]
    with pytest.raises(FileNotFoundError, match=r"has no cat/z\.png"):
        tree.read("cat/z.png")


def test_zip_of_large_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes, places and counts that need 64 bits are written like that for small ones, too."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = write(tmp_path / "a.zip")
    assert b"PK\6\6" in path.read_bytes()
    assert contents(open_zip(path, PassedOver())) == CONTENTS


def test_zip_after_other_content(tmp_path: Path) -> None:
    """As in an archive that unpacks itself."""
    path = write(tmp_path / "a.zip")
    path.write_bytes(b"#!/bin/sh\n" * 30 + path.read_bytes())
    assert contents(open_zip(path, PassedOver())) == CONTENTS


def test_zip_members_that_lead_out_are_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("../a.png", "/b.png", "cat\\c.png", "cat/./d.png"):
            archive.writestr(name, name)
    passed = PassedOver()
    tree = open_zip(tmp_path / "a.zip", passed)
    assert list(contents(tree)) == ["cat/c.png", "cat/d.png"]
    assert passed.notes() == ["passed over 2 members whose names lead out of the archive: ../a.png, /b.png"]


def test_zip_names_what_it_cannot_read(tmp_path: Path) -> None:
    tree = open_zip(write(tmp_path / "a.zip", zipfile.ZIP_LZMA), PassedOver())
    with pytest.raises(OSError, match="packed by method 14, which is not read: pack it again by deflate"):
        tree.read("cat/b.png")
    path = write(tmp_path / "b.zip", zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"top.txt") - 46 + 8] |= 1  # the flag in the directory
    path.write_bytes(content)
    with pytest.raises(OSError, match="damaged or encrypted there: it is encrypted"):
        open_zip(path, PassedOver()).read("top.txt")


def test_zip_damage_is_named(tmp_path: Path) -> None:
    """Of 300 archives with a few other bytes, or cut off, none gives other content or another error."""
    whole = write(tmp_path / "a.zip").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for attempt in range(300):
        content = bytearray(whole)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] = rng.integers(256)
        if attempt % 5 == 0:
            del content[rng.integers(len(content)) :]
        path = tmp_path / "b.zip"
        path.write_bytes(content)
        try:
            found = contents(open_zip(path, PassedOver()))
        except (ValueError, OSError):
            refused += 1
            continue
        assert all(content in CONTENTS.values() for content in found.values())
    assert refused > 150
