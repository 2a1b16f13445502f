from collections.abc import Callable

import pytest

from loaders.contracts import MakeLoader, checks_of

pytest.importorskip("ffcv")


@pytest.mark.parametrize("check", checks_of("ffcv"), ids=lambda check: check.__name__)
def test_contract(check: Callable[[MakeLoader], None]) -> None:
    check(MakeLoader("ffcv"))
