"""Components that a recipe names: found, called with matching arguments, keyed, and resumed to the same bits."""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hbr_fast.data.dataset import Dataset
from hbr_fast.hardness import HardnessRecorder
from hbr_fast.loaders.augment import Augment
from hbr_fast.members.ensemble import train_ensemble
from hbr_fast.members.preflight import check_fit
from hbr_fast.members.scoring.final_model import trained_model
from hbr_fast.members.store import find_member, member_key, train_and_store
from hbr_fast.members.trial import try_step
from hbr_fast.training import losses
from hbr_fast.training.build import make_loss, make_optimizer
from hbr_fast.training.checkpoint import CheckpointEvery
from hbr_fast.training.components import named, sources
from hbr_fast.training.predict import predict
from hbr_fast.training.recipe import Recipe

SOURCE = """
import torch
from torch import nn


def linear(image_shape, num_classes, scale=1.0):
    channels, height, width = image_shape
    layer = nn.Linear(channels * height * width, num_classes)
    with torch.no_grad():
        layer.weight.mul_(scale)
    return nn.Sequential(nn.Flatten(), layer)


def cosine(step, steps_per_epoch, epochs, floor=0.0):
    import math

    done = step / (epochs * steps_per_epoch)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def hinge(logits, labels, margin=1.0):
    return nn.functional.multi_margin_loss(logits, labels, margin=margin)


def nothing(image_shape, num_classes):
    return None


def reading(image_shape, num_classes):
    made = linear(image_shape, num_classes)
    made.rates = torch.linspace(0, 0.1, 3).tolist()  # stochastic depth, in many networks
    return made


number = 3
"""

TRANSFORMS = """
def dim(image):
    return image * 0.5


def small(image):
    return image[:, ::2]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a user-defined module `mycomponents`."""
    path = tmp_path / "mine" / "mycomponents.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    path.with_name("broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.delitem(sys.modules, "mycomponents", raising=False)
    importlib.invalidate_caches()
    return path


def mine(recipe: Recipe, **changes: Any) -> Recipe:
    own = {
        "model": "mycomponents:linear",
        "schedule": "mycomponents:cosine",
        "loss": "mycomponents:hinge",
        "optimizer": "torch.optim:AdamW",
    }
    return dataclasses.replace(recipe, lr=0.01, **{**own, **changes})


def test_train_member_uses_all_user_defined_components(
    tiny: Dataset, recipe: Recipe, module: Path, tmp_path: Path
) -> None:
    chosen = mine(recipe, schedule_args={"floor": 0.5}, loss_args={"margin": 2.0}, epochs=8)
    check_fit(tiny, chosen, None)
    member = train_and_store(tiny, chosen, seed=1, plan=None, store=tmp_path / "s")
    weights = load_file(member.path / "weights.safetensors")
    assert weights["1.weight"].shape == (3, 64)
    history = member.history()
    # The last of 3 steps an epoch, by hand: 0.01 (0.5 + 0.25 (1 + cos(pi (3 e + 2) / 24))).
    expected = [0.01 * (0.5 + 0.25 * (1 + np.cos(np.pi * (3 * e + 2) / 24))) for e in range(8)]
    np.testing.assert_allclose(history["learning_rate"], expected, rtol=1e-12)
    assert history["train_loss"][7] < 0.8 * history["train_loss"][0]
    np.testing.assert_array_equal(
        predict(trained_model(member, tiny.train), tiny.test, dtype=torch.float32), member.test_logits()
    )


@pytest.mark.parametrize("rows", [50, 170])
@pytest.mark.parametrize(
    "optimizer", ["sgd", "adamw", "muon", "torch.optim:Adam", "torch.optim:RMSprop", "torch.optim:Adafactor"]
)
def test_train_member_resumes_to_same_bits_with_any_optimizer(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, optimizer: str, rows: int
) -> None:
    chosen = dataclasses.replace(recipe, optimizer=optimizer, lr=0.01, accumulate=2, clip_norm=0.5, ema=0.9)
    whole = train_and_store(tiny, chosen, seed=5, plan=None, store=tmp_path / "whole")
    options: Any = {"seed": 5, "plan": None, "store": tmp_path / "cut", "checkpoint": CheckpointEvery(minutes=0)}
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done >= rows:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_and_store(tiny, chosen, **options, advance=advance)
    resumed = train_and_store(tiny, chosen, **options)
    for file in ("weights.safetensors", "ema_weights.safetensors", "hardness.safetensors", "logits.npy"):
        assert (whole.path / file).read_bytes() == (resumed.path / file).read_bytes(), file


def test_make_optimizer_passes_fields_and_arguments_and_keeps_peak_rates(recipe: Recipe) -> None:
    model = torch.nn.Linear(2, 2)
    adam = make_optimizer(
        dataclasses.replace(
            recipe, optimizer="torch.optim:AdamW", lr=0.02, weight_decay=0.3, optimizer_args={"betas": [0.8, 0.9]}
        ),
        model,
    )
    assert isinstance(adam, torch.optim.AdamW)
    group = adam.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["weight_decay"], tuple(group["betas"])) == (
        0.02,
        0.02,
        0.3,
        (0.8, 0.9),
    )
    sgd = make_optimizer(recipe, model)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.defaults["fused"]) == (0.9, True, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "mycomponents:wide"}, "model 'mycomponents:wide': mycomponents has no wide"),
        ({"model": "mycomponents:number"}, "model 'mycomponents:number' is of type int, not a function"),
        ({"model": "mycomponents:nothing"}, "must return a torch.nn.Module, got NoneType"),
        ({"model": "mycomponents:linaer"}, r"mycomponents has no linaer \(did you mean 'linear'\?\)"),
        ({"model": "torch.nn:functional"}, r"model 'torch.nn:functional' is of type module, not a function"),
        ({"loss": "broken:f"}, r"loss 'broken:f': broken cannot be imported \(ZeroDivisionError: division by zero\)"),
        ({"optimizer_args": {"lr": 1}}, "optimizer_args cannot have lr=1: set the recipe's lr"),
        ({"model": "not_there_at_all:f"}, "not_there_at_all cannot be imported .*put its directory on PYTHONPATH"),
        (
            {"model_args": {"width": 2}},
            r"model_args|called with \(image_shape, num_classes; width=2\), but its signature",
        ),
        ({"optimizer_args": {"beta": 1}}, "unexpected keyword argument 'beta'.*change optimizer_args"),
        ({"label_smoothing": 0.1}, "loss 'mycomponents:hinge' would ignore the recipe's label_smoothing=0.1"),
        ({"momentum": 0.5}, "optimizer 'torch.optim:AdamW' would ignore the recipe's momentum=0.5"),
        ({"optimizer": "torch.optim:SGD", "schedule": "mycomponents:x", "loss": "mycomponents:y"}, "no x; .*no y"),
    ],
    ids=str,
)
def test_check_fit_refuses_unsuitable_components_in_one_line(
    tiny: Dataset, recipe: Recipe, module: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_fit(tiny, mine(recipe, **changes), None)
    assert "\n" not in str(caught.value)


def test_check_fit_takes_a_model_that_reads_tensors_while_it_builds(
    tiny: Dataset, recipe: Recipe, module: Path
) -> None:
    check_fit(tiny, mine(recipe, model="mycomponents:reading"), None)


def test_built_in_model_takes_no_arguments(tiny: Dataset, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="model 'cnn-4-8' takes no model_args, got width=2"):
        check_fit(tiny, dataclasses.replace(recipe, model_args={"width": 2}), None)


def test_sources_are_versions_or_hashes_of_user_components(recipe: Recipe, module: Path) -> None:
    assert sources(recipe) == {}
    found = sources(mine(recipe))
    assert set(found) == {"model", "schedule", "loss"}, "torch's optimiser counts by its name"
    assert {len(value) for value in found.values()} == {64}
    named("model", "mycomponents:linear").__version__ = "7"  # type: ignore[attr-defined]
    assert sources(mine(recipe))["model"] == "version 7"
    assert sources(mine(recipe))["loss"] == found["loss"]


def test_changed_component_changes_key_and_does_not_reopen(
    tiny: Dataset, recipe: Recipe, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = mine(recipe)
    member = train_and_store(tiny, chosen, seed=1, plan=None, store=tmp_path / "s")
    assert find_member(tiny, chosen, seed=1, plan=None, store=tmp_path / "s") == member
    module.write_text(SOURCE.replace("scale=1.0", "scale=2.0"))
    monkeypatch.delitem(sys.modules, "mycomponents")
    importlib.invalidate_caches()
    assert member_key(tiny, chosen, seed=1, plan=None) != member.key
    with pytest.raises(ValueError, match="model 'mycomponents:linear' has changed since"):
        trained_model(member, tiny.train)


def test_transform_of_the_user_is_keyed_and_tried_before_training(
    tiny: Dataset, recipe: Recipe, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.write_text(SOURCE + TRANSFORMS)
    plain = member_key(tiny, recipe, seed=1, plan=None)
    chosen = dataclasses.replace(recipe, augment=Augment(flip=0.5, transform="mycomponents:dim"))
    assert set(sources(chosen)) == {"transform"}
    key = member_key(tiny, chosen, seed=1, plan=None)
    assert key != plain
    check_fit(tiny, chosen, None)
    try_step(tiny, chosen)
    train_ensemble(tiny, chosen, members=1, out=tmp_path / "run")
    module.write_text(SOURCE + TRANSFORMS.replace("0.5", "0.25"))
    monkeypatch.delitem(sys.modules, "mycomponents")
    importlib.invalidate_caches()
    assert member_key(tiny, chosen, seed=1, plan=None) != key
    with pytest.raises(ValueError, match=r"other components.*: transform 'mycomponents:dim'"):
        train_ensemble(tiny, chosen, members=2, out=tmp_path / "run")
    with pytest.raises(ValueError, match="transform 'mycomponents:absent': mycomponents has no absent"):
        check_fit(tiny, dataclasses.replace(recipe, augment=Augment(transform="mycomponents:absent")), None)
    with pytest.raises(ValueError, match=r"transform 'mycomponents:small' returned torch.float32 \[1, 4, 8\]"):
        try_step(tiny, dataclasses.replace(recipe, augment=Augment(transform="mycomponents:small")))


def test_train_ensemble_refuses_run_of_changed_components(
    tiny: Dataset, recipe: Recipe, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = mine(recipe)
    train_ensemble(tiny, chosen, members=1, out=tmp_path / "run")
    train_ensemble(tiny, chosen, members=2, out=tmp_path / "run")
    module.write_text(SOURCE + "# changed")
    monkeypatch.delitem(sys.modules, "mycomponents")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"other components.*: loss 'mycomponents:hinge' .*; model .*; schedule"):
        train_ensemble(tiny, chosen, members=3, out=tmp_path / "run")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_recorded_loss_in_one_pass_matches_separate_loss(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, smoothing: float
) -> None:
    loss = make_loss(dataclasses.replace(recipe, label_smoothing=smoothing))
    labels, ids = torch.arange(40) % 12, torch.arange(40)
    results = []
    for least in (13, 12):
        monkeypatch.setattr(losses, "FUSED_CLASSES_ON_CPU", least)
        logits = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
        recorder = HardnessRecorder(40, 12)
        loss.recorded(logits, labels, ids, recorder, epoch=0).backward()
        results.append((logits.grad, recorder.scores().values))
    (separate, scores), (one_pass, same) = results
    assert separate is not None
    torch.testing.assert_close(separate, one_pass, rtol=1e-5, atol=1e-7)
    for name, values in scores.items():
        np.testing.assert_allclose(values, same[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_recorded_loss_on_cpu_depends_on_number_of_classes(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = make_loss(recipe)
    called: list[int] = []
    real = loss.recording
    assert real is not None

    def spy(logits: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        called.append(logits.shape[1])
        return real(logits, *args, **options)

    loss = dataclasses.replace(loss, recording=spy)
    for classes in (10, 100, losses.FUSED_CLASSES_ON_CPU):
        recorder = HardnessRecorder(4, classes)
        loss.recorded(torch.zeros(4, classes), torch.arange(4), torch.arange(4), recorder, epoch=0)
        assert recorder.scores().observations.sum() == 4
    assert called == [losses.FUSED_CLASSES_ON_CPU]
