"""Holding out a test split, for every source whose input has none."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from hbr_fast.data.sources.source import Findings, Source


def with_test_split(source: Source, fraction: float | None, *, seed: int = 0) -> Source:
    """The source with a test split: its own, or a share of each class of the train split.

    Parameters
    ----------
    source : Source
    fraction : float or None
        In (0, 1): the share, if `source` has no test split. None: it must have one.
    seed : int
        Decides which samples are held out, in [0, 2**63).

    Raises
    ------
    ValueError
        If the source has a test split and `fraction` is given.
    Exception
        `Source.no_test`, if it has none and `fraction` is None.
    """
    if "test" in source.splits:
        if fraction is not None:
            raise ValueError(f"{source.name} has a test split of its own: leave out --test-fraction")
        return source
    if fraction is None:
        assert source.no_test is not None, "a source without a test split says why"
        also = None if source.also_missing is None else source.also_missing()
        raise source.no_test if also is None else type(source.no_test)(f"{source.no_test}; {also}")
    whole = source.splits["train"]
    assert whole.subset is not None, "a source without a test split can be divided"
    is_test_n = held_out(whole.labels_n, len(source.classes), fraction, seed=seed)
    options = {"test_fraction": fraction, **({"seed": seed} if seed else {})}
    findings = source.findings

    def found() -> Findings:
        assert findings is not None
        known = findings()
        return replace(known, origin=_described(known.origin, options))

    return replace(
        source,
        splits={
            "train": whole.subset("train", np.flatnonzero(~is_test_n)),
            "test": whole.subset("test", np.flatnonzero(is_test_n)),
        },
        origin=_described(source.origin, options),
        findings=None if findings is None else found,
    )


def _described(origin: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    return {**origin, "options": {**origin.get("options", {}), **options}}


def check_fraction(fraction: float | None, seed: int) -> None:
    """Refuse a test fraction outside (0, 1) or a seed outside [0, 2**63)."""
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {fraction}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")


def held_out(labels_n: np.ndarray, num_classes: int, fraction: float, *, seed: int = 0) -> np.ndarray:
    """Mask [N] of samples to hold out as the test split: the share `fraction` of each class, rounded half up.

    Raises
    ------
    ValueError
        As `check_fraction`.
    """
    check_fraction(fraction, seed)
    order_n = np.random.Philox(key=seed).random_raw(len(labels_n))
    is_test_n = np.zeros(len(labels_n), dtype=bool)
    for label in range(num_classes):
        members = np.flatnonzero(labels_n == label)
        count = int(Fraction(str(fraction)) * len(members) + Fraction(1, 2))
        is_test_n[members[np.argsort(order_n[members], kind="stable")[:count]]] = True
    return is_test_n
