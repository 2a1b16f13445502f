"""From samples per class to a Plan: the rows of a split that form the resampled epoch. No pixel is touched here.

Source: Pukowski & Osmani, arXiv 2504.07031: undersample easy classes, oversample hard ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hbr_fast.arguments import did_you_mean
from hbr_fast.data.plan import Plan
from hbr_fast.resampling.oversampling import OVERSAMPLE, WEIGHTED, Rows, gained
from hbr_fast.resampling.pools import POOL, RANKED, RankedPool
from hbr_fast.resampling.ranking import members_of_classes
from hbr_fast.resampling.undersampling import DROPPED_HARD_END, UNDERSAMPLE, kept


def resample(
    labels_n: ArrayLike,
    counts_c: ArrayLike,
    *,
    ids: ArrayLike | None = None,
    scores_n: ArrayLike | None = None,
    hard_is: str | None = None,
    undersample: str = "easy",
    oversample: str = "random",
    holdout: np.ndarray | None = None,
    neighbours_nk: np.ndarray | None = None,
    pool: RankedPool | None = None,
    seed: int,
    provenance: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Plan:
    """Plan an epoch with a requested number of samples per class.

    If a class has more samples than requested, `undersample` says which are kept; if it has fewer,
    `oversample` says what is added. Random choices of a class depend only on the seed and the class, not
    on the counts of others, and a larger count keeps what a smaller one kept.

    Parameters
    ----------
    labels_n : integer [N]
        Class of each sample of the split, in [0, C).
    counts_c : integer [C]
        Requested samples of each class, >= 0, e.g. `Allocation.counts`. A class with 0 is left out.
    ids : integer [K], optional
        The samples to use, e.g. those that pruning kept; by default all. Scores stay those of the whole split.
    scores_n : float [N], optional
        Hardness score of each sample; "easy", "hard", "extreme" and the weighted strategies need it. Equal scores
        rank by sample id.
    hard_is : "low" or "high", optional
        Which end of the scores is hard; needed with them.
    undersample : str
        "easy" drops the easiest, "hard" the hardest, "extreme" half from each end (an odd one from the
        easy end), "random" any, "none" leaves the class whole.
    oversample : str
        "random" repeats each sample floor or ceil of wanted / available times; "weighted-easy" and "weighted-hard"
        draw copies, samples at that end up to twice as often; "smote" interpolates between a sample and one of its
        neighbours, in the loader; "holdout" adds samples of `holdout`; "pool-random", "pool-average" and "pool-hard"
        add images of `pool`; "none" leaves the class as it is.
    holdout : integer [H], optional
        Samples of the split set aside, none of them in `ids`; "holdout" needs it.
    neighbours_nk : integer [N, k], optional
        Sample ids of each sample's nearest neighbours of its class (`smote.same_class_neighbours`); "smote" needs it.
    pool : RankedPool, optional
        For the pool strategies; it becomes the plan's store 1.
    seed : int
        In [0, 2**63).
    provenance : mapping, optional
        JSON values to store with the plan, e.g. the dataset's fingerprint and alpha. This function's own
        entries override equal names.
    classes : sequence of str, optional
        Class names for error messages.

    Returns
    -------
    Plan
        Rows ascending by store and id, copies of a sample adjacent: the sampler sets the order. The
        provenance holds the strategies, `hard_is`, `seed`, `counts_had`, `counts_wanted`, `counts` (of the
        plan), `total` (rows) and `constant_size` (whether the plan has as many rows as there were samples;
        not so with "none").

    Raises
    ------
    ValueError
        If a strategy is unknown, what it needs is missing, scores are NaN or sizes disagree; if too few samples are
        available, with the class, the requested and the available number.

    Examples
    --------
    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> hardness = np.array([0.1, 0.9, 0.8, 0.7, 0.5, 0.6, 0.5, 0.6])
    >>> plan = resample(labels, [2, 6], scores_n=hardness, hard_is="high", seed=0)
    >>> sorted(plan.index[labels[plan.index] == 0].tolist())  # the easy class keeps its hardest samples
    [1, 2]
    """
    labels_n, counts_c = np.asarray(labels_n), np.asarray(counts_c)
    scores_n = None if scores_n is None else np.asarray(scores_n, np.float64)
    _check_labels_and_counts(labels_n, counts_c)
    labels_n, seed = labels_n.astype(np.int64, copy=False), int(seed)
    ids = _checked_ids(ids, len(labels_n), "ids") if ids is not None else np.arange(len(labels_n))
    _check_strategies(undersample, oversample, scores_n=scores_n, neighbours_nk=neighbours_nk, pool=pool)
    if undersample in DROPPED_HARD_END or oversample in WEIGHTED:
        assert scores_n is not None  # they need it
        _check_scores(scores_n, len(labels_n), ids, hard_is)
    held = _checked_ids(holdout if holdout is not None else [], len(labels_n), "holdout")
    if oversample == "holdout" and holdout is None:
        raise ValueError('oversample="holdout" adds samples that were set aside: give holdout')
    if np.isin(held, ids).any():
        raise ValueError(f"sample {held[np.isin(held, ids)][0]} is in the holdout and among the ids: it can be in one")

    num_classes = len(counts_c)
    members = [ids[places] for places in members_of_classes(labels_n[ids], num_classes)]
    held_members = [held[places] for places in members_of_classes(labels_n[held], num_classes)]
    parts = []
    for c, own in enumerate(members):
        wanted, had = int(counts_c[c]), len(own)
        if wanted < had:
            own = kept(undersample, own, wanted, scores_n=scores_n, hard_is=hard_is, seed=seed, c=c)
        parts.append(Rows.plain(own))
        if wanted > had:
            parts.append(
                gained(
                    oversample,
                    own,
                    wanted - had,
                    scores_n=scores_n,
                    hard_is=hard_is,
                    holdout=held_members[c],
                    neighbours_nk=neighbours_nk,
                    pool=pool,
                    seed=seed,
                    c=c,
                    classes=classes,
                )
            )
    store, index, partner, weight = (
        np.concatenate([getattr(part, column) for part in parts]) for column in ("store", "index", "partner", "weight")
    )
    order = np.lexsort((weight, partner, index, store))
    store, index, partner, weight = store[order], index[order], partner[order], weight[order]
    labels_r = labels_n[np.where(store == 0, index, 0)]
    if pool is not None:
        labels_r = np.where(store == 0, labels_r, pool.labels[np.where(store == 0, 0, index)])
    record = {
        "undersample": undersample,
        "oversample": oversample,
        "hard_is": hard_is,
        "seed": seed,
        "counts_had": [len(own) for own in members],
        "counts_wanted": counts_c.tolist(),
        "counts": np.bincount(labels_r, minlength=num_classes).tolist(),
        "total": len(index),
        "constant_size": len(index) == len(ids),
    }
    stores = (pool.fingerprint,) if pool is not None and oversample in POOL else ()
    return Plan(store, index, partner, weight, provenance={**(provenance or {}), **record}, stores=stores)


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


def _checked_ids(ids: ArrayLike, num_samples: int, name: str) -> np.ndarray:
    """Ascending int64 ids, distinct and within the split."""
    checked = np.sort(np.asarray(ids, dtype=np.int64))
    if len(checked) and not 0 <= checked[0] <= checked[-1] < num_samples:
        raise ValueError(
            f"{name} must be samples in [0, {num_samples}), got some from {checked[0]} to {checked[-1]}: "
            "were they made for another dataset?"
        )
    repeated = np.flatnonzero(np.diff(checked) == 0)
    if len(repeated):
        raise ValueError(f"{name} holds sample {checked[repeated[0]]} more than once: each can be there once")
    return checked


def _check_strategies(
    undersample: str,
    oversample: str,
    *,
    scores_n: np.ndarray | None,
    neighbours_nk: np.ndarray | None,
    pool: RankedPool | None,
) -> None:
    if undersample not in UNDERSAMPLE:
        meant = did_you_mean(UNDERSAMPLE, undersample)
        raise ValueError(f"undersample must be one of {', '.join(UNDERSAMPLE)}; got {undersample!r}{meant}")
    if oversample not in OVERSAMPLE:
        meant = did_you_mean(OVERSAMPLE, oversample)
        raise ValueError(f"oversample must be one of {', '.join(OVERSAMPLE)}; got {oversample!r}{meant}")
    for word, value, ranks in (
        ("undersample", undersample, undersample in DROPPED_HARD_END),
        ("oversample", oversample, oversample in WEIGHTED),
    ):
        if ranks and scores_n is None:
            raise ValueError(f'{word}="{value}" ranks samples: give scores_n and hard_is')
    if oversample == "smote" and neighbours_nk is None:
        raise ValueError('oversample="smote" interpolates between neighbours: give neighbours_nk')
    if oversample in POOL and pool is None:
        raise ValueError(f'oversample="{oversample}" takes images from a pool: give pool')
    if oversample in RANKED and pool is not None and pool.confidence is None:
        raise ValueError(f'oversample="{oversample}" ranks the pool: give it confidence')
    if oversample == "pool-average" and pool is not None and pool.real_confidence is None:
        raise ValueError('oversample="pool-average" compares with the real images: give the pool real_confidence')


def _check_scores(scores_n: np.ndarray, num_samples: int, ids: np.ndarray, hard_is: str | None) -> None:
    if scores_n.shape != (num_samples,):
        raise ValueError(f"scores_n must have one score for each of {num_samples} labels, got {scores_n.shape}")
    if hard_is not in ("low", "high"):
        raise ValueError(f'hard_is must be "low" or "high" to rank scores, got {hard_is!r}')
    unobserved = ids[np.isnan(scores_n[ids])]
    if len(unobserved):
        raise ValueError(
            f"{len(unobserved)} of {len(ids)} scores are NaN, the first is sample {unobserved[0]}: "
            'score every sample, or use undersample="random"'
        )
