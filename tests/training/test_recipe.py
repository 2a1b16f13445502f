import dataclasses
import json
import math
from typing import Any

import pytest

from hbr_fast.training.recipe import RECIPES, Recipe, named_recipe

STEP = Recipe(name="step", model="cnn-4", epochs=10, lr=0.1, schedule="step", milestones=(3, 6), decay=0.2)
# 4 epochs of 5 steps: step s is done = (s + 1) / 21 of the way.
TRIANGULAR = Recipe(name="tri", model="cnn-4", epochs=4, lr=0.8, schedule="triangular", warmup=0.25)


def test_paper_resnet18_is_section_1_of_the_method_in_every_field() -> None:
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
        "flip": 0.5,
        "pad": 4,
        "el2n_epochs": 20,
        "online_every": 0,
        "online_alpha": 0.25,
        "online_max_change": 0.2,
        "precision": "auto",
    }


def test_the_recipes_of_the_issue_are_there_under_their_own_names() -> None:
    assert list(RECIPES) == ["quickstart", "small-cnn", "paper-resnet18", "fast-resnet18"]
    assert all(named_recipe(name).name == name for name in RECIPES)
    assert len({dataclasses.replace(named_recipe(name), name="") for name in RECIPES}) == 4


def test_fast_resnet18_is_the_papers_network_in_a_tenth_of_its_epochs() -> None:
    paper, fast = named_recipe("paper-resnet18"), named_recipe("fast-resnet18")
    assert (fast.model, 10 * fast.epochs) == (paper.model, paper.epochs)
    assert fast.batch_size > paper.batch_size
    assert (fast.schedule, fast.label_smoothing) == ("triangular", 0)
    rates = [fast.learning_rate(step, 98) for step in range(20 * 98)]  # one rise and one fall
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("recipe", [*(make() for make in RECIPES.values()), STEP, TRIANGULAR], ids=lambda r: r.name)
def test_json_round_trip_gives_an_equal_recipe(recipe: Recipe) -> None:
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
        ("batch_size=64", "batch_size", 64),
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
        ("flip=0", "flip", 0.0),
        ("pad=2", "pad", 2),
        ("el2n_epochs=5", "el2n_epochs", 5),
        ("online_every=2", "online_every", 2),
        ("online_alpha=1", "online_alpha", 1.0),
        ("online_max_change=0.5", "online_max_change", 0.5),
        ("precision=float32", "precision", "float32"),
    ],
)
def test_every_field_can_be_overridden_alone(override: str, field: str, value: Any) -> None:
    changed = named_recipe("paper-resnet18", [override])
    assert getattr(changed, field) == value
    assert type(getattr(changed, field)) is type(value)
    assert dataclasses.replace(changed, **{field: getattr(named_recipe("paper-resnet18"), field)}) == named_recipe(
        "paper-resnet18"
    )


def test_every_field_is_in_the_test_above() -> None:
    marks = test_every_field_can_be_overridden_alone.pytestmark
    assert {field for _, field, _ in marks[0].args[1]} == {field.name for field in dataclasses.fields(Recipe)}


def test_several_overrides_apply_together_and_the_last_of_one_field_wins() -> None:
    changed = named_recipe("quickstart", ["epochs=2", "lr=0.3", "epochs=5"])
    assert (changed.epochs, changed.lr) == (5, 0.3)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("quickstrat", [], "unknown recipe 'quickstrat': available are quickstart, small-cnn, paper-resnet18"),
        ("quickstart", ["epoch=3"], "unknown recipe field 'epoch': the fields are .*epochs.*precision"),
        ("quickstart", ["epochs"], "field=value, got 'epochs'"),
        ("quickstart", ["epochs=three"], "field 'epochs' cannot be 'three'"),
        ("quickstart", ["epochs=2.5"], "field 'epochs' cannot be '2.5'"),
        ("quickstart", ["epochs="], "field 'epochs' cannot be ''"),
        ("quickstart", ["lr=high"], "field 'lr' cannot be 'high'"),
        ("quickstart", ["milestones=1,x"], "field 'milestones' cannot be '1,x'"),
        ("quickstart", ["precision=half"], "precision cannot be 'half'"),
        ("quickstart", ["schedule=cosine"], "schedule cannot be 'cosine'"),
        ("quickstart", ["__class__=x"], "unknown recipe field '__class__'"),
    ],
)
def test_a_wrong_name_or_override_is_one_line_that_says_which(name: str, overrides: list[str], message: str) -> None:
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
        ("schedule", "cosine"),
        ("milestones", (0, 5)),
        ("milestones", (5, 5)),
        ("milestones", (6, 5)),
        ("decay", 0.0),
        ("decay", 1.1),
        ("warmup", 0.0),
        ("warmup", 1.0),
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.0),
        ("flip", -0.1),
        ("flip", 1.1),
        ("flip", math.nan),
        ("pad", -1),
        ("el2n_epochs", 0),
        ("online_every", -1),
        ("online_alpha", -0.1),
        ("online_max_change", 1.1),
        ("precision", "float16"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"recipe 'step': {field} cannot be "):
        dataclasses.replace(STEP, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("momentum", 0.0), ("decay", 1.0), ("flip", 0.0), ("flip", 1.0), ("weight_decay", 0.0), ("epochs", 1)],
)
def test_the_ends_of_the_ranges_are_allowed(field: str, value: Any) -> None:
    assert getattr(dataclasses.replace(STEP, **{field: value}), field) == value


def test_recipes_are_frozen() -> None:
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


def test_paper_schedule_has_the_papers_rates() -> None:
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
def test_from_json_refuses_what_is_not_a_recipe(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(values)
