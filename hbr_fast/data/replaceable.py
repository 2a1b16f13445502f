"""What may be deleted to make room for a new dataset: a dataset, and nothing that anyone else put there."""

from __future__ import annotations

import re
from pathlib import Path

from hbr_fast.data.meta_json import META
from hbr_fast.files import foreign_entries

_NOTES = ("skipped.csv",)  # reports of the conversion, not listed in `meta.json`
_OF_SPLITS = re.compile(r".+\.(images|labels|hardness|index|sources|source_offsets)\.npy|.+\.\d{5,}\.tar")


def require_replaceable(path: Path) -> None:
    """Raise unless `path` is a dataset, whole or damaged, an empty directory, or a link to one of these.

    Raises
    ------
    FileExistsError
        Names the files that conversion did not write.
    """
    remedy = "move it away or choose another name"
    if not path.is_dir():
        raise FileExistsError(f"{path} is not a dataset, and --force replaces nothing else: {remedy}")
    entries = foreign_entries(path, ())
    if not entries:
        return
    if META not in entries:
        raise FileExistsError(
            f"{path} is not a dataset (it has {entries[0]} and no {META}), and --force replaces nothing else: {remedy}"
        )
    foreign = sorted(name for name in entries if name not in (META, *_NOTES) and not _is_of_dataset(name))
    if foreign:
        raise FileExistsError(
            f"{path} holds {foreign[0]}, which conversion did not write ({len(foreign)} such) and --force would "
            f"delete: {remedy}"
        )


def _is_of_dataset(name: str) -> bool:
    """Whether a file is named as conversion names a split's files; what `meta.json` lists may be another program's."""
    return "/" not in name and _OF_SPLITS.fullmatch(name) is not None
