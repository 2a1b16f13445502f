"""The baseline of a finished study, as an ensemble that commands for trained ensembles take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hbr_fast.members.ensemble import Ensemble
from hbr_fast.members.store import open_member
from hbr_fast.studies.study import BASELINE
from hbr_fast.studies.study_json import NAME, read_study_json


def is_study(directory: Path) -> bool:
    """Whether a directory holds the results of a study."""
    return (directory / NAME).is_file()


def open_baseline(directory: Path) -> tuple[Ensemble, dict[str, Any]]:
    """The members of a study's baseline, and its `study.json`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the study is damaged, or its runs were imported: these have no members that could be evaluated again.
    """
    about = read_study_json(directory)
    keys = [member.get("key") for arm in about["arms"] if arm["name"] == BASELINE for member in arm["members"]]
    if not keys or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{directory} holds imported runs, without trained members: their report has all there is")
    return Ensemble(tuple(open_member(directory, key) for key in keys)), about
