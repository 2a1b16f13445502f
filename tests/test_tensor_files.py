"""The one reader and writer of safetensors files."""

import hashlib
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save, save_file

from hbr_fast.tensor_files import read_tensors, write_tensors

WORDS: dict[str, Any] = {"what": "numbers", "remedy": "count again"}


def test_tensor_files_round_trip(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6).reshape(2, 3), "a": np.array([True, False]), "c": np.arange(4.0)[::2]}
    write_tensors(tmp_path / "file", arrays, {"x": [1], "a": "text"})
    found, about = read_tensors(tmp_path / "file", {"b": "int64 [R, 3]", "a": "bool [R]", "*": "float64 [R]"}, **WORDS)
    digest = hashlib.sha256(b'{"a":"text","x":[1]}')
    for name, form in (("a", "bool [2]"), ("b", "int64 [2, 3]"), ("c", "float64 [2]")):
        digest.update(f"\n{name} {form}\n".encode() + arrays[name].tobytes())
    assert about == {"x": [1], "a": "text", "sha256": digest.hexdigest()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert (tmp_path / "file").read_bytes() == save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        metadata={"hbr_fast": f'{{"a":"text","sha256":"{digest.hexdigest()}","x":[1]}}'},
    )


def test_tensor_files_of_torch(tmp_path: Path) -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T
    write_tensors(tmp_path / "file", {"w": tensor}, {})
    found, _ = read_tensors(tmp_path / "file", {"w": "BF16 [3, 2]"}, **WORDS, framework="pt")
    assert torch.equal(found["w"], tensor)


def test_read_tensors_lists_every_fault(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"a": np.zeros((2, 3)), "b": np.zeros(3), "z": np.zeros(1)}, {})
    forms = {"a": "float64 [R, C]", "b": "float64 [R]", "c": "int64 []"}
    with pytest.raises(ValueError, match="does not hold") as caught:
        read_tensors(tmp_path / "file", forms, **WORDS)
    assert str(caught.value) == (
        f"{tmp_path}/file does not hold numbers (c is missing; z is not part of it; "
        "b is float64 [3], not float64 [2]): count again"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "Expecting property name"),
        ("[1]", "its metadata are a list, not an object"),
        ('{"schema": NaN}', "NaN is not a number of JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"schema": true, "made": "x"}', "schema is True, not 2; made is str, not dict"),
        ("{}", "schema is None, not 2; made is NoneType, not dict"),
    ],
)
def test_read_tensors_names_wrong_metadata(text: str, fault: str, tmp_path: Path) -> None:
    save_file({"a": np.zeros(1)}, tmp_path / "file", metadata={"hbr_fast": text})
    with pytest.raises(ValueError, match=f"file does not hold numbers .*{fault}.*: count again"):
        read_tensors(tmp_path / "file", **WORDS, about={"schema": 2, "made": dict})


def test_read_tensors_names_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*/nowhere with numbers: count again"):
        read_tensors(tmp_path / "nowhere", **WORDS)
    with pytest.raises(ValueError, match="is a directory and does not hold numbers: count again"):
        read_tensors(tmp_path, **WORDS)
    write_tensors(tmp_path / "file", {"a": np.zeros(9)}, {})
    whole = (tmp_path / "file").read_bytes()
    huge = json.dumps({"a": {"dtype": "F64", "shape": [2**60], "data_offsets": [0, 2**63]}}).encode()
    for content in (b"", whole[:-1], whole[:20], whole + b"x", len(huge).to_bytes(8, "little") + huge, b"\xff" * 99):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match=r"file does not hold numbers .*: count again") as caught:
            read_tensors(tmp_path / "file", **WORDS)
        assert "\n" not in str(caught.value)


def test_write_tensors_names_file_when_disk_is_full(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"a": np.zeros(9)}, {})
    before = (tmp_path / "file").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for tensor in (np.zeros(9999), torch.zeros(9999)):
            with pytest.raises(OSError, match=r"no space left for .*/file: free some"):
                write_tensors(tmp_path / "file", {"a": tensor}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == before
