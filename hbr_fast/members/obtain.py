"""An ensemble's members: found in the store, or trained into it by an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hbr_fast import progress
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.verify import require_unchanged
from hbr_fast.files import remove_partials
from hbr_fast.members import telemetry
from hbr_fast.members.engines import engine_for
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job
from hbr_fast.members.preflight import check_fit
from hbr_fast.members.store import CHECKPOINTS, MEMBERS, StoredMember, checkpoint_path, find_member
from hbr_fast.members.telemetry import ALONE, MemberLine, Outlook
from hbr_fast.members.trial import try_step
from hbr_fast.training import signals
from hbr_fast.training.device import resolve_precision
from hbr_fast.training.distributed import ranks
from hbr_fast.training.recipe import Recipe


class MembersDiverged(FloatingPointError):
    """Some trainings of several diverged; the others are finished and kept.

    Attributes
    ----------
    members : list of StoredMember or None
        In the requested order; None for those that diverged.
    diverged : dict of int to FloatingPointError
        By their index in that order.
    """

    def __init__(
        self, members: Sequence[StoredMember | None], diverged: Mapping[int, FloatingPointError], label: str
    ) -> None:
        self.members, self.diverged = list(members), dict(diverged)
        which = "; ".join(f"member {number}: {error}" for number, error in sorted(diverged.items()))
        failed = f"{len(diverged)} of {progress.counted(len(members), 'member')} failed"
        super().__init__(f"{label}: {failed}, finished ones are kept. {which}")


def obtain_members(
    dataset: Dataset,
    recipe: Recipe,
    jobs: Sequence[Job],
    *,
    store: Path,
    execution: Execution,
    label: str,
    outlook: Outlook = ALONE,
) -> list[StoredMember]:
    """Members in the order of `jobs`: those in the store are reused, the others trained into it.

    Parameters
    ----------
    dataset, recipe
        The same for all.
    jobs : sequence of Job
    store : path
        Members are kept under `store/members/`, unfinished ones under `store/checkpoints/`. No other process may write
        to it at the same time.
    execution : Execution
        More than one member at once needs an importable main module (`if __name__ == "__main__":` in scripts). On a
        cluster unfinished members are not saved but restarted.
    label : str
        Their name in progress reports.
    outlook : Outlook
        What follows them, for the forecast.

    Raises
    ------
    ValueError
        If the execution is invalid (`Execution.checked`), or a training raises it.
    MembersDiverged
        If trainings diverge, once all the others are finished.
    Terminated
        On SIGTERM; progress is saved.
    ConnectionError, ImportError
        If the cluster does not answer, or Ray or TensorBoard is not installed.
    """
    own = ranks()
    with own.agreed():
        execution.checked(processes=own.size)
        recipe = resolve_precision(recipe, execution.training_device())
        if execution.tensorboard:
            telemetry.require_tensorboard()
        if own.first:
            for directory in (store, store / MEMBERS, store / CHECKPOINTS):
                remove_partials(directory)
        found = [find_member(dataset, recipe, seed=job.seed, plan=job.plan, store=store) for job in jobs]
    own.require_same(
        f"the processes of this training see different members in {store}: put it where all of them see it",
        *(member is None for member in found),
    )
    missing = [number for number, member in enumerate(found) if member is None]
    if len(missing) < len(jobs):
        finished = len(jobs) - len(missing)
        progress.say(f"{label}: {finished} of {progress.counted(len(jobs), 'member')} finished already")
    diverged: dict[int, FloatingPointError] = {}
    if missing:
        with own.agreed():
            if own.first:
                require_unchanged(dataset)
            for number in missing:
                check_fit(dataset, recipe, jobs[number].plan, jobs[number].pools)
            first = jobs[missing[0]]
            try_step(dataset, recipe, first.plan, first.pools, device=execution.trial_device())
        at_once = 1 if own.size > 1 else execution.at_once(len(missing))
        lines = [MemberLine(number, _rows(dataset, recipe, jobs[number]), recipe.epochs) for number in missing]
        title = f"{label}: {progress.counted(len(missing), 'member')}{_where(execution, at_once)}"
        with telemetry.board(title, lines, outlook) as board, signals.raised_at_once():
            failed = engine_for(execution, at_once=at_once).run(
                [jobs[number] for number in missing],
                execution,
                dataset=dataset,
                recipe=recipe,
                store=store,
                at_once=at_once,
                board=board,
            )
        diverged = {missing[place]: error for place, error in failed.items()}
        for number in missing:
            if number not in diverged:
                job = jobs[number]
                found[number] = find_member(dataset, recipe, seed=job.seed, plan=job.plan, store=store)
    if own.first:
        _remove_checkpoints(store, found)
    if diverged:
        raise MembersDiverged(found, diverged, label)
    members = [member for member in found if member is not None]
    assert len(members) == len(jobs)
    return members


def _remove_checkpoints(store: Path, finished: Iterable[StoredMember | None]) -> None:
    """Remove those of finished members, which stay if a process is killed just before it would, and their directory."""
    for member in finished:
        if member is not None:
            checkpoint_path(store, member.key).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # absent, or it holds unfinished members of an earlier run
        (store / CHECKPOINTS).rmdir()


def _rows(dataset: Dataset, recipe: Recipe, job: Job) -> int:
    """Rows of a job's whole training."""
    return recipe.epochs * (len(dataset.train) if job.plan is None else len(job.plan))


def _where(execution: Execution, at_once: int) -> str:
    if execution.cluster is not None:
        return f" on the cluster {execution.cluster}"
    return f", {at_once} at once" if at_once > 1 else ""
