"""Opening a source by name: its options, a held-out test split, and whether its files are the published ones."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from hbr_fast import progress
from hbr_fast.arguments import did_you_mean
from hbr_fast.data.sources import SOURCES
from hbr_fast.data.sources.hold_out import check_fraction, with_test_split
from hbr_fast.data.sources.published import MD5
from hbr_fast.data.sources.source import Source

_COMPARED = (*MD5, "torchvision")  # sources with published checksums


def open_source(
    source: str,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    test_fraction: float | None = None,
    seed: int | None = None,
    accept_changed: bool = False,
    **options: Any,
) -> Source:
    """The named source, with a train and a test split.

    Parameters
    ----------
    source : str
        One of `SOURCES`; for torchvision with the dataset's class: "torchvision:SVHN".
    root, download : optional
        As in `convert`.
    test_fraction : float, optional
        In (0, 1): the share of each class, rounded half up, held out as the test split if the input has none.
    seed : int, optional
        Decides which samples are held out; for synthetic, the generator's seed. Default 0.
    accept_changed : bool
        Whether files that differ from the published ones are used as they are.
    **options
        Passed to the source's function; None means not given.

    Raises
    ------
    FileNotFoundError, OSError, ValueError
        As in `convert`.
    """
    kind, _, name_in_library = source.partition(":")
    if kind not in SOURCES:
        raise ValueError(f"unknown source {source!r}: choose one of {', '.join(SOURCES)}{did_you_mean(SOURCES, kind)}")
    taken = inspect.signature(SOURCES[kind]).parameters
    if ("name" in taken) != bool(name_in_library):
        form = "torchvision:SVHN" if "name" in taken else kind
        raise ValueError(f"{source} is not a source: give it as {form}")
    check_fraction(test_fraction, seed or 0)
    given = {
        "name": name_in_library or None,
        "root": None if root is None else Path(os.path.expanduser(root)),
        "download": download or None,
        "seed": seed if "seed" in taken else None,
        "accept_changed": (accept_changed or None) if kind not in _COMPARED else None,
        **options,
    }
    given = {option: value for option, value in given.items() if value is not None}
    unknown = next((option for option in given if option not in taken), None)
    if unknown is not None:
        every = [*taken, "test_fraction", *(["accept_changed"] if kind in _COMPARED else [])]
        raise ValueError(f"source {source} takes no option {unknown!r}: it takes {', '.join(every)}")
    if seed is not None and "seed" not in taken and test_fraction is None:
        raise ValueError(f"source {source} uses a seed only to hold out a test split: leave out --seed")
    opened = with_test_split(SOURCES[kind](**given), test_fraction, seed=seed or 0)
    if opened.changed:
        _changed(opened, accept_changed)
    return opened


def _changed(source: Source, accept: bool) -> None:
    several = len(source.changed) > 1
    what = f"{', '.join(source.changed)} {'differ' if several else 'differs'} from the published {source.name}"
    if not accept:
        raise ValueError(
            f"{what} (by MD5): fetch {'them' if several else 'it'} again, or use what is there with --accept-changed"
        )
    progress.say(f"{what}, as accepted")
