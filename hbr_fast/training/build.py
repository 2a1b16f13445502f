"""What the names of a recipe become: its model, optimiser and loss."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import torch
from torch import nn

from hbr_fast.data.dataset import Split
from hbr_fast.loaders.loader import Loader
from hbr_fast.seeding import Stream, spread_seed
from hbr_fast.training.components import component
from hbr_fast.training.losses import Loss, class_weights, has_one_pass_form, one_pass_form
from hbr_fast.training.models import networks
from hbr_fast.training.models.start_weights import load_start_weights
from hbr_fast.training.models.whitening import WhitenedPatches
from hbr_fast.training.optimizers import parameter_groups
from hbr_fast.training.recipe import Recipe

WHITENED = 2048  # images that the weights of a whitening layer come from


def build_model(recipe: Recipe, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The untrained network that a recipe names, with weights from torch's random state.

    Raises
    ------
    ValueError
        If there is no such network, it does not fit the images, or the function did not return one.
    """
    if ":" not in recipe.model:
        if recipe.model_args:
            given = ", ".join(f"{name}={value!r}" for name, value in recipe.model_args.items())
            raise ValueError(f"model {recipe.model!r} takes no model_args, got {given}")
        channels, *size = image_shape
        return networks.build_model(recipe.model, channels=channels, image_size=(size[0], size[1]), classes=num_classes)
    make = component("model", recipe)
    try:
        built = make(image_shape, num_classes)
    except MemoryError:
        raise
    except Exception as error:  # of third-party code, whose arguments may not fit
        what = str(error).partition("\n")[0]
        if isinstance(error, ValueError) and recipe.model in what:
            raise
        raise ValueError(
            f"model {recipe.model!r} cannot be made for images {list(image_shape)} and {num_classes} classes with "
            f"model_args {dict(recipe.model_args)}: {type(error).__name__}: {what}"
        ) from error
    if not isinstance(built, nn.Module):
        raise ValueError(f"model {recipe.model!r} must return a torch.nn.Module, got {type(built).__name__}")
    lazy = [name for name, one in built.named_parameters() if isinstance(one, nn.UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"model {recipe.model!r} has parameters whose size its first batch would decide ({', '.join(lazy)}): run a "
            "batch of zeros through it before it is returned"
        )
    return built


def initial_model(recipe: Recipe, split: Split, *, seed: int) -> nn.Module:
    """The network before training, for a seed and images like the split's, channels-last.

    Its weights are random, or those of the recipe's file; those of a whitening layer come from images of the split. The
    caller's random state is unchanged.

    Raises
    ------
    ValueError, FileNotFoundError
        See `build_model` and `load_start_weights`.
    """
    model = _random_model(recipe, split, seed=seed)
    whitened = [module for module in model.modules() if isinstance(module, WhitenedPatches)]
    if whitened:
        batch = next(iter(Loader(split, batch_size=min(WHITENED, len(split)), seed=seed).shard(0, 1)))
        for module in whitened:
            module.fit(batch.images)
    if recipe.weights:
        load_start_weights(model, recipe.weights, split.num_classes)
    return model.to(memory_format=torch.channels_last)


def untrained_model(recipe: Recipe, split: Split) -> nn.Module:
    """The network for trained weights to be loaded into; neither the recipe's file of weights nor images are read."""
    return _random_model(recipe, split, seed=0).to(memory_format=torch.channels_last)


def _random_model(recipe: Recipe, split: Split, *, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spread_seed(seed, Stream.INITIALISATION, 0))
        return build_model(recipe, split.image_shape, split.num_classes)


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser over the parameters of a model.

    Its groups keep their initial learning rates as "initial_lr", which the schedule multiplies.

    Raises
    ------
    ValueError
        If there is no such optimiser, the function did not return one, or it has other parameters than the model's.
    """
    own = {id(parameter) for parameter in model.parameters()}
    if not own:
        raise ValueError(f"model {recipe.model!r} has no parameters to train")
    make = component("optimizer", recipe)
    try:
        groups = parameter_groups(
            model,
            recipe.no_decay,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            norm_bias_lr=recipe.norm_bias_lr,
        )
        made = make(groups)
    except Exception as error:  # of third-party code
        raise ValueError(
            f"optimizer {recipe.optimizer!r} cannot be made with optimizer_args {dict(recipe.optimizer_args)}: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer {recipe.optimizer!r} must return a torch.optim.Optimizer, got {type(made).__name__}"
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer {recipe.optimizer!r} computes the loss several times a step (its step needs a closure), and "
            "hardness is of one: take another"
        )
    held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    if not held or held - own:
        what = f"{len(held - own)} that are not the model's" if held else "none"
        raise ValueError(
            f"optimizer {recipe.optimizer!r} must hold parameters of the model, but holds {what}: pass it the ones "
            "that it is called with"
        )
    for group in made.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return made


def make_loss(recipe: Recipe, *, class_counts: np.ndarray | None = None, device: torch.device | str = "cpu") -> Loss:
    """The recipe's loss.

    Parameters
    ----------
    recipe : Recipe
    class_counts : int [C], optional
        Training samples of each class, for losses that depend on them.
    device : torch.device
        Where the logits will be.

    Raises
    ------
    ValueError
        If there is no such loss, or its `class_weight` does not fit the classes.
    """
    counts = None if class_counts is None else torch.tensor(class_counts, dtype=torch.float32, device=device)
    mean = component("loss", recipe, class_counts=counts)
    assert isinstance(mean, functools.partial)
    if mean.keywords.get("class_weight") is not None:
        assert counts is not None, "class weights need the samples of each class"
        mean = functools.partial(mean, class_weight=class_weights(mean.keywords["class_weight"], counts))
    recording = one_pass_form(label_smoothing=mean.keywords["label_smoothing"]) if has_one_pass_form(recipe) else None
    return Loss(mean, recording)
