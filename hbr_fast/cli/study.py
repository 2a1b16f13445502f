"""`hbr-fast study`."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from hbr_fast import progress
from hbr_fast.cli.options import DEFAULT_EXECUTION, DEFAULT_RECIPE, ExecutionFlags, RecipeFlags

if TYPE_CHECKING:
    from hbr_fast.cli.options import RecipeOptions
    from hbr_fast.data.dataset import Dataset
    from hbr_fast.members.execution import Execution


def own(metavar: str | None = None) -> Any:
    """Marks an option whose default differs from study to study."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the study's own)")


def study(
    name: Annotated[Positional[str], tyro.conf.arg(metavar="STUDY")],
    *,
    out: Path | None = None,
    dataset: Path | None = None,
    root: Path | None = None,
    download: bool = False,
    pool: Path | None = None,
    estimator: Annotated[str | None, own()] = None,
    groups: Path | None = None,
    metric: str | None = None,
    alpha: Annotated[float | None, own()] = None,
    against: str | None = None,
    gamma: float | None = None,
    tau: float | None = None,
    alphas: Annotated[tuple[float, ...] | None, own("FLOAT ...")] = None,
    rates: Annotated[tuple[float, ...] | None, own("FLOAT ...")] = None,
    oversamplers: Annotated[tuple[str, ...] | None, own("NAME ...")] = None,
    controls: bool = False,
    points: Annotated[int | None, own()] = None,
    choose: bool = False,
    validation: float | None = None,
    tolerance: float | None = None,
    base: Literal["own", "balanced"] | float | None = None,
    balanced_control: bool = False,
    nonpositive: Literal["shift", "authors"] | None = None,
    clip: bool = False,
    variants: Annotated[int | None, own()] = None,
    members: Annotated[int | None, own()] = None,
    seed: Annotated[int | None, own()] = None,
    tiny: bool = False,
    dry_run: bool = False,
    recipe: RecipeFlags = DEFAULT_RECIPE,
    execution: ExecutionFlags = DEFAULT_EXECUTION,
) -> None:
    """Run a named study from data to report, by its own recipe or another; finished work is not repeated.

    The last line on standard output is one JSON object with the headline numbers and the samples that they are of.
    With --choose it also has the chosen alpha and its test results, and the last line on standard error says them.

    Args:
        name: quickstart: does resampling by hardness close the gap, in minutes;
            alpha-path: how far to resample, alphas up to the largest feasible one;
            balance: balance and hardness apart, for classes of different sizes;
            remedies: resampling against other losses and weights;
            case-study-1: resampling after pruning (the paper's first);
            case-study-2: ways of oversampling at several alphas (the paper's second);
            pruning: removing the easiest samples;
            robustness: how many members hardness needs, and whether estimators agree;
            baseline: no arms (docs/studies.md).
        out: The study's directory, by default runs/NAME.
        dataset: A dataset that convert wrote; by default Fashion-MNIST is converted into OUT.
        root: Location of Fashion-MNIST's files, if not that of Debian's package.
        download: Let torchvision download Fashion-MNIST into --root (by default OUT/downloads).
        pool: Generated images for the pool oversamplers: a dataset, an .npz or an .npy file.
        estimator: The estimator of class hardness.
        groups: A table with sample_id (row of the test split) or source, and one column for each attribute: accuracy of
            each group of test samples.
        metric: What gaps between classes, tables and pictures are about: recall (the default), precision, f1, mcc,
            auroc or ece.
        alpha: Degree of resampling (quickstart, balance, remedies).
        against: The arm that the others are compared with, by default the baseline (remedies).
        gamma: Of the focal loss (remedies; 2 by default).
        tau: Of logit adjustment (remedies; 0.5 by default).
        alphas: Degrees of resampling.
        rates: Shares of the samples to prune.
        oversamplers: random, weighted-easy, weighted-hard, smote, holdout, pool-random, pool-average, pool-hard.
        controls: Add the controls of resampling by hardness: by that of other classes, class weights, and the balanced
            set (case-study-2).
        points: Alphas on the path, up to the largest feasible one (alpha-path).
        choose: Choose alpha on the dataset's validation split, or on samples held out of training (alpha-path).
        validation: Share of each class held out for that; by default 0.1 if the dataset has no validation split.
        tolerance: Share of accuracy that the chosen alpha may lose.
        base: Class sizes to start from: own, balanced, or an exponent of the own sizes in [0, 1]; by default own where
            they differ by more than a tenth.
        balanced_control: Add the balanced set as an arm, the control of arms with --base balanced.
        nonpositive: What to do with classes whose mean hardness is not positive, which is an error without it: shift
            raises all means until the least is a twentieth of their range, authors by just enough to make them
            positive, as the paper's code does.
        clip: Hold classes at one sample where alpha is too large for them, instead of failing.
        variants: Resampled sets per arm (not quickstart).
        members: Members per resampled set (quickstart: resampled sets, of one member each).
        seed: Seed of everything random.
        tiny: Run a small grid on small generated images, to check that everything works: about a minute on two cores.
        dry_run: Print the trainings, how many are done and how long the rest would take; train nothing.
    """
    progress.say(f"study {name}: loading")  # the imports below take seconds
    from hbr_fast.studies.recipes import named_study
    from hbr_fast.training.recipe_files import recipe_of

    options = {
        "recipe": None if recipe.recipe is None else recipe_of(recipe.recipe),
        "estimator": estimator,
        "alpha": alpha,
        "against": against,
        "gamma": gamma,
        "tau": tau,
        "alphas": alphas,
        "rates": rates,
        "oversamplers": oversamplers,
        "controls": controls or None,
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
    build = functools.partial(
        named_study,
        name,
        tiny=tiny,
        overrides=recipe.changes(),
        base=base,
        metric=metric,
        balanced_control=balanced_control,
        **options,
    )
    build()  # mistakes are reported before anything is converted
    execution.checked().training_device()
    start = time.perf_counter()
    directory = out or Path("runs") / (f"{name}-tiny" if tiny else name)
    if tiny:
        opened, generated = _tiny_data(directory, dataset, pool)
    else:
        opened, generated = _verified(dataset, directory, root=root, download=download), pool
    grid = build(num_classes=len(opened.classes))
    opened = opened.at_size(grid.recipe.size)

    from hbr_fast.data.pool import open_pool
    from hbr_fast.studies.preview import arm_lines, images_per_second, preview, time_line
    from hbr_fast.studies.runner import require_trainable

    opened_pool = None if generated is None else open_pool(generated, dataset=opened, cache=directory / "pools")
    if dry_run:
        found = preview(grid, opened, out=directory, pool=opened_pool, execution=execution)
        print(progress.in_words("\n".join(arm_lines(found))), flush=True)
        progress.say("measuring how fast a few batches train")
        require_trainable(grid, opened, execution)
        at_once = execution.at_once(grid.trainings)
        rate = images_per_second(opened, grid.recipe, execution=execution, at_once=at_once)
        print(time_line(found, rate=rate, at_once=at_once))
        return

    from hbr_fast.report.answers import choice_answer
    from hbr_fast.report.page import write_report
    from hbr_fast.report.reading import read_study
    from hbr_fast.report.table_formats import print_tables
    from hbr_fast.report.tables import summary_tables
    from hbr_fast.studies.runner import run_study
    from hbr_fast.studies.summary import failed_trainings, summary

    run_study(
        grid,
        opened,
        out=directory,
        pool=opened_pool,
        groups=groups,
        execution=execution,
        advice=_shorter(recipe, execution),
    )
    progress.say("report: drawing")
    page = write_report(directory, dataset=opened)
    print_tables(summary_tables(directory))
    print(f"\nreport: {page}")
    files = read_study(directory)
    # Of the whole command, with the verification of the dataset, the evaluation and the drawing of the report.
    seconds = {"seconds": time.perf_counter() - start, "training_seconds": files.meta["seconds"]}
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    print(json.dumps({**summary(directory), **rounded, "report": str(page)}))
    if chosen := choice_answer(files):
        progress.say(chosen)
    if failed := failed_trainings(directory):
        which = "; ".join(f"{f.arm}, variant {f.variant}, member {f.member}: {f.error}" for f in failed)
        raise FloatingPointError(f"{len(failed)} of the study's trainings diverged and are left out. {which}")


def _shorter(recipe: RecipeOptions, execution: Execution) -> str:
    """What to add to a forecast of hours."""
    faster = recipe.recipe is None and execution.cluster is None and execution.training_device().type == "cpu"
    small = "; --recipe small-cnn trains a smaller network" if faster else ""
    return f": --dry-run lists them and trains nothing{small}"


def _tiny_data(directory: Path, dataset: Path | None, pool: Path | None) -> tuple[Dataset, Path | None]:
    """Small generated images with known hardness, and more of them as a pool, unless others are given."""
    from hbr_fast.data.convert import convert as convert_source
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.remote import url_of

    path = dataset or directory / "tiny.hbr"
    if url_of(path) is None and not path.exists():
        convert_source("synthetic", path, classes=4, train_per_class=80, test_per_class=40, shape=(1, 8, 8))
    more = pool or directory / "tiny-pool.hbr"
    if dataset is None and not more.exists():
        # Twice as many from the same patterns: half of them are new.
        convert_source("synthetic", more, classes=4, train_per_class=200, test_per_class=1, shape=(1, 8, 8))
    return open_dataset(path), more if more.exists() else None


def _verified(dataset: Path | None, directory: Path, *, root: Path | None, download: bool) -> Dataset:
    """The given dataset, or Fashion-MNIST converted once into `directory`; always verified."""
    from hbr_fast.data.convert import convert as convert_source
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.verify import verify_dataset

    path = dataset or directory / "fashion-mnist.hbr"
    if dataset is None and not path.exists():
        if download and root is None:
            root = directory / "downloads"
            root.mkdir(parents=True, exist_ok=True)
        convert_source("fashion-mnist", path, root=root, download=download)
    found = verify_dataset(path, fetch=False)
    progress.say(f"verify: {path} is good, {found.samples:,} samples in {found.bytes / 1e6:,.1f} MB")
    return open_dataset(path)
