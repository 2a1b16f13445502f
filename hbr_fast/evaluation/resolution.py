"""What the test set can resolve: the noise that its samples give to every comparison on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hbr_fast.evaluation.measures import MEASURES, METRICS, Values
from hbr_fast.seeding import Stream, generator

RESAMPLES = 400  # of the test set: a standard deviation to 4 %
FEW = 50  # samples of a class below which one of them moves its recall by more than 2 points
MOST_NAMED = 4  # classes


def difference_noise(
    before_pn: np.ndarray,
    after_pn: np.ndarray,
    labels_n: np.ndarray,
    *,
    num_classes: int,
    hard_c: np.ndarray | None = None,
    seed: int,
    resamples: int = RESAMPLES,
) -> Mapping[str, float]:
    """How much the mean difference of paired trainings varies with the test set: a bootstrap over its samples.

    The samples of each class are drawn again with replacement, the same for all trainings.

    Parameters
    ----------
    before_pn, after_pn : integer [P, N]
        Predicted classes by the trainings of both sides, paired by row.
    labels_n : integer [N]
        True classes; every class occurs.
    num_classes : int
    hard_c : bool [C], optional
        The hard classes, for the easy - hard gap.
    seed : int
        Of the draws, in [0, 2**63).
    resamples : int
        Test sets drawn.

    Returns
    -------
    dict of float
        Standard deviations of the difference of "accuracy" and of every measure of recall ("recall_max_min", ...), as
        fractions; NaN where the measure is undefined.
    """
    right_2pn = np.stack([before_pn == labels_n, after_pn == labels_n]).astype(np.float32)
    recall_2prc = np.empty((*right_2pn.shape[:2], resamples, num_classes))
    draws = generator(seed, Stream.TEST_SET)
    hits_2pr = np.zeros(recall_2prc.shape[:-1])
    for c in range(num_classes):
        own = np.flatnonzero(labels_n == c)
        times_rn = draws.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
        hits = right_2pn[..., own] @ times_rn.T.astype(np.float32)
        recall_2prc[..., c] = hits / len(own)
        hits_2pr += hits
    found = {"accuracy": hits_2pr / len(labels_n)}
    values = Values(recall_2prc, hard_c, METRICS["recall"].better)
    found |= {f"recall_{name}": measure.of(values) for name, measure in MEASURES.items()}
    return {name: float((of_2pr[1] - of_2pr[0]).mean(axis=0).std(ddof=1)) for name, of_2pr in found.items()}


def few_samples(classes: Sequence[str], samples_c: np.ndarray, *, kind: str) -> str | None:
    """A warning of classes with too few evaluated samples to tell small changes of recall.

    Parameters
    ----------
    classes : sequence of str
    samples_c : integer [C]
        Evaluated samples of each class; classes without one are passed over.
    kind : str
        What samples they are, in a word: "test", "validation", ...

    Returns
    -------
    str or None
        None where every class has enough.
    """
    few = [c for c in np.argsort(samples_c, kind="stable").tolist() if 0 < samples_c[c] < FEW]
    if not few:
        return None
    named = ", ".join(f"{classes[c]} {samples_c[c]}" for c in few[:MOST_NAMED])
    more = f" and {len(few) - MOST_NAMED} more" if len(few) > MOST_NAMED else ""
    return (
        f"Few {kind} samples: {named}{more}. One sample moves the recall of {classes[few[0]]} by "
        f"{100 / samples_c[few[0]]:.1f} points, and the best and the worst class are partly a matter of which samples "
        "happened to be tested."
    )
