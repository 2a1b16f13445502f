"""Recipes: frozen values that determine a training completely, and the named ones.

This file imports nothing heavy: the command line reads it to show its help.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_type_hints

Schedule = Literal["step", "triangular"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Attributes
    ----------
    name : str
        Where the values came from; it takes no part in the training.
    model : str
        See `hbr_fast.training.models.build_model`.
    epochs : int
        Passes over the plan.
    batch_size : int
        Rows a step; the last step of an epoch takes what is left.
    lr : float
        Peak learning rate of SGD.
    momentum : float
        Nesterov momentum, in [0, 1).
    weight_decay : float
        L2 penalty on all parameters.
    schedule : "step" or "triangular"
        "step" multiplies the rate by `decay` after each of the `milestones`; "triangular" rises linearly from 0 over
        the first `warmup` share of the steps and falls linearly to 0.
    milestones : tuple of int
        Epochs after which "step" decays.
    decay : float
        Factor of "step".
    warmup : float
        Share of the steps in which "triangular" rises, in (0, 1).
    label_smoothing : float
        Of the loss, in [0, 1). Hardness is always recorded against the hard label.
    flip : float
        Probability of a horizontal flip.
    pad : int
        Zero padding of the raw image before a random crop of its own size, in pixels.
    el2n_epochs : int
        EL2N is recorded in the first this many epochs.
    online_every : int
        Recompute the samples per class from the hardness recorded so far every this many epochs, and draw by them; 0
        (default) does not. A mode of ours, not the paper's: one training instead of two.
    online_alpha : float
        Degree of resampling that the online mode moves towards.
    online_max_change : float
        Largest change of a class at a time, as a share of its count.
    precision : "auto", "float32" or "bfloat16"
        "bfloat16" computes convolutions under autocast; "auto" does so where that is faster than float32.
    """

    name: str
    model: str
    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "step"
    milestones: tuple[int, ...] = ()
    decay: float = 0.2
    warmup: float = 0.2
    label_smoothing: float = 0.0
    flip: float = 0.5
    pad: int = 0
    el2n_epochs: int = 20
    online_every: int = 0
    online_alpha: float = 0.25
    online_max_change: float = 0.2
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        checks = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": 0 < self.lr < math.inf,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "schedule": self.schedule in ("step", "triangular"),
            "milestones": all(a < b for a, b in pairwise((0, *self.milestones))),
            "decay": 0 < self.decay <= 1,
            "warmup": 0 < self.warmup < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "flip": 0 <= self.flip <= 1,
            "pad": self.pad >= 0,
            "el2n_epochs": self.el2n_epochs >= 1,
            "online_every": self.online_every >= 0,
            "online_alpha": 0 <= self.online_alpha < math.inf,
            "online_max_change": 0 <= self.online_max_change <= 1,
            "precision": self.precision in ("auto", "float32", "bfloat16"),
        }
        for field, good in checks.items():
            if not good:
                raise ValueError(f"recipe {self.name!r}: {field} cannot be {getattr(self, field)!r}")

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over the whole training."""
        if self.schedule == "step":
            epoch = step // steps_per_epoch
            return self.lr * self.decay ** sum(epoch >= milestone for milestone in self.milestones)
        done, peak = (step + 1) / (self.epochs * steps_per_epoch + 1), self.warmup
        return self.lr * (done / peak if done < peak else (1 - done) / (1 - peak))

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; `Recipe.from_json` gives an equal recipe back."""
        return {**dataclasses.asdict(self), "milestones": list(self.milestones)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises
        ------
        ValueError
            If a field is unknown, missing or out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(_unknown_field(name))
        for name in ("name", "model", "epochs"):
            if name not in values:
                raise ValueError(f"a recipe needs the field {name!r}")
        return cls(**{**values, "milestones": tuple(values.get("milestones", ()))})


def quickstart() -> Recipe:
    """Fashion-MNIST on two cores in well under a minute a member."""
    return Recipe(name="quickstart", model="vgg-32-64", epochs=4, lr=0.1, schedule="triangular")


def small_cnn() -> Recipe:
    """A plain small network with time to converge: minutes a member on two cores."""
    return Recipe(name="small-cnn", model="cnn-32-64-128", epochs=12, lr=0.1, schedule="triangular", pad=2)


def paper_resnet18() -> Recipe:
    """The training protocol of Pukowski & Osmani, arXiv 2504.07031 (method, section 1)."""
    return Recipe(
        name="paper-resnet18",
        model="resnet18",
        epochs=200,
        milestones=(60, 120, 160),
        pad=4,
    )


def fast_resnet18() -> Recipe:
    """The paper's network in a tenth of its epochs: one rise and fall of the rate, batches four times as wide.

    For tens of thousands of images; a few thousand leave it too few updates (measured: docs/ensembles.md).
    """
    return Recipe(
        name="fast-resnet18",
        model="resnet18",
        epochs=20,
        batch_size=512,
        lr=0.4,  # four times the paper's, as the batch is
        schedule="triangular",
        pad=4,
    )


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "quickstart": quickstart,
    "small-cnn": small_cnn,
    "paper-resnet18": paper_resnet18,
    "fast-resnet18": fast_resnet18,
}


def named_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A named recipe, with single fields changed.

    Parameters
    ----------
    name : str
        One of `RECIPES`.
    overrides : sequence of "field=value"
        E.g. `["epochs=3", "milestones=10,20"]`.

    Raises
    ------
    ValueError
        If the recipe or a field is unknown or a value does not fit its field.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: available are {', '.join(RECIPES)}")
    return changed_recipe(RECIPES[name](), overrides)


def changed_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with single fields changed, each as "field=value".

    Raises
    ------
    ValueError
        If a field is unknown or a value does not fit its field.
    """
    changes = {}
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"a recipe field is changed by field=value, got {override!r}")
        changes[field] = _parse(field, text)
    return dataclasses.replace(recipe, **changes)


def _parse(field: str, text: str) -> Any:
    hints = get_type_hints(Recipe)
    if field not in hints:
        raise ValueError(_unknown_field(field))
    kind = hints[field]
    try:
        if kind in (int, float):
            return kind(text)
        if kind == tuple[int, ...]:
            return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise ValueError(f"recipe field {field!r} cannot be {text!r}") from None
    return text


def _unknown_field(name: str) -> str:
    return f"unknown recipe field {name!r}: the fields are {', '.join(get_type_hints(Recipe))}"
