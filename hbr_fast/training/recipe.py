"""The recipe: frozen values that determine a training completely.

This file imports nothing heavy: the command line reads it to show its help.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args, get_type_hints

from hbr_fast.arguments import did_you_mean
from hbr_fast.files import canonical_json, read_json
from hbr_fast.loaders.augment import Augment
from hbr_fast.training import components
from hbr_fast.training.optimizers import NoDecay
from hbr_fast.training.recipe_values import ALLOWED, fitted, form_of, is_json_object, parsed

Precision = Literal["auto", "float32", "bfloat16"]
ARGUMENTS = tuple(f"{kind}_args" for kind in components.FIELDS)
# Fields of the recipe from before it held an `Augment`; recipes are still keyed under these names.
MOVED = ("flip", "pad")
FLIPS = Augment(flip=0.5)


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Model, optimiser, schedule and loss are names: of built-ins in `hbr_fast.training.components`, of a library's models
    (`torchvision:resnet50`, `timm:convnext_tiny`), or of a user-defined function, `package.module:function`.

    Attributes
    ----------
    name : str
        Origin of the values; it does not affect the training.
    model : str
        See `hbr_fast.training.models.networks.build_model`; a network of torchvision or timm; or a function of
        (image_shape, num_classes).
    epochs : int
        Passes over the plan.
    batch_size : int
        Rows per step; the last step of an epoch takes the rest.
    lr : float
        Peak learning rate.
    momentum : float
        Of optimisers that have one, in [0, 1); Nesterov's for "sgd".
    weight_decay : float
        L2 penalty on all parameters, or as the optimiser defines it.
    schedule : str
        "step" multiplies the rate by `decay` after each of the `milestones`; "triangular" rises linearly from 0 over
        the first `warmup` share of the steps, which may be 0, and falls linearly to 0; "cosine" (`schedule_args`:
        `warmup_epochs`, `floor`); "constant"; or a function of (step, steps_per_epoch) that returns the factor of `lr`.
    milestones : tuple of int
        Epochs after which "step" decays.
    decay : float
        Factor of "step".
    warmup : float
        Share of the steps in which "triangular" rises, in [0, 1).
    label_smoothing : float
        Of the loss, in [0, 1). Hardness is always recorded against the hard label.
    augment : Augment
        Augmentation of each drawn image.
    size : int
        Side in pixels of the square images that encoded pictures become (`Split.at_size`); 0: images are used at the
        size they are stored at.
    el2n_epochs : int
        Number of first epochs in which EL2N is recorded.
    online_every : int
        Every N epochs, recompute the samples per class from the hardness recorded so far, and draw by them; 0 (default)
        never does. A mode of this package, not the paper's: one training instead of two.
    online_alpha : float
        Degree of resampling that the online mode moves towards.
    online_max_change : float
        Largest change of a class per update, as a share of its count.
    precision : "auto", "float32" or "bfloat16"
        "bfloat16" computes convolutions under autocast; "auto" does so if the device that trains is faster with it.
        A member's own recipe records which was used.
    optimizer : str
        "sgd", "adamw", "muon", or a function of (parameters), such as "torch.optim:RMSprop".
    loss : str
        "cross-entropy", "focal", "balanced-softmax", "logit-adjusted", or a function of (logits, labels) that returns
        their mean loss.
    model_args, optimizer_args, schedule_args, loss_args : dict
        Keyword arguments of the component, JSON values.
    weights : str
        A file of weights to start from, safetensors or of `torch.save`; a classifier of another width starts anew.
    no_decay : "none" or "norm-and-bias"
        Which parameters have no weight decay: those of norms, and biases.
    norm_bias_lr : float
        Factor of the learning rate of the biases of norms; their weight decay is divided by it, so that they shrink as
        fast as other parameters.
    clip_norm : float
        Largest norm of a step's gradient, to which a larger one is scaled; 0 does not clip.
    accumulate : int
        Parts in which a batch passes through the network, one after another, for batches that do not fit; the loss
        stays the mean over the batch, batch norms see the parts.
    ema : float
        Decay of an exponential moving average of the weights, in [0, 1), reached gradually; it is evaluated and stored
        beside the weights. 0 keeps none.
    mixup, cutmix : float
        Alpha of the Beta distribution of a batch's share of its own images, mixed with those of a permutation of the
        batch (`hbr_fast.training.mixing`); with both, each batch takes one of them at random. 0 does not mix.

    Raises
    ------
    ValueError
        If values are out of range; the message names all of them.

    Examples
    --------
    >>> recipe = Recipe(name="mine", model="cnn-16-32", epochs=30, optimizer="torch.optim:AdamW", lr=1e-3)
    >>> recipe.learning_rate(0, steps_per_epoch=100)
    0.001
    """

    name: str
    model: str
    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"
    milestones: tuple[int, ...] = ()
    decay: float = 0.2
    warmup: float = 0.2
    label_smoothing: float = 0.0
    augment: Augment = FLIPS
    size: int = 0
    el2n_epochs: int = 20
    online_every: int = 0
    online_alpha: float = 0.25
    online_max_change: float = 0.2
    precision: Precision = "auto"
    optimizer: str = "sgd"
    loss: str = "cross-entropy"
    model_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    optimizer_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    schedule_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    loss_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: str = ""
    no_decay: NoDecay = "none"
    norm_bias_lr: float = 1.0
    clip_norm: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        checks = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": 0 < self.lr < math.inf,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "milestones": all(a < b for a, b in pairwise((0, *self.milestones))),
            "decay": 0 < self.decay <= 1,
            "warmup": 0 <= self.warmup < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "augment": isinstance(self.augment, Augment),
            "size": 0 <= self.size < 2**15,
            "el2n_epochs": self.el2n_epochs >= 1,
            "online_every": self.online_every >= 0,
            "online_alpha": 0 <= self.online_alpha < math.inf,
            "online_max_change": 0 <= self.online_max_change <= 1,
            "precision": self.precision in get_args(Precision),
            "no_decay": self.no_decay in get_args(NoDecay),
            "norm_bias_lr": 0 < self.norm_bias_lr < math.inf,
            "clip_norm": 0 <= self.clip_norm < math.inf,
            "accumulate": 1 <= self.accumulate <= self.batch_size,
            "ema": 0 <= self.ema < 1,
            "mixup": 0 <= self.mixup < math.inf,
            "cutmix": 0 <= self.cutmix < math.inf,
            **{kind: components.is_name(kind, getattr(self, kind)) for kind in components.FIELDS},
            **{name: is_json_object(getattr(self, name)) for name in ARGUMENTS},
        }
        faults = [
            f"{name} cannot be {getattr(self, name)!r}{_choices(name, getattr(self, name))}"
            for name, good in checks.items()
            if not good
        ]
        if faults:
            raise ValueError(f"recipe {self.name!r}: {'; '.join(faults)}")
        for name in ARGUMENTS:  # a JSON copy: a tuple and a list give the same recipe
            object.__setattr__(self, name, json.loads(canonical_json(dict(getattr(self, name)))))

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over the whole training."""
        return self.lr * components.component("schedule", self)(step, steps_per_epoch)

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; `Recipe.from_json` gives an equal recipe back."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def identity(self) -> dict[str, Any]:
        """The part of the recipe that determines a training, as JSON values: members are keyed by it.

        A field added after the first keys is left out at its default, so that keys stay the same.
        """
        assert self.precision != "auto", "the precision must be resolved first"
        values = {**self.to_json(), "name": None, "precision": f"torch.{self.precision}"}
        for name in _ADDED:
            if values[name] == Recipe.__dataclass_fields__[name].default:
                del values[name]
        values.pop("weights", None)  # they count by their content, see `components.sources`
        augment = values.pop("augment")
        values |= {name: augment.pop(name) for name in MOVED}
        changed = {name: value for name, value in augment.items() if value != _AUGMENT_DEFAULTS[name]}
        filled = {"augment": changed} | {name: values.pop(name) for name in ARGUMENTS}
        return values | {name: value for name, value in filled.items() if value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote, also in a version in which `flip` and `pad` were separate fields.

        Raises
        ------
        ValueError
            If fields are unknown, missing or out of range; the message names all of them.
        """
        given = {f"augment.{name}" if name in MOVED else name: value for name, value in values.items()}
        augment = given.pop("augment", {})
        if not isinstance(augment, Mapping):
            raise ValueError(f"the recipe's augment must be an object, got {augment!r}")
        given |= {f"augment.{name}": value for name, value in augment.items()}
        _require_known(given)
        missing = [name for name in ("name", "model", "epochs") if name not in given]
        if missing:
            raise ValueError(f"a recipe needs the field {', '.join(map(repr, missing))}")
        return _made(cls, FLIPS, given)


def stored_recipe(path: str | os.PathLike[str], *, remedy: str) -> Recipe:
    """The recipe in a JSON file of `to_json`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it does not hold a recipe; the message names it.
    """
    values = read_json(path)
    try:
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}")
        return Recipe.from_json(values)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} does not hold a recipe ({error}): {remedy}") from None


# Fields added after the first keys.
_ADDED = (
    "optimizer",
    "loss",
    "size",
    "weights",
    "no_decay",
    "norm_bias_lr",
    "clip_norm",
    "accumulate",
    "ema",
    "mixup",
    "cutmix",
)
_AUGMENT_DEFAULTS = json.loads(json.dumps(dataclasses.asdict(Augment())))


def changed_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with single fields changed, each as "field=value"; see `named_recipe`.

    Raises
    ------
    ValueError
    """
    texts = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"a recipe field is changed by field=value, got {override!r}")
        texts[_present_name(name)] = text
    _require_known(texts)
    hints, changes, faults = _hints(), {}, []
    for name, text in texts.items():
        try:
            changes[name] = parsed(text, hints[name])
        except ValueError:
            faults.append(f"recipe field {name!r} cannot be {text!r}: it takes {form_of(hints[name])}")
    if faults:
        raise ValueError("; ".join(faults))
    return _made(functools.partial(dataclasses.replace, recipe), recipe.augment, changes)


def _made(make: Callable[..., Recipe], augment: Augment, values: Mapping[str, Any]) -> Recipe:
    """The recipe that `make` returns for values under the names of `_hints`; raises all errors in them."""
    hints, fitting, faults = _hints(), dict[str, Any](), []
    for name, value in values.items():
        try:
            fitting[name] = fitted(value, hints[name])
        except ValueError:
            faults.append(f"{name} cannot be {value!r}: it takes {form_of(hints[name])}")
    if faults:
        raise ValueError(f"recipe fields of another type: {'; '.join(faults)}")
    own = {name: value for name, value in fitting.items() if not name.startswith("augment.")}
    try:
        changes = {name: value for name, value in fitting.items() if name not in own}
        own["augment"] = dataclasses.replace(
            augment, **{name.removeprefix("augment."): value for name, value in changes.items()}
        )
    except ValueError as error:
        faults.append(f"augment: {error}")
    try:
        made = make(**own)
    except ValueError as error:
        faults.insert(0, str(error))
    if faults:
        raise ValueError("; ".join(faults))
    return made


def _hints() -> dict[str, Any]:
    """Types of all fields, those of the augmentation as "augment.NAME"."""
    hints = get_type_hints(Recipe)
    del hints["augment"]
    return hints | {f"augment.{name}": kind for name, kind in get_type_hints(Augment).items()}


def _choices(name: str, value: Any) -> str:
    """What a field can be, in words."""
    if name in components.FIELDS:
        return f": available are {components.available(name)}{did_you_mean(components.BUILT_IN[name], str(value))}"
    kinds = get_args(_hints()[name]) if name in ("precision", "no_decay") else ()
    if kinds:
        return f": it is one of {', '.join(kinds)}{did_you_mean(kinds, str(value))}"
    return f": it is {ALLOWED[name]}" if name in ALLOWED else f": it takes {form_of(_hints()[name])}"


def _require_known(names: Iterable[str]) -> None:
    unknown = [name for name in names if name not in _hints()]
    if unknown:
        raise ValueError(
            f"unknown recipe field {', '.join(map(repr, unknown))}: the fields are {', '.join(_hints())}"
            f"{did_you_mean(_hints(), *unknown)}"
        )


def _present_name(name: str) -> str:
    if name not in MOVED:
        return name
    warnings.warn(f"the recipe field {name!r} is now 'augment.{name}'", FutureWarning, stacklevel=3)
    return f"augment.{name}"


def _accept_moved_fields(init: Callable[..., None]) -> Callable[..., None]:
    """For one version, accept `Recipe(flip=..., pad=...)`, with a warning, as `Recipe(augment=Augment(...))`."""

    @functools.wraps(init)
    def taking(self: Recipe, *args: Any, **values: Any) -> None:
        moved = {name: values.pop(name) for name in MOVED if name in values}
        for name in moved:
            _present_name(name)
        if moved:
            values["augment"] = dataclasses.replace(values.get("augment", FLIPS), **moved)
        init(self, *args, **values)

    return taking


Recipe.__init__ = _accept_moved_fields(Recipe.__init__)  # type: ignore[method-assign]
