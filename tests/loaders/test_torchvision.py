import multiprocessing
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hbr_fast.data.plan import Plan
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.loader import Loader
from loaders.contracts import MakeLoader, assert_same, checks_of, checks_of_pictures, textured_split


@pytest.mark.parametrize("check", checks_of("torchvision"), ids=lambda check: check.__name__)
def test_torchvision_contract(check: Callable[[MakeLoader], None]) -> None:
    check(MakeLoader("torchvision"))


@pytest.mark.parametrize("check", checks_of_pictures("torchvision"), ids=lambda check: check.__name__)
def test_torchvision_contract_of_pictures(check: Callable[[MakeLoader], None]) -> None:
    check(MakeLoader("torchvision", encoded=True))


def test_torchvision_leaves_no_processes_after_early_break() -> None:
    loader = Loader(textured_split(60), batch_size=10, backend="torchvision", threads=2)
    before = multiprocessing.active_children()
    for epoch in range(3):
        for _ in loader.epoch(epoch):
            assert len(multiprocessing.active_children()) > len(before), "workers make the batches"
            break
        assert multiprocessing.active_children() == before
    list(loader.epoch(0))
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchvision_matches_native_bits(dtype: torch.dtype) -> None:
    split = textured_split(40, size=12)
    plan = Plan.of_rows(np.random.default_rng(0).integers(0, 40, 60))
    augment = Augment(flip=0.5, alternating_flip=True, pad=3, padding="reflect", cutout=4)
    native, other = (
        Loader(split, plan=plan, augment=augment, batch_size=25, dtype=dtype, backend=backend).epoch(3)
        for backend in ("native", "torchvision")
    )
    assert_same(other, list(native))
