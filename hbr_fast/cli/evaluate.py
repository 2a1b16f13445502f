"""`hbr-fast evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hbr_fast import progress
from hbr_fast.arguments import did_you_mean
from hbr_fast.cli.options import RunPath, dataset_of
from hbr_fast.cli.overwriting import refuse_to_overwrite
from hbr_fast.progress import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from hbr_fast.data.dataset import Dataset, Split
    from hbr_fast.members.store import StoredMember


def evaluate(
    run: RunPath,
    *,
    dataset: Path | None = None,
    split: str = "test",
    csv: Path | None = None,
    figure: Path | None = None,
    force: bool = False,
) -> None:
    """Print how well a trained ensemble recognises each class, and how unequally.

    Args:
        run: A run directory that train wrote, or the directory of a finished study, of which the baseline is evaluated.
        dataset: Other images of the same classes and shape; by default those that the ensemble was trained on.
        split: The split to evaluate.
        csv: Write the metrics of every member and class to this file.
        figure: Draw the recall of every class by every member, classes sorted (the paper's figure 1), as .png, .svg or
            .pdf.
        force: Replace the files.
    """
    progress.say("evaluate: loading")  # the imports below take seconds
    import numpy as np
    import polars as pl

    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.relabel import real_classes
    from hbr_fast.data.verify import require_unchanged
    from hbr_fast.evaluation.measures import METRICS, gaps
    from hbr_fast.evaluation.metrics import evaluate as evaluated
    from hbr_fast.evaluation.resolution import few_samples
    from hbr_fast.files import atomic_write
    from hbr_fast.members.ensemble import open_ensemble
    from hbr_fast.studies.trained_baseline import is_study, open_baseline

    if csv is not None:
        refuse_to_overwrite(csv, force, kind="table")
    if figure is not None:
        refuse_to_overwrite(figure, force, kind="picture")
        from hbr_fast.report.class_recall import require_figure_name, write_class_recall
        from hbr_fast.report.drawing import short

        require_figure_name(figure)
    of_study = is_study(run)
    ensemble, about = open_baseline(run) if of_study else open_ensemble(run)
    trained_on = dataset_of(run, about)
    other = None if dataset is None else open_dataset(dataset)
    tested = trained_on if other is None else other
    chosen = _split(tested, split, like=trained_on)
    classes = trained_on.classes[: real_classes(trained_on)]
    stored = other is None and split == "test"  # training evaluated it
    if not stored:
        require_unchanged(tested)

    results = [
        evaluated(
            (member.test_logits() if stored else _logits(member, trained_on, chosen))[:, : len(classes)],
            chosen.labels,
            classes=classes,
        )
        for member in ensemble.members
    ]

    def over_members(values: Sequence[float]) -> str:
        spread = f" ({100 * min(values):.2f} to {100 * max(values):.2f})" if len(values) > 1 else ""
        return f"{100 * float(np.mean(values)):.2f}{spread}"

    where = f"{'' if other is None else f'{other.path}, '}split {split}"
    over = f"mean{' and range' if len(results) > 1 else ''} of {counted(len(results), 'member')}"
    over += " of the study's baseline" if of_study else ""
    print(f"{where}: {len(chosen):,} images; percent, {over}")
    images = chosen.class_counts()
    if few := few_samples(classes, images, kind=split):
        print(few)
    print(f"accuracy         {over_members([result.accuracy for result in results])}")
    for metric in ("recall", "precision"):
        found = [gaps(getattr(result, metric))["max_min"] for result in results]
        print(f"{f'{metric} gap':<15}  {over_members(found)}  (best minus worst class)")
    means = {name: np.mean([getattr(result, name) for result in results], axis=0) for name in METRICS}
    printed = [name for name, metric in METRICS.items() if metric.compared]  # the file has all
    widest = max(len(name) for name in (*classes, "class"))
    print(f"{'class':<{widest}}  {'images':>7}  " + "  ".join(f"{name:>9}" for name in printed))
    for c in np.argsort(means["recall"], kind="stable").tolist():
        values = "  ".join(f"{100 * means[name][c]:>9.2f}" for name in printed)
        print(f"{classes[c]:<{widest}}  {images[c]:>7,}  {values}")
    if csv is not None:
        rows = [
            {
                "member": number,
                "class_index": c,
                "class_name": name,
                "images": int(images[c]),
                **{metric: float(getattr(result, metric)[c]) for metric in METRICS},
                "never_predicted": bool(result.never_predicted[c]),
            }
            for number, result in enumerate(results)
            for c, name in enumerate(classes)
        ]
        with atomic_write(csv) as out:
            pl.DataFrame(rows).write_csv(out)
        print(f"metrics of {len(results)} x {len(classes)} members and classes: {csv}")
    if figure is not None:
        accuracy = np.mean([result.accuracy for result in results])
        name = short((other or trained_on).name)
        evaluated_on = f"{name}, {len(chosen):,} {split} images: accuracy {100 * accuracy:.1f} %"
        write_class_recall(figure, np.stack([result.recall for result in results]), classes, evaluated=evaluated_on)
        print(f"recall of each class: {figure}")


def _split(opened: Dataset, name: str, *, like: Dataset) -> Split:
    """The split to evaluate; its images are normalised as in training.

    Raises
    ------
    ValueError
        If there is no such split, or its classes or the images' shape are not those of the training.
    """
    import dataclasses

    if name not in opened.splits:
        meant = did_you_mean(opened.splits, name)
        raise ValueError(f"{opened.path} has no split {name!r}: choose one of {', '.join(opened.splits)}{meant}")
    split, trained = opened.splits[name], like.train
    if split.classes != trained.classes:
        differing = sorted(set(split.classes) ^ set(trained.classes)) or ["their order"]
        raise ValueError(
            f"{opened.path} has other classes than {like.path}, which the ensemble was trained on (differing: "
            f"{', '.join(differing)}): convert it with --merge, --drop or --rename"
        )
    shapes = split.store.image_shape, trained.store.image_shape  # None: encoded, of any size
    if len(split.mean) != len(trained.mean) or (None not in shapes and shapes[0] != shapes[1]):
        here, there = ("x".join(map(str, shape or "?")) for shape in shapes)
        raise ValueError(
            f"images of {opened.path} are {here}, the ensemble was trained on {there}: convert them to that"
        )
    return dataclasses.replace(split, mean=trained.mean, std=trained.std)


def _logits(member: StoredMember, trained_on: Dataset, split: Split) -> np.ndarray:
    from hbr_fast.members.scoring.final_model import as_trained, trained_model
    from hbr_fast.training.predict import predict

    return predict(trained_model(member, trained_on.train), as_trained(member, split), dtype=member.dtype)
