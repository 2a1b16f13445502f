"""The command line: `hbr-fast convert | verify | info | train | hardness | resample | study | report`.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from hbr_fast import progress
from hbr_fast.training.signals import EXIT_CODE as TERMINATED
from hbr_fast.training.signals import Terminated

if TYPE_CHECKING:
    from hbr_fast.data.dataset import Dataset
    from hbr_fast.training.cluster import Cluster
    from hbr_fast.training.store import StoredMember

Overrides = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FIELD=VALUE")]
AtOnce = int | Literal["auto"]

USER_ERROR, INTERRUPTED = 2, 130


def convert(
    source: Positional[str],
    out: Positional[Path],
    *,
    formats: tuple[Literal["hbr", "beton"], ...] = ("hbr",),
    root: Path | None = None,
    download: bool = False,
    force: bool = False,
    images: Literal["auto", "raw", "jpg"] = "auto",
    size: tuple[int, int] | None = None,
    mode: Literal["auto", "rgb", "gray"] | None = None,
    layout: Literal["nhwc", "nchw"] | None = None,
    test_fraction: float | None = None,
    classes: int | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    seed: int | None = None,
) -> None:
    """Write a dataset in the fast format, or FFCV's.

    Args:
        source: fashion-mnist, mnist, cifar10, cifar100, folder, npz, beton or synthetic; for the format beton also the
            directory of a dataset.
        out: Directory to write, NAME.hbr. The format beton writes NAME.train.beton and NAME.test.beton beside it.
        formats: hbr, beton or both; beton needs FFCV.
        root: Where the source's files are: a directory, an archive, or the file of npz.
        download: Let torchvision fetch what is missing into --root.
        force: Replace what is at OUT.
        images: How a .beton stores images of 3 channels; auto is raw up to 64 KiB each and JPEG, with losses, above.
        size: Height and width to resize to (folder, beton).
        mode: Channels (folder).
        layout: Order of the axes where it is ambiguous (npz).
        test_fraction: Share of each class held out where there is no test split (npz).
        classes: Number of classes (synthetic).
        train_per_class: Train samples a class (synthetic).
        test_per_class: Test samples a class (synthetic).
        seed: Seed of the generator (synthetic).
    """
    from hbr_fast.data.convert import check_output
    from hbr_fast.data.convert import convert as convert_source
    from hbr_fast.data.dataset import open_dataset

    options: dict[str, Any] = {
        "root": root,
        "download": download or None,
        "size": size,
        "mode": mode,
        "layout": layout,
        "test_fraction": test_fraction,
        "classes": classes,
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
        "seed": seed,
    }
    options = {name: value for name, value in options.items() if value is not None}
    is_dataset = Path(source).suffix == ".hbr"
    if is_dataset and ("hbr" in formats or options):
        raise ValueError(f"{source} is a dataset: name a source, or give --formats beton and no option of a source")
    check_output(out, force=force or "hbr" not in formats)
    betons = {split: out.with_suffix(f".{split}.beton") for split in ("train", "test") if "beton" in formats}
    for path in betons.values():  # before a source is read, which can take minutes
        _refuse_to_overwrite(path, force)
    with tempfile.TemporaryDirectory() as scratch:
        if is_dataset:
            dataset = open_dataset(source)
        else:
            place = out if "hbr" in formats else Path(scratch) / out.name
            dataset = convert_source(source, place, force=force, **options)
        if "hbr" in formats:
            train, test = len(dataset.train), len(dataset.test)
            print(f"{dataset.path}: {train:,} train and {test:,} test images of {dataset.name}")
        for split, path in betons.items():
            from hbr_fast.data.beton_writer import write_beton

            write_beton(dataset.splits[split], path, mode=images, force=force)
            print(f"{path}: {len(dataset.splits[split]):,} {split} images of {dataset.name}, for FFCV")


def verify(dataset: Positional[Path]) -> None:
    """Re-read a dataset and check every checksum, shape, range and label.

    Args:
        dataset: A directory that convert wrote.
    """
    from hbr_fast.data.dataset import verify_dataset

    found = verify_dataset(dataset)
    print(
        f"{found.path}: good ({found.files} files, {found.bytes / 1e6:,.1f} MB, {found.samples:,} samples, "
        f"fingerprint {found.fingerprint[:12]})"
    )


def info(dataset: Positional[Path]) -> None:
    """Print what a dataset is.

    Args:
        dataset: A directory that convert wrote.
    """
    from hbr_fast.data.dataset import describe, open_dataset

    about = describe(open_dataset(dataset))
    print(f"{about.name}  ({about.path}, {about.bytes / 1e6:,.1f} MB)")
    print(f"fingerprint  {about.fingerprint}")
    for name, split in about.splits.items():
        shape = "x".join(map(str, split.shape))
        print(f"{name:<11}  {split.samples:,} images of {shape}{', hardness known' if split.has_truth else ''}")
    for name, values in (("mean", about.mean), ("std", about.std)):
        print(f"{name:<11}  {', '.join(f'{value:.4f}' for value in values)}  (of pixels in 0..1, train split)")
    widest = max(len(name) for name in about.classes)
    print(f"{'class':<{widest + 5}}  " + "  ".join(f"{name:>7}" for name in about.splits))
    for c, label in enumerate(about.classes):
        counts = "  ".join(f"{split.class_counts[c]:>7,}" for split in about.splits.values())
        print(f"{c:>3}  {label:<{widest}}  {counts}")


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
    cluster: str | None = None,
    cpus_per_member: float = 1.0,
    gpus_per_member: float = 0.0,
    checkpoint_every_epochs: int = 0,
    checkpoint_minutes: float = 5.0,
) -> None:
    """Train an ensemble and record the hardness of every sample on the way.

    Args:
        dataset: A directory that convert wrote.
        out: The run directory; members that are there already are not trained again.
        recipe: quickstart, small-cnn or paper-resnet18.
        overrides: Recipe fields to change, e.g. --set epochs=3 lr=0.05.
        members: Models to train, each with a seed of its own.
        seed: Everything random follows from it.
        plan: A resampled set that the resample command wrote; by default every sample once an epoch.
        pool: The generated images that the plan takes from.
        members_at_once: Members that train at the same time, on one thread each; auto is one a core.
        cluster: Train on a Ray cluster instead: local, auto or HOST:PORT of its head.
        cpus_per_member: Processors a member holds on the cluster.
        gpus_per_member: GPUs a member holds on the cluster; a fraction shares one.
        checkpoint_every_epochs: Save unfinished members after every this many epochs; 0 goes by time alone.
        checkpoint_minutes: Save unfinished members this often; inf goes by epochs alone.
    """
    from hbr_fast.data.dataset import open_dataset, verify_dataset
    from hbr_fast.data.pool import open_pool
    from hbr_fast.evaluation.metrics import evaluate, gaps
    from hbr_fast.plan import Plan
    from hbr_fast.training.checkpoint import CheckpointEvery
    from hbr_fast.training.ensemble import train_ensemble
    from hbr_fast.training.parallel import MembersDiverged
    from hbr_fast.training.recipe import named_recipe

    checkpoint = CheckpointEvery(epochs=checkpoint_every_epochs, minutes=checkpoint_minutes)
    settings = named_recipe(recipe, overrides)
    verify_dataset(dataset)  # results are kept under the hash of what was converted: train on nothing else
    opened = open_dataset(dataset)
    rows = None if plan is None else Plan.load(plan)
    diverged = None
    try:
        trained: Sequence[StoredMember | None] = train_ensemble(
            opened,
            settings,
            members=members,
            out=out,
            seed=seed,
            plan=rows,
            pools=[] if pool is None else [open_pool(pool, dataset=opened, cache=out / "cache")],
            members_at_once=_at_once(members_at_once, members),
            cluster=_cluster(cluster, cpus_per_member, gpus_per_member),
            checkpoint=checkpoint,
        ).members
    except MembersDiverged as error:
        diverged, trained = error, error.members
    for number, member in enumerate(trained):
        if member is None:
            continue
        result = evaluate(member.test_logits(), opened.test.labels, classes=opened.classes)
        print(
            f"member {number}: accuracy {result.accuracy:.4f}, recall gap {gaps(result.recall)['max_min']:.4f}, "
            f"{member.history()['seconds'].sum():.0f} s, {member.path}"
        )
    if diverged is not None:
        raise diverged


def hardness(
    run: Positional[Path],
    *,
    estimator: str = "aum",
    top: int | None = None,
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None,
    easiest: bool = False,
    csv: Path | None = None,
    force: bool = False,
) -> None:
    """Print how hard the classes are by a trained ensemble, or which samples are the hardest.

    Args:
        run: A run directory that train wrote.
        estimator: aum, confidence, loss, el2n, forgetting, ... (an unknown name lists them all); aum_final,
            confidence_final, loss_final and dataiq_final evaluate the trained models, once.
        top: Print so many samples, the hardest first, instead of the classes.
        class_: With --top, samples of this class only: its name or number.
        easiest: With --top, the easiest instead.
        csv: Write every sample's scores by every estimator to this file.
        force: Replace the file.
    """
    from hbr_fast.files import atomic_write
    from hbr_fast.hardness import estimator as estimator_named
    from hbr_fast.studies.results import sample_table
    from hbr_fast.training.ensemble import open_ensemble
    from hbr_fast.training.final import scores_by

    if top is None and (class_ is not None or easiest):
        raise ValueError("--class and --easiest say which samples --top prints: give --top too")
    if csv is not None:
        _refuse_to_overwrite(csv, force)
    chosen = estimator_named(estimator)
    ensemble, about = open_ensemble(run)
    opened = _dataset_of(run, about)
    scores = scores_by(ensemble.members, opened, estimator)
    labels = opened.train.labels
    if top is None:
        sign = 1 if chosen.hard_is == "low" else -1
        means = scores.class_means(estimator, labels, opened.train.num_classes).tolist()
        lines = sorted(zip(means, opened.classes, strict=True), key=lambda pair: sign * pair[0])
    else:
        number = None if class_ is None else _class_number(class_, opened)
        samples = scores.top(estimator, top, hardest=not easiest, class_=number, labels_n=labels)
        values = scores.per_sample(estimator)
        lines = [(values[sample], f"sample {sample}  {opened.classes[labels[sample]]}") for sample in samples]
    order = f"{'easiest' if easiest else 'hardest'} {'class' if top is None else 'sample'} first"
    print(f"{estimator}: {chosen.meaning}; {chosen.hard_is} is hard; {scores.members} members, {order}")
    for value, what in lines:
        print(f"{value:>12.4f}  {what}")
    if csv is not None:
        with atomic_write(csv) as file:
            sample_table(scores, opened).write_csv(file)
        print(f"scores of {len(scores):,} samples: {csv}")


def resample(
    run: Positional[Path],
    out: Positional[Path],
    *,
    alpha: float = 1.0,
    estimator: str = "aum",
    undersample: str = "easy",
    oversample: str = "random",
    pool: Path | None = None,
    prune_rate: float = 0.0,
    prune_by: Literal["random", "hardness"] = "random",
    prune_level: Literal["class", "dataset"] = "class",
    nonpositive: Literal["shift", "authors"] | None = None,
    clip: bool = False,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Turn an ensemble's class hardness into a resampled set: a plan to train with.

    Args:
        run: A run directory that train wrote.
        out: Plan file to write (.safetensors), for train --plan.
        alpha: Degree of resampling: 0 balances the classes, 1 takes the hardness ratio itself.
        estimator: What class hardness is measured by.
        undersample: easy, hard, extreme, random or none.
        oversample: random, weighted-easy, weighted-hard, smote, holdout, pool-random, pool-average, pool-hard or none.
        pool: Generated images for the pool oversamplers: a dataset, an .npz or an .npy file.
        prune_rate: Share of the samples to leave out first; they are the holdout.
        prune_by: Leave samples out by chance, or the easiest.
        prune_level: Leave out the share of each class, or of the whole set.
        nonpositive: What to do with classes whose mean is not positive.
        clip: Hold classes at one sample where alpha is too large for them, instead of an error.
        seed: Of the random choices.
        force: Replace what is at OUT.
    """
    import numpy as np

    from hbr_fast.allocation import allocate
    from hbr_fast.data.pool import open_pool
    from hbr_fast.files import read_json
    from hbr_fast.hardness import estimator as estimator_named
    from hbr_fast.pruning import prune
    from hbr_fast.resampling import resample as resample_labels
    from hbr_fast.resampling.smote import same_class_neighbours
    from hbr_fast.studies.plans import hardness_of, ranked_pool
    from hbr_fast.training.ensemble import open_ensemble
    from hbr_fast.training.final import scores_by
    from hbr_fast.training.recipe import Recipe

    _refuse_to_overwrite(out, force)
    chosen = estimator_named(estimator)
    ensemble, about = open_ensemble(run)
    opened = _dataset_of(run, about)
    scores = scores_by(ensemble.members, opened, estimator).per_sample(estimator)
    labels, cache = opened.train.labels, run / "cache"
    ranked: dict[str, Any] = {"scores_n": scores, "hard_is": chosen.hard_is, "seed": seed, "classes": opened.classes}
    left = prune(labels, prune_rate, by=prune_by, level=prune_level, **ranked)
    allocation = allocate(
        hardness_of(opened, scores, left.kept),
        hard_is=chosen.hard_is,
        alpha=alpha,
        total=len(left.kept),
        nonpositive=nonpositive,
        clip=clip,
        classes=opened.classes,
    )
    had = np.bincount(labels[left.kept], minlength=len(opened.classes))
    neighbours = None
    if oversample == "smote":
        neighbours = same_class_neighbours(
            opened.train.images,
            labels,
            len(opened.classes),
            ids=left.kept,
            wanted_of=np.flatnonzero(allocation.counts > had).tolist(),
            cache=cache,
            classes=opened.classes,
        )
    opened_pool = None if pool is None else open_pool(pool, dataset=opened, cache=cache)
    recipe = Recipe.from_json(read_json(run / "recipe.json"))
    plan = resample_labels(
        labels,
        allocation.counts,
        ids=left.kept,
        undersample=undersample,
        oversample=oversample,
        holdout=left.holdout,
        neighbours_nk=neighbours,
        pool=ranked_pool(oversample, opened_pool, opened, recipe, ensemble.members, cache=cache),
        provenance={"dataset": opened.fingerprint, "estimator": estimator, "alpha": alpha, "prune_rate": prune_rate},
        **ranked,
    )
    plan.save(out)
    print(f"{out}: {len(plan):,} rows; the largest feasible alpha is {allocation.max_alpha:.4g}")
    for name, before, after in zip(
        opened.classes, opened.train.class_counts().tolist(), plan.provenance["counts"], strict=True
    ):
        print(f"{before:>9,} -> {after:>9,}  {name}")


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
    cluster: str | None = None,
    cpus_per_member: float = 1.0,
    gpus_per_member: float = 0.0,
    checkpoint_every_epochs: int = 0,
    checkpoint_minutes: float = 5.0,
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
        recipe: quickstart, small-cnn or paper-resnet18, where it is not to be the study's own.
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
        members_at_once: Members that train at the same time, on one thread each; auto is one a core.
        cluster: Train on a Ray cluster instead: local, auto or HOST:PORT of its head.
        cpus_per_member: Processors a member holds on the cluster.
        gpus_per_member: GPUs a member holds on the cluster; a fraction shares one.
        checkpoint_every_epochs: Save unfinished members after every this many epochs; 0 goes by time alone.
        checkpoint_minutes: Save unfinished members this often; inf goes by epochs alone.
    """
    from hbr_fast.studies.recipes import named_study
    from hbr_fast.training.checkpoint import CheckpointEvery
    from hbr_fast.training.recipe import named_recipe

    checkpoint = CheckpointEvery(epochs=checkpoint_every_epochs, minutes=checkpoint_minutes)
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
    at_once = _at_once(members_at_once, grid.trainings)
    if dry_run:
        found = preview(grid, opened, out=directory, pool=opened_pool)
        print("\n".join(preview_lines(found, rate=images_per_second(opened, grid.recipe), at_once=at_once)))
        return
    ray = _cluster(cluster, cpus_per_member, gpus_per_member)
    run_study(
        grid,
        opened,
        out=directory,
        pool=opened_pool,
        members_at_once=at_once,
        cluster=ray,
        checkpoint=checkpoint,
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


def report(study_dir: Positional[Path], *, out: Path | None = None, dataset: Path | None = None) -> None:
    """Draw the report of a finished study again.

    Args:
        study_dir: A directory that study wrote.
        out: Folder to write, by default report in the study's directory.
        dataset: The study's dataset, if it was moved.
    """
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.report.page import write_report

    opened = None if dataset is None else open_dataset(dataset)
    print(write_report(study_dir, out=out, dataset=opened))


COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "verify": verify,
    "info": info,
    "train": train,
    "hardness": hardness,
    "resample": resample,
    "study": study,
    "report": report,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line and exit code 2, with --debug the whole traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with contextlib.suppress(BrokenPipeError):
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="hbr-fast",
                description="Hardness-based resampling at memory speed. --debug shows the traceback of an error.",
                args=words,
            )
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if debug:
            raise
        print(f"hbr-fast: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except MemoryError:
        if debug:
            raise
        print("hbr-fast: out of memory: ask for less at a time, or use a machine with more", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Terminated:
        print("hbr-fast: ended by SIGTERM; what was trained is saved, run the same command again", file=sys.stderr)
        sys.exit(TERMINATED)
    except KeyboardInterrupt:
        print("hbr-fast: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _refuse_to_overwrite(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists already: choose another name or replace it with --force")


def _at_once(choice: AtOnce, members: int) -> int:
    from hbr_fast.training.parallel import default_members_at_once

    return default_members_at_once(members) if choice == "auto" else choice


def _cluster(address: str | None, cpus: float, gpus: float) -> Cluster | None:
    from hbr_fast.training.cluster import Cluster

    return None if address is None else Cluster(address, cpus_per_member=cpus, gpus_per_member=gpus)


def _class_number(name: str, dataset: Dataset) -> int:
    """The class of a name or, where no class is called that, of a number."""
    if name in dataset.classes:
        return dataset.classes.index(name)
    if name.isdecimal() and int(name) < len(dataset.classes):
        return int(name)
    raise ValueError(f"no class {name!r}: the classes are {', '.join(dataset.classes)}")


def _dataset_of(run: Path, about: dict[str, dict[str, str]]) -> Dataset:
    """The dataset that a run was trained on, where it was then, unchanged since."""
    from hbr_fast.data.dataset import open_dataset

    opened = open_dataset(run.resolve() / about["dataset"]["path"])
    if opened.fingerprint != about["dataset"]["fingerprint"]:
        raise ValueError(f"{opened.path} is not the dataset that {run} was trained on: it was changed since")
    return opened


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


if __name__ == "__main__":
    main()
