"""Accuracy of groups of test samples: attributes of theirs, from a table, such as who is shown or where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from hbr_fast.csv_files import read_table
from hbr_fast.evaluation.statistics import combined_interval
from hbr_fast.studies.comparisons import Trained

UNLISTED = "(not listed)"
MOST_NAMED = 5


def read_groups(table: Path, **names: Sequence[object] | np.ndarray | None) -> dict[str, np.ndarray]:
    """The group of every test sample by each attribute.

    Parameters
    ----------
    table : path
        CSV or Parquet with one column that names samples, and one for each attribute. Samples without a row or a value
        are a group of their own.
    **names : sequence of N
        What the samples are called, in order, by the name of the column; None if they have no such names.

    Returns
    -------
    dict of str to str [N]

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing, has no such column or no attribute, or names samples that there are not or one twice.
    """
    frame = read_table(table)
    known = {column: given for column, given in names.items() if given is not None}
    key = next((column for column in known if column in frame.columns), None)
    attributes = [column for column in frame.columns if column not in names]
    if key is None or not attributes:
        raise ValueError(
            f"{table} must have a column {' or '.join(map(repr, known))} and one for each attribute, got "
            f"{', '.join(frame.columns)}"
        )
    named = frame[key].cast(pl.String).to_list()
    place = {str(sample): n for n, sample in enumerate(known[key])}
    faults = []
    for what, wrong in (
        ("samples that are not in the test set", [name for name in named if name not in place]),
        ("samples twice", [name for name, times in Counter(named).items() if times > 1]),
    ):
        if wrong:
            more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
            faults.append(f"{what}: {', '.join(map(str, wrong[:MOST_NAMED]))}{more}")
    if faults:
        raise ValueError(f"{table} has {'; '.join(faults)}")
    groups = {}
    for attribute in attributes:
        of_sample = np.full(len(place), UNLISTED, dtype=object)
        for name, value in zip(named, frame[attribute].cast(pl.String).to_list(), strict=True):
            of_sample[place[name]] = UNLISTED if value is None else value
        groups[attribute] = of_sample
    return groups


def group_table(
    arms: Mapping[str, Sequence[Trained]],
    groups: Mapping[str, np.ndarray],
    *,
    labels_n: np.ndarray,
    nested: Sequence[str],
) -> pl.DataFrame:
    """`groups.csv`: accuracy of every group in every arm, with a 95 % interval that covers the noise of its samples.

    Parameters
    ----------
    arms : mapping of str to sequence of Trained
    groups : mapping of str to str [N]
        See `read_groups`.
    labels_n : integer [N]
        True classes.
    nested : sequence of str
        Arms in which the members of a variant share its resampled set, so that only variants are independent.
    """
    rows = []
    for arm, trainings in arms.items():
        variants = np.array([one.variant for one in trainings])
        right_mn = np.stack([one.predicted == labels_n for one in trainings]).astype(np.float64)
        if arm in nested:
            right_mn = np.stack([right_mn[variants == variant].mean(axis=0) for variant in np.unique(variants)])
        for attribute, of_sample in groups.items():
            for group in sorted(set(of_sample.tolist())):
                inside = np.array([one == group for one in of_sample])  # numpy strips NUL from the end of a str
                values = right_mn[:, inside].mean(axis=1)
                mean, samples = float(values.mean()), int(inside.sum())
                low, high = combined_interval(values, math.sqrt(mean * (1 - mean) / samples))
                rows.append(
                    {
                        "arm": arm,
                        "attribute": attribute,
                        "group": group,
                        "samples": samples,
                        "accuracy": mean,
                        "low": max(low, 0.0),
                        "high": min(high, 1.0),
                    }
                )
    return pl.DataFrame(rows)
