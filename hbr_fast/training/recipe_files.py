"""Recipes from files: TOML or JSON, with the fields of `Recipe`; a run's own `recipe.json` is one."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path

from hbr_fast.files import read_json
from hbr_fast.training.recipe import Recipe, changed_recipe
from hbr_fast.training.recipes import named_recipe

SUFFIXES = (".toml", ".json")


def recipe_of(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or from a file, with single fields changed; see `named_recipe`."""
    if Path(name).suffix in SUFFIXES:
        return changed_recipe(read_recipe(name), overrides)
    return named_recipe(name, overrides)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a file, TOML or JSON by its suffix.

    Parameters
    ----------
    path : path
        Fields as in `Recipe`, `augment` a table of its own; `name` is by default that of the file.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it does not hold a recipe; the message names all unknown fields.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "mine.toml"
    ...     _ = file.write_text('model = "resnet18"\\nepochs = 30\\n[augment]\\nflip = 0.5\\n')
    ...     recipe = read_recipe(file)
    >>> recipe.name, recipe.epochs, recipe.augment.flip
    ('mine', 30, 0.5)
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"a recipe file is .toml or .json, got {file}")
    if not file.is_file():
        raise FileNotFoundError(f"there is no recipe file {file}")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8")) if file.suffix == ".toml" else read_json(file)
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not an object")
        return Recipe.from_json({"name": file.stem, **values})
    except (ValueError, RecursionError) as error:  # of JSON, TOML or UTF-8 too
        raise ValueError(f"{file} is not a recipe: {error}") from None
