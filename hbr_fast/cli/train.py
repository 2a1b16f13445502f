"""`hbr-fast train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hbr_fast import progress
from hbr_fast.cli.options import DEFAULT_EXECUTION, DEFAULT_RECIPE, DatasetPath, ExecutionFlags, OutPath, RecipeFlags
from hbr_fast.training.distributed import own_rank

if TYPE_CHECKING:
    from hbr_fast.members.store import StoredMember


def train(
    dataset: DatasetPath,
    out: OutPath,
    *,
    members: int = 1,
    seed: int = 0,
    plan: Path | None = None,
    pool: Path | None = None,
    recipe: RecipeFlags = DEFAULT_RECIPE,
    execution: ExecutionFlags = DEFAULT_EXECUTION,
) -> None:
    """Train an ensemble and record the hardness of every sample during training; by default by the recipe small-cnn.

    Under torchrun, all processes train each member together (docs/ensembles.md).

    Args:
        dataset: A directory that convert wrote.
        out: The run directory; finished members in it are not trained again.
        members: Models to train, each with its own seed.
        seed: Seed of everything random.
        plan: A plan that the resample command wrote; by default each sample once per epoch.
        pool: The generated images that the plan uses.
    """
    if own_rank() == 0:
        progress.say("train: loading")  # the imports below take seconds
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.plan import Plan
    from hbr_fast.data.pool import open_pool
    from hbr_fast.data.relabel import real_classes
    from hbr_fast.data.verify import verify_dataset
    from hbr_fast.evaluation.measures import gaps
    from hbr_fast.evaluation.metrics import evaluate
    from hbr_fast.members.ensemble import train_ensemble
    from hbr_fast.members.obtain import MembersDiverged
    from hbr_fast.training.distributed import joined
    from hbr_fast.training.recipe_files import recipe_of

    with joined(execution.compute.resolved()) as ranks:
        with ranks.agreed():
            execution.checked(processes=ranks.size)
            settings = recipe_of(recipe.recipe or "small-cnn", recipe.changes())
            verify_dataset(
                dataset, fetch=False
            )  # results are keyed by the hash of what was converted: refuse changed data
            opened = open_dataset(dataset).at_size(settings.size)
            rows = None if plan is None else Plan.load(plan)
            pools = [] if pool is None else [open_pool(pool, dataset=opened, cache=out / "cache")]
        diverged = None
        try:
            trained: Sequence[StoredMember | None] = train_ensemble(
                opened,
                settings,
                members=members,
                out=out,
                seed=seed,
                plan=rows,
                pools=pools,
                execution=execution,
            ).members
        except MembersDiverged as error:
            diverged, trained = error, error.members
        tested = real_classes(opened)
        for number, member in enumerate(trained):
            if member is None:
                continue
            logits = member.test_logits()[:, :tested]
            result = evaluate(logits, opened.test.labels, classes=opened.classes[:tested])
            averaged = ""
            if (by_average := member.ema_test_logits()) is not None:
                of_average = evaluate(by_average[:, :tested], opened.test.labels, classes=opened.classes[:tested])
                averaged = f" (average of weights {of_average.accuracy:.4f})"
            print(
                f"member {number}: accuracy {result.accuracy:.4f}{averaged}, "
                f"recall gap {gaps(result.recall)['max_min']:.4f}, "
                f"{member.history()['seconds'].sum():.0f} s, {member.path}"
            )
        if diverged is not None and ranks.first:
            raise diverged
