"""Whole numbers of any integer type are accepted; nothing else is."""

from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast.arguments import whole_number


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_whole_number_returns_int(value: Any) -> None:
    found = whole_number("epoch", value)
    assert type(found) is int
    assert found == 3


@pytest.mark.parametrize("value", [3.0, 2.5, "3", None, True, np.True_, np.float32(3), torch.tensor(3.0), [3]])
def test_whole_number_rejects_other_types(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^epoch must be a whole number, got "):
        whole_number("epoch", value)
