"""`hbr-fast import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from hbr_fast.cli.options import Names, OutPath


def import_runs(
    runs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")],
    out: OutPath,
    *,
    labels: Path,
    classes: Names = None,
    samples: Path | None = None,
    hardness: Path | None = None,
    estimator: str = "aum",
    groups: Path | None = None,
    metric: str = "recall",
    seed: int = 0,
) -> None:
    """Compare trainings of your own: from their outputs on a test set to statistics, tables and the page of a study.

    Args:
        runs: A table (CSV, Parquet) with the columns arm and file, and variant, member and against where there are
            several; the arm baseline is what others are compared with. Files: .npy, .npz, CSV or Parquet with the
            logits or the predicted classes of every test sample, and maybe their ids.
        out: The directory to write to.
        labels: True classes of the test samples: .npy, .npz, CSV or Parquet, maybe with ids.
        classes: Names of the classes; by default their numbers.
        samples: A table with the columns arm, class_index and samples: training samples of each class.
        hardness: Scores of the training samples, as hardness --csv writes them.
        estimator: Which of these scores is the hardness of the classes.
        groups: A table with sample_id and one column for each attribute: accuracy of each group of test samples.
        metric: What gaps between classes, tables and pictures are about: recall, precision, f1, mcc, auroc or ece.
        seed: Seed of bootstraps.
    """
    from hbr_fast.report.page import write_report
    from hbr_fast.report.table_formats import print_tables
    from hbr_fast.report.tables import summary_tables
    from hbr_fast.studies.run_files import import_files
    from hbr_fast.studies.summary import summary

    import_files(
        runs,
        labels=labels,
        out=out,
        classes=classes,
        samples=samples,
        hardness=hardness,
        estimator=estimator,
        groups=groups,
        metric=metric,
        seed=seed,
    )
    page = write_report(out)
    print_tables(summary_tables(out))
    print(f"\nreport: {page}")
    print(json.dumps({**summary(out), "report": str(page)}))
