import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hbr_fast.data.dataset import Dataset
from hbr_fast.plan import Plan
from hbr_fast.training import signals, stacked
from hbr_fast.training.checkpoint import CheckpointEvery, Checkpoints
from hbr_fast.training.models import build_model
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.stacked import StackedMember, StackedNetwork, train_stacked
from hbr_fast.training.trainer import Diverged, Member, train_member


def alone(dataset: Dataset, member: StackedMember) -> Member:
    return train_member(dataset, member.recipe, seed=member.seed, plan=member.plan)


def difference(a: Member | Diverged, b: Member) -> float:
    """The largest between two members, in units of what rounding explains."""
    assert isinstance(a, Member)
    assert list(a.weights) == list(b.weights)
    np.testing.assert_array_equal(a.scores.observations, b.scores.observations)
    assert [one.learning_rate for one in a.history] == [one.learning_rate for one in b.history]
    weights = [np.abs((a.weights[name] - b.weights[name]).numpy()).max() for name in a.weights]
    others = [np.abs(a.test_logits - b.test_logits).max()]
    others += [np.abs(a.scores.values[name] - b.scores.values[name]).max() for name in ("aum", "confidence", "el2n")]
    others += [abs(mine.train_loss - other.train_loss) for mine, other in zip(a.history, b.history, strict=True)]
    return float(max(*weights, *(one / 10 for one in others))) / 2e-6


def assert_equal_to_rounding(together: Sequence[Member | Diverged], alone: Sequence[Member]) -> None:
    """All but one to rounding, and that one to what a single flip leaves.

    A stack takes sums in another order. Of 270 small trainings compared, 268 agreed to 1e-6; one member, in either
    size of stack, came to two pixels of a pool's window that were equal to 4e-7: rounding made the one or the other the
    larger, hence 1.3e-4 in its weights from that step on, the same in every repetition.
    """
    *most, worst = sorted(difference(a, b) for a, b in zip(together, alone, strict=True))
    assert all(one < 1 for one in most)
    assert worst < 500


@pytest.mark.parametrize("model", ["cnn-4-8", "vgg-4"])
def test_each_member_is_what_it_would_be_alone(tiny: Dataset, recipe: Recipe, model: str) -> None:
    recipe = dataclasses.replace(recipe, model=model)
    members = [
        StackedMember(recipe, seed=2),
        StackedMember(dataclasses.replace(recipe, lr=0.01, momentum=0.5, weight_decay=1e-2), seed=3),
        StackedMember(dataclasses.replace(recipe, flip=0, pad=0, label_smoothing=0.2, schedule="step"), seed=3),
        StackedMember(recipe, seed=4, plan=Plan.of_rows(np.arange(120) // 2)),
    ]
    together = train_stacked(tiny, members)
    assert_equal_to_rounding(together, [alone(tiny, member) for member in members])
    steps = {int(t) for one in together if isinstance(one, Member) for n, t in one.weights.items() if "batches" in n}
    assert steps == {6}  # each batch norm counted each step once: 2 epochs of 3


def test_resnet18_stacks(recipe: Recipe) -> None:
    torch.manual_seed(0)
    models = [build_model("resnet18", channels=1, image_size=(8, 8), classes=3) for _ in range(2)]
    images = [torch.randn(4, 1, 8, 8) for _ in models]
    separate = [model(one).detach() for model, one in zip(models, images, strict=True)]
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    logits = StackedNetwork(models)(images)
    torch.testing.assert_close(logits, torch.stack(separate), atol=1e-4, rtol=1e-4)
    for model, old in zip(models, before, strict=True):
        state = model.state_dict()
        assert all(
            torch.equal(state[name], old[name]) for name in old if "running" not in name and "batches" not in name
        )
        moved = [name for name in old if "running_mean" in name and not torch.equal(state[name], old[name])]
        assert len(moved) == 20  # each member's own statistics moved, in its own model


def test_a_layer_that_cannot_be_stacked_is_named() -> None:
    models = [build_model("cnn-4", channels=1, image_size=(8, 8), classes=3) for _ in range(2)]
    for model in models:
        model.features = nn.Sequential(model.get_submodule("features"), nn.LayerNorm(4))
    with pytest.raises(ValueError, match="a layer of type LayerNorm cannot be stacked"):
        StackedNetwork(models)


def test_a_member_that_diverges_leaves_and_the_others_do_not_notice(tiny: Dataset, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, epochs=3)
    members = [
        StackedMember(recipe, seed=2),
        StackedMember(dataclasses.replace(recipe, lr=1e8), seed=1),
        StackedMember(recipe, seed=3),
    ]
    first, second, third = train_stacked(tiny, members)
    assert isinstance(second, Diverged)
    assert second.epoch < 2  # the last epoch is that of a stack of two
    assert_equal_to_rounding([first, third], [alone(tiny, members[0]), alone(tiny, members[2])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "cnn-4"}, "stacked members need one model, got 'cnn-4-8' and 'cnn-4'"),
        ({"epochs": 9}, "stacked members need one epochs, got 2 and 9"),
        ({"online_every": 1}, "online_every changes the rows of each member"),
    ],
)
def test_what_cannot_be_one_network_is_refused(
    tiny: Dataset, recipe: Recipe, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_stacked(tiny, [StackedMember(recipe, 1), StackedMember(dataclasses.replace(recipe, **changes), 2)])


def test_epochs_of_different_length_are_refused(tiny: Dataset, recipe: Recipe) -> None:
    short = Plan.of_rows(np.arange(60))
    with pytest.raises(ValueError, match="epochs of equally many rows, got 60, 120"):
        train_stacked(tiny, [StackedMember(recipe, 1), StackedMember(recipe, 2, plan=short)])


def with_checkpoints(recipe: Recipe, seeds: Sequence[int], directory: Path) -> list[StackedMember]:
    every = CheckpointEvery(minutes=float("inf"))
    return [
        StackedMember(recipe, seed, checkpoints=Checkpoints(directory / f"{seed}", {"seed": seed}, every))
        for seed in seeds
    ]


class StopAt:
    """Stands in for `signals.deferred`: SIGTERM after so many questions."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __enter__(self) -> Any:
        def pending() -> int | None:
            self.left -= 1
            return 15 if self.left < 0 else None

        return pending

    def __exit__(self, *_: object) -> None:
        pass


def interrupt(dataset: Dataset, members: list[StackedMember], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(signals, "deferred", lambda: StopAt(steps))
        with pytest.raises(signals.Terminated):
            train_stacked(dataset, members)


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 5, 6])
def test_an_interrupted_stack_goes_on_to_the_same_bits(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    whole = train_stacked(tiny, [StackedMember(recipe, 1), StackedMember(recipe, 2)])
    interrupt(tiny, with_checkpoints(recipe, (1, 2), tmp_path), steps, monkeypatch)
    advanced: list[int] = []
    members = with_checkpoints(recipe, (1, 2), tmp_path)
    again = train_stacked(tiny, [dataclasses.replace(m, advance=advanced.append) for m in members])
    assert sum(advanced) == 2 * 2 * 120
    for a, b in zip(whole, again, strict=True):
        assert isinstance(a, Member)
        assert isinstance(b, Member)
        assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
        np.testing.assert_array_equal(a.test_logits, b.test_logits)
        for name, values in a.scores.values.items():
            np.testing.assert_array_equal(values, b.scores.values[name])


def test_members_whose_checkpoints_stand_apart_join_where_they_meet(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Killed between two members' checkpoints: one is a step on in its epoch, one an epoch, one has none.
    for seed, steps in ((2, 3), (3, 1)):
        interrupt(tiny, with_checkpoints(recipe, (seed,), tmp_path), steps, monkeypatch)
    sizes: list[int] = []
    real = stacked.StackedNetwork

    def counting(models: Any) -> StackedNetwork:
        sizes.append(len(models))
        return real(models)

    monkeypatch.setattr(stacked, "StackedNetwork", counting)
    members = with_checkpoints(recipe, (2, 3, 4), tmp_path)
    together = train_stacked(tiny, members)
    assert sizes == [1, 2, 3]
    assert_equal_to_rounding(together, [alone(tiny, member) for member in members])
