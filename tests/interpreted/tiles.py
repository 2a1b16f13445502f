"""Launch sizes that suit the interpreter, for the recording tests."""

from types import ModuleType

import pytest

from hbr_fast.kernels.launch import hardness_tile


def hold_more_rows(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Fewer programs of more rows each: the interpreter's time depends on the number of operations, not their size."""

    def tile(classes: int) -> tuple[int, int]:
        rows, block = hardness_tile(classes)
        return max(256, rows), block

    monkeypatch.setattr(module, "hardness_tile", tile)
