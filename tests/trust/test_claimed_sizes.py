"""Files whose headers claim more than they hold: refused by name, before that memory or time is spent."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from hbr_fast import csv_files
from hbr_fast.data.convert import convert
from hbr_fast.data.sources import trees
from hbr_fast.data.sources.tables import read_table

from .attempts import attempt

Writer = Callable[[Path], None]


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + content


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (4398046511104, 3, 8, 8), }"
DEEP = "{'descr': " + "[" * 90 + "}"
HEADERS = {
    "4 TiB": HUGE,
    "negative": HUGE.replace("4398046511104", "-1"),
    "none of 2^70": HUGE.replace("4398046511104", f"0, {2**70}"),
    "none of 2^62 by 8 by 8": HUGE.replace("4398046511104, 3", f"0, {2**62}"),
    "100 axes": HUGE.replace("4398046511104", "1, " * 96 + "100"),
    "bool as a side": HUGE.replace("4398046511104, 3, 8, 8", "True, 100"),
    "2^62 items of no bytes": HUGE.replace("|u1", "|S0").replace("4398046511104, 3, 8, 8", f"{2**62},"),
    "items that are arrays": HUGE.replace("|u1", "4u1").replace("4398046511104, 3, 8, 8", "25,"),
    "open string": "{'descr': '",
    "deep": DEEP,
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "other keys": "{'a': 1}",
    "no dict": "(" + ")",
    "type that is none": HUGE.replace("'|u1'", "12"),
}


def sparse_tar() -> bytes:
    """A tar of two blocks whose only member, data_batch_1.bin, is a hole of 3 GB."""
    header = bytearray(512)
    header[:16] = b"data_batch_1.bin"
    header[100:108], header[124:136] = b"0000644\0", b"00000000000\0"
    header[156:157], header[257:265] = b"S", b"ustar  \0"
    size = 3 << 30
    header[386:410] = b"%011o\0" % size + b"00000000000\0"
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def bomb_tar(kind: bytes, name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def zeros(start: bytes, size: int) -> bytes:
    packed = io.BytesIO()
    with gzip.open(packed, "wb", compresslevel=9) as file:
        file.write(start)
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return packed.getvalue()


CIFAR = {
    "sparse member": lambda: gzip.compress(sparse_tar()),
    "member of 3 GB": lambda: gzip.compress(bomb_tar(tarfile.REGTYPE, "data_batch_1.bin", 3 << 30)),
    "long name of 600 MB": lambda: zeros(bomb_tar(tarfile.GNUTYPE_LONGNAME, "x", 600 << 20), 600 << 20),
    "pax header of 600 MB": lambda: zeros(bomb_tar(tarfile.XHDTYPE, "x", 600 << 20), 600 << 20),
    "headers in a row": lambda: gzip.compress(
        (bomb_tar(tarfile.GNUTYPE_LONGNAME, "x", 1) + bytes(512)) * 3000,
    ),
}


@pytest.mark.parametrize("bomb", CIFAR)
def test_cifar_archive_bomb(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(CIFAR[bomb]())
    outcome = attempt(
        'cifar10(root=".")', imports="from hbr_fast.data.sources import cifar10", memory=768 << 20, cwd=tmp_path
    )
    assert (outcome.kind, outcome.lines) == ("ValueError", 1), outcome
    assert outcome.message.startswith("cifar-10-binary.tar.gz is a damaged")


@pytest.mark.parametrize(
    "content",
    [
        lambda: zeros(struct.pack(">BBBBIII", 0, 0, 8, 3, 60_000, 28, 28), 1500 << 20),
        lambda: zeros(struct.pack(">BBBBIII", 0, 0, 8, 3, 60_000, 230, 230), 1500 << 20),
        lambda: struct.pack(">BBBBIII", 0, 0, 8, 3, 60_000, 28, 28),
        lambda: gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)),
    ],
    ids=["data after the end", "data of 3 GB", "no data", "shape of 2^96"],
)
def test_read_idx_bomb(tmp_path: Path, content: Callable[[], bytes]) -> None:
    (tmp_path / "images.gz").write_bytes(content())
    outcome = attempt(
        'read_idx("images.gz", dimensions=3)',
        imports="from hbr_fast.data.sources.idx import read_idx",
        memory=768 << 20,
        cwd=tmp_path,
    )
    assert (outcome.kind, outcome.lines) == ("ValueError", 1), outcome
    assert outcome.message.startswith("images.gz")


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("mapped", [False, True])
def test_read_npy_header(tmp_path: Path, header: str, mapped: bool) -> None:
    (tmp_path / "a.npy").write_bytes(npy(HEADERS[header], bytes(100)))
    outcome = attempt(
        f'read_npy("a.npy", mapped={mapped})', imports="from hbr_fast.data.npy import read_npy", cwd=tmp_path
    )
    assert (outcome.kind, outcome.lines) == ("ValueError", 1), outcome
    assert outcome.message.startswith("a.npy ")
    assert outcome.message.endswith(": write it again")


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("name", ["images", "labels", "classes"])
def test_npz_header(tmp_path: Path, header: str, name: str) -> None:
    arrays: dict[str, np.ndarray] = {
        "images": np.zeros((4, 8, 8), np.uint8),
        "labels": np.arange(4) % 2,
        "classes": np.array(["a", "b"]),
    }
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w") as file:
                if key == name:
                    file.write(npy(HEADERS[header], bytes(100)))
                else:
                    np.save(file, array, allow_pickle=False)
    outcome = attempt(
        'open_source("npz", root="a.npz", test_fraction=0.5)',
        imports="from hbr_fast.data.sources.opening import open_source",
        cwd=tmp_path,
    )
    assert (outcome.kind, outcome.lines) == ("ValueError", 1), outcome
    assert outcome.message.startswith("a.npz")


def test_beton_label_with_one_bit_changed(tmp_path: Path) -> None:
    """Class names would be numbered up to the label: 2^40 of them."""
    imports = """
import dataclasses, numpy as np
from pathlib import Path
from hbr_fast.data.beton import Beton, numbered_classes
none = dict(fields=(), image="", label="", kind=0, place=None, has_ids=False, encoded=False, planar=False, shape=None)
def beton(labels): return Beton(path=Path("a.beton"), labels=np.array(labels), read=None, **none)
"""
    outcome = attempt("numbered_classes(beton([0, 1 << 40, 2]), beton([1]))", imports=imports, cwd=tmp_path)
    assert outcome.kind == "ValueError", outcome
    assert "a.beton: label 1099511627776 of sample 1 is far beyond the number of samples, 4" in outcome.message
    outcome = attempt("assert len(numbered_classes(beton([0, 999]))) == 1000", imports=imports, cwd=tmp_path)
    assert outcome.kind == "accepted", outcome


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_bomb(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name in ("x/1.png", "x/2.png", "y/1.png", "y/2.png"):
            with archive.open(name, "w") as file:
                for _ in range(300 if name == "y/2.png" else 1):
                    file.write(bytes(1 << 20))
    outcome = attempt(
        'open_tree(Path("a.zip"), PassedOver()).read("y/2.png")',
        imports="from pathlib import Path\n"
        "from hbr_fast.data.sources.archives import open_tree\n"
        "from hbr_fast.data.sources.trees import PassedOver",
        memory=640 << 20,
        cwd=tmp_path,
    )
    assert outcome.kind == "OSError", outcome
    assert "would unpack to 314,572,800" in outcome.message


def test_compressed_tar_that_fills_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(zeros(bomb_tar(tarfile.REGTYPE, "x/1.png", 64 << 20), 64 << 20))
    outcome = attempt(
        """
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        open_tree(Path("a.tar.gz"), PassedOver())
        """,
        imports="from pathlib import Path\n"
        "from hbr_fast.data.sources.archives import open_tree\n"
        "from hbr_fast.data.sources.trees import PassedOver",
        cwd=tmp_path,
    )
    assert outcome.kind == "OSError", outcome
    assert outcome.message.startswith("no space left in ")
    assert "to unpack a.tar.gz" in outcome.message


def test_parquet_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "_MOST_ROWS", 1000)
    path = tmp_path / "a.parquet"
    pl.select(a=pl.repeat(1, 1000)).write_parquet(path)
    assert csv_files.read_table(path).height == 1000
    pl.select(a=pl.repeat(1, 200_000)).write_parquet(path)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read \(200,000 rows in so few bytes"):
        csv_files.read_table(path)
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable Parquet file \(200,000 rows"):
        read_table(path.read_bytes(), str(path))


@pytest.mark.parametrize("kind", ["folder", "tar", "gztar", "zip"])
def test_picture_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    root = tmp_path / "set"
    for name in ("cat", "dog"):
        for split in ("train", "test"):
            (root / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(root / split / name / "a.png")
    (root / "train" / "cat" / "a.png").write_bytes(bytes(2000))
    place = root if kind == "folder" else Path(shutil.make_archive(str(tmp_path / "set"), kind, root))
    monkeypatch.setattr(trees, "MOST_FILE_BYTES", 1999)
    with pytest.raises(ValueError, match=r"train/cat/a\.png cannot be read \(.*it has 2,000 bytes, more than"):
        convert("folder", tmp_path / "out.hbr", root=place)
