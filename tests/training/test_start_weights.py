"""Files of weights that fit no model, or hold what is no weight, are refused in one line that names them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hbr_fast.training.models.start_weights import load_start_weights


def weights(**changed: Any) -> dict[Any, Any]:
    return {"weight": torch.ones(3, 4), "bias": torch.zeros(3), **changed}


def saved(content: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


def packed(path: Path) -> None:
    torch.save(weights(bias=torch.zeros(1 << 20)), path)
    with zipfile.ZipFile(path) as whole:
        members = {one.filename: whole.read(one) for one in whole.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small:
        for name, content in members.items():
            small.writestr(name, content)


def quantised(path: Path) -> None:
    torch.save(weights(weight=torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8)), path)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("ran").touch, ())


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "holds no weights that can be read"),
    "opening bracket": (lambda path: path.write_bytes(b"("), "holds no weights that can be read"),
    "string beyond the file": (lambda path: path.write_bytes(b"\x80\x02X\xff\xff\xff\x7fa"), "holds no weights"),
    "code": (saved(Code()), "without unpickling"),
    "compressed": (packed, "compressed, which torch.save never does"),
    "numbers as names": (saved({1: torch.ones(1)}), "holds no state_dict"),
    "a list": (saved([torch.ones(1)]), "holds no state_dict"),
    "sparse": (saved(weights(weight=torch.ones(3, 4).to_sparse())), r"sparse.* \(weight\)"),
    "meta": (saved(weights(weight=torch.ones(3, 4, device="meta"))), r"without values \(weight\)"),
    "quantised": (
        quantised,
        r"quantised.*\(weight\)|holds no weights that can be read",  # newer torch does not load them
    ),
    "complex": (saved(weights(bias=torch.zeros(3, dtype=torch.complex64))), "another type for bias"),
    "whole numbers": (saved(weights(bias=torch.zeros(3, dtype=torch.int64))), "another type for bias"),
    "NaN": (saved(weights(bias=torch.full((3,), torch.nan))), "NaN or infinity in bias"),
    "infinity": (saved(weights(bias=torch.full((3,), torch.inf))), "NaN or infinity in bias"),
    "a terminal's command": (saved(weights(**{"a\n\x1b[31m": torch.ones(1)})), r"has too a\\n\\x1b\[31m$"),
    "a long name": (saved(weights(**{"a" * 100_000: torch.ones(1)})), f"has too {'a' * 100}$"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of sparse and of quantised tensors
@pytest.mark.parametrize("what", REFUSED)
def test_weights_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = REFUSED[what]
    write(path := tmp_path / "w.pth")
    model = nn.Linear(4, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as raised:
        load_start_weights(model, str(path), num_classes=3)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    assert not Path("ran").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_precision_are_converted(tmp_path: Path) -> None:
    torch.save(weights(weight=torch.full((3, 4), 0.5, dtype=torch.float16)), path := tmp_path / "w.pth")
    load_start_weights(model := nn.Linear(4, 3), str(path), num_classes=3)
    assert model.weight.dtype == torch.float32
    assert bool((model.weight == 0.5).all())
