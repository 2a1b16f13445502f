"""Pictures that Pillow would give to another program, EPS to Ghostscript, are refused wherever pictures are read."""

from __future__ import annotations

import ast
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

import hbr_fast
from hbr_fast.data.convert import convert
from hbr_fast.data.encoded_images import BadPicture, EncodedImages
from hbr_fast.data.shards import INDEX, ShardFiles

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(x) (w) file\n%%EOF\n"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Attempts to start Ghostscript."""
    found: list[str] = []

    def record(*_: object, **__: object) -> object:
        found.append("gs")
        return Image.new("RGB", (4, 4)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", record)
    return found


def test_eps_that_is_called_png_is_refused(tmp_path: Path, started: list[str]) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "set" / split / label / "a.png")
    (tmp_path / "set" / "train" / "cat" / "b.png").write_bytes(EPS)
    for store in ("raw", "encoded"):
        with pytest.raises(ValueError, match=r"b\.png.*not a readable image"):
            convert("folder", tmp_path / f"{store}.hbr", root=tmp_path / "set", store=store)
    assert started == []
    with Image.open(tmp_path / "set" / "train" / "cat" / "b.png") as image:  # any format, as Pillow does by itself
        image.load()
    assert started == ["gs"], "the attack works"


def test_eps_in_a_shard_is_not_decoded(tmp_path: Path, started: list[str]) -> None:
    (tmp_path / "train.00000.tar").write_bytes(EPS)
    index = np.zeros(1, INDEX)
    index["length"], index["height"], index["width"], index["orientation"] = len(EPS), 4, 4, 1
    index["crc"] = zlib.crc32(EPS)
    store = EncodedImages(ShardFiles([tmp_path / "train.00000.tar"]), index, 3, size=(4, 4))
    with pytest.raises(BadPicture, match="cannot be decoded"):
        store.gather([0])
    assert started == []


def test_every_picture_is_opened_by_listed_formats() -> None:
    package = Path(hbr_fast.__file__).parent
    opened = 0
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                opened += 1
                assert "formats" in [word.arg for word in node.keywords], f"{path}:{node.lineno}"
    assert opened > 3
