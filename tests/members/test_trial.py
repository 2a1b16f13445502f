"""Components that do not work together are refused before anything is trained, by what they returned."""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hbr_fast.data.dataset import Dataset
from hbr_fast.members.ensemble import train_ensemble
from hbr_fast.members.execution import Execution
from hbr_fast.members.trial import try_step
from hbr_fast.training.recipe import Recipe

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, image_shape, num_classes, output="logits"):
        super().__init__()
        channels, height, width = image_shape
        self.flatten, self.layer = nn.Flatten(), nn.Linear(channels * height * width, num_classes)
        self.output = output

    def forward(self, x):
        z = self.layer(self.flatten(x))
        return {
            "logits": z,
            "tuple": (z, z),
            "map": z[:, :, None],
            "wide": torch.cat([z, z], 1),
            "integers": z.long(),
            "infinite": z / 0,
            "detached": z.detach() + self.layer.bias.sum().detach(),
            "training": (z if not self.training else {"out": z}),
        }[self.output]


def fails(image_shape, num_classes):
    class Fails(Net):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 cannot be multiplied\\nmore")

    return Fails(image_shape, num_classes)


def empty(image_shape, num_classes):
    return nn.Flatten()


def rows(logits, labels):
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def total(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


def number(logits, labels):
    return 3.0


def detached(logits, labels):
    return nn.functional.cross_entropy(logits.detach(), labels)


def not_finite(logits, labels):
    return logits.sum() / 0


def other_parameters(parameters, lr):
    return torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=lr)


def no_optimizer(parameters, lr):
    return None


def negative(step, steps_per_epoch):
    return -0.1


def nothing(step, steps_per_epoch):
    return None


def breaks(step, steps_per_epoch):
    return 1 / (step - 3) ** 2


def lazy(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def fixed(image_shape, num_classes):
    made = Net(image_shape, num_classes)
    made.kept = made.layer.weight * 1  # as the old torch.nn.utils.weight_norm does
    return made
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tried.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tried", raising=False)
    importlib.invalidate_caches()


def net(output: str) -> dict[str, Any]:
    return {"model": "tried:Net", "model_args": {"output": output}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (net("tuple"), r"model 'tried:Net' in evaluation returned tuple, not a tensor: it must return logits \[4, 3\]"),
        (net("training"), "in training returned dict, not a tensor"),
        (net("map"), r"returned torch.float32 \[4, 3, 1\]: it must return logits \[4, 3\], floating-point"),
        (net("wide"), r"returned torch.float32 \[4, 6\]"),
        (net("integers"), r"returned torch.int64 \[4, 3\]"),
        (net("infinite"), "returned logits that are not finite before any training"),
        (net("detached"), "no gradient flows from loss 'cross-entropy' to model 'tried:Net'"),
        (
            {"model": "tried:fails"},
            r"fails on images \[4, 1, 8, 8\].*RuntimeError: mat1 and mat2 cannot be multiplied$",
        ),
        ({"model": "tried:empty"}, "model 'tried:empty' has no parameters to train"),
        ({"loss": "tried:rows"}, r"loss 'tried:rows' returned a tensor \[4\]: it must return the mean loss"),
        ({"loss": "tried:total"}, "loss 'tried:total' of a batch that has every image twice is twice as large"),
        ({"loss": "tried:number"}, "loss 'tried:number' returned float"),
        ({"loss": "tried:detached"}, "no gradient flows from loss 'tried:detached'"),
        ({"loss": "tried:not_finite"}, "loss 'tried:not_finite' is -?inf before any training"),
        ({"loss_args": {"class_weight": [1, 2]}}, r"class_weight must be 'balanced' or 3 finite weights.*got \[1, 2\]"),
        ({"loss_args": {"class_weight": "even"}}, "class_weight must be 'balanced' or 3 finite weights.*got 'even'"),
        ({"optimizer": "tried:other_parameters"}, "must hold parameters of the model, but holds 1 that are not"),
        ({"optimizer": "tried:no_optimizer"}, "must return a torch.optim.Optimizer, got NoneType"),
        ({"optimizer": "torch.optim:LBFGS"}, "optimizer 'torch.optim:LBFGS' computes the loss several times a step"),
        ({"optimizer": "torch.optim:SparseAdam"}, "fails in its first step: SparseAdam does not support dense grad"),
        (
            {"optimizer": "torch.optim:AdamW", "optimizer_args": {"capturable": True}},
            "optimizer 'torch.optim:AdamW' fails in its first step: If capturable=True",
        ),
        (
            {"optimizer": "torch.optim:AdamW", "optimizer_args": {"betas": [0.9]}},
            r"cannot be made with optimizer_args \{'betas': \[0.9\]\}: IndexError",
        ),
        ({"model": "tried:fixed", "ema": 0.9}, "a moving average needs a copy of the network, which copy.deepcopy can"),
        ({"model": "tried:lazy"}, r"has parameters whose size its first batch would decide \(1\.weight, 1\.bias\)"),
        ({"optimizer": "torch.optim:Adam", "optimizer_args": {"betas": [2, 0.9]}}, "cannot be made with .*beta"),
        ({"schedule": "tried:negative"}, "schedule 'tried:negative' returned -0.1 at step 0"),
        ({"schedule": "tried:breaks"}, "schedule 'tried:breaks' fails at step 3: ZeroDivisionError: "),
        ({"schedule": "tried:nothing"}, "schedule 'tried:nothing' returned None at step 0"),
        ({"schedule": "cosine", "schedule_args": {"warmup_epochs": 2}}, r"warmup_epochs must be in \[0, 2\)"),
    ],
    ids=str,
)
def test_try_step_names_what_a_component_returned(
    tiny: Dataset, recipe: Recipe, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        try_step(tiny, dataclasses.replace(recipe, **changes))
    assert "\n" not in str(caught.value)


def test_try_step_accepts_working_recipes_and_keeps_the_random_state(tiny: Dataset, recipe: Recipe) -> None:
    before = torch.get_rng_state()
    for changes in (net("logits"), {"loss": "focal", "optimizer": "adamw", "schedule": "cosine", "mixup": 0.2}):
        try_step(tiny, dataclasses.replace(recipe, **changes))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("execution", [Execution(), Execution(members_at_once=2)], ids=["inline", "processes"])
def test_train_ensemble_tries_a_step_before_it_claims_the_run(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, execution: Execution
) -> None:
    with pytest.raises(ValueError, match="returned tuple, not a tensor"):
        train_ensemble(
            tiny, dataclasses.replace(recipe, **net("tuple")), members=2, out=tmp_path / "run", execution=execution
        )
    assert not (tmp_path / "run").exists()
