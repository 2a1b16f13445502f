"""The replaceable components of a recipe: model, optimiser, schedule, loss.

A component is a function, and a recipe holds its name: a built-in one (the tables below: a new one is one function and
one line here), a model of a library (`torchvision:resnet50`, `timm:convnext_tiny`), or `package.module:function`. It is
called with the positional arguments of its kind, and by keyword with those fields of the recipe that it has a parameter
for and with the recipe's arguments for it:

| kind | called with | fields of the recipe | arguments | returns |
|---|---|---|---|---|
| model | image_shape (C, H, W), num_classes | none | `model_args` | module: images [B, C, H, W] to logits |
| optimizer | parameters or groups of them | lr, momentum, weight_decay | `optimizer_args` | `torch.optim.Optimizer` |
| schedule | step, steps_per_epoch | epochs, milestones, decay, warmup | `schedule_args` | factor of the learning rate |
| loss | logits [B, classes], labels [B] | label_smoothing | `loss_args` | mean loss [] |

A loss with a parameter `class_counts` also gets the training samples of each class (float [C]).

Components are names, not objects: names cross processes and machines, and a member's key hashes them. Nothing heavy is
imported until a component is used, since recipes import this file. `hbr_fast.training.build` calls them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hbr_fast.arguments import did_you_mean
from hbr_fast.functions import function_named, function_version, is_function_name
from hbr_fast.training import losses, optimizers, schedules

if TYPE_CHECKING:
    from hbr_fast.training.recipe import Recipe

BUILT_IN: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "model": {},  # those of `models.networks` have numbers in their names
    "optimizer": {"sgd": optimizers.sgd, "adamw": optimizers.adamw, "muon": optimizers.muon},
    "schedule": {
        "step": schedules.step_decay,
        "triangular": schedules.triangular,
        "cosine": schedules.cosine,
        "constant": schedules.constant,
    },
    "loss": {
        "cross-entropy": losses.cross_entropy,
        "focal": losses.focal,
        "balanced-softmax": losses.balanced_softmax,
        "logit-adjusted": losses.logit_adjusted,
    },
}
LIBRARIES = ("torchvision", "timm")  # of models, each a function in `models.libraries`
FIELDS: Mapping[str, tuple[str, ...]] = {
    "model": (),
    "optimizer": ("lr", "momentum", "weight_decay"),
    "schedule": ("epochs", "milestones", "decay", "warmup"),
    "loss": ("label_smoothing",),
}
# Arguments that come from the training instead of the recipe.
_FROM_TRAINING: Mapping[str, tuple[str, ...]] = {"loss": ("class_counts",)}
# Positional arguments of each kind.
_POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "model": ("image_shape", "num_classes"),
    "optimizer": ("parameters",),
    "schedule": ("step", "steps_per_epoch"),
    "loss": ("logits", "labels"),
}


def component(kind: str, recipe: Recipe, **from_training: Any) -> Callable[..., Any]:
    """The function that a recipe names for a kind, with its keyword arguments bound.

    Parameters
    ----------
    kind : str
        "model", "optimizer", "schedule" or "loss".
    recipe : Recipe
    **from_training
        For a loss, `class_counts`; passed on if the function has such a parameter.

    Raises
    ------
    ValueError
        If there is no such function, or arguments do not fit it; the message shows its signature.
    """
    function = named(kind, getattr(recipe, kind))
    arguments = keyword_arguments(kind, recipe, function)
    own = getattr(recipe, f"{kind}_args")
    arguments |= {name: value for name, value in from_training.items() if name in arguments and name not in own}
    return functools.partial(function, **arguments)


def is_name(kind: str, name: str) -> bool:
    """Whether a name is a built-in component, or has the form of a user-defined one."""
    return is_function_name(name) if ":" in name else kind == "model" or name in BUILT_IN[kind]


def named(kind: str, name: str) -> Callable[..., Any]:
    """The function that a name stands for.

    Parameters
    ----------
    kind : str
        "model", "optimizer", "schedule" or "loss".
    name : str
        One of `BUILT_IN`, or `package.module:function`, which is imported.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> named("schedule", "triangular").__name__
    'triangular'
    >>> named("optimizer", "torch.optim:AdamW").__name__
    'AdamW'
    """
    if name in BUILT_IN[kind]:
        return BUILT_IN[kind][name]
    if ":" not in name or not is_name(kind, name):
        raise ValueError(
            f"unknown {kind} {name!r}: available are {available(kind)}{did_you_mean(BUILT_IN[kind], name)}"
        )
    module, _, path = name.partition(":")
    if kind == "model" and module in LIBRARIES:
        from hbr_fast.training.models import libraries

        of_library: Callable[..., Any] = getattr(libraries, f"{module}_model")
        return functools.partial(of_library, path)
    return function_named(kind, name)


def available(kind: str) -> str:
    """The names that a kind has, in words."""
    own = (
        "resnet18, cnn-W-W-..., vgg-W-W-..., whitened-W-W-..., whitened2-W-W-..., torchvision:NAME, timm:NAME"
        if kind == "model"
        else None
    )
    libraries = " (torch.optim:Adam, ...)" if kind == "optimizer" else ""
    return f"{own or ', '.join(BUILT_IN[kind])} and package.module:function{libraries}"


def check(recipe: Recipe) -> None:
    """Raise all errors in the components of a recipe, without calling any.

    Raises
    ------
    ValueError
    """
    faults = []
    for kind in FIELDS:
        try:
            if kind != "model" or ":" in recipe.model:
                component(kind, recipe)
        except ValueError as error:
            faults.append(str(error))
    if recipe.augment.transform and not _is_torchvisions(recipe):
        try:
            function_named("transform", recipe.augment.transform)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))


def sources(recipe: Recipe) -> dict[str, str]:
    """What a member's key holds of components besides their names: versions of those that users define.

    The version is the function's `__version__` if it declares one, else the SHA-256 of the file that defines it;
    what that file imports does not count. Of the weights to start from, the SHA-256 of the file.

    Raises
    ------
    ValueError
        If a function has neither.
    FileNotFoundError
        If the file of weights does not exist.
    """
    found = {}
    for kind in FIELDS:
        name = getattr(recipe, kind)
        if ":" not in name or name.partition(":")[0].partition(".")[0] in ("torch", *LIBRARIES):
            continue
        function = named(kind, name)
        found[kind] = function_version(kind, name, function)
    if (transform := recipe.augment.transform) and not _is_torchvisions(recipe):
        found["transform"] = function_version("transform", transform, function_named("transform", transform))
    if recipe.weights:
        from hbr_fast.training.models.start_weights import weights_hash

        found["weights"] = weights_hash(recipe.weights)
    return found


def changed(recipe: Recipe, then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which components of a recipe have other `sources` now than then, in words; empty if none has."""
    kinds = sorted(kind for kind in {**then, **now} if then.get(kind) != now.get(kind))
    names = {kind: recipe.augment.transform if kind == "transform" else getattr(recipe, kind) for kind in kinds}
    return "; ".join(f"{kind} {names[kind]!r} ({then.get(kind)}, now {now.get(kind)})" for kind in kinds)


def _is_torchvisions(recipe: Recipe) -> bool:
    return recipe.augment.transform.startswith("torchvision:")


def keyword_arguments(kind: str, recipe: Recipe, function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments of a component: recipe fields that it has a parameter for, then its own arguments.

    What comes from the training is None here.

    Raises
    ------
    ValueError
        If a changed field or an argument does not fit the function; the message shows its signature.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        raise ValueError(
            f"{kind} {getattr(recipe, kind)!r} has no signature to find its parameters in: wrap it in a function"
        ) from None
    keywords = {
        name
        for name, one in signature.parameters.items()
        if one.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    ignored = [
        f"{name}={getattr(recipe, name)!r}"
        for name in FIELDS[kind]
        if kind != "schedule" and name not in keywords and getattr(recipe, name) != getattr(type(recipe), name)
    ]
    if ignored:
        raise ValueError(
            f"{kind} {getattr(recipe, kind)!r} would ignore the recipe's {', '.join(ignored)}: leave it out"
        )
    own = getattr(recipe, f"{kind}_args")
    if kind == "optimizer" and "lr" in own:  # schedules and records are about the field
        raise ValueError(f"optimizer_args cannot have lr={own['lr']!r}: set the recipe's lr")
    arguments = {name: getattr(recipe, name) for name in FIELDS[kind] if name in keywords}
    arguments |= dict.fromkeys(keywords.intersection(_FROM_TRAINING.get(kind, ()))) | dict(own)
    try:
        signature.bind(*_POSITIONAL[kind], **arguments)
    except TypeError as error:
        raise ValueError(
            f"{kind} {getattr(recipe, kind)!r} is called with ({', '.join(_POSITIONAL[kind])}; {_listed(arguments)}), "
            f"but its signature is {signature} ({error}): change {kind}_args or the function"
        ) from None
    return arguments


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "nothing by keyword"
