"""`hbr-fast report`."""

from __future__ import annotations

from pathlib import Path

from hbr_fast import progress
from hbr_fast.cli.options import StudyPath


def report(study_dir: StudyPath, *, out: Path | None = None, dataset: Path | None = None) -> None:
    """Write the report of a finished study again.

    Args:
        study_dir: A directory that study wrote.
        out: Folder to write, by default report in the study's directory.
        dataset: The study's dataset, if it was moved.
    """
    progress.say("report: loading")  # the imports below take seconds
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.report.page import write_report
    from hbr_fast.studies.study_json import require_study

    require_study(study_dir)
    opened = None if dataset is None else open_dataset(dataset)
    print(write_report(study_dir, out=out, dataset=opened))
