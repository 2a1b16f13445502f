import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hbr_fast.loaders.augment import Augment
from hbr_fast.training.models.networks import build_model
from hbr_fast.training.recipe import ARGUMENTS, Recipe, changed_recipe
from hbr_fast.training.recipes import RECIPES, named_recipe

STEP = Recipe(name="step", model="cnn-4", epochs=10, lr=0.1, schedule="step", milestones=(3, 6), decay=0.2)
# 4 epochs of 5 steps: after step s, (s + 1) / 21 of the training is done.
TRIANGULAR = Recipe(name="tri", model="cnn-4", epochs=4, lr=0.8, schedule="triangular", warmup=0.25)


def test_paper_resnet18_matches_section_1_of_the_method() -> None:
    assert dataclasses.asdict(named_recipe("paper-resnet18")) == {
        "name": "paper-resnet18",
        "model": "resnet18",
        "epochs": 200,
        "batch_size": 128,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step",
        "milestones": (60, 120, 160),
        "decay": 0.2,
        "warmup": 0.2,
        "label_smoothing": 0.0,
        "augment": dataclasses.asdict(Augment(flip=0.5, pad=4)),
        "el2n_epochs": 20,
        "online_every": 0,
        "online_alpha": 0.25,
        "online_max_change": 0.2,
        "precision": "auto",
        "size": 0,
        "optimizer": "sgd",
        "loss": "cross-entropy",
        **{name: {} for name in ARGUMENTS},
        "weights": "",
        "no_decay": "none",
        "norm_bias_lr": 1.0,
        "clip_norm": 0.0,
        "accumulate": 1,
        "ema": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
    }


def test_recipes_of_the_issue_exist_under_their_names() -> None:
    assert list(RECIPES) == [
        *("quickstart", "small-cnn", "paper-resnet18", "fast-resnet18"),
        *("cifar-fast", "cifar-quick"),
    ]
    assert all(named_recipe(name).name == name for name in RECIPES)
    assert len({dataclasses.replace(named_recipe(name), name="") for name in RECIPES}) == 6


@pytest.mark.parametrize(("name", "most"), [("cifar-fast", 4e14), ("cifar-quick", 1.1e14)])
def test_cifar_recipes_stay_within_their_operations(name: str, most: float) -> None:
    recipe = named_recipe(name)
    network = build_model(recipe.model, channels=3, image_size=(32, 32), classes=10)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert 0.9 * most < recipe.epochs * 50_000 * counter.get_total_flops() / 2 < most


def test_fast_resnet18_trains_the_same_network_in_a_tenth_of_the_epochs() -> None:
    paper, fast = named_recipe("paper-resnet18"), named_recipe("fast-resnet18")
    assert (fast.model, 10 * fast.epochs) == (paper.model, paper.epochs)
    assert fast.batch_size > paper.batch_size
    assert (fast.schedule, fast.label_smoothing) == ("triangular", 0)
    rates = [fast.learning_rate(step, 98) for step in range(20 * 98)]  # one rise and one fall
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("recipe", [*(make() for make in RECIPES.values()), STEP, TRIANGULAR], ids=lambda r: r.name)
def test_recipe_json_round_trip(recipe: Recipe) -> None:
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert isinstance(again.milestones, tuple)
    assert set(recipe.to_json()) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("name=mine", "name", "mine"),
        ("model=cnn-8-16", "model", "cnn-8-16"),
        ("epochs=3", "epochs", 3),
        ("weights=start.safetensors", "weights", "start.safetensors"),
        ("no_decay=norm-and-bias", "no_decay", "norm-and-bias"),
        ("norm_bias_lr=64", "norm_bias_lr", 64.0),
        ("clip_norm=0.5", "clip_norm", 0.5),
        ("accumulate=2", "accumulate", 2),
        ("ema=0.999", "ema", 0.999),
        ("mixup=0.2", "mixup", 0.2),
        ("cutmix=1", "cutmix", 1.0),
        ("batch_size=64", "batch_size", 64),
        ("size=96", "size", 96),
        ("lr=0.05", "lr", 0.05),
        ("momentum=0", "momentum", 0.0),
        ("weight_decay=1e-3", "weight_decay", 1e-3),
        ("schedule=triangular", "schedule", "triangular"),
        ("milestones=10,20", "milestones", (10, 20)),
        ("milestones=7", "milestones", (7,)),
        ("milestones=", "milestones", ()),
        ("decay=0.1", "decay", 0.1),
        ("warmup=0.5", "warmup", 0.5),
        ("label_smoothing=0.1", "label_smoothing", 0.1),
        ("el2n_epochs=5", "el2n_epochs", 5),
        ("online_every=2", "online_every", 2),
        ("online_alpha=1", "online_alpha", 1.0),
        ("online_max_change=0.5", "online_max_change", 0.5),
        ("precision=float32", "precision", "float32"),
        ("optimizer=torch.optim:AdamW", "optimizer", "torch.optim:AdamW"),
        ("loss=my.losses:focal", "loss", "my.losses:focal"),
        ('model_args={"width": 2}', "model_args", {"width": 2}),
        ('optimizer_args={"betas": [0.9, 0.95]}', "optimizer_args", {"betas": [0.9, 0.95]}),
        ('schedule_args={"x": null}', "schedule_args", {"x": None}),
        ('loss_args={"x": true}', "loss_args", {"x": True}),
    ],
)
def test_recipe_fields_can_be_overridden_one_by_one(override: str, field: str, value: Any) -> None:
    changed = named_recipe("paper-resnet18", [override])
    assert getattr(changed, field) == value
    assert type(getattr(changed, field)) is type(value)
    assert dataclasses.replace(changed, **{field: getattr(named_recipe("paper-resnet18"), field)}) == named_recipe(
        "paper-resnet18"
    )


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("augment.flip=0.25", "flip", 0.25),
        ("augment.alternating_flip=true", "alternating_flip", True),
        ("augment.pad=2", "pad", 2),
        ("augment.padding=reflect", "padding", "reflect"),
        ("augment.resized_crop=none", "resized_crop", None),
        ("augment.aspect=0.5,2", "aspect", (0.5, 2.0)),
        ("augment.cutout=8", "cutout", 8),
        ("augment.keyed_by=sample", "keyed_by", "sample"),
        ("augment.vertical_flip=0.5", "vertical_flip", 0.5),
        ("augment.rotate=15", "rotate", 15.0),
        ("augment.translate=0.1", "translate", 0.1),
        ("augment.scale=0.8,1.2", "scale", (0.8, 1.2)),
        ("augment.shear=10", "shear", 10.0),
        ("augment.trivial_augment=true", "trivial_augment", True),
        ("augment.rand_augment=2,9", "rand_augment", (2, 9)),
        ("augment.color_jitter=0.4,0.4,0.4,0.1", "color_jitter", (0.4, 0.4, 0.4, 0.1)),
        ("augment.grayscale=0.2", "grayscale", 0.2),
        ("augment.blur=0.5", "blur", 0.5),
        ("augment.blur_sigma=0.5,1", "blur_sigma", (0.5, 1.0)),
        ("augment.transform=mypkg.augment:mine", "transform", "mypkg.augment:mine"),
        ("augment.erase=0.25", "erase", 0.25),
        ("augment.erase_area=0.1,0.2", "erase_area", (0.1, 0.2)),
        ("augment.erase_aspect=0.5,2", "erase_aspect", (0.5, 2.0)),
    ],
)
def test_recipe_augment_fields_can_be_overridden_one_by_one(override: str, field: str, value: Any) -> None:
    changed = named_recipe("paper-resnet18", [override])
    assert changed.augment == dataclasses.replace(Augment(flip=0.5, pad=4), **{field: value})
    assert type(getattr(changed.augment, field)) is type(value)
    assert Recipe.from_json(json.loads(json.dumps(changed.to_json()))) == changed


def test_recipe_dependent_overrides_apply_together() -> None:
    changed = named_recipe("paper-resnet18", ["augment.pad=0", "augment.resized_crop=0.3,1"])
    assert changed.augment == Augment(flip=0.5, resized_crop=(0.3, 1.0))
    assert Recipe.from_json(json.loads(json.dumps(changed.to_json()))) == changed


def test_recipe_flip_and_pad_are_deprecated() -> None:
    expected = dataclasses.replace(STEP, augment=Augment(flip=0.25, pad=3))
    with pytest.warns(FutureWarning, match=r"'flip' is now 'augment\.flip'"):
        assert dataclasses.replace(STEP, flip=0.25, pad=3) == expected  # type: ignore[call-arg]
    with pytest.warns(FutureWarning, match=r"'pad' is now 'augment\.pad'"):
        assert changed_recipe(STEP, ["flip=0.25", "pad=3"]) == expected
    old = {**{name: value for name, value in STEP.to_json().items() if name != "augment"}, "flip": 0.25, "pad": 3}
    assert Recipe.from_json(old) == expected
    with pytest.raises(AttributeError):
        STEP.flip  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["epohs=1", "augment.x=2"],
            r"unknown recipe field 'epohs', 'augment.x': .* name, .*augment.cutout.* \(did you mean 'epochs'",
        ),
        (["epochs=x", "lr=y"], "'epochs' cannot be 'x': it takes a whole number; recipe field 'lr' cannot be 'y'"),
        (["augment.alternating_flip=7"], "'augment.alternating_flip' cannot be '7'"),
        (["model_args={"], "'model_args' cannot be '{'"),
        (["model_args=[1]"], r"model_args cannot be \[1\]"),
        (
            ["epochs=0", "lr=-1", "augment.pad=-1", "augment.flip=2"],
            r"epochs cannot be 0: it is at least 1; lr cannot be -1\.0: it is a finite number above 0; "
            r"augment: flip is a probability .*; pad is a number of pixels",
        ),
        (
            ["optimizer=adam", "loss=dice", "schedule=a b:c"],
            r"optimizer cannot be 'adam': .* sgd, adamw, muon .* mean 'adamw'\?\); "
            r"schedule cannot be 'a b:c': .*; loss",
        ),
    ],
)
def test_changed_recipe_names_all_faults_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        changed_recipe(STEP, overrides)
    assert "\n" not in str(caught.value)


def test_recipe_component_arguments_are_compared_as_json_and_copied() -> None:
    betas = [0.9, 0.95]
    one = dataclasses.replace(STEP, optimizer_args={"betas": betas})
    assert one == dataclasses.replace(STEP, optimizer_args={"betas": (0.9, 0.95)})
    betas.append(1)
    assert one.optimizer_args == {"betas": [0.9, 0.95]}
    assert len({one, STEP}) == 2
    with pytest.raises(ValueError, match="model_args cannot be"):
        dataclasses.replace(STEP, model_args={"layer": object()})


def test_recipe_override_tests_cover_every_field() -> None:
    for test, kind, apart in (
        (test_recipe_fields_can_be_overridden_one_by_one, Recipe, {"augment"}),
        (test_recipe_augment_fields_can_be_overridden_one_by_one, Augment, {"transform_args"}),  # not alone
    ):
        names = {field for _, field, _ in test.pytestmark[0].args[1]}
        assert names | apart == {field.name for field in dataclasses.fields(kind)}


def test_recipe_overrides_apply_together_and_last_wins() -> None:
    changed = named_recipe("quickstart", ["epochs=2", "lr=0.3", "epochs=5"])
    assert (changed.epochs, changed.lr) == (5, 0.3)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "quickstrat",
            [],
            r"unknown recipe 'quickstrat': available are quickstart, .* \(did you mean 'quickstart'\?\)$",
        ),
        ("quickstart", ["epoch=3"], "unknown recipe field 'epoch': the fields are .*epochs.*precision"),
        ("quickstart", ["epochs"], "field=value, got 'epochs'"),
        ("quickstart", ["epochs=three"], "field 'epochs' cannot be 'three'"),
        ("quickstart", ["epochs=2.5"], "field 'epochs' cannot be '2.5'"),
        ("quickstart", ["epochs="], "field 'epochs' cannot be ''"),
        ("quickstart", ["lr=high"], "field 'lr' cannot be 'high'"),
        ("quickstart", ["milestones=1,x"], "field 'milestones' cannot be '1,x'"),
        (
            "quickstart",
            ["precision=bf16"],
            r"'bf16': it is one of auto, float32, bfloat16 \(did you mean 'bfloat16'\?\)",
        ),
        (
            "quickstart",
            ["schedule=cosin"],
            r"schedule cannot be 'cosin': available are step, triangular, cosine, constant and .* mean 'cosine'\?\)$",
        ),
        ("quickstart", ["__class__=x"], "unknown recipe field '__class__'"),
    ],
)
def test_recipe_names_wrong_name_or_override_in_one_line(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        named_recipe(name, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", -0.1),
        ("lr", math.inf),
        ("lr", math.nan),
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("weight_decay", -1e-9),
        ("weight_decay", math.nan),
        ("schedule", "linear"),
        ("no_decay", "bias"),
        ("clip_norm", -1.0),
        ("accumulate", 0),
        ("accumulate", 1000),
        ("ema", 1.0),
        ("mixup", -0.1),
        ("cutmix", float("inf")),
        ("milestones", (0, 5)),
        ("milestones", (5, 5)),
        ("milestones", (6, 5)),
        ("decay", 0.0),
        ("decay", 1.1),
        ("warmup", -0.1),
        ("warmup", 1.0),
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.0),
        ("el2n_epochs", 0),
        ("online_every", -1),
        ("online_alpha", -0.1),
        ("online_max_change", 1.1),
        ("precision", "float16"),
    ],
)
def test_recipe_refuses_values_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"recipe 'step': {field} cannot be "):
        dataclasses.replace(STEP, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("momentum", 0.0), ("decay", 1.0), ("weight_decay", 0.0), ("epochs", 1)],
)
def test_recipe_accepts_ends_of_ranges(field: str, value: Any) -> None:
    assert getattr(dataclasses.replace(STEP, **{field: value}), field) == value


def test_recipe_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        STEP.lr = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("step", "rate"),
    # 5 steps an epoch: epoch 3 starts at step 15, epoch 6 at step 30.
    [(0, 0.1), (14, 0.1), (15, 0.02), (29, 0.02), (30, 0.004), (49, 0.004)],
)
def test_step_schedule_decays_after_each_milestone(step: int, rate: float) -> None:
    assert STEP.learning_rate(step, 5) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "rate"),
    # Up while (s + 1) / 21 < 1/4: 0.8 (s + 1) / 21 * 4; down after: 0.8 (20 - s) / 21 / 0.75.
    [(0, 3.2 / 21), (4, 16 / 21), (5, 0.8 * 15 / 21 / 0.75), (12, 0.8 * 8 / 21 / 0.75), (19, 0.8 / 21 / 0.75)],
)
def test_triangular_schedule_at_steps_computed_by_hand(step: int, rate: float) -> None:
    assert TRIANGULAR.learning_rate(step, 5) == pytest.approx(rate, rel=1e-12)


def test_triangular_schedule_rises_then_falls_and_wastes_no_step() -> None:
    rates = [TRIANGULAR.learning_rate(step, 5) for step in range(20)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0
    assert max(rates) <= TRIANGULAR.lr


def test_paper_schedule_has_the_rates_of_the_paper() -> None:
    paper = named_recipe("paper-resnet18")
    rates = [paper.learning_rate(epoch * 391, 391) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008], rel=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "model": "cnn-4"}, "needs the field 'epochs'"),
        ({"model": "cnn-4", "epochs": 1}, "needs the field 'name'"),
        ({"name": "x", "model": "cnn-4", "epochs": 1, "learning_rate": 1}, "unknown recipe field 'learning_rate'"),
        ({"name": "x", "model": "cnn-4", "epochs": 0}, "epochs cannot be 0"),
    ],
)
def test_recipe_from_json_refuses_other_content(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(values)
