"""Samples per class -> a Plan: which rows of a split make the resampled epoch. No pixel is touched here.

Source: Pukowski & Osmani, arXiv 2504.07031: undersample easy classes, oversample hard ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hbr_fast.plan import Plan
from hbr_fast.seeding import Stream, generator

# How many of the `drop` surplus samples of a class go from its hardest end; the rest go from its easiest end.
_DROPPED_HARD_END: dict[str, Callable[[int], int]] = {
    "easy": lambda drop: 0,
    "hard": lambda drop: drop,
    "extreme": lambda drop: drop // 2,
}
UNDERSAMPLE = (*_DROPPED_HARD_END, "random", "none")
OVERSAMPLE = ("random", "none")


def resample(
    labels_n: np.ndarray,
    counts_c: np.ndarray | Sequence[int],
    *,
    scores_n: np.ndarray | None = None,
    hard_is: str | None = None,
    undersample: str = "easy",
    oversample: str = "random",
    seed: int,
    provenance: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Plan:
    """Plan an epoch with a wanted number of samples of each class.

    Where a class has more samples than wanted, `undersample` says which are kept; where it has fewer,
    `oversample` says which are repeated. Random choices of a class depend on the seed and the class alone,
    not on the counts of others, and a larger count keeps what a smaller one kept.

    Parameters
    ----------
    labels_n : integer [N]
        Class of each sample, in [0, C).
    counts_c : integer [C]
        Samples wanted of each class, >= 0, e.g. `Allocation.counts`. A class of 0 is left out.
    scores_n : float [N], optional
        Hardness score of each sample; "easy", "hard" and "extreme" need it. Equal scores rank by sample id.
    hard_is : "low" or "high", optional
        Which end of the scores is hard; needed with them.
    undersample : str
        "easy" drops the easiest, "hard" the hardest, "extreme" half from either end (the odd one is an easy
        one), "random" any, "none" leaves the class whole.
    oversample : str
        "random" repeats each sample floor or ceil of wanted / available times, "none" leaves the class as
        it is.
    seed : int
        In [0, 2**63).
    provenance : mapping, optional
        JSON values to keep with the plan, e.g. the dataset's fingerprint and alpha. What this function
        records itself wins over equal names.
    classes : sequence of str, optional
        Class names for the messages of errors.

    Returns
    -------
    Plan
        Rows ascending by sample id, copies of a sample side by side: orders are the sampler's business. The
        provenance holds the strategies, `hard_is`, `seed`, `counts_had`, `counts_wanted`, `counts` (of the
        plan), `total` (rows) and `constant_size` (whether the plan has as many rows as there are samples,
        which "none" breaks).

    Raises
    ------
    ValueError
        If a strategy is unknown, scores are missing or NaN, a class with no sample is wanted, or sizes
        disagree.
    """
    labels_n, counts_c = np.asarray(labels_n), np.asarray(counts_c)
    _check_labels_and_counts(labels_n, counts_c)
    labels_n, seed = labels_n.astype(np.int64, copy=False), int(seed)
    if undersample not in UNDERSAMPLE:
        raise ValueError(f"undersample must be one of {', '.join(UNDERSAMPLE)}; got {undersample!r}")
    if oversample not in OVERSAMPLE:
        raise ValueError(f"oversample must be one of {', '.join(OVERSAMPLE)}; got {oversample!r}")
    if undersample in _DROPPED_HARD_END:
        if scores_n is None:
            raise ValueError(f'undersample="{undersample}" ranks samples: give scores_n and hard_is')
        scores_n = np.asarray(scores_n, dtype=np.float64)
        _check_scores(scores_n, len(labels_n), hard_is)

    had_c = np.bincount(labels_n, minlength=len(counts_c))
    missing = np.flatnonzero((had_c == 0) & (counts_c > 0))
    if len(missing):
        c = int(missing[0])
        named = f"class {c}" if classes is None else f"class {classes[c]!r}"
        raise ValueError(f"{named} has no samples but {counts_c[c]} are wanted: give it a count of 0 or add samples")

    by_class = np.argsort(labels_n, kind="stable")
    starts_c = np.concatenate([[0], np.cumsum(had_c)])
    copies_n = np.ones(len(labels_n), dtype=np.int64)
    for c in np.flatnonzero(counts_c != had_c).tolist():
        ids = by_class[starts_c[c] : starts_c[c + 1]]  # ascending
        wanted, had = int(counts_c[c]), int(had_c[c])
        if wanted > had:
            if oversample == "random":
                copies, extra = divmod(wanted, had)
                copies_n[ids] = copies
                copies_n[_shuffled(ids, seed, c)[:extra]] += 1
        elif undersample == "random":
            copies_n[_shuffled(ids, seed, c)[wanted:]] = 0
        elif undersample != "none":
            assert scores_n is not None
            hardest_first = ids[_rank(scores_n[ids], hard_is)]
            start = _DROPPED_HARD_END[undersample](had - wanted)
            copies_n[ids] = 0
            copies_n[hardest_first[start : start + wanted]] = 1

    index = np.repeat(np.arange(len(labels_n)), copies_n)
    record = {
        "undersample": undersample,
        "oversample": oversample,
        "hard_is": hard_is,
        "seed": seed,
        "counts_had": had_c.tolist(),
        "counts_wanted": counts_c.tolist(),
        "counts": np.bincount(labels_n[index], minlength=len(counts_c)).tolist(),
        "total": len(index),
        "constant_size": len(index) == len(labels_n),
    }
    return Plan.of_rows(index, provenance={**(provenance or {}), **record})


def _shuffled(ids: np.ndarray, seed: int, c: int) -> np.ndarray:
    """The samples of class `c` in an order that depends on the seed and the class alone."""
    # Sorted by raw bits: numpy keeps those between its versions, but not what `permutation` makes of them.
    bits = generator(seed, Stream.RESAMPLING, c).bit_generator.random_raw(len(ids))
    return ids[np.argsort(bits, kind="stable")]


def _rank(scores: np.ndarray, hard_is: str | None) -> np.ndarray:
    """Positions from hardest to easiest, equal scores in their order."""
    return np.argsort(scores if hard_is == "low" else -scores, kind="stable")


def _check_labels_and_counts(labels_n: np.ndarray, counts_c: np.ndarray) -> None:
    for name, array in (("labels_n", labels_n), ("counts_c", counts_c)):
        if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
            raise ValueError(f"{name} must be a row of whole numbers, got {array.dtype} {array.shape}")
    if counts_c.min() < 0:
        c = int(counts_c.argmin())
        raise ValueError(f"counts_c must not be negative, got {counts_c[c]} for class {c}")
    for label in (int(labels_n.min()), int(labels_n.max())):
        if not 0 <= label < len(counts_c):
            raise ValueError(
                f"label {label} is outside the {len(counts_c)} classes of counts_c: give each class a count"
            )


def _check_scores(scores_n: np.ndarray, num_samples: int, hard_is: str | None) -> None:
    if scores_n.shape != (num_samples,):
        raise ValueError(f"scores_n must have one score for each of {num_samples} labels, got {scores_n.shape}")
    if hard_is not in ("low", "high"):
        raise ValueError(f'hard_is must be "low" or "high" to rank scores, got {hard_is!r}')
    unobserved = np.flatnonzero(np.isnan(scores_n))
    if len(unobserved):
        raise ValueError(
            f"{len(unobserved)} of {num_samples} scores are NaN, the first is sample {unobserved[0]}: "
            'score every sample, or use undersample="random"'
        )
