"""Kill every command at random and chosen steps, run it again and compare: python scripts/kill.py --kills 30

At last each is killed ten times in a row, at its first steps.

Prints each kill after which something differs; exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from trust import killing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=30, help="of each command; half as many of those that draw a report"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=list(killing.COMMANDS), help="by default all")
    parser.add_argument("--directory", type=Path, help="an empty one to work in; by default a temporary one")
    options = parser.parse_args()
    names = options.command or [name for name, command in killing.COMMANDS.items() if command.is_possible()]
    bad = done = 0
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory() as warm:
        with contextlib.redirect_stdout(sys.stderr):
            killing.warm_up(Path(warm))
        root = (options.directory or Path(temporary)).resolve()
        shared = root / "shared"
        shared.mkdir()
        for number, name in enumerate(names):
            place = root / str(number)
            run = killing.undisturbed(place / "undisturbed", name, shared=shared)
            chosen = killing.kills(run, options.kills, seed=options.seed)
            for turn, steps in enumerate([*([step] for step in chosen), killing.first_steps(run)]):
                (place / str(turn)).mkdir()
                difference = killing.difference_after_kills(run, place / str(turn), *steps)
                done += len(steps)
                bad += bool(difference)
                if difference:
                    where = ", ".join(f"{step} ({run.steps[step - 1]})" for step in steps)
                    print(f"{name}, killed before step {where}: {difference}")
            print(f"{name}: {len(run.steps)} steps, {len(chosen)} kills, then {len(steps)} in a row", flush=True)
    ended = "all ended as undisturbed runs" if not bad else f"{bad} ended otherwise"
    print(f"{done} kills of {len(names)} commands: {ended}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
