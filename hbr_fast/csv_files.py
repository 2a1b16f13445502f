"""The only reader of the package's own CSV files: every fault is a `ValueError` that names the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

_LARGEST_WHOLE, _LARGEST_REAL = 2**31, 1e12  # of cells of 64-bit types: larger ones are damage, and charts of them hang


def read_csv(
    path: Path, columns: Mapping[str, Any], *, optional: Mapping[str, Any] | None = None, remedy: str
) -> pl.DataFrame:
    """Read a CSV file whose named columns have these polars types; the optional ones may be missing or have gaps.

    An empty cell of a column of floating-point numbers becomes NaN; in other columns it is a fault.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it does not parse, lacks a column, or a cell is empty or too large; the message names the file.
    """
    import polars as pl

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    try:
        header = pl.read_csv(path, n_rows=0).columns
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(f"{path} lacks the column {', '.join(map(repr, missing))}: {remedy}")
        frame = pl.read_csv(path, schema_overrides={**(optional or {}), **columns})
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read ({reason:.200}): {remedy}") from None
    frame = frame.with_columns(pl.col(pl.Float64).fill_null(float("nan")))
    for name in columns:
        if frame[name].null_count():
            raise ValueError(f"{path}: column {name!r} has an empty cell: {remedy}")
        kind = columns[name]
        if kind in (pl.Int64, pl.Float64):
            most = _LARGEST_WHOLE if kind == pl.Int64 else _LARGEST_REAL
            value = frame[name].drop_nans().abs().max() if kind == pl.Float64 else frame[name].abs().max()
            if value is not None and value > most:  # type: ignore[operator]
                raise ValueError(f"{path}: column {name!r} has {value!r}, which is too large to be right: {remedy}")
    return frame
