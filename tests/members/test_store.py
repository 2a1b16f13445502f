import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.plan import Plan
from hbr_fast.files import read_json
from hbr_fast.hardness import HardnessScores
from hbr_fast.loaders.augment import Augment
from hbr_fast.members import store
from hbr_fast.members.store import MEMBER_FILES, find_member, member_key, member_path, open_member, train_and_store
from hbr_fast.training import losses, trainer
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.recipes import named_recipe

HALF = Plan.of_rows(np.arange(60), provenance={"why": "half"})


def key(dataset: Dataset, recipe: Recipe, *, seed: int = 1, plan: Plan | None = None) -> str:
    return member_key(dataset, recipe, seed=seed, plan=plan)


def test_store_member_directory_contents(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    member = train_and_store(tiny, recipe, seed=1, plan=HALF, store=tmp_path)
    assert sorted(path.name for path in member.path.iterdir()) == sorted(
        [*MEMBER_FILES, "plan.safetensors", "member.json"]
    )
    assert [path.name for path in (tmp_path / "members").iterdir()] == [member.key]
    assert member.path == member_path(tmp_path, member.key)
    plain = train_and_store(tiny, recipe, seed=1, plan=None, store=tmp_path)
    assert sorted(path.name for path in plain.path.iterdir()) == sorted([*MEMBER_FILES, "member.json"])


def test_store_round_trip(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    stored = train_and_store(tiny, recipe, seed=4, plan=HALF, store=tmp_path)
    fresh = trainer.train_member(tiny, recipe, seed=4, plan=HALF)
    np.testing.assert_array_equal(stored.test_logits(), fresh.test_logits)
    for name in fresh.scores.values:
        np.testing.assert_array_equal(stored.scores().values[name], fresh.scores.values[name])
    weights = load_file(stored.path / "weights.safetensors")
    assert weights.keys() == fresh.weights.keys()
    assert all(torch.equal(weights[name], fresh.weights[name]) for name in weights)
    history = stored.history()
    assert history.columns == [field.name for field in dataclasses.fields(trainer.EpochRecord)]
    assert history["train_loss"].to_list() == [record.train_loss for record in fresh.history]
    assert Recipe.from_json(read_json(stored.path / "recipe.json")) == recipe
    again = Plan.load(stored.path / "plan.safetensors")
    assert again.content_hash() == HALF.content_hash()
    assert again.provenance == {"why": "half"}


def test_store_scores_record_provenance(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    stored = train_and_store(tiny, recipe, seed=4, plan=None, store=tmp_path)
    origin = stored.scores().provenance
    assert (origin["dataset"], origin["seed"], origin["key"]) == (tiny.fingerprint, 4, stored.key)
    assert Recipe.from_json(origin["recipe"]) == recipe
    assert (origin["epochs"], origin["el2n_epochs"]) == (recipe.epochs, recipe.el2n_epochs)
    assert stored.seed == 4
    assert stored.info["precision"] == "float32"


# One different value for every field of a recipe; all but the name change the training.
OTHER: dict[str, Any] = {
    "name": "renamed",
    "model": "cnn-4",
    "epochs": 3,
    "batch_size": 49,
    "lr": 0.06,
    "momentum": 0.8,
    "weight_decay": 1e-4,
    "schedule": "step",
    "milestones": (1,),
    "decay": 0.3,
    "warmup": 0.3,
    "label_smoothing": 0.1,
    "augment": Augment(flip=0.5, pad=1, cutout=2),
    "size": 16,
    "el2n_epochs": 1,
    "online_every": 1,
    "online_alpha": 0.5,
    "online_max_change": 0.1,
    "precision": "bfloat16",
    "optimizer": "torch.optim:SGD",
    "loss": "torch.nn.functional:multi_margin_loss",
    "model_args": {"width": 2},
    "optimizer_args": {"nesterov": True},
    "schedule_args": {"warmup": 0.4},
    "loss_args": {"label_smoothing": 0.2},
    "weights": __file__,  # any file: a key hashes its content
    "no_decay": "norm-and-bias",
    "norm_bias_lr": 8.0,
    "clip_norm": 1.0,
    "accumulate": 2,
    "ema": 0.9,
    "mixup": 0.2,
    "cutmix": 1.0,
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Recipe)])
def test_trap_18_every_training_field_changes_the_key(tiny: Dataset, recipe: Recipe, field: str) -> None:
    changed = dataclasses.replace(recipe, **{field: OTHER[field]})
    assert (key(tiny, changed) == key(tiny, recipe)) == (field == "name")


# Keys of the members that these recipes trained before recipes named components.
GOLDEN = {
    "quickstart": "7e444a3494628340937f",
    "small-cnn": "4e7d5e4971d7f325824a",
    "paper-resnet18": "f1f05e77d9a96b040fec",
    "fast-resnet18": "942d3e545d575d88f113",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_member_key_of_a_named_recipe_is_golden(tiny: Dataset, name: str) -> None:
    dataset = dataclasses.replace(tiny, fingerprint="f" * 64)
    recipe = dataclasses.replace(named_recipe(name), precision="float32")
    assert key(dataset, recipe, seed=7) == GOLDEN[name]
    augment = {"flip": recipe.augment.flip, "pad": recipe.augment.pad}
    before = {field: value for field, value in recipe.to_json().items() if field != "augment"} | augment
    assert key(dataset, Recipe.from_json(before), seed=7) == GOLDEN[name], "read from an old recipe.json"


@pytest.mark.parametrize(
    "augment",
    [
        {"flip": 0.25},
        {"pad": 3},
        {"cutout": 2},
        {"padding": "edge"},
        {"resized_crop": (0.5, 1), "pad": 0},
        {"keyed_by": "sample"},
    ],
)
def test_trap_18_every_augmentation_changes_the_key(tiny: Dataset, recipe: Recipe, augment: dict[str, Any]) -> None:
    changed = dataclasses.replace(recipe, augment=dataclasses.replace(recipe.augment, **augment))
    assert key(tiny, changed) != key(tiny, recipe)


def test_trap_18_loss_rounding_for_many_classes_changes_the_key(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(tiny, recipe)
    monkeypatch.setattr(losses, "FUSED_CLASSES_ON_CPU", 3)
    assert key(tiny, recipe) != before


def test_trap_18_seed_plan_and_data_change_the_key(tiny: Dataset, other: Dataset, recipe: Recipe) -> None:
    reordered = Plan.of_rows(np.arange(60)[::-1])
    keys = [
        key(tiny, recipe),
        key(tiny, recipe, seed=2),
        key(tiny, recipe, plan=HALF),
        key(tiny, recipe, plan=reordered),
        key(other, recipe),
    ]
    assert len(set(keys)) == len(keys)
    assert key(tiny, recipe, plan=Plan.of_rows(np.arange(60))) == keys[2], "provenance trains nothing"
    assert key(tiny, recipe) == keys[0], "the key is a pure function"


def test_trap_18_unresolved_precision_has_no_key(tiny: Dataset, recipe: Recipe) -> None:
    with pytest.raises(AssertionError, match="the precision must be resolved"):
        key(tiny, dataclasses.replace(recipe, precision="auto"))


def test_trap_18_new_numerics_number_retires_old_results(
    tiny: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(tiny, recipe)
    monkeypatch.setattr(store, "NUMERICS", store.NUMERICS + 1)
    assert key(tiny, recipe) != before


def test_store_finds_member_only_by_same_arguments(
    tiny: Dataset, other: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    stored = train_and_store(tiny, recipe, seed=1, plan=None, store=tmp_path)
    found = find_member(tiny, dataclasses.replace(recipe, name="x"), seed=1, plan=None, store=tmp_path)
    assert found == stored
    assert find_member(tiny, recipe, seed=2, plan=None, store=tmp_path) is None
    assert find_member(tiny, recipe, seed=1, plan=HALF, store=tmp_path) is None
    assert find_member(other, recipe, seed=1, plan=None, store=tmp_path) is None
    assert find_member(tiny, recipe, seed=1, plan=None, store=tmp_path / "elsewhere") is None


@pytest.mark.parametrize("crash", [OSError("no space left"), KeyboardInterrupt()])
def test_trap_18_crash_before_scores_leaves_nothing_and_next_run_retrains(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: BaseException
) -> None:
    seen = []

    def save(self: HardnessScores, path: Path) -> None:
        seen.append((path.parent / "weights.safetensors").exists())
        raise crash

    with monkeypatch.context() as patch:
        patch.setattr(HardnessScores, "save", save)
        with pytest.raises(type(crash)):
            train_and_store(tiny, recipe, seed=1, plan=None, store=tmp_path)
    assert seen == [True], "the crash came after the model was written"
    assert list((tmp_path / "members").iterdir()) == []
    assert find_member(tiny, recipe, seed=1, plan=None, store=tmp_path) is None
    stored = train_and_store(tiny, recipe, seed=1, plan=None, store=tmp_path)
    assert len(stored.scores()) == 120


@pytest.mark.parametrize("name", [*MEMBER_FILES, "plan.safetensors"])
@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "missing"])
def test_store_names_damaged_file(tiny: Dataset, recipe: Recipe, tmp_path: Path, name: str, damage: str) -> None:
    stored = train_and_store(tiny, recipe, seed=1, plan=HALF, store=tmp_path)
    file = stored.path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped bit" else content[:-1])
    message = f"{re.escape(str(file))} is missing or damaged: remove .*{stored.key} and train the member again"
    with pytest.raises(ValueError, match=message) as caught:
        find_member(tiny, recipe, seed=1, plan=HALF, store=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"member\.json is not valid JSON"),
        ("{}", r"member\.json is not of member .* and schema 1: remove"),
        ("[]", r"member\.json is not of member"),
        ('{"schema": 2, "key": "KEY", "seed": 1, "files": {}}', r"member\.json is not of member"),
        ('{"schema": 1, "key": "another", "seed": 1, "files": {}}', r"member\.json is not of member"),
        (
            '{"schema": 1, "key": "KEY", "seed": 1}',
            "field precision is missing .*; field files is missing or not a dict",
        ),
    ],
)
def test_store_names_damaged_member_json(
    tiny: Dataset, recipe: Recipe, tmp_path: Path, content: str, message: str
) -> None:
    stored = train_and_store(tiny, recipe, seed=1, plan=None, store=tmp_path)
    (stored.path / "member.json").write_text(content.replace("KEY", stored.key))
    with pytest.raises(ValueError, match=message):
        open_member(tmp_path, stored.key)


def test_store_names_directory_of_missing_member(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"members/abc holds no finished member"):
        open_member(tmp_path, "abc")


def test_member_json_lists_the_checksum_of_every_file(tiny: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    stored = train_and_store(tiny, recipe, seed=1, plan=HALF, store=tmp_path)
    info = json.loads((stored.path / "member.json").read_text())
    assert set(info["files"]) == {path.name for path in stored.path.iterdir()} - {"member.json"}
    assert info["dataset"] == tiny.fingerprint
    assert {"python", "torch", "numpy", "numba"} <= set(info["versions"])
    assert isinstance(stored.history(), pl.DataFrame)
