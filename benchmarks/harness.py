"""Times variants of the same work against each other, so that ratios hold on a busy machine.

Every round runs every variant once, in rotated order, and a ratio is the median over the rounds of the ratio
within a round: a temporary slowdown affects both sides. A script describes its cases and variants and ends
with `finish`, which prints tables, writes a CSV and finally prints one JSON object of ratios.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hbr_fast.machine import cpu_name, memory_bytes, usable_cpus

PERCENTILES = (20, 50, 80)
SLOW = 5.0  # seconds: a longer call is made once a round, and its first call counts as its first round
NOOP = "noop"  # the variant that does nothing: the cost of the loop itself
PACKAGES = ("torch", "torchvision", "numba", "numpy", "ffcv", "nvidia-dali-cuda130", "hbr-fast")
COLUMNS = (
    "benchmark", "case", "variant", "reference", "unit", "items", "calls", "rounds",
    "seconds_per_call_p20", "seconds_per_call_p50", "seconds_per_call_p80",
    "items_per_second", "gigabytes_per_second",
    "speed_over_reference_p20", "speed_over_reference_p50", "speed_over_reference_p80", "error",
    "size", "threads", "cache", "date", "cpu", "cores", "memory_gib", "system", "python", *PACKAGES,
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to do the work of a case.

    Attributes
    ----------
    name : str
    run : callable
        One call processes `items` items. Called repeatedly.
    items : int
        Items a call processes, so that a slow variant may process fewer.
    error : float or None
        How far its result is from the reference's, as the script defines it.
    """

    name: str
    run: Callable[[], object]
    items: int
    error: float | None = None


@dataclass(frozen=True)
class Timing:
    """Measurements of one variant: seconds per call, one figure a round."""

    variant: Variant
    calls: int
    seconds_r: np.ndarray

    @property
    def seconds_per_item_r(self) -> np.ndarray:
        return self.seconds_r / self.variant.items


@dataclass(frozen=True)
class Case:
    """A measured case.

    Attributes
    ----------
    name, unit : str
        E.g. "3x32x32" and "images".
    bytes_per_item : int
        Bytes that must be read and written for an item, whichever variant does it ("noop" moves none).
    reference : str
        The variant that the table compares the others with.
    timings : dict
        By variant, in table order.
    """

    name: str
    unit: str
    bytes_per_item: int
    reference: str
    timings: Mapping[str, Timing]

    def speed_ratios(self, ours: str, theirs: str) -> np.ndarray:
        """Speed of `ours` over that of `theirs`, one figure a round."""
        return self.timings[theirs].seconds_per_item_r / self.timings[ours].seconds_per_item_r

    def speed_ratio(self, ours: str, theirs: str) -> float | None:
        """Median over the rounds of `speed_ratios`; None if one of the two was not measured."""
        if ours not in self.timings or theirs not in self.timings:
            return None
        return rounded(float(np.median(self.speed_ratios(ours, theirs))))


def rounded(value: float, digits: int = 4) -> float:
    """`value` to as many significant digits as a measured ratio has."""
    return float(f"{value:.{digits}g}")


def measure(
    variants: Sequence[Variant], *, rounds: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Time every variant once a round, in rotated order.

    Parameters
    ----------
    variants : sequence of Variant
    rounds : int
        How many figures to take for each.
    seconds : float
        A variant is called in a row for about this long within a round, and at least once; with 0, once.
    clock : callable
        Seconds so far: wall-clock, or `time.process_time` for processor time.
    """
    first_v = [_seconds_per_call(variant, 1, clock) for variant in variants]  # warm-up: compiles, fills caches
    once = [seconds == 0 or first > SLOW for first in first_v]
    calls = [1 if alone else _calls_for(v, seconds, clock) for v, alone in zip(variants, once, strict=True)]
    seconds_vr = np.empty((len(variants), rounds))
    for r in range(rounds):
        for step in range(len(variants)):
            v = (step + r) % len(variants)
            slow = r == 0 and first_v[v] > SLOW
            seconds_vr[v, r] = first_v[v] if slow else _seconds_per_call(variants[v], calls[v], clock)
    return {
        variant.name: Timing(variant, count, seconds_r)
        for variant, count, seconds_r in zip(variants, calls, seconds_vr, strict=True)
    }


def _calls_for(variant: Variant, seconds: float, clock: Callable[[], float]) -> int:
    calls = 1
    while (spent := _seconds_per_call(variant, calls, clock) * calls) < seconds / 4:
        calls *= 2
    return max(1, round(calls * seconds / spent))


def _seconds_per_call(variant: Variant, calls: int, clock: Callable[[], float]) -> float:
    run = variant.run
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def settings(name: str, description: str, argv: Sequence[str] | None, *, pictures: bool = False) -> argparse.Namespace:
    """The command line that all benchmarks share; `size` is "full", "quick" or "tiny".

    Those of `pictures` also have the `root` of a folder with them, or None.
    """
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const="quick", dest="size", help="under a minute, same keys")
    size.add_argument("--tiny", action="store_const", const="tiny", dest="size", help="does it run at all? (tests)")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of every variant")
    parser.add_argument("--out", type=Path, help="the CSV; default benchmarks/results/NAME-CPU.csv")
    if pictures:
        parser.add_argument("--root", type=Path, help="a folder of pictures; default: some are made")
    parser.set_defaults(size="full", name=name)
    chosen = parser.parse_args(argv)
    chosen.out = chosen.out or Path(__file__).parent / "results" / f"{name}-{_slug(cpu_name())}.csv"
    return chosen


def finish(
    chosen: argparse.Namespace,
    cases: Sequence[Case],
    ratios: Mapping[str, object],
    *,
    cache: str,
    notes: str = "",
) -> None:
    """Print the tables, write the CSV, print the ratios as JSON on the last line.

    Parameters
    ----------
    chosen : Namespace
        From `settings`.
    cases : sequence of Case
    ratios : dict
        The JSON object.
    cache : str
        Where the data was when it was read, e.g. "in memory": figures mean little without it.
    notes : str
        Printed below the tables.
    """
    environment = describe_environment()
    console = Console(width=None if Console().is_terminal else 140)
    for case in cases:
        console.print(_table(chosen.name, case))
    console.print(
        f"{environment['cpu']}, {environment['cores']} cores, {environment['memory_gib']} GiB, "
        f"{chosen.threads} threads, {cache}; {environment['date']}; {chosen.size} run"
    )
    if notes:
        console.print(notes)
    _write_csv(chosen, cases, environment, cache)
    console.print(f"written: {chosen.out}", soft_wrap=True)
    print(json.dumps(ratios, allow_nan=False), flush=True)


def _table(name: str, case: Case) -> Table:
    table = Table(title=f"{name} {case.name}")
    table.add_column("variant")
    for title in (
        "time a call (p20-p80)",
        f"{case.unit}/s",
        "GB/s",
        f"speed over {case.reference} (p20-p80)",
        "error",
    ):
        table.add_column(title, justify="right")
    for timing in case.timings.values():
        row = _figures(case, timing)
        low, middle, high = (float(row[f"seconds_per_call_p{p}"]) for p in PERCENTILES)
        worst, ratio, best = (float(row[f"speed_over_reference_p{p}"]) for p in PERCENTILES)
        table.add_row(
            timing.variant.name,
            f"{_duration(middle)} ({_duration(low)}-{_duration(high)})",
            f"{float(row['items_per_second']):,.0f}",
            str(row["gigabytes_per_second"]),
            f"{ratio:.3g} ({worst:.3g}-{best:.3g})",
            "" if timing.variant.error is None else f"{timing.variant.error:.1e}",
        )
    return table


def _figures(case: Case, timing: Timing) -> dict[str, float | int | str]:
    seconds = np.percentile(timing.seconds_r, PERCENTILES)
    ratios = np.percentile(case.speed_ratios(timing.variant.name, case.reference), PERCENTILES)
    rate = timing.variant.items / seconds[1]
    return {
        "case": case.name,
        "variant": timing.variant.name,
        "reference": case.reference,
        "unit": case.unit,
        "items": timing.variant.items,
        "calls": timing.calls,
        "rounds": len(timing.seconds_r),
        **{f"seconds_per_call_p{p}": rounded(s) for p, s in zip(PERCENTILES, seconds, strict=True)},
        "items_per_second": rounded(rate),
        "gigabytes_per_second": "" if timing.variant.name == NOOP else rounded(rate * case.bytes_per_item / 1e9),
        **{f"speed_over_reference_p{p}": rounded(r) for p, r in zip(PERCENTILES, ratios, strict=True)},
        "error": "" if timing.variant.error is None else rounded(timing.variant.error),
    }


def _write_csv(chosen: argparse.Namespace, cases: Sequence[Case], environment: Mapping[str, str], cache: str) -> None:
    common = {
        "benchmark": chosen.name,
        "size": chosen.size,
        "threads": chosen.threads,
        "cache": cache,
        **environment,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with open(chosen.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for case in cases:
            writer.writerows(common | _figures(case, timing) for timing in case.timings.values())


def describe_environment() -> dict[str, str]:
    """Hardware, versions and date, as in the CSV; the version of a missing package is empty."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": str(usable_cpus()),
        "memory_gib": f"{memory_bytes() / 2**30:.0f}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _slug(name: str) -> str:
    said = re.sub(r"\((r|tm)\)|\b(processor|cpu)\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", said).strip("-")


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
