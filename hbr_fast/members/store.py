"""The member store: every member is one directory, named by the hash of all that determines its training.

So any request for the same training finds the finished member, and can never mistake it for another. A member's
directory appears complete, by one rename, once everything in it is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import polars as pl
import torch

from hbr_fast import progress
from hbr_fast.csv_files import read_csv
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.npy import read_npy
from hbr_fast.data.plan import Plan
from hbr_fast.data.pool import Pool
from hbr_fast.files import DISK_FULL, atomic_directory, content_hash, sha256_of_file, write_json
from hbr_fast.hardness import HardnessScores
from hbr_fast.json_schema import Natural, read_sealed_json, require_schema, write_sealed_json
from hbr_fast.machine import cpu_name, versions
from hbr_fast.members.telemetry import OnEpoch
from hbr_fast.training import components, losses
from hbr_fast.training.checkpoint import CheckpointEvery, Checkpoints
from hbr_fast.training.device import Compute, device_name, resolve_precision
from hbr_fast.training.distributed import ranks
from hbr_fast.training.member import Diverged, Member
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.trainer import train_member

SCHEMA = 1
# Raised when the same recipe, seed and data would give different results; CHANGELOG names each step.
NUMERICS = 2
KEY_DIGITS = 20
MEMBERS, CHECKPOINTS = "members", "checkpoints"  # directories of the store; the second exists while members train

MEMBER_FILES = ("weights.safetensors", "hardness.safetensors", "logits.npy", "history.csv", "recipe.json")
EMA_FILES = ("ema_weights.safetensors", "ema_logits.npy")  # of members whose recipe has a moving average


class _Info(TypedDict):
    """`member.json`, beside its schema and key."""

    seed: Natural
    precision: Literal["float32", "bfloat16"]
    components: NotRequired[dict]
    files: dict[str, str]


@dataclass(frozen=True)
class StoredMember:
    """A finished member: its directory and what `member.json` says."""

    path: Path
    info: dict[str, Any]

    def __repr__(self) -> str:
        return f"<StoredMember {self.key[:12]}: seed {self.seed}, {self.info['precision']}, {self.path}>"

    @property
    def key(self) -> str:
        """Hash of what determined the training."""
        return str(self.info["key"])

    @property
    def seed(self) -> int:
        """The member's seed."""
        return int(self.info["seed"])

    @property
    def dtype(self) -> torch.dtype:
        """The number format that its convolutions were trained in."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.info["precision"]]

    def scores(self) -> HardnessScores:
        """Hardness by this member."""
        return HardnessScores.load(self.path / "hardness.safetensors")

    def test_logits(self) -> np.ndarray:
        """Logits of the test split: float32 [N_test, C]."""
        return read_npy(self.path / "logits.npy", dtype=np.float32, remedy=f"remove {self.path} and train it again")

    def ema_test_logits(self) -> np.ndarray | None:
        """Logits of the test split by the moving average of the weights, float32 [N_test, C]; None without one."""
        if EMA_FILES[1] not in self.info["files"]:
            return None
        return read_npy(self.path / EMA_FILES[1], dtype=np.float32, remedy=f"remove {self.path} and train it again")

    def history(self) -> pl.DataFrame:
        """One row per epoch: rate, loss, accuracy, seconds, images per second."""
        columns = {"epoch": pl.Int64, "seconds": pl.Float64, "images_per_second": pl.Float64}
        return read_csv(self.path / "history.csv", columns, remedy=f"remove {self.path} and train it again")


def find_member(dataset: Dataset, recipe: Recipe, *, seed: int, plan: Plan | None, store: Path) -> StoredMember | None:
    """The finished member that these arguments determine, or None if it is not in the store.

    As everywhere below, the recipe's precision must be resolved (`hbr_fast.training.device.resolve_precision`).

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
    """Train a member and store it under `store/members/`, completely or not at all.

    Unfinished work is saved under `store/checkpoints/` as often as `checkpoint` says, and resumed from there.
    """
    recipe = resolve_precision(recipe, (compute or Compute()).resolved())
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


def member_key(dataset: Dataset, recipe: Recipe, *, seed: int, plan: Plan | None) -> str:
    """Hash of everything that determines a training: 20 hex digits."""
    return content_hash(what_determines(dataset, recipe, seed=seed, plan=plan))[:KEY_DIGITS]


def what_determines(dataset: Dataset, recipe: Recipe, *, seed: int, plan: Plan | None) -> dict[str, Any]:
    """Everything that determines a training, as JSON values.

    The device and the numbers of threads and processes do not count, though they change the rounding of sums;
    `member.json` records them. Nor does the recipe's name. Its precision counts, and must be resolved for the device
    that trains. User-defined functions count by their names, arguments and versions (`components.sources`).
    """
    return {
        "numerics": NUMERICS,
        "dataset": dataset.fingerprint,
        "recipe": recipe.identity(),
        "seed": seed,
        "plan": plan.content_hash() if plan is not None else None,
        # Of the loss: its gradient is rounded differently if it records in the same pass.
        **({"one_pass": True} if losses.is_one_pass(recipe, classes=len(dataset.classes)) else {}),
        **({"components": found} if (found := components.sources(recipe)) else {}),
    }


def member_path(store: Path, key: str) -> Path:
    """The directory of a member with this key."""
    return store / MEMBERS / key


def checkpoint_path(store: Path, key: str) -> Path:
    """The checkpoint of a member with this key while it trains."""
    return store / CHECKPOINTS / f"{key}.safetensors"


def open_member(store: Path, key: str) -> StoredMember:
    """A finished member.

    Raises
    ------
    FileNotFoundError, ValueError
        If it does not exist, or one of its files is missing or does not have the bytes that were written.
    """
    path = member_path(store, key)
    if not (path / "member.json").is_file():
        raise FileNotFoundError(f"{path} holds no finished member: remove the directory and train it again")
    remedy = f"remove {path} and train it again"
    info = read_sealed_json(path / "member.json", remedy=remedy)
    known = isinstance(info, dict) and info.get("schema") == SCHEMA and info.get("key") == key
    if not known:
        raise ValueError(f"{path / 'member.json'} is not of member {key} and schema {SCHEMA}: {remedy}")
    require_schema(info, _Info, where=str(path / "member.json"), remedy=remedy)
    for name, checksum in {**dict.fromkeys(MEMBER_FILES, ""), **info["files"]}.items():
        file = path / Path(name).name
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
        if not path.exists():  # else another process finished the same training first
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
        if member.ema_weights is not None and member.ema_test_logits is not None:
            averaged = {name: tensor.contiguous() for name, tensor in member.ema_weights.items()}
            (directory / EMA_FILES[0]).write_bytes(save(averaged))
            np.save(directory / EMA_FILES[1], member.ema_test_logits, allow_pickle=False)
            names += EMA_FILES
        if plan is not None:
            plan.save(directory / "plan.safetensors")
            names.append("plan.safetensors")
        checksums = {name: sha256_of_file(directory / name) for name in names}
        write_sealed_json(directory / "member.json", {"schema": SCHEMA, **info, "files": checksums})


def _origin(dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    return {
        "dataset": dataset.fingerprint,
        "precision": recipe.precision,
        "components": components.sources(recipe),
        "threads": torch.get_num_threads(),
        "processes": ranks().size,
        "versions": versions(),
        "processor": cpu_name(),
    }
