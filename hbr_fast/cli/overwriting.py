"""Which existing file a command may replace: with --force, and only by another of its kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

Kind = Literal["table", "plan", "picture", ".beton file"]


def refuse_to_overwrite(out: Path, force: bool, *, kind: Kind) -> None:
    """Raise if `out` exists, unless it may be replaced: with `force`, and if it is of this kind."""
    if not out.exists():
        return
    if not force:
        raise FileExistsError(f"{out} exists already: choose another name or replace it with --force")
    if not out.is_file() or not _IS[kind](out):
        raise FileExistsError(
            f"{out} is no {kind}, and --force replaces nothing else: move it away or choose another name"
        )


def _is_plan(path: Path) -> bool:
    from hbr_fast.data.plan import is_plan

    return is_plan(path)


def _is_beton(path: Path) -> bool:
    from hbr_fast.data.beton import is_beton

    return is_beton(path)


def _is_table(path: Path) -> bool:
    """Whether the first line is names with commas between them."""
    with open(path, "rb") as file:
        return re.fullmatch(rb"\w+(,\w+)+\r?\n", file.readline(10_000)) is not None


def _is_picture(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(5) in (b"\x89PNG\r", b"%PDF-", b"<?xml")


_IS: Mapping[str, Callable[[Path], bool]] = {
    "table": _is_table,
    "plan": _is_plan,
    "picture": _is_picture,
    ".beton file": _is_beton,
}
