"""An ensemble in a run directory: `recipe.json`, `ensemble.json` and the members under `members/`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

from hbr_fast.data.dataset import Dataset
from hbr_fast.data.meta_json import META
from hbr_fast.data.plan import Plan
from hbr_fast.data.pool import Pool
from hbr_fast.data.unconverted import meant_path, other_directory
from hbr_fast.files import locked, make_directory, write_json
from hbr_fast.hardness import HardnessScores, stack_scores
from hbr_fast.json_schema import Natural, read_sealed_json, require_schema, write_sealed_json
from hbr_fast.members.execution import Deprecated, Execution, execution_of
from hbr_fast.members.jobs import Job
from hbr_fast.members.obtain import MembersDiverged, obtain_members
from hbr_fast.members.preflight import check_fit
from hbr_fast.members.store import CHECKPOINTS, StoredMember, open_member
from hbr_fast.members.trial import try_step
from hbr_fast.progress import counted
from hbr_fast.seeding import member_seed
from hbr_fast.training.components import changed, sources
from hbr_fast.training.device import resolve_precision
from hbr_fast.training.distributed import ranks
from hbr_fast.training.recipe import Recipe, stored_recipe

SCHEMA = 1


class _Data(TypedDict):
    path: str
    fingerprint: str


class _Member(TypedDict):
    key: str
    seed: Natural


class _Info(TypedDict):
    """`ensemble.json`, beside its schema."""

    dataset: _Data
    seed: Natural
    plan: str | None
    members: list[_Member]
    failed: NotRequired[list[dict]]


@dataclass(frozen=True)
class Ensemble:
    """Finished members that differ only in their seeds.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert, named_recipe, train_ensemble
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> recipe = named_recipe("quickstart", ["model=cnn-4-8", "epochs=1", "batch_size=4", "augment.pad=0"])
    >>> ensemble = train_ensemble(data, recipe, members=2, out=f"{folder.name}/run")
    >>> ensemble.scores().members
    2
    """

    members: tuple[StoredMember, ...]

    def __repr__(self) -> str:
        keys = ", ".join(member.key[:8] for member in self.members[:4])
        more = ", ..." if len(self.members) > 4 else ""
        return f"<Ensemble: {counted(len(self.members), 'member')}: {keys}{more}>"

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
    execution: Execution | None = None,
    **deprecated: Unpack[Deprecated],
) -> Ensemble:
    """Train an ensemble into a run directory; members finished there are reused.

    Parameters
    ----------
    dataset : Dataset
    recipe : Recipe
    members : int
        Number of members, at least 1.
    out : path
        The run directory: `recipe.json`, `ensemble.json` and one directory per member under `members/`.
    seed : int
        Of the ensemble; member m trains with `member_seed(seed, m)`.
    plan : Plan, optional
        Rows of the train split that make an epoch; by default each sample once.
    pools : sequence of Pool
        The pools of a plan's generated images.
    execution : Execution, optional
        How and where members train; by default one after another in this process.
    **deprecated
        `members_at_once`, `cluster`, `checkpoint`, `tensorboard`, `compute`: fields of `execution`.

    Raises
    ------
    ValueError
        If an argument is out of range, or `out` is the run directory of another recipe or dataset.
    BlockingIOError
        If another process trains into `out`.
    MembersDiverged
        If trainings diverge. The others finish first and form the ensemble; `ensemble.json` lists the failed ones.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert, named_recipe
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> recipe = named_recipe("quickstart", ["model=cnn-4-8", "epochs=1", "batch_size=4", "augment.pad=0"])
    >>> ensemble = train_ensemble(data, recipe, members=1, out=f"{folder.name}/run")
    >>> ensemble.members[0].test_logits().shape
    (4, 2)
    """
    if members < 1:
        raise ValueError(f"an ensemble has at least 1 member, got {members}")
    own = ranks()  # if several processes train each member together, the first one writes
    execution = execution_of(execution, deprecated, caller="train_ensemble").checked(processes=own.size)
    recipe = resolve_precision(recipe, execution.training_device())
    run = Path(out)
    jobs = [Job(member_seed(seed, number), plan, tuple(pools)) for number in range(members)]
    plan_hash = plan.content_hash() if plan is not None else None
    with contextlib.ExitStack() as held:
        with own.agreed():
            check_fit(dataset, recipe, plan, pools)
            try_step(dataset, recipe, plan, pools, device=execution.trial_device())
            if (run / META).exists():
                raise ValueError(f"{run} is a dataset: choose another run directory")
            if own.first:
                make_directory(run)
                held.enter_context(locked(run))
                _claim_run(run, recipe, dataset, seed=seed, plan_hash=plan_hash, members=members)
        diverged = None
        try:
            obtained: Sequence[StoredMember | None] = obtain_members(
                dataset, recipe, jobs, store=run, execution=execution, label="train"
            )
        except MembersDiverged as error:
            diverged, obtained = error, error.members
        stored = [member for member in obtained if member is not None]
        if stored and own.first:
            write_sealed_json(
                run / "ensemble.json",
                {
                    "schema": SCHEMA,
                    "dataset": {
                        "path": dataset.seen_from(run),
                        "name": dataset.name,
                        "fingerprint": dataset.fingerprint,
                    },
                    "seed": seed,
                    "plan": plan_hash,
                    "members": [{"key": member.key, "seed": member.seed} for member in stored],
                    "failed": [
                        {"member": number, "seed": jobs[number].seed, "error": str(error)}
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
    """The finished ensemble in a run directory of `train_ensemble`, and its `ensemble.json`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no finished ensemble, or a member is missing or damaged.

    Examples
    --------
    >>> import tempfile
    >>> from hbr_fast import convert, named_recipe, train_ensemble
    >>> folder = tempfile.TemporaryDirectory()
    >>> sizes = {"classes": 2, "train_per_class": 4, "test_per_class": 2, "shape": (1, 8, 8)}
    >>> data = convert("synthetic", f"{folder.name}/toy.hbr", **sizes)
    >>> recipe = named_recipe("quickstart", ["model=cnn-4-8", "epochs=1", "batch_size=4", "augment.pad=0"])
    >>> trained = train_ensemble(data, recipe, members=1, out=f"{folder.name}/run")
    >>> ensemble, about = open_ensemble(f"{folder.name}/run")
    >>> ensemble.members[0].key == trained.members[0].key
    True
    """
    path = Path(run)
    if not (path / "ensemble.json").is_file():
        raise FileNotFoundError(_no_ensemble(path))
    remedy = f"train into {path} again"
    info = read_sealed_json(path / "ensemble.json", remedy=remedy)
    if not isinstance(info, dict) or info.get("schema") != SCHEMA or not info.get("members"):
        raise ValueError(f"{path / 'ensemble.json'} is not an ensemble of schema {SCHEMA}: {remedy}")
    require_schema(info, _Info, where=str(path / "ensemble.json"), remedy=remedy)
    return Ensemble(tuple(open_member(path, entry["key"]) for entry in info["members"])), info


def _no_ensemble(path: Path) -> str:
    if not path.exists():
        meant = meant_path(path, "ensemble.json")
        return f"there is no run directory {path}{meant}: make one with hbr-fast train DATASET {path}"
    if (path / "study.json").is_file():
        return (
            f"{path} is a study, not a run directory: its hardness is in samples.csv and on its page, and "
            "`hbr-fast evaluate` takes its baseline; for this, train into another directory"
        )
    if other := other_directory(path, "ensemble.json"):
        made = f"one made with hbr-fast train {path} RUN" if other == "a dataset" else "one that hbr-fast train made"
        return f"{path} is {other}, not a run directory: give {made}"
    return f"{path} holds no finished ensemble (no ensemble.json): train one into it"


def _claim_run(run: Path, recipe: Recipe, dataset: Dataset, *, seed: int, plan_hash: str | None, members: int) -> None:
    """Record in the run directory which training it holds, or check that it is this one."""
    marker = run / "recipe.json"
    begun = (run / CHECKPOINTS).is_dir()
    finished = (run / "ensemble.json").exists()
    if marker.exists() and (begun or finished):
        old = stored_recipe(marker, remedy="choose another run directory")
        if old.precision == "auto":  # written before precisions were resolved
            old = dataclasses.replace(old, precision=recipe.precision)
        for name, here in recipe.to_json().items():
            there = old.to_json()[name]
            if there != here:
                raise ValueError(
                    f"{run} is the run directory of another recipe ({name} {there!r}, not {here!r}): choose another one"
                )
    if finished:
        ensemble, info = open_ensemble(run)
        _require_same_components(run, ensemble, recipe)
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


def _require_same_components(run: Path, ensemble: Ensemble, recipe: Recipe) -> None:
    """Refuse to add members to those of other functions under the same names, or of other weights to start from."""
    differing = changed(recipe, ensemble.members[0].info.get("components", {}), sources(recipe))
    if differing:
        raise ValueError(
            f"{run} was trained with other components, which have changed since: {differing}: choose another one"
        )
