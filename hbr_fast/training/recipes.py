"""The named recipes.

This file imports nothing heavy: the command line reads it to show its help.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from hbr_fast.arguments import did_you_mean
from hbr_fast.loaders.augment import Augment
from hbr_fast.training.recipe import Recipe, changed_recipe


def quickstart() -> Recipe:
    """Fashion-MNIST on two cores in well under a minute per member."""
    return Recipe(name="quickstart", model="vgg-32-64", epochs=4, lr=0.1, schedule="triangular")


def small_cnn() -> Recipe:
    """A plain small network with time to converge: minutes per member on two cores."""
    return Recipe(
        name="small-cnn",
        model="cnn-32-64-128",
        epochs=12,
        lr=0.1,
        schedule="triangular",
        augment=Augment(flip=0.5, pad=2),
    )


def paper_resnet18() -> Recipe:
    """The training protocol of Pukowski & Osmani, arXiv 2504.07031 (method, section 1)."""
    return Recipe(
        name="paper-resnet18",
        model="resnet18",
        epochs=200,
        milestones=(60, 120, 160),
        augment=Augment(flip=0.5, pad=4),
    )


def fast_resnet18() -> Recipe:
    """The paper's network in a tenth of its epochs: one rise and fall of the rate, batches four times as large.

    For tens of thousands of images; a few thousand leave it too few updates (measured: docs/ensembles.md).
    """
    return Recipe(
        name="fast-resnet18",
        model="resnet18",
        epochs=20,
        batch_size=512,
        lr=0.4,  # four times the paper's, as the batch is
        schedule="triangular",
        augment=Augment(flip=0.5, pad=4),
    )


def cifar_fast() -> Recipe:
    """CIFAR-10 in 3.7e14 floating-point operations a member, after Jordan 2024, arXiv 2404.00498 (airbench).

    A whitened first layer at full resolution, orthogonalised updates, a high rate for biases of norms, images mirrored
    in turn; evaluated on both mirror images. Measured: docs/cifar-10.md.
    """
    return Recipe(
        name="cifar-fast",
        model="whitened2-64-256-256",
        epochs=11,
        batch_size=500,
        optimizer="muon",
        optimizer_args={"kernel_lr": 0.09, "kernel_momentum": 0.75},
        lr=0.3,
        momentum=0.85,
        weight_decay=0.0033,
        norm_bias_lr=64.0,
        schedule="triangular",
        warmup=0.0,
        label_smoothing=0.2,
        augment=Augment(flip=0.5, alternating_flip=True, pad=2, padding="reflect"),
    )


def cifar_quick() -> Recipe:
    """A narrower `cifar-fast` in 1.1e14 operations, for studies."""
    return dataclasses.replace(cifar_fast(), name="cifar-quick", model="whitened2-48-128-128", epochs=9)


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "quickstart": quickstart,
    "small-cnn": small_cnn,
    "paper-resnet18": paper_resnet18,
    "fast-resnet18": fast_resnet18,
    "cifar-fast": cifar_fast,
    "cifar-quick": cifar_quick,
}


def named_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A named recipe, with single fields changed.

    Parameters
    ----------
    name : str
        One of `RECIPES`.
    overrides : sequence of "field=value"
        E.g. `["epochs=3", "milestones=10,20", "augment.cutout=8"]`; dicts as JSON, "none" for optional fields.

    Raises
    ------
    ValueError
        If the recipe or fields are unknown or values do not fit their fields; the message names all of them.

    Examples
    --------
    >>> recipe = named_recipe("small-cnn", ["epochs=3", "augment.cutout=8"])
    >>> (recipe.model, recipe.epochs, recipe.augment.cutout)
    ('cnn-32-64-128', 3, 8)
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: available are {', '.join(RECIPES)}{did_you_mean(RECIPES, name)}")
    return changed_recipe(RECIPES[name](), overrides)
