"""`hbr-fast study`."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from hbr_fast import progress
from hbr_fast.cli.options import AtOnce, Overrides, cluster_of, number_at_once

if TYPE_CHECKING:
    from hbr_fast.data.dataset import Dataset


def study(
    name: Positional[str],
    *,
    out: Path | None = None,
    dataset: Path | None = None,
    root: Path | None = None,
    download: bool = False,
    pool: Path | None = None,
    recipe: str | None = None,
    overrides: Overrides = (),
    estimator: str | None = None,
    alpha: float | None = None,
    alphas: tuple[float, ...] | None = None,
    rates: tuple[float, ...] | None = None,
    oversamplers: tuple[str, ...] | None = None,
    points: int | None = None,
    choose: bool = False,
    validation: float | None = None,
    tolerance: float | None = None,
    nonpositive: Literal["shift", "authors"] | None = None,
    clip: bool = False,
    variants: int | None = None,
    members: int | None = None,
    seed: int | None = None,
    tiny: bool = False,
    dry_run: bool = False,
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
    """Run a named study from data to report; what is done already is not done again.

    The last line on standard output is one JSON object with the headline numbers.

    Args:
        name: quickstart, baseline, case-study-1, case-study-2, pruning, robustness or alpha-path.
        out: The study's directory, by default runs/NAME.
        dataset: A dataset that convert wrote; by default Fashion-MNIST is converted into OUT.
        root: Where Fashion-MNIST's files are, if not where Debian's package puts them.
        download: Let torchvision fetch Fashion-MNIST into --root (by default OUT/downloads).
        pool: Generated images for the pool oversamplers: a dataset, an .npz or an .npy file.
        recipe: quickstart, small-cnn, paper-resnet18 or fast-resnet18, where it is not to be the study's own.
        overrides: Recipe fields to change, e.g. --set epochs=3 lr=0.05.
        estimator: What class hardness is measured by.
        alpha: Degree of resampling (quickstart).
        alphas: Degrees of resampling.
        rates: Shares of the samples to prune.
        oversamplers: random, weighted-easy, weighted-hard, smote, holdout, pool-random, pool-average, pool-hard.
        points: Alphas on the path, up to the largest feasible one (alpha-path).
        choose: Choose alpha on a validation split held out of training (alpha-path).
        validation: Share of each class held out for that.
        tolerance: Share of accuracy that the chosen alpha may lose.
        nonpositive: What to do with classes whose mean hardness is not positive.
        clip: Hold classes at one sample where alpha is too large for them, instead of an error.
        variants: Resampled sets an arm.
        members: Members a resampled set (quickstart: resampled sets, of one member each).
        seed: Everything random follows from it.
        tiny: A small grid on small generated images, in seconds: does everything work here?
        dry_run: Print the trainings, what is done of them and how long the rest would take; train nothing.
        members_at_once: Members that train at the same time, on one thread each; auto is one a core, on a GPU 1.
        stacked: Train them as one network in one process instead (docs/ensembles.md says where that is faster).
        cluster: Train on a Ray cluster instead: local, auto or HOST:PORT of its head.
        cpus_per_member: Processors a member holds on the cluster.
        gpus_per_member: GPUs a member holds on the cluster; a fraction shares one.
        checkpoint_every_epochs: Save unfinished members after every this many epochs; 0 goes by time alone.
        checkpoint_minutes: Save unfinished members this often; inf goes by epochs alone.
        tensorboard: Write what epochs did for TensorBoard, below OUT/tensorboard.
        device: auto (a GPU where there is one), cpu, cuda or cuda:N.
        compile: On a GPU, compile the network with CUDA graphs.
    """
    from hbr_fast.studies.recipes import named_study
    from hbr_fast.training.checkpoint import CheckpointEvery
    from hbr_fast.training.device import Compute
    from hbr_fast.training.recipe import named_recipe

    checkpoint = CheckpointEvery(epochs=checkpoint_every_epochs, minutes=checkpoint_minutes)
    compute = Compute(device, compile)
    options = {
        "recipe": None if recipe is None else named_recipe(recipe),
        "estimator": estimator,
        "alpha": alpha,
        "alphas": alphas,
        "rates": rates,
        "oversamplers": oversamplers,
        "points": points,
        "choose": choose or None,
        "validation": validation,
        "tolerance": tolerance,
        "nonpositive": nonpositive,
        "clip": clip or None,
        "variants": variants,
        "members": members,
        "seed": seed,
    }
    build = functools.partial(named_study, name, tiny=tiny, overrides=overrides, **options)
    build()  # mistakes are told before anything is converted
    compute.resolved()
    ray = cluster_of(cluster, cpus_per_member, gpus_per_member)
    start = time.perf_counter()
    directory = out or Path("runs") / (f"{name}-tiny" if tiny else name)
    if tiny:
        opened, generated = _tiny_data(directory, dataset, pool)
    else:
        opened, generated = _verified(dataset, directory, root=root, download=download), pool
    grid = build(num_classes=len(opened.classes))

    from hbr_fast.data.pool import open_pool
    from hbr_fast.report.page import write_report
    from hbr_fast.report.tables import print_tables, summary_tables
    from hbr_fast.studies.preview import images_per_second, preview, preview_lines
    from hbr_fast.studies.results import failed_trainings, summary
    from hbr_fast.studies.runner import run_study

    opened_pool = None if generated is None else open_pool(generated, dataset=opened, cache=directory / "pools")
    at_once = number_at_once(members_at_once, grid.trainings, compute, stacked=stacked)
    if dry_run:
        found = preview(grid, opened, out=directory, pool=opened_pool)
        rate = images_per_second(opened, grid.recipe, compute=compute)
        print("\n".join(preview_lines(found, rate=rate, at_once=at_once)))
        return
    run_study(
        grid,
        opened,
        out=directory,
        pool=opened_pool,
        members_at_once=at_once,
        stacked=stacked,
        cluster=ray,
        checkpoint=checkpoint,
        tensorboard=tensorboard,
        compute=compute,
    )
    progress.say("report: drawing")
    page = write_report(directory, dataset=opened)
    print_tables(summary_tables(directory))
    print(f"\nreport: {page}")
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({**summary(directory), "seconds": seconds, "report": str(page)}))
    if failed := failed_trainings(directory):
        which = "; ".join(f"{f.arm}, variant {f.variant}, member {f.member}: {f.error}" for f in failed)
        raise FloatingPointError(f"{len(failed)} of the study's trainings diverged and are left out. {which}")


def _tiny_data(directory: Path, dataset: Path | None, pool: Path | None) -> tuple[Dataset, Path | None]:
    """Small generated images with known hardness, and more of them as a pool, unless other ones are given."""
    from hbr_fast.data.convert import convert as convert_source
    from hbr_fast.data.dataset import open_dataset

    path = dataset or directory / "tiny.hbr"
    if not path.exists():
        convert_source("synthetic", path, classes=4, train_per_class=80, test_per_class=40, shape=(1, 8, 8))
    more = pool or directory / "tiny-pool.hbr"
    if dataset is None and not more.exists():
        # Twice as many from the same patterns: half of them were not drawn before.
        convert_source("synthetic", more, classes=4, train_per_class=200, test_per_class=1, shape=(1, 8, 8))
    return open_dataset(path), more if more.exists() else None


def _verified(dataset: Path | None, directory: Path, *, root: Path | None, download: bool) -> Dataset:
    """The dataset given, or Fashion-MNIST converted once into `directory`; verified in either case."""
    from hbr_fast.data.convert import convert as convert_source
    from hbr_fast.data.dataset import open_dataset, verify_dataset

    path = dataset or directory / "fashion-mnist.hbr"
    if dataset is None and not path.exists():
        if download and root is None:
            root = directory / "downloads"
            root.mkdir(parents=True, exist_ok=True)
        convert_source("fashion-mnist", path, root=root, download=download)
    found = verify_dataset(path)
    progress.say(f"verify: {path} is good, {found.samples:,} samples in {found.bytes / 1e6:,.1f} MB")
    return open_dataset(path)
