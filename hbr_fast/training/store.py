"""The member store: every member is one directory, named by the hash of all that determines its training.

So a finished member is found again by whoever asks for the same training, and can never be taken for another one. A
member's directory appears whole, by one rename, when everything in it is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.pool import Pool
from hbr_fast.files import DISK_FULL, atomic_directory, content_hash, read_json, sha256_of_file, write_json
from hbr_fast.hardness import HardnessScores
from hbr_fast.machine import cpu_name, versions
from hbr_fast.plan import Plan
from hbr_fast.training.checkpoint import CheckpointEvery, Checkpoints
from hbr_fast.training.device import Compute, device_name
from hbr_fast.training.distributed import ranks
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.stacked import StackedMember, train_stacked
from hbr_fast.training.telemetry import OnEpoch
from hbr_fast.training.trainer import Diverged, Member, compute_dtype, train_member

SCHEMA = 1
# Raised when the same recipe, seed and data would train to other numbers; CHANGELOG names each step.
NUMERICS = 2
KEY_DIGITS = 20
MEMBERS, CHECKPOINTS = "members", "checkpoints"  # directories of the store; the second is there while members train

MEMBER_FILES = ("weights.safetensors", "hardness.safetensors", "logits.npy", "history.csv", "recipe.json")


@dataclass(frozen=True)
class StoredMember:
    """A finished member: its directory and what `member.json` says."""

    path: Path
    info: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of what determined the training."""
        return str(self.info["key"])

    @property
    def seed(self) -> int:
        """The member's seed."""
        return int(self.info["seed"])

    def scores(self) -> HardnessScores:
        """Hardness by this member."""
        return HardnessScores.load(self.path / "hardness.safetensors")

    def test_logits(self) -> np.ndarray:
        """Logits of the test split: float32 [N_test, C]."""
        return np.load(self.path / "logits.npy", allow_pickle=False)

    def history(self) -> pl.DataFrame:
        """One row an epoch: rate, loss, accuracy, seconds, images a second."""
        return pl.read_csv(self.path / "history.csv")


def find_member(dataset: Dataset, recipe: Recipe, *, seed: int, plan: Plan | None, store: Path) -> StoredMember | None:
    """The finished member that these arguments determine, or None where it is not in the store.

    Raises
    ------
    ValueError
        If it is there but damaged.
    """
    key = member_key(dataset, recipe, seed=seed, plan=plan)
    return open_member(store, key) if member_path(store, key).exists() else None


def train_and_store(
    dataset: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    plan: Plan | None,
    pools: Sequence[Pool] = (),
    store: Path,
    advance: progress.Advance | None = None,
    on_epoch: OnEpoch | None = None,
    checkpoint: CheckpointEvery | None = None,
    compute: Compute | None = None,
) -> StoredMember:
    """Train a member and keep it under `store/members/`, whole or not at all.

    What is not finished yet is kept under `store/checkpoints/` as often as `checkpoint` says, and taken up from there.
    """
    key, provenance, checkpoints = _begin(dataset, recipe, seed=seed, plan=plan, store=store, checkpoint=checkpoint)
    try:
        member = train_member(
            dataset,
            recipe,
            seed=seed,
            plan=plan,
            pools=pools,
            provenance=provenance,
            advance=advance,
            on_epoch=on_epoch,
            checkpoints=checkpoints,
            compute=compute,
        )
    except Diverged:
        if ranks().first:
            checkpoints.remove()
        raise
    info = {"key": key, "seed": seed, **_origin(dataset, recipe), "device": device_name(compute)}
    with ranks().agreed():
        if ranks().first:
            _keep_member(member_path(store, key), member, recipe=recipe, plan=plan, info=info)
            checkpoints.remove()
    return open_member(store, key)


def train_and_store_stacked(
    dataset: Dataset,
    members: Sequence[StackedMember],
    *,
    store: Path,
    checkpoint: CheckpointEvery | None = None,
) -> list[Diverged | None]:
    """Train members as one network and keep them as `train_and_store` does; for each, the error where it diverged."""
    begun = []
    for member in members:
        key, provenance, checkpoints = _begin(
            dataset, member.recipe, seed=member.seed, plan=member.plan, store=store, checkpoint=checkpoint
        )
        begun.append((key, checkpoints, dataclasses.replace(member, provenance=provenance, checkpoints=checkpoints)))
    outcomes = train_stacked(dataset, [member for _, _, member in begun])
    for (key, checkpoints, member), outcome in zip(begun, outcomes, strict=True):
        if isinstance(outcome, Member):
            info = {
                "key": key,
                "seed": member.seed,
                **_origin(dataset, member.recipe),
                "device": "cpu",
                "stacked": len(members),
            }
            _keep_member(member_path(store, key), outcome, recipe=member.recipe, plan=member.plan, info=info)
        checkpoints.remove()
    return [outcome if isinstance(outcome, Diverged) else None for outcome in outcomes]


def member_key(dataset: Dataset, recipe: Recipe, *, seed: int, plan: Plan | None) -> str:
    """Hash of everything that determines a training: 20 hex digits."""
    return content_hash(what_determines(dataset, recipe, seed=seed, plan=plan))[:KEY_DIGITS]


def what_determines(dataset: Dataset, recipe: Recipe, *, seed: int, plan: Plan | None) -> dict[str, Any]:
    """Everything that determines a training, as JSON values.

    Which device, how many threads and processes compute does not count, nor whether members are stacked, though it
    changes the rounding of sums; `member.json` names them. The recipe's name and its `precision="auto"` do not count,
    but the precision that this machine makes of it does.
    """
    return {
        "numerics": NUMERICS,
        "dataset": dataset.fingerprint,
        "recipe": {**recipe.to_json(), "name": None, "precision": str(compute_dtype(recipe))},
        "seed": seed,
        "plan": plan.content_hash() if plan is not None else None,
    }


def member_path(store: Path, key: str) -> Path:
    """Where a member of that key is kept."""
    return store / MEMBERS / key


def checkpoint_path(store: Path, key: str) -> Path:
    """Where a member of that key is kept while it trains."""
    return store / CHECKPOINTS / f"{key}.safetensors"


def open_member(store: Path, key: str) -> StoredMember:
    """A finished member.

    Raises
    ------
    FileNotFoundError, ValueError
        If it is not there, or a file of it is missing or does not have the bytes that were written.
    """
    path = member_path(store, key)
    if not (path / "member.json").is_file():
        raise FileNotFoundError(f"{path} holds no finished member: remove the directory and train it again")
    info = read_json(path / "member.json")
    known = isinstance(info, dict) and info.get("schema") == SCHEMA and info.get("key") == key
    if not known or not isinstance(info.get("files"), dict) or "seed" not in info:
        raise ValueError(
            f"{path / 'member.json'} is not of member {key} and schema {SCHEMA}: remove {path} and train it again"
        )
    for name, checksum in info["files"].items():
        file = path / name
        if not file.is_file() or sha256_of_file(file) != checksum:
            raise ValueError(f"{file} is missing or damaged: remove {path} and train the member again")
    return StoredMember(path, info)


def _begin(
    dataset: Dataset, recipe: Recipe, *, seed: int, plan: Plan | None, store: Path, checkpoint: CheckpointEvery | None
) -> tuple[str, dict[str, Any], Checkpoints]:
    """The key of a training, where its scores come from, and its checkpoints."""
    determines = what_determines(dataset, recipe, seed=seed, plan=plan)
    key = content_hash(determines)[:KEY_DIGITS]
    provenance = {"dataset": dataset.fingerprint, "recipe": recipe.to_json(), "seed": seed, "key": key}
    return key, provenance, Checkpoints(checkpoint_path(store, key), determines, checkpoint or CheckpointEvery())


def _keep_member(path: Path, member: Member, *, recipe: Recipe, plan: Plan | None, info: dict[str, Any]) -> None:
    try:
        _write_member(path, member, recipe=recipe, plan=plan, info=info)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(f"no space left for {path}: free some and run the same again") from error
        if not path.exists():  # else another process had the same training to do and was faster
            raise


def _write_member(path: Path, member: Member, *, recipe: Recipe, plan: Plan | None, info: dict[str, Any]) -> None:
    from safetensors.torch import save

    with atomic_directory(path) as directory:
        weights = {name: tensor.contiguous() for name, tensor in member.weights.items()}
        (directory / "weights.safetensors").write_bytes(save(weights))
        member.scores.save(directory / "hardness.safetensors")
        np.save(directory / "logits.npy", member.test_logits, allow_pickle=False)
        pl.DataFrame([dataclasses.asdict(record) for record in member.history]).write_csv(directory / "history.csv")
        write_json(directory / "recipe.json", recipe.to_json())
        names = [*MEMBER_FILES]
        if plan is not None:
            plan.save(directory / "plan.safetensors")
            names.append("plan.safetensors")
        checksums = {name: sha256_of_file(directory / name) for name in names}
        write_json(directory / "member.json", {"schema": SCHEMA, **info, "files": checksums})


def _origin(dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    return {
        "dataset": dataset.fingerprint,
        "precision": str(compute_dtype(recipe)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": ranks().size,
        "versions": versions(),
        "processor": cpu_name(),
    }
