"""One step: accumulation, clipping, dropout, the moving average; and resumption of each to the same bits."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hbr_fast.data.dataset import Dataset
from hbr_fast.hardness import HardnessRecorder
from hbr_fast.loaders.batch import Batch
from hbr_fast.members.store import train_and_store
from hbr_fast.training.averaging import Averaged
from hbr_fast.training.build import make_loss, make_optimizer
from hbr_fast.training.checkpoint import CheckpointEvery
from hbr_fast.training.optimizers import NoDecay, parameter_groups
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.step import train_step
from hbr_fast.training.trainer import train_member

from .test_checkpoint import Stop, assert_same, stop_after


def one_step(recipe: Recipe, model: nn.Module, **options: Any) -> tuple[float, int, HardnessRecorder]:
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(11) % 3
    batch = Batch(torch.randn(11, 1, 4, 4, generator=generator), labels, torch.arange(11), torch.arange(11))
    recorder, loss, right = HardnessRecorder(11, 3), torch.zeros(()), torch.zeros((), dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    counts = np.array([4, 4, 3])
    train_step(
        model,
        optimizer,
        recorder,
        batch,
        loss=make_loss(recipe, class_counts=counts),
        epoch=0,
        dtype=torch.float32,
        loss_out=loss,
        right_out=right,
        **options,
    )
    return loss.item(), int(right), recorder


def linear() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize("loss_args", [{}, {"class_weight": [1, 2, 3]}], ids=str)
@pytest.mark.parametrize("parts", [2, 3, 4, 11])
def test_train_step_accumulates_to_the_mean_over_the_batch(
    recipe: Recipe, parts: int, loss_args: dict[str, Any]
) -> None:
    chosen = dataclasses.replace(recipe, loss_args=loss_args)
    whole, split = linear(), linear()
    loss, right, recorder = one_step(chosen, whole)
    loss_of_parts, right_of_parts, recorder_of_parts = one_step(chosen, split, accumulate=parts)
    assert loss_of_parts == pytest.approx(loss, rel=1e-6)
    assert right_of_parts == right
    for ours, theirs in zip(split.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    scores, scores_of_parts = recorder.scores(), recorder_of_parts.scores()
    assert (scores_of_parts.observations == 1).all()
    np.testing.assert_allclose(scores_of_parts.per_sample("aum"), scores.per_sample("aum"), rtol=1e-5, atol=1e-6)


def test_train_step_clips_the_norm_of_the_gradient(recipe: Recipe) -> None:
    def change(**options: Any) -> float:
        model = linear()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        one_step(recipe, model, **options)
        after = zip(before, model.parameters(), strict=True)
        return torch.stack([(new - old).norm() for old, new in after]).norm().item()

    free = change()
    assert change(clip_norm=free / 2) == pytest.approx(free / 2, rel=1e-4)
    assert change(clip_norm=2 * free) == pytest.approx(free, rel=1e-6)


def test_parameter_groups_spare_norms_and_biases() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    decayed, spared = parameter_groups(model, "norm-and-bias")
    assert isinstance(decayed, dict)
    assert isinstance(spared, dict)
    assert [one.ndim for one in decayed["params"]] == [4, 2]
    assert [tuple(one.shape) for one in spared["params"]] == [(2,), (2,), (2,), (3,)]
    assert spared["weight_decay"] == 0
    assert parameter_groups(model, "none") == list(model.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "torch.optim:Adam"])
def test_make_optimizer_without_decay_of_norms_and_biases(recipe: Recipe, optimizer: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    chosen = dataclasses.replace(recipe, optimizer=optimizer, weight_decay=0.1, no_decay="norm-and-bias")
    groups = make_optimizer(chosen, model).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [group["initial_lr"] for group in groups] == [recipe.lr] * 2


@pytest.mark.parametrize("no_decay", ["none", "norm-and-bias"])
def test_make_optimizer_trains_the_biases_of_norms_faster(recipe: Recipe, no_decay: NoDecay) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    chosen = dataclasses.replace(recipe, weight_decay=0.1, no_decay=no_decay, norm_bias_lr=4.0)
    groups = make_optimizer(chosen, model).param_groups
    (faster,) = groups[-1]["params"]
    assert faster is model[1].bias
    assert groups[-1]["initial_lr"] == pytest.approx(4 * recipe.lr)
    # Weight decay times rate, by which it shrinks, is that of the others.
    assert groups[-1]["weight_decay"] == (0.025 if no_decay == "none" else 0)
    assert sum(len(group["params"]) for group in groups) == 4
    assert {group["initial_lr"] for group in groups[:-1]} == {recipe.lr}


def test_averaged_follows_its_definition() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaged = Averaged(model, 0.5)
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    for step in range(20):
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                parameter.add_(number + step)
                decay = min(0.5, (2 + step) / (11 + step))
                expected[number] = decay * expected[number] + (1 - decay) * parameter
        model(torch.randn(4, 2))
        averaged.update(model, step)
    for own, by_hand in zip(averaged.model.parameters(), expected, strict=True):
        torch.testing.assert_close(own, by_hand)
    assert averaged.model[1].num_batches_tracked == 20  # type: ignore[index]


def test_train_member_keeps_the_average_beside_the_weights(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    chosen = dataclasses.replace(recipe, ema=0.9)
    member = train_and_store(tiny, chosen, seed=1, plan=None, store=tmp_path)
    plain = train_member(tiny, recipe, seed=1)
    np.testing.assert_array_equal(member.test_logits(), plain.test_logits)
    averaged, weights = (
        load_file(member.path / "ema_weights.safetensors"),
        load_file(member.path / "weights.safetensors"),
    )
    assert averaged.keys() == weights.keys()
    assert not torch.equal(averaged["head.weight"], weights["head.weight"])
    logits = member.ema_test_logits()
    assert logits is not None
    assert logits.shape == member.test_logits().shape
    assert not np.array_equal(logits, member.test_logits())


def dropping(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network that draws random numbers in training, with a layer under two names."""
    layer = nn.Linear(8, 8)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.3), layer, nn.ReLU(), layer, nn.Linear(8, num_classes)
    )


@pytest.mark.parametrize("rows", [50, 170])
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "no_decay": "norm-and-bias", "schedule": "cosine", "lr": 0.01},
        {"clip_norm": 0.5, "accumulate": 2, "norm_bias_lr": 8.0, "model": "whitened2-16"},
        {"ema": 0.9},
        {"mixup": 0.4, "cutmix": 1.0, "loss": "focal"},
        {"model": f"{__name__}:dropping"},
    ],
    ids=str,
)
def test_train_member_of_any_recipe_resumes_to_same_bits(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, changes: dict[str, Any], rows: int
) -> None:
    chosen = dataclasses.replace(recipe, **changes)
    whole = train_and_store(tiny, chosen, seed=5, plan=None, store=tmp_path / "whole")
    options: Any = {"seed": 5, "plan": None, "store": tmp_path / "cut", "checkpoint": CheckpointEvery(minutes=0)}
    torch.manual_seed(1)
    with pytest.raises(Stop):
        train_and_store(tiny, chosen, **options, advance=stop_after(rows))
    torch.manual_seed(2)
    resumed = train_and_store(tiny, chosen, **options)
    assert_same(whole, resumed)
    if chosen.ema:
        np.testing.assert_array_equal(whole.ema_test_logits(), resumed.ema_test_logits())
