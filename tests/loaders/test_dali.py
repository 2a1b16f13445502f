from collections.abc import Callable

import numpy as np
import pytest
import torch

from hbr_fast.data.plan import Plan
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.loader import Loader
from loaders.contracts import MakeLoader, checks_of, checks_of_pictures, make_split, textured_split

pytest.importorskip("nvidia.dali")


@pytest.mark.parametrize("check", checks_of("dali"), ids=lambda check: check.__name__)
def test_dali_contract(check: Callable[[MakeLoader], None]) -> None:
    check(MakeLoader("dali"))


@pytest.mark.parametrize("check", checks_of_pictures("dali"), ids=lambda check: check.__name__)
def test_dali_contract_of_pictures(check: Callable[[MakeLoader], None]) -> None:
    check(MakeLoader("dali", encoded=True))


def test_dali_pixels_are_close_to_native() -> None:
    split = textured_split(40, size=12)
    plan = Plan.of_rows(np.random.default_rng(0).integers(0, 40, 60))
    augment = Augment(flip=0.5, alternating_flip=True, pad=3, padding="mean", cutout=4)
    native, other = (
        Loader(split, plan=plan, augment=augment, batch_size=25, backend=backend).epoch(3)
        for backend in ("native", "dali")
    )
    for one, two in zip(native, other, strict=True):
        torch.testing.assert_close(two.images, one.images, rtol=0, atol=3e-7)
        assert torch.equal(two.ids, one.ids)


def test_dali_grey_levels_are_exact() -> None:
    images = textured_split(30).images
    for batch in Loader(make_split(images), batch_size=7, backend="dali").epoch(0):
        np.testing.assert_array_equal(batch.images.numpy(), images[batch.ids.numpy()])
