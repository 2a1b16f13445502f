"""What `hbr-fast import` is given: a table of runs, their outputs, the labels of the test samples, and more tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from hbr_fast.csv_files import read_table
from hbr_fast.data.npy import npz_names, read_npy, read_npz
from hbr_fast.studies.imported import ImportedRun, faults_of_hardness, import_runs, require_labels
from hbr_fast.studies.study import BASELINE

_Read = TypeVar("_Read")


def import_files(
    table: Path,
    *,
    labels: Path,
    out: Path,
    classes: tuple[str, ...] | None = None,
    samples: Path | None = None,
    hardness: Path | None = None,
    estimator: str = "aum",
    groups: Path | None = None,
    metric: str = "recall",
    seed: int = 0,
) -> None:
    """`import_runs` of what files hold; parameters as of `hbr-fast import`.

    Raises
    ------
    FileNotFoundError, ValueError
        Names the file, or the table if its runs do not fit the labels or one another.
    """
    runs, against = read_runs(table)
    labels_n, ids = read_labels(labels)
    counts = None
    if samples is not None:
        widths = [run.outputs.shape[1] for run in runs if run.outputs.ndim == 2]
        counts = read_samples(samples, len(classes) if classes else max([int(labels_n.max()) + 1, *widths]))
    scores = None if hardness is None else read_hardness(hardness, estimator)
    try:
        import_runs(
            runs,
            labels_n,
            out=out,
            ids=ids,
            classes=classes or None,
            against=against,
            samples=counts,
            scores=scores,
            estimator=estimator,
            metric=metric,
            name=table.stem,
            groups=groups,
            seed=seed,
        )
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from None


def read_runs(table: Path) -> tuple[list[ImportedRun], dict[str, str]]:
    """The runs that a table lists, and which arm each arm is compared with.

    Parameters
    ----------
    table : path
        CSV or Parquet with the columns `arm` and `file` (relative to the table), and, if there are several trainings,
        `variant` and `member`; `against` where an arm is not compared with the baseline. An output file is `.npy`;
        `.npz` with `logits` or `predictions`, and maybe `ids`; CSV or Parquet with `prediction` or `logit_0`,
        `logit_1`, ..., and maybe `id`.

    Raises
    ------
    FileNotFoundError, ValueError
        If files are missing or hold something else; all of them are named at once.
    """
    frame = read_table(table)
    lacking = [column for column in ("arm", "file") if column not in frame.columns]
    if lacking:
        raise ValueError(
            f"{table} lacks the column {lacking[0]!r}: a table of runs has arm and file, one row a training"
        )
    for column in ("variant", "member"):
        if column not in frame.columns:
            frame = frame.with_columns(pl.lit(0).alias(column))
        elif not frame[column].dtype.is_integer() or frame[column].null_count():
            raise ValueError(f"{table}: {column} must be a whole number in every row")
    missing = [name for name in frame["file"].to_list() if not os.path.isfile(table.parent / str(name))]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FileNotFoundError(f"{table} lists files that are not there: {', '.join(map(str, missing[:5]))}{more}")
    runs, faults = [], []
    for row in frame.rows(named=True):
        try:
            outputs, ids = read_outputs(table.parent / str(row["file"]))
        except ValueError as error:
            faults.append(str(error))
        else:
            runs.append(ImportedRun(str(row["arm"]), outputs, row["variant"], row["member"], ids))
    if faults:
        raise ValueError("; ".join(faults))
    against: dict[str, str] = {}
    if "against" in frame.columns:
        for arm, other in frame.select("arm", "against").drop_nulls().unique(maintain_order=True).rows():
            if against.setdefault(str(arm), str(other)) != str(other):
                raise ValueError(f"{table}: {arm!r} is compared with both {against[str(arm)]!r} and {other!r}")
    return runs, {arm: other for arm, other in against.items() if arm != BASELINE}


def read_outputs(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits, float [N, C], or predicted classes, integer [N], and sample ids if the file has any; see `read_runs`."""
    kinds: dict[str, Callable[[], Any]] = {
        ".npy": lambda: (read_npy(path), None),
        ".npz": lambda: _from_npz(path, ("logits", "predictions")),
        ".csv": lambda: _from_frame(read_table(path), path),
        ".parquet": lambda: _from_frame(read_table(path), path),
    }
    return _read(path, kinds)


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """True classes, integer [N], and sample ids if the file has any: `.npy`; `.npz` with `labels`, and maybe `ids`; CSV
    or Parquet with `label`, and maybe `id`."""
    kinds: dict[str, Callable[[], Any]] = {
        ".npy": lambda: (read_npy(path), None),
        ".npz": lambda: _from_npz(path, ("labels",)),
        ".csv": lambda: _column(read_table(path), path, "label"),
        ".parquet": lambda: _column(read_table(path), path, "label"),
    }
    labels, ids = _read(path, kinds)
    require_labels(labels, where=f"labels of {path}")
    return labels, ids


def read_samples(path: Path, num_classes: int) -> dict[str, np.ndarray]:
    """Training samples of each class by arm, from a table with the columns `arm`, `class_index` and `samples`."""
    frame = read_table(path)
    lacking = [column for column in ("arm", "class_index", "samples") if column not in frame.columns]
    if lacking:
        raise ValueError(f"{path} lacks the column {lacking[0]!r}: it needs arm, class_index and samples")
    for column in ("class_index", "samples"):
        if not frame[column].dtype.is_integer() or frame[column].null_count():
            raise ValueError(f"{path}: {column} must be a whole number in every row")
    found: dict[str, np.ndarray] = {}
    for (arm,), rows in frame.group_by("arm", maintain_order=True):
        counts = dict(rows.select("class_index", "samples").rows())
        if sorted(counts) != list(range(num_classes)) or len(counts) != rows.height:
            raise ValueError(
                f"{path}: arm {arm!r} needs one row for each of {num_classes} classes, got {sorted(counts)}"
            )
        found[str(arm)] = np.array([counts[c] for c in range(num_classes)])
    return found


def read_hardness(path: Path, estimator: str) -> pl.DataFrame:
    """Scores of training samples, as `hbr-fast hardness --csv` writes them."""
    frame = read_table(path)
    if faults := faults_of_hardness(frame, estimator):
        raise ValueError(f"{path}: {'; '.join(faults)}")
    return frame


def _read(path: Path, kinds: dict[str, Callable[[], _Read]]) -> _Read:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    if path.suffix not in kinds:
        raise ValueError(f"{path}: its name must end in {', '.join(kinds)}")
    return kinds[path.suffix]()


def _from_npz(path: Path, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    all_names = npz_names(path)
    held = [name for name in names if name in all_names]
    if len(held) != 1:
        raise ValueError(f"{path} must hold one of {', '.join(names)}; it holds {', '.join(all_names) or 'nothing'}")
    return read_npz(path, held[0]), read_npz(path, "ids") if "ids" in all_names else None


def _from_frame(frame: pl.DataFrame, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    logits = [column for column in frame.columns if column.startswith("logit_")]
    if not logits:
        return _column(frame, path, "prediction")
    wanted = [f"logit_{c}" for c in range(len(logits))]
    if sorted(logits) != sorted(wanted):
        raise ValueError(
            f"{path}: logits must be in columns logit_0 to logit_{len(logits) - 1}, got {', '.join(logits)}"
        )
    text = [name for name in wanted if not frame[name].dtype.is_numeric() or frame[name].null_count()]
    if text:
        raise ValueError(f"{path}: column {text[0]!r} must be a number in every row")
    return frame.select(wanted).cast(pl.Float64).to_numpy(), _ids(frame)


def _column(frame: pl.DataFrame, path: Path, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    if name not in frame.columns:
        raise ValueError(f"{path} lacks the column {name!r}: it has {', '.join(frame.columns)}")
    if frame[name].null_count():
        raise ValueError(f"{path}: column {name!r} has an empty cell")
    return frame[name].to_numpy(), _ids(frame)


def _ids(frame: pl.DataFrame) -> np.ndarray | None:
    return frame["id"].to_numpy() if "id" in frame.columns else None
