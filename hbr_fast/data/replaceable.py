"""What may be deleted to make room for a new dataset: a dataset, and nothing that anyone else put there."""

from __future__ import annotations

from pathlib import Path

from hbr_fast.data.meta_json import META
from hbr_fast.files import foreign_entries, read_json

_NOTES = ("skipped.csv",)  # reports of the conversion, not listed in `meta.json`


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
    foreign = sorted(set(entries) - {META, *_NOTES, *_files_of(path)})
    if foreign:
        raise FileExistsError(
            f"{path} holds {foreign[0]}, which conversion did not write ({len(foreign)} such) and --force would "
            f"delete: {remedy}"
        )


def _files_of(path: Path) -> list[str]:
    """Names that `meta.json` lists; if it is damaged, all that look like a split's files."""
    try:
        listed = read_json(path / META)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        listed = None
    if isinstance(listed, dict):
        return [name for name in listed if isinstance(name, str)]
    return [file.name for split in ("train", "test", "validation") for file in path.glob(f"{split}.*")]
