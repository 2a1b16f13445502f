"""The only reader of tables, the package's own and users': every fault is a `ValueError` that names the file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hbr_fast.files import reason

if TYPE_CHECKING:
    import polars as pl

_LARGEST_WHOLE, _LARGEST_REAL = 2**31, 1e12  # of cells of 64-bit types: larger ones are damage, and charts of them hang

# Rows of one value take no bytes in Parquet: more than this many must take one each.
_MOST_ROWS = 5_000_000
_READ_PARQUET = """
import io, os, polars, sys
for file in sys.argv[2:] or [io.BytesIO(sys.stdin.buffer.read())]:
    size = os.stat(file).st_size if isinstance(file, str) else file.getbuffer().nbytes
    rows = polars.scan_parquet(file).select(polars.len()).collect().item()
    if rows > max(int(sys.argv[1]), size):
        print(rows)
        break
    polars.read_parquet(file)
"""


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
    except polars_faults() as error:
        raise ValueError(f"{path} cannot be read ({reason(error)}): {remedy}") from None
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


def read_table(path: Path) -> pl.DataFrame:
    """Read a user's table, CSV or, by its suffix, Parquet.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is not a table; the message names it.
    """
    import polars as pl

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        if path.suffix == ".parquet":
            require_readable_parquet(path)
            frame = pl.read_parquet(path)
        else:
            frame = pl.read_csv(path, infer_schema_length=None)
    except polars_faults() as error:
        raise ValueError(f"{path} cannot be read ({reason(error)}): give CSV or Parquet") from None
    for name, kind in frame.schema.items():
        if not name.isprintable():
            raise ValueError(f"{path}: the name of column {name!r} has line breaks or the like: rename it")
        if kind in (pl.Int128, pl.UInt128):
            raise ValueError(f"{path}: column {name!r} has numbers of more than 64 bits: correct them")
    return frame


def require_readable_parquet(*files: Path | bytes) -> None:
    """Read Parquet files, or the content of one, in another process first: damaged ones can abort the one that reads.

    Raises
    ------
    OSError
        If they did, or have far more rows than bytes.
    """
    paths = [str(file) for file in files if isinstance(file, Path)]
    content = next((file for file in files if isinstance(file, bytes)), None)
    ended = subprocess.run(
        [sys.executable, "-P", "-c", _READ_PARQUET, str(_MOST_ROWS), *paths],
        input=content,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if ended.returncode == 0 and ended.stdout:
        raise OSError(f"{int(ended.stdout):,} rows in so few bytes cannot be a table")
    if ended.returncode < 0:  # other errors occur here again, with their reason
        raise OSError("it is damaged: reading it ends the process")


def polars_faults() -> tuple[type[BaseException], ...]:
    """What polars raises for a damaged file; its panics are no `Exception`."""
    import polars as pl

    return (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
