"""`hbr-fast hardness`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hbr_fast import progress
from hbr_fast.arguments import did_you_mean
from hbr_fast.cli.options import RunPath, dataset_of
from hbr_fast.cli.overwriting import refuse_to_overwrite

if TYPE_CHECKING:
    from hbr_fast.data.dataset import Dataset


def hardness(
    run: RunPath,
    *,
    estimator: str = "aum",
    top: int | None = None,
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None,
    easiest: bool = False,
    csv: Path | None = None,
    force: bool = False,
) -> None:
    """Print the hardness of the classes by a trained ensemble, or its hardest samples.

    Args:
        run: A run directory that train wrote.
        estimator: aum, confidence, loss, el2n, forgetting, ... (an unknown name lists them all); aum_final,
            confidence_final, loss_final and dataiq_final evaluate the trained models, once.
        top: Print the N hardest samples, and where each came from, instead of the classes.
        class_: With --top, only samples of this class (name or number).
        easiest: With --top, print the easiest samples instead.
        csv: Write every sample's source and its scores by every estimator to this file.
        force: Replace the file.
    """
    progress.say("hardness: loading")  # the imports below take seconds
    from hbr_fast.files import atomic_write
    from hbr_fast.hardness import estimator as estimator_named
    from hbr_fast.members.ensemble import open_ensemble
    from hbr_fast.members.scoring.final_model import scores_by
    from hbr_fast.progress import counted, printable
    from hbr_fast.studies.results import sample_table

    if top is None and (class_ is not None or easiest):
        raise ValueError("--class and --easiest select the samples that --top prints: give --top too")
    if csv is not None:
        refuse_to_overwrite(csv, force, kind="table")
    chosen = estimator_named(estimator)
    ensemble, about = open_ensemble(run)
    opened = dataset_of(run, about)
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
        sources = opened.train.sources
        names = ["" if sources is None else f"  {printable(sources[sample])}" for sample in samples.tolist()]
        lines = [
            (values[sample], f"sample {sample}  {opened.classes[labels[sample]]}{name}")
            for sample, name in zip(samples, names, strict=True)
        ]
    order = f"{'easiest' if easiest else 'hardest'} {'class' if top is None else 'sample'} first"
    print(f"{estimator}: {chosen.meaning}; {chosen.hard_is} is hard; {counted(scores.members, 'member')}, {order}")
    for value, what in lines:
        print(f"{value:>12.4f}  {what}")
    if csv is not None:
        with atomic_write(csv) as file:
            sample_table(scores, opened).write_csv(file)
        print(f"scores of {len(scores):,} samples: {csv}")


def _class_number(name: str, dataset: Dataset) -> int:
    """The class with this name or, if there is none, this number."""
    if name in dataset.classes:
        return dataset.classes.index(name)
    if name.isdecimal() and int(name) < len(dataset.classes):
        return int(name)
    meant = did_you_mean(dataset.classes, name)
    raise ValueError(f"no class {name!r}: the classes are {', '.join(dataset.classes)}{meant}")
