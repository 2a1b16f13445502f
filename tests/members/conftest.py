"""The dataset and recipe of `tests/training`, also with one thread."""

from training.conftest import _one_thread, other, recipe, tiny, tiny_path

__all__ = ["_one_thread", "other", "recipe", "tiny", "tiny_path"]
