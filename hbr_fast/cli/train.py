"""`hbr-fast train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from hbr_fast.cli.options import AtOnce, Overrides, cluster_of, number_at_once

if TYPE_CHECKING:
    from hbr_fast.training.store import StoredMember


def train(
    dataset: Positional[Path],
    out: Positional[Path],
    *,
    recipe: str = "small-cnn",
    overrides: Overrides = (),
    members: int = 1,
    seed: int = 0,
    plan: Path | None = None,
    pool: Path | None = None,
    members_at_once: AtOnce = "auto",
    stacked: bool = False,
    cluster: str | None = None,
    cpus_per_member: float = 1.0,
    gpus_per_member: float = 0.0,
    checkpoint_every_epochs: int = 0,
    checkpoint_minutes: float = 5.0,
    tensorboard: bool = False,
    device: str = "auto",
    compile: bool = False,
) -> None:
    """Train an ensemble and record the hardness of every sample on the way.

    Started by torchrun, all its processes train each member together (docs/ensembles.md).

    Args:
        dataset: A directory that convert wrote.
        out: The run directory; members that are there already are not trained again.
        recipe: quickstart, small-cnn, paper-resnet18 or fast-resnet18.
        overrides: Recipe fields to change, e.g. --set epochs=3 lr=0.05.
        members: Models to train, each with a seed of its own.
        seed: Everything random follows from it.
        plan: A resampled set that the resample command wrote; by default every sample once an epoch.
        pool: The generated images that the plan takes from.
        members_at_once: Members that train at the same time, on one thread each; auto is one a core, on a GPU 1.
        stacked: Train them as one network in one process instead (docs/ensembles.md says where that is faster).
        cluster: Train on a Ray cluster instead: local, auto or HOST:PORT of its head.
        cpus_per_member: Processors a member holds on the cluster.
        gpus_per_member: GPUs a member holds on the cluster; a fraction shares one.
        checkpoint_every_epochs: Save unfinished members after every this many epochs; 0 goes by time alone.
        checkpoint_minutes: Save unfinished members this often; inf goes by epochs alone.
        device: auto (a GPU where there is one), cpu, cuda or cuda:N.
        compile: On a GPU, compile the network with CUDA graphs.
        tensorboard: Write what epochs did for TensorBoard, below OUT/tensorboard.
    """
    from hbr_fast.data.dataset import open_dataset, verify_dataset
    from hbr_fast.data.pool import open_pool
    from hbr_fast.data.relabel import real_classes
    from hbr_fast.evaluation.metrics import evaluate, gaps
    from hbr_fast.plan import Plan
    from hbr_fast.training.checkpoint import CheckpointEvery
    from hbr_fast.training.device import Compute
    from hbr_fast.training.distributed import joined
    from hbr_fast.training.ensemble import train_ensemble
    from hbr_fast.training.parallel import MembersDiverged
    from hbr_fast.training.recipe import named_recipe

    compute = Compute(device, compile)
    with joined(compute.resolved()) as ranks:
        with ranks.agreed():
            checkpoint = CheckpointEvery(epochs=checkpoint_every_epochs, minutes=checkpoint_minutes)
            settings = named_recipe(recipe, overrides)
            verify_dataset(dataset)  # results are kept under the hash of what was converted: train on nothing else
            opened = open_dataset(dataset)
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
                members_at_once=number_at_once(
                    members_at_once, 1 if ranks.size > 1 else members, compute, stacked=stacked
                ),
                stacked=stacked,
                cluster=cluster_of(cluster, cpus_per_member, gpus_per_member),
                checkpoint=checkpoint,
                tensorboard=tensorboard,
                compute=compute,
            ).members
        except MembersDiverged as error:
            diverged, trained = error, error.members
        tested = real_classes(opened)
        for number, member in enumerate(trained):
            if member is None:
                continue
            logits = member.test_logits()[:, :tested]
            result = evaluate(logits, opened.test.labels, classes=opened.classes[:tested])
            print(
                f"member {number}: accuracy {result.accuracy:.4f}, recall gap {gaps(result.recall)['max_min']:.4f}, "
                f"{member.history()['seconds'].sum():.0f} s, {member.path}"
            )
        if diverged is not None and ranks.first:
            raise diverged
