"""An ensemble in a run directory: `recipe.json`, `ensemble.json` and the members under `members/`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbr_fast.data.dataset import META, Dataset
from hbr_fast.data.pool import Pool
from hbr_fast.files import locked, make_directory, read_json, relative_path, write_json
from hbr_fast.hardness import HardnessScores, stack_scores
from hbr_fast.plan import Plan
from hbr_fast.seeding import member_seed
from hbr_fast.training.checkpoint import CheckpointEvery
from hbr_fast.training.cluster import Cluster
from hbr_fast.training.device import Compute
from hbr_fast.training.distributed import ranks
from hbr_fast.training.fit import check_fit
from hbr_fast.training.jobs import Training
from hbr_fast.training.parallel import MembersDiverged, obtain_members
from hbr_fast.training.recipe import Recipe
from hbr_fast.training.store import CHECKPOINTS, StoredMember, open_member

SCHEMA = 1


@dataclass(frozen=True)
class Ensemble:
    """Finished members of one training, that differ in their seeds."""

    members: tuple[StoredMember, ...]

    def scores(self) -> HardnessScores:
        """Hardness by all members, stacked in their order."""
        return stack_scores([member.scores() for member in self.members])


def train_ensemble(
    dataset: Dataset,
    recipe: Recipe,
    *,
    members: int,
    out: str | os.PathLike[str],
    seed: int = 0,
    plan: Plan | None = None,
    pools: Sequence[Pool] = (),
    members_at_once: int = 1,
    stacked: bool = False,
    cluster: Cluster | None = None,
    checkpoint: CheckpointEvery | None = None,
    tensorboard: bool = False,
    compute: Compute | None = None,
) -> Ensemble:
    """Train an ensemble into a run directory, or find what is there of it and train the rest.

    Parameters
    ----------
    dataset : Dataset
    recipe : Recipe
    members : int
        Number of members, at least 1.
    out : path
        The run directory: `recipe.json`, `ensemble.json` and one directory a member under `members/`.
    seed : int
        Of the ensemble; member m trains with `member_seed(seed, m)`.
    plan : Plan, optional
        Rows of the train split that make an epoch; by default each sample once.
    pools : sequence of Pool
        Where a plan's generated images are.
    members_at_once, stacked, cluster, checkpoint, tensorboard, compute
        See `hbr_fast.training.parallel.obtain_members`.

    Raises
    ------
    ValueError
        If an argument is out of range, or `out` is the run directory of another recipe or dataset.
    BlockingIOError
        If another process trains into `out`.
    MembersDiverged
        If trainings diverge. The others are finished first, and are the ensemble; `ensemble.json` lists which failed.
    """
    if members < 1:
        raise ValueError(f"an ensemble has at least 1 member, got {members}")
    if members_at_once < 1:
        raise ValueError(f"members_at_once must be at least 1, got {members_at_once}")
    run = Path(out)
    trainings = [Training(member_seed(seed, number), plan, tuple(pools)) for number in range(members)]
    plan_hash = plan.content_hash() if plan is not None else None
    own = ranks()  # of several processes that train each member together, the first one writes
    with contextlib.ExitStack() as held:
        with own.agreed():
            check_fit(dataset, recipe, plan, pools)
            if (run / META).exists():
                raise ValueError(f"{run} is a dataset: choose another run directory")
            if own.first:
                make_directory(run)
                held.enter_context(locked(run))
                _claim_run(run, recipe, dataset, seed=seed, plan_hash=plan_hash, members=members)
        diverged = None
        try:
            obtained: Sequence[StoredMember | None] = obtain_members(
                dataset,
                recipe,
                trainings,
                store=run,
                members_at_once=members_at_once,
                stacked=stacked,
                cluster=cluster,
                checkpoint=checkpoint,
                tensorboard=tensorboard,
                compute=compute,
                label="train",
            )
        except MembersDiverged as error:
            diverged, obtained = error, error.members
        stored = [member for member in obtained if member is not None]
        if stored and own.first:
            write_json(
                run / "ensemble.json",
                {
                    "schema": SCHEMA,
                    "dataset": {
                        "path": relative_path(dataset.path, run),
                        "name": dataset.name,
                        "fingerprint": dataset.fingerprint,
                    },
                    "seed": seed,
                    "plan": plan_hash,
                    "members": [{"key": member.key, "seed": member.seed} for member in stored],
                    "failed": [
                        {"member": number, "seed": trainings[number].seed, "error": str(error)}
                        for number, error in sorted(diverged.diverged.items())
                    ]
                    if diverged
                    else [],
                },
            )
        if diverged is not None:
            raise diverged
    return Ensemble(tuple(stored))


def open_ensemble(run: str | os.PathLike[str]) -> tuple[Ensemble, dict[str, Any]]:
    """The ensemble in a run directory that `train_ensemble` finished, and its `ensemble.json`.

    Raises
    ------
    FileNotFoundError, ValueError
        If it is not such a directory or a member is missing or damaged.
    """
    path = Path(run)
    if not (path / "ensemble.json").is_file():
        raise FileNotFoundError(f"{path} holds no finished ensemble (no ensemble.json): train one into it")
    info = read_json(path / "ensemble.json")
    complete = isinstance(info, dict) and {"dataset", "seed", "plan", "members"} <= set(info) and info["members"]
    if not complete or info.get("schema") != SCHEMA:
        raise ValueError(f"{path / 'ensemble.json'} is not an ensemble of schema {SCHEMA}: train into {path} again")
    return Ensemble(tuple(open_member(path, entry["key"]) for entry in info["members"])), info


def _claim_run(run: Path, recipe: Recipe, dataset: Dataset, *, seed: int, plan_hash: str | None, members: int) -> None:
    """Say in the run directory which training it is, or check that it is this one."""
    marker = run / "recipe.json"
    begun = (run / CHECKPOINTS).is_dir()
    finished = (run / "ensemble.json").exists()
    if marker.exists() and (begun or finished):
        try:
            old = Recipe.from_json(read_json(marker))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{marker} is damaged ({error}): choose another run directory") from None
        for name, here in recipe.to_json().items():
            there = old.to_json()[name]
            if there != here:
                raise ValueError(
                    f"{run} is the run directory of another recipe ({name} {there!r}, not {here!r}): choose another one"
                )
    if finished:
        _, info = open_ensemble(run)
        for what, there, here in (
            ("dataset", info["dataset"]["fingerprint"], dataset.fingerprint),
            ("seed", info["seed"], seed),
            ("plan", info["plan"], plan_hash),
        ):
            if there != here:
                raise ValueError(f"{run} is the run directory of another {what} ({there}, not {here}): choose another")
        size = len(info["members"]) + len(info.get("failed", []))
        if size > members:
            raise ValueError(f"{run} holds an ensemble of {size} members: ask for as many or more, or choose another")
    write_json(marker, recipe.to_json())
