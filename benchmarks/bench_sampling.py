"""Orders of an epoch: weighted draws against torch's and numpy's, bijections and class quotas at any size.

Weighted draws are an epoch of as many indices as weights, over sixteen powers of two; each variant's draws are first
checked against the weights. "one core" requests as many indices at a time as one thread makes.

    python benchmarks/bench_sampling.py [--quick] [--threads 2] [--out FILE.csv]

The last line is JSON: speed of weighted draws over `WeightedRandomSampler` with the table built for the epoch and
with the table kept, by number of weights; indices per second and core of the uniform order of a billion and of the
slowest order by class quota; and milliseconds from construction to the first index of an order of a billion.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import harness
import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler

from hbr_fast.orders import PARALLEL_ROWS, Sampler, quota_order, uniform_order, weighted_order

BILLION = 10**9
AWKWARD = (1_281_167, 999_999_937)  # the size of a dataset, and a prime: no digits divide them
SAMPLES, CLASSES = 1_281_167, (10, 100, 1000)
BATCHES = (128, 1024)
TORCH_LIMIT = 2**24
INDEX_BYTES = 8


@dataclass(frozen=True)
class Size:
    """How much is timed.

    Attributes
    ----------
    rounds : dict of int to int
        Rounds of each number of weights; the key 0 is for everything else.
    weights : dict of str to int
        Numbers of weights actually drawn from, by the numbers that they represent.
    slow_too : bool
        Whether the slow references take part above two million weights.
    block : int
        Indices a call of the uniform and quota orders.
    seconds : float
    """

    rounds: dict[int, int]
    weights: dict[int, int]
    slow_too: bool
    block: int
    seconds: float


WEIGHTS = (50_000, 1_281_167, 14_000_000)
REAL = {n: n for n in WEIGHTS}
SIZES = {
    "full": Size({50_000: 11, 1_281_167: 7, 14_000_000: 3, 0: 7}, REAL, True, 10_000_000, 0.1),
    "quick": Size({50_000: 3, 1_281_167: 3, 14_000_000: 1, 0: 3}, REAL, False, 2_000_000, 0.02),
    "tiny": Size(dict.fromkeys((*WEIGHTS, 0), 2), {n: 20_000 + n // 1000 for n in WEIGHTS}, True, 100_000, 0.0),
}


def main(argv: Sequence[str] | None = None) -> None:
    chosen = harness.settings("bench_sampling", str(__doc__), argv)
    torch.set_num_threads(chosen.threads)
    if hasattr(os, "sched_setaffinity"):  # our orders use the processors they may run on
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.threads])
    size = SIZES[chosen.size]
    weighted = {n: weighted_case(n, size) for n in WEIGHTS}
    lengths = {length: uniform_case(length, size) for length in (BILLION, *AWKWARD)}
    quotas, first = [quota_case(classes, size) for classes in CLASSES], first_index_case(size)
    batches = [batch_case(batch, size) for batch in BATCHES]
    large = WEIGHTS[1:]
    ratios = {
        "weighted_built_over_torch": {str(n): weighted[n].speed_ratio("built", "WeightedRandomSampler") for n in large},
        "weighted_cached_over_torch": {
            str(n): weighted[n].speed_ratio("cached", "WeightedRandomSampler") for n in large
        },
        "uniform_indices_per_second_per_core": items_per_second(lengths[BILLION], "one core"),
        "quota_indices_per_second_per_core": min(items_per_second(quota, "one core") for quota in quotas),
        "first_index_ms": harness.rounded(1000 / items_per_second(first, "uniform")),
    }
    cases = [*weighted.values(), *lengths.values(), *quotas, *batches, first]
    harness.finish(
        chosen, cases, ratios, cache="weights and labels in memory, larger than the caches from 1,281,167 on"
    )


def items_per_second(case: harness.Case, variant: str) -> float:
    """Median over the rounds."""
    return harness.rounded(float(1 / np.median(case.timings[variant].seconds_per_item_r)))


def case_of(
    name: str, variants: Sequence[harness.Variant], size: Size, *, rounds: int = 0, reference: str
) -> harness.Case:
    noop = harness.Variant(harness.NOOP, lambda: None, variants[0].items)
    timings = harness.measure([*variants, noop], rounds=size.rounds[rounds], seconds=size.seconds)
    return harness.Case(name, "indices", INDEX_BYTES, reference, timings)


def weighted_case(stands_for: int, size: Size) -> harness.Case:
    """An epoch with replacement: as many indices as weights."""
    n = size.weights[stands_for]
    random = np.random.default_rng(0)
    weights = 2.0 ** random.uniform(-8, 8, n)
    tensor = torch.from_numpy(weights)
    order = weighted_order(weights, seed=0)
    epochs = itertools.count()
    ways: dict[str, Callable[[], Iterable[int]]] = {
        "WeightedRandomSampler": lambda: list(WeightedRandomSampler(tensor, n)),  # type: ignore[arg-type]
        "built": lambda: weighted_order(weights, seed=0).rows(0, n, epoch=next(epochs)),
        "cached": lambda: order.rows(0, n, epoch=next(epochs)),
    }
    if size.slow_too or n < 2_000_000:
        if n <= TORCH_LIMIT:
            ways["torch.multinomial"] = lambda: torch.multinomial(tensor, n, replacement=True)
        ways["numpy choice"] = lambda: random.choice(n, n, p=weights / weights.sum())
    # Where one draw takes seconds, the slowest are not drawn from again for the check.
    checked = ways if n < 2_000_000 else {"built", "cached"}
    variants = [
        harness.Variant(name, way, n, error=_error(way(), weights) if name in checked else None)
        for name, way in ways.items()
    ]
    return case_of(f"weighted {n:,}", variants, size, rounds=stands_for, reference="WeightedRandomSampler")


def _error(rows: Iterable[int], weights: np.ndarray) -> float:
    """Largest error in the drawn share of sixteen groups of similar weights.

    Raises
    ------
    ValueError
        If it is larger than chance explains.
    """
    drawn = np.asarray(rows)
    group = np.clip(np.log2(weights) + 8, 0, 15).astype(np.int64)
    expected = np.bincount(group, weights, minlength=16) / weights.sum()
    off = np.abs(np.bincount(group[drawn], minlength=16) / len(drawn) - expected)
    if not (off < 6 * np.sqrt(expected / len(drawn))).all():
        raise ValueError(f"a variant draws by other weights: a group's share is {off.max()} off")
    return float(off.max())


def uniform_case(length: int, size: Size) -> harness.Case:
    """Blocks of an order that visits every row once."""
    order = uniform_order(length, seed=0)
    variants = block_variants(order, min(length, size.block))
    if length <= size.block:
        variants.append(harness.Variant("torch.randperm", lambda: torch.randperm(length), length))
    return case_of(f"uniform {length:,}", variants, size, reference="one core")


def quota_case(classes: int, size: Size) -> harness.Case:
    """Blocks of an order by class quota: from a third to three times the size of each class."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, SAMPLES)
    counts = np.maximum(np.bincount(labels, minlength=classes) * 3 ** random.uniform(-1, 1, classes), 1)
    order = quota_order(labels, counts.astype(np.int64), seed=0)
    variants = block_variants(order, min(len(order), size.block))
    return case_of(f"quota {len(order):,}, {classes} classes", variants, size, reference="one core")


def block_variants(order: Sampler, block: int) -> list[harness.Variant]:
    """Successive blocks of an epoch's indices, by one core and by all."""
    last = len(order) - block
    starts = itertools.cycle(range(0, last + 1, max(last // 7, 1)))

    def one_core() -> None:
        first = next(starts)
        for start in range(first, first + block, PARALLEL_ROWS):
            order.rows(start, min(PARALLEL_ROWS, first + block - start), epoch=1)

    return [
        harness.Variant("one core", one_core, block),
        harness.Variant("one call, all cores", lambda: order.rows(next(starts), block, epoch=1), block),
    ]


def batch_case(batch: int, size: Size) -> harness.Case:
    """The indices of a batch, one batch after another: what a training loop sees."""
    labels = np.random.default_rng(0).integers(0, CLASSES[-1], SAMPLES)
    counts = np.bincount(labels, minlength=CLASSES[-1])
    orders: dict[str, Sampler] = {
        "uniform": uniform_order(BILLION, seed=0),
        "quota": quota_order(labels, counts, seed=0),
        "weighted": weighted_order(np.random.default_rng(0).random(SAMPLES), seed=0),
    }
    variants = [harness.Variant(name, _next_batch(order, batch), batch) for name, order in orders.items()]
    return case_of(f"batch {batch}", variants, size, reference="uniform")


def _next_batch(order: Sampler, batch: int) -> Callable[[], object]:
    starts = itertools.cycle(range(0, SAMPLES - batch, batch))
    return lambda: order.rows(next(starts), batch, epoch=1)


def first_index_case(size: Size) -> harness.Case:
    """From construction to the first index of an order of a billion; each call makes a new order."""
    seeds = itertools.count()
    variants = [
        harness.Variant("uniform", lambda: uniform_order(BILLION, seed=next(seeds)).rows(0, 1, epoch=0), 1),
    ]
    return case_of("first index of 1,000,000,000", variants, size, reference="uniform")


if __name__ == "__main__":
    main()
