"""`study.json`: what a study ran, and the checksums of the results files that belong to it (docs/results.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NotRequired, TypedDict

from hbr_fast.data.unconverted import meant_path, other_directory
from hbr_fast.files import sha256_of_file
from hbr_fast.json_schema import Natural, read_sealed_json, require_schema

SCHEMA = 4
NAME = "study.json"
REMEDY = "run the study again (nothing is trained again)"


class _Dataset(TypedDict):
    name: str
    fingerprint: str
    classes: list[str]
    path: NotRequired[str]
    samples: NotRequired[Natural]


class _Member(TypedDict):
    variant: Natural
    member: Natural
    seed: Natural


class _Arm(TypedDict):
    name: str
    members: list[_Member]
    against: NotRequired[str | None]
    alpha: NotRequired[float | None]
    undersample: NotRequired[str | None]
    oversample: NotRequired[str | None]
    prune_level: NotRequired[str | None]
    prune_by: NotRequired[str | None]
    prune_rate: NotRequired[float | None]
    reweight: NotRequired[bool]
    other_class: NotRequired[bool]
    counts: NotRequired[list[Natural]]
    counts_wanted: NotRequired[list[Natural]]
    counts_by_variant: NotRequired[list[list[Natural]]]
    shifted: NotRequired[Literal["shift", "authors"] | None]


class _Failure(TypedDict):
    arm: str
    variant: Natural
    member: Natural
    error: str


class _Study(TypedDict):
    """`study.json`, beside its schema. Earlier versions wrote no `files`."""

    study: str
    dataset: _Dataset
    recipe: dict
    seconds: float
    versions: dict
    arms: list[_Arm]
    estimator: str | None
    metric: NotRequired[str]
    class_hardness: NotRequired[list[float] | None]
    hardness_members: NotRequired[Natural]
    evaluated_samples: NotRequired[list[Natural]]
    infeasible: NotRequired[dict[str, str]]
    evaluated_on: NotRequired[Literal["test", "validation"]]
    failed: NotRequired[list[_Failure]]
    choice: NotRequired[dict]
    enough_members: NotRequired[dict[str, Natural | None]]
    files: NotRequired[dict[str, str]]


def require_study(directory: Path) -> None:
    """Refuse a directory that is not a study's, by what it is.

    Raises
    ------
    FileNotFoundError
        If it does not exist, or is a dataset or an ensemble.
    """
    if not directory.exists():
        meant = meant_path(directory, NAME)
        raise FileNotFoundError(f"there is no study at {directory}{meant}: make one with hbr-fast study")
    if not (directory / NAME).is_file() and (other := other_directory(directory, NAME)):
        raise FileNotFoundError(f"{directory} is {other}, not a study: give a directory that hbr-fast study wrote")


def read_study_json(directory: Path) -> dict[str, Any]:
    """Read `study.json`, and check that the results files it lists are those that were written with it.

    Raises
    ------
    FileNotFoundError
        If it or a file that it lists is missing.
    ValueError
        If it is damaged, of another schema, or files were changed after it was written.
    """
    path = directory / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {REMEDY}")
    meta: Any = read_sealed_json(path, remedy=REMEDY)
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a study of schema {SCHEMA}: {REMEDY}")
    require_schema(meta, _Study, where=str(path), remedy=REMEDY)
    changed = []
    for name, checksum in meta.get("files", {}).items():
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] == "/":
            raise ValueError(f"{path}: {name!r} in files is not a name in the study's directory: {REMEDY}")
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} is missing: {REMEDY}")
        if sha256_of_file(directory / name) != checksum:
            changed.append(str(directory / name))
    if changed:
        raise ValueError(f"{', '.join(changed)} changed after {NAME} was written: {REMEDY}")
    return meta


def evaluated_on(study: Mapping[str, Any]) -> str:
    """The samples that the results files of a study are about, by its `study.json`, in words."""
    if study.get("evaluated_on", "test") == "test":
        return "test set"
    return "validation split" if study["choice"]["validation_share"] is None else "held-out training samples"
