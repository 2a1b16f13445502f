"""A tiny training on the GPU compared with the same training on the CPU."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.loaders.augment import Augment
from hbr_fast.members.trial import try_step
from hbr_fast.training.device import Compute
from hbr_fast.training.member import Member
from hbr_fast.training.recipe import Precision, Recipe
from hbr_fast.training.trainer import train_member

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

RECIPE = Recipe(
    name="tiny",
    model="cnn-8-16",
    epochs=2,
    batch_size=50,
    lr=0.05,
    schedule="triangular",
    augment=Augment(flip=0.5, pad=1),
    precision="float32",
)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """120 train images: batches of 50, 50 and 20."""
    return convert("synthetic", tmp_path / "t.hbr", classes=3, train_per_class=40, test_per_class=20, shape=(1, 8, 8))


def assert_close(there: Member, here: Member, tolerance: float) -> None:
    for name, tensor in here.weights.items():
        assert there.weights[name].device.type == "cpu"
        torch.testing.assert_close(there.weights[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
    np.testing.assert_allclose(there.test_logits, here.test_logits, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(there.scores.observations, here.scores.observations)
    for name in ("aum", "confidence", "loss", "el2n"):
        found, expected = there.scores.per_sample(name), here.scores.per_sample(name)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("compiled", [False, True])
def test_train_member_matches_cpu(data: Dataset, monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    here = train_member(data, RECIPE, seed=5, compute=Compute("cpu"))
    there = train_member(data, RECIPE, seed=5, compute=Compute("cuda", compile=compiled))
    assert_close(there, here, 1e-3)
    assert all(record.gpu_memory_mb for record in there.history)


def test_train_member_bfloat16_is_close(data: Dataset) -> None:
    here = train_member(data, RECIPE, seed=5, compute=Compute("cpu"))
    there = train_member(data, dataclasses.replace(RECIPE, precision="bfloat16"), seed=5, compute=Compute("cuda"))
    assert_close(there, here, 0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_train_member_of_torchvision_model(tmp_path: Path, compiled: bool, precision: Precision) -> None:
    rgb = convert("synthetic", tmp_path / "t", classes=3, train_per_class=40, test_per_class=20, shape=(3, 32, 32))
    recipe = dataclasses.replace(RECIPE, model="torchvision:resnet18", lr=0.001, epochs=1, precision=precision)
    try_step(rgb, recipe, device="cuda")
    here = train_member(rgb, recipe, seed=5, compute=Compute("cpu"))
    there = train_member(rgb, recipe, seed=5, compute=Compute("cuda", compile=compiled))
    first, second = (member.history[0].train_loss for member in (here, there))
    assert second == pytest.approx(first, rel=0.05)
    np.testing.assert_array_equal(there.scores.observations, here.scores.observations)


@pytest.mark.parametrize(
    "changes", [{"mixup": 0.4}, {"ema": 0.9, "accumulate": 2, "clip_norm": 1.0}, {"loss": "focal"}]
)
def test_train_member_of_any_recipe_is_close_to_cpu(data: Dataset, changes: dict[str, Any]) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1, **changes)
    there = train_member(data, recipe, seed=5, compute=Compute("cuda"))
    assert_close(there, train_member(data, recipe, seed=5, compute=Compute("cpu")), 0.02)
