"""Options that several commands have, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from hbr_fast.data.dataset import Dataset
    from hbr_fast.training.cluster import Cluster
    from hbr_fast.training.device import Compute

Overrides = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FIELD=VALUE")]
AtOnce = int | Literal["auto"]
LISTS = ("--set", "--formats", "--alphas", "--rates", "--oversamplers")  # options of any number of values


def require_lists_once(words: Sequence[str]) -> None:
    """Of a list given twice the first would be dropped without a word; any other option may be, and the last counts."""
    for option in LISTS:
        if sum(word.partition("=")[0] == option for word in words) > 1:
            raise ValueError(f"{option} is given twice: give it once, with all of its values after it")


def refuse_to_overwrite(out: Path, force: bool) -> None:
    """Raise where something stands at `out`, unless it may be replaced."""
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists already: choose another name or replace it with --force")


def number_at_once(choice: AtOnce, members: int, compute: Compute, *, stacked: bool) -> int:
    """Members to train at the same time."""
    from hbr_fast.machine import usable_cpus
    from hbr_fast.training.parallel import auto_members_at_once

    if choice != "auto":
        return choice
    device = "cpu" if stacked else compute.resolved().type  # stacks compute there
    return auto_members_at_once(members, cpus=usable_cpus(), device=device)


def cluster_of(address: str | None, cpus: float, gpus: float) -> Cluster | None:
    """The cluster that the options name, none without an address."""
    from hbr_fast.training.cluster import Cluster

    if address is None and (cpus, gpus) != (1, 0):
        raise ValueError(
            "--cpus-per-member and --gpus-per-member are what a member holds of a cluster: give --cluster too, or "
            "leave them out"
        )
    return None if address is None else Cluster(address, cpus_per_member=cpus, gpus_per_member=gpus)


def dataset_of(run: Path, about: dict[str, dict[str, str]]) -> Dataset:
    """The dataset that a run was trained on, where it was then, unchanged since."""
    from hbr_fast.data.dataset import open_dataset

    opened = open_dataset(run.resolve() / about["dataset"]["path"])
    if opened.fingerprint != about["dataset"]["fingerprint"]:
        raise ValueError(f"{opened.path} is not the dataset that {run} was trained on: it was changed since")
    return opened
