"""The layer that whitens patches: its output is white on the images it was fitted to, and it is part of a member."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hbr_fast.data.convert import convert
from hbr_fast.loaders.augment import Augment
from hbr_fast.training.build import initial_model, make_optimizer, untrained_model
from hbr_fast.training.models.whitening import WhitenedPatches
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.trainer import train_member

RECIPE = Recipe(name="r", model="whitened-16-16", epochs=1, batch_size=16, augment=Augment(), precision="float32")


def correlated_images(count: int = 200) -> torch.Tensor:
    """Smooth images with unequal channels: neighbouring pixels and channels depend on each other."""
    noise = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1)
    smooth[:, 1] += smooth[:, 0]
    return smooth * torch.tensor([1.0, 3.0, 0.5]).reshape(3, 1, 1)


@pytest.mark.parametrize(("side", "stride"), [(4, 2), (2, 1)])
def test_whitened_patches_have_unit_covariance(side: int, stride: int) -> None:
    images, layer = correlated_images(), WhitenedPatches(3, side=side)
    layer.fit(images)
    size = 3 * side**2
    assert layer.out_channels == 2 * size
    # Inside the border: patches that reach into the padding are not of the kind that the layer was fitted to.
    out = torch.nn.functional.conv2d(images, layer.weight, stride=stride).double()
    rows = out.permute(0, 2, 3, 1).reshape(-1, size)
    covariance = rows.T @ rows / len(rows)
    # Directions of small variance are held back by the epsilon, the others have variance 1 and are uncorrelated.
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 1e-3
    assert covariance.diagonal().max() < 1 + 1e-3
    assert covariance.diagonal()[: size // 2].min() > 0.98
    spread = torch.nn.functional.unfold(images, side, stride=stride).std()
    assert not torch.allclose(
        covariance.diagonal(), torch.full((size,), float(spread) ** 2, dtype=torch.float64), atol=0.1
    )


def test_whitened_patches_give_both_signs_at_half_the_size() -> None:
    images, layer = correlated_images(2), WhitenedPatches(3)
    layer.fit(images)
    out = layer(images)
    assert out.shape == (2, 96, 5, 5)
    torch.testing.assert_close(out[:, :48], -out[:, 48:])
    assert WhitenedPatches(3, side=2)(images).shape == (2, 24, 9, 9)
    for dtype in (torch.bfloat16, torch.float16):
        assert layer(images.to(dtype)).dtype == dtype


def test_initial_model_whitens_with_images_of_the_split(tmp_path: Path) -> None:
    data = convert("synthetic", tmp_path / "a.hbr", classes=3, train_per_class=20, test_per_class=2, shape=(3, 16, 16))
    models = [initial_model(RECIPE, data.train, seed=seed) for seed in (0, 0, 1)]
    weights = [model.state_dict()["features.0.weight"] for model in models]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    # All 60 images are taken whatever the seed, in another order.
    torch.testing.assert_close(weights[0].abs(), weights[2].abs(), rtol=1e-2, atol=1e-2)
    assert not torch.equal(weights[0], untrained_model(RECIPE, data.train).state_dict()["features.0.weight"])
    held = [one for group in make_optimizer(RECIPE, models[0]).param_groups for one in group["params"]]
    assert all(one is not models[0].get_buffer("features.0.weight") for one in held)


def test_whitening_weights_are_stored_with_a_member_and_do_not_change(tmp_path: Path) -> None:
    data = convert("synthetic", tmp_path / "a.hbr", classes=3, train_per_class=20, test_per_class=2, shape=(3, 16, 16))
    member = train_member(data, RECIPE, seed=3)
    before = initial_model(RECIPE, data.train, seed=3).state_dict()["features.0.weight"]
    torch.testing.assert_close(member.weights["features.0.weight"], before, rtol=0, atol=0)
    network = untrained_model(RECIPE, data.train)
    network.load_state_dict(dict(member.weights))
    assert np.isfinite(member.test_logits).all()
