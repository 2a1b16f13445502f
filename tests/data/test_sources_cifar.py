"""Small CIFAR archives and folders in their real formats; and pickles that contain more than data."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hbr_fast.data.sources import Source, SourceSplit, cifar10, cifar100
from hbr_fast.data.sources.opening import open_source
from hbr_fast.data.sources.plain_pickle import load_plain_pickle

CIFAR10_NAMES = [f"thing {index}" for index in range(10)]
CIFAR100_NAMES = [f"fine {index}" for index in range(100)]


def records(seed: int, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, (np.arange(count, dtype=np.uint8) * 7 + seed) % classes


CIFAR10 = {f"data_batch_{index}": records(index, 4 + index, 10) for index in range(1, 6)}
CIFAR10["test_batch"] = records(6, 11, 10)
CIFAR100 = {"train": records(1, 120, 100), "test": records(2, 30, 100)}


def binary10() -> dict[str, bytes]:
    files = {
        f"{name}.bin": np.concatenate([labels[:, None], pixels], axis=1).tobytes()
        for name, (pixels, labels) in CIFAR10.items()
    }
    assert len(files["data_batch_1.bin"]) == 5 * 3073
    return files | {"batches.meta.txt": ("\n".join(CIFAR10_NAMES) + "\n\n").encode()}


def binary100() -> dict[str, bytes]:
    files = {}
    for name, (pixels, labels) in CIFAR100.items():
        coarse = np.full_like(labels, 19)
        files[f"{name}.bin"] = np.concatenate([coarse[:, None], labels[:, None], pixels], axis=1).tobytes()
    assert len(files["train.bin"]) == 120 * 3074
    return files | {"fine_label_names.txt": "\n".join(CIFAR100_NAMES).encode()}


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 2 with numpy 1 wrote it: byte strings and the old module's name."""

    def text(data: bytes) -> bytes:
        if len(data) < 256:
            return b"U" + bytes([len(data)]) + data
        return b"T" + len(data).to_bytes(4, "little") + data

    def one(value: Any) -> bytes:
        if isinstance(value, str):
            return text(value.encode("latin1"))
        if isinstance(value, int):
            return b"J" + value.to_bytes(4, "little", signed=True)
        if isinstance(value, list):
            return b"](" + b"".join(map(one, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(one(key) + one(item) for key, item in value.items()) + b"u"
        assert isinstance(value, np.ndarray)
        shape = b"(" + b"".join(map(one, value.shape)) + b"t"
        dtype = b"cnumpy\ndtype\n(" + text(b"u1") + one(0) + one(1) + b"tR"
        dtype += b"(" + one(3) + text(b"|") + b"NNN" + one(-1) + one(-1) + one(0) + b"tb"
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + one(0) + b"t" + text(b"b") + b"tR"
        return array + b"(" + one(1) + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"

    return b"\x80\x02" + one(value) + b"."


def python3_pickle(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def python10(dump: Callable[[Any], bytes] = python2_pickle) -> dict[str, bytes]:
    files = {
        name: dump({"data": pixels, "labels": [int(label) for label in labels], "batch_label": name})
        for name, (pixels, labels) in CIFAR10.items()
    }
    return files | {"batches.meta": dump({"label_names": CIFAR10_NAMES, "num_vis": 3072})}


def python100(dump: Callable[[Any], bytes] = python2_pickle) -> dict[str, bytes]:
    files = {}
    for name, (pixels, labels) in CIFAR100.items():
        fine = [int(label) for label in labels]
        files[name] = dump({"data": pixels, "fine_labels": fine, "coarse_labels": [0] * len(fine)})
    return files | {"meta": dump({"fine_label_names": CIFAR100_NAMES, "coarse_label_names": ["x"]})}


FORMS: dict[str, tuple[Callable[..., Source], str, str, Callable[[], dict[str, bytes]]]] = {
    "binary10": (cifar10, "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary10),
    "python10": (cifar10, "cifar-10-python.tar.gz", "cifar-10-batches-py", python10),
    "binary100": (cifar100, "cifar-100-binary.tar.gz", "cifar-100-binary", binary100),
    "python100": (cifar100, "cifar-100-python.tar.gz", "cifar-100-python", python100),
}


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def check(split: SourceSplit, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(np.concatenate(list(split.blocks())), images)
    np.testing.assert_array_equal(split.labels_n, np.concatenate([labels for _, labels in parts]))
    assert split.labels_n.dtype == np.int64


@pytest.mark.parametrize("place", ["folder", "folder above", "archive", "archive above"])
@pytest.mark.parametrize("form", FORMS)
def test_cifar_every_format_in_every_location(tmp_path: Path, form: str, place: str) -> None:
    read, archive, folder, files = FORMS[form]
    if "folder" in place:
        write_folder(tmp_path / folder, files())
        source = read(root=tmp_path if "above" in place else tmp_path / folder)
    else:
        write_archive(tmp_path / archive, {f"{folder}/{name}": content for name, content in files().items()})
        source = read(root=tmp_path if "above" in place else tmp_path / archive)
        assert sorted(tmp_path.iterdir()) == [tmp_path / archive], "nothing is extracted"
    parts = CIFAR10 if form.endswith("10") else CIFAR100
    assert source.classes == tuple(CIFAR10_NAMES if parts is CIFAR10 else CIFAR100_NAMES)
    check(source.splits["train"], [part for name, part in parts.items() if not name.startswith("test")])
    check(source.splits["test"], [part for name, part in parts.items() if name.startswith("test")])
    assert str(tmp_path) not in str(source.origin)


def test_cifar_reads_pickles_of_current_numpy(tmp_path: Path) -> None:
    write_folder(tmp_path / "cifar-100-python", python100(python3_pickle))
    check(cifar100(root=tmp_path).splits["train"], [CIFAR100["train"]])


class Attack:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "argument", "forbidden"),
    [
        (os.mkdir, "made", "(posix|nt).mkdir"),
        (eval, "1", "__builtin__.eval"),
        (getattr, "x", "__builtin__.getattr"),
        (np.load, "x", "numpy.load"),
        (np.lib.format.open_memmap, "made", "numpy.lib"),
        (pickle.loads, b"N.", "_?pickle.loads"),
    ],
)
def test_plain_pickle_rejects_other_globals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., Any],
    argument: Any,
    forbidden: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = python10()
    files["data_batch_3"] = pickle.dumps({"data": Attack(function, argument)}, protocol=2)
    write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(ValueError, match=f"data_batch_3 asks for {forbidden}.*, which.*refuse"):
        cifar10(root=tmp_path)
    assert not (tmp_path / "made").exists()


def test_plain_pickle_rejects_dotted_names() -> None:
    """Protocol 4 can request an attribute of an allowed object."""
    attack = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(ValueError, match=r"x asks for numpy.ndarray.tofile"):
        load_plain_pickle(attack, "x")


def test_plain_pickle_accepts_plain_values() -> None:
    text = [1, 300, 70_000, -5, 2**70, 2.5, "text", b"bytes", "x" * 300, None, True, False, (), (1, 2, 3, 4), [[]], {}]
    images = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for protocol in (2, 3, 4):
        for array in (images, np.asfortranarray(images)):
            loaded = load_plain_pickle(pickle.dumps({"a": text, "b": array, "c": text}, protocol=protocol), "x")
            assert loaded["a"] == loaded["c"] == text
            np.testing.assert_array_equal(loaded["b"].uint8(), images)
    assert load_plain_pickle(pickle.dumps({"a": [1, "b", None, 2.5, (3,)]}, protocol=0), "x") == {
        "a": [1, "b", None, 2.5, (3,)]
    }


@pytest.mark.parametrize("cut", [0, 1, 10, 1000, -1])
def test_cifar_names_damaged_pickle(tmp_path: Path, cut: int) -> None:
    files = python10()
    files["test_batch"] = files["test_batch"][:cut]
    write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(ValueError, match="test_batch is not a readable pickle"):
        cifar10(root=tmp_path)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ([1], "holds a list, not a dict"),
        ({"labels": [1]}, "'data' is not a uint8 array"),
        ({"data": np.zeros((2, 3072)), "labels": [1, 2]}, "'data' is not a uint8 array"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]}, "'data' is not a uint8 array"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "'labels' is not a list of whole numbers"),
        (
            {"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]},
            "'labels' is not a list of whole numbers",
        ),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "2 images but 1 labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, -1]}, "position 1 is -1, outside"),
    ],
)
def test_cifar_names_wrong_fields(tmp_path: Path, fields: Any, complaint: str) -> None:
    files = python10()
    files["data_batch_2"] = python3_pickle(fields)
    write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(ValueError, match=f"data_batch_2.*{complaint}"):
        cifar10(root=tmp_path)


def test_cifar_rejects_partial_records(tmp_path: Path) -> None:
    files = binary10()
    files["data_batch_4.bin"] += b"x"
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(ValueError, match=r"data_batch_4.bin has 24585 bytes, not a whole number of 3073-byte"):
        cifar10(root=tmp_path)


def test_cifar100_checks_the_fine_label(tmp_path: Path) -> None:
    files = binary100()
    damaged = bytearray(files["train.bin"])
    damaged[3 * 3074 + 1] = 100
    write_folder(tmp_path / "a", files | {"train.bin": bytes(damaged)})
    with pytest.raises(ValueError, match=r"train.bin: the label at position 3 is 100, outside 0\.\.99"):
        cifar100(root=tmp_path / "a")


@pytest.mark.parametrize("missing", ["data_batch_5.bin", "test_batch.bin", "batches.meta.txt", "data_batch_1.bin"])
def test_cifar_names_missing_file(tmp_path: Path, missing: str) -> None:
    files = binary10()
    del files[missing]
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    write_archive(tmp_path / "cifar-10-binary.tar.gz", files)
    for root in (tmp_path, tmp_path / "cifar-10-binary.tar.gz"):
        with pytest.raises(FileNotFoundError, match=f"lacks {missing}"):
            open_source("cifar10", root=root)


def test_cifar_rejects_wrong_number_of_class_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "cifar-10-batches-bin", binary10() | {"batches.meta.txt": b"one\ntwo\n"})
    with pytest.raises(ValueError, match=r"batches.meta.txt names 2 classes, not 10"):
        cifar10(root=tmp_path)


def test_cifar_ignores_archive_paths(tmp_path: Path) -> None:
    """Members are matched by base name; links and paths that point outside write and read nothing."""
    place = tmp_path / "in"
    place.mkdir()
    write_archive(place / "cifar-10-binary.tar.gz", {f"../../{name}": data for name, data in binary10().items()})
    assert len(cifar10(root=place).splits["test"]) == 11
    assert sorted(tmp_path.rglob("*")) == [place, place / "cifar-10-binary.tar.gz"]

    files = binary10()
    secret = tmp_path / "secret"
    secret.write_bytes(files.pop("test_batch.bin"))
    with tarfile.open(place / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    with pytest.raises(FileNotFoundError, match=r"lacks test_batch.bin"):
        open_source("cifar10", root=place)


def test_cifar_rejects_duplicate_archive_members(tmp_path: Path) -> None:
    files = {f"a/{name}": content for name, content in binary10().items()}
    write_archive(tmp_path / "cifar-10-binary.tar.gz", files | {"b/test_batch.bin": b""})
    with pytest.raises(ValueError, match=r"holds test_batch.bin twice"):
        cifar10(root=tmp_path)


def test_cifar_names_damaged_archive(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, binary10())
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    damages = {
        "half": whole[: len(whole) // 2],
        "checksum": whole[:-8] + bytes(8),
        "cut tar": gzip.compress(plain[: len(plain) // 2]),
        "no tar": gzip.compress(b"text" * 500),
        "no gzip": b"text" * 500,
        "empty": b"",
    }
    for name, content in damages.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz is a damaged or truncated archive") as raised:
            cifar10(root=tmp_path)
        assert "\n" not in str(raised.value), name


def test_cifar_missing_data_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cifar10 is not in .*cifar-10-python.tar.gz.*allow --download"):
        cifar10(root=tmp_path)
    with pytest.raises(ValueError, match="--root"):
        cifar100()
    (tmp_path / "other.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is not named cifar-10-binary.tar.gz or"):
        cifar10(root=tmp_path / "other.tar.gz")


def test_cifar_downloads_to_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, *, download: bool) -> None:
        assert download
        write_folder(Path(root) / "cifar-100-python", python100())

    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=SimpleNamespace(CIFAR100=fetch)))
    assert len(cifar100(root=tmp_path, download=True).splits["train"]) == 120


@pytest.mark.parametrize("form", ["binary100", "python100"])
def test_cifar100_coarse_labels(tmp_path: Path, form: str) -> None:
    files = FORMS[form][3]()
    names = [f"coarse {index}" for index in range(20)]
    if form == "binary100":
        files |= {"coarse_label_names.txt": "\n".join(names).encode()}
    else:
        files |= {"meta": python3_pickle({"fine_label_names": CIFAR100_NAMES, "coarse_label_names": names})}
    write_folder(tmp_path / FORMS[form][2], files)
    source = cifar100(root=tmp_path, labels="coarse")
    assert (source.name, source.classes) == ("cifar100-coarse", tuple(names))
    assert set(source.splits["train"].labels_n.tolist()) == {19 if form == "binary100" else 0}
    with pytest.raises(ValueError, match="labels must be fine or coarse, got 'both'"):
        cifar100(root=tmp_path, labels="both")
