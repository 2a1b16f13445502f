"""Try mutated files of every format that the package reads: python scripts/fuzz.py --cases 10000

Prints how many cases ended how, and every case that ended badly; exit code 1 if there are any. The same seed tries the
same mutations.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from trust import fuzzing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=list(fuzzing.TARGETS), help="by default all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        results = fuzzing.run(Path(directory), options.cases, seed=options.seed, names=options.target)
    kinds = ("refused", "unchanged", "changed", *fuzzing.BAD)
    print("target".ljust(26), *(kind.rjust(len(kind) + 2) for kind in kinds))
    for target in options.target or fuzzing.TARGETS:
        print(target.ljust(26), *(str(results.counts[target, kind]).rjust(len(kind) + 2) for kind in kinds))
    totals = results.totals()
    print("all".ljust(26), *(str(totals[kind]).rjust(len(kind) + 2) for kind in kinds))
    for case, kind, message in results.bad:
        print(f"{kind}: {case}: {message}")
    return 1 if results.bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
