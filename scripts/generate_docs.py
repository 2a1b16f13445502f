"""Generate the tables of the documentation that come from the code.

    python scripts/generate_docs.py            # writes them into docs/
    python scripts/generate_docs.py --check    # names those out of date, and exits with 1 if there are any

A page holds a table between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hbr_fast.hardness.estimators import ESTIMATORS
from hbr_fast.loaders.backends import BACKENDS, FEATURES

DOCS = Path(__file__).parent.parent / "docs"


def estimators() -> str:
    """Every estimator, its hard end and what it observes."""
    rows = [(f"`{one.name}`", one.hard_is, one.origin, one.meaning) for one in ESTIMATORS.values()]
    return markdown(("estimator", "hard is", "from", "what it is"), rows)


def backends() -> str:
    """What each backend supports and needs."""
    entries = BACKENDS.values()
    rows = [("devices", *(", ".join(one.classes) for one in entries))]
    rows += [(feature, *("yes" if feature in one.features else "-" for one in entries)) for feature in FEATURES]
    rows.append(("extra", *(f"`pip install 'hbr-fast[{one.extra}]'`" if one.extra else "" for one in entries)))
    return markdown(("", *BACKENDS), rows)


TABLES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "estimators": ("recording.md", estimators),
    "backends": ("backends.md", backends),
}


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = "|" + "---|" * len(heads)
    lines = ["|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in (heads, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def generated(name: str, text: str) -> str:
    """A page with its table regenerated.

    Raises
    ------
    ValueError
        If the page has no such table.
    """
    page, make = TABLES[name]
    start, end = f"<!-- table: {name} -->", "<!-- end of table -->"
    made, count = re.subn(
        f"({re.escape(start)}\n).*?({re.escape(end)})",
        lambda found: f"{found[1]}{make()}\n{found[2]}",
        text,
        flags=re.S,
    )
    if count != 1:
        raise ValueError(f"docs/{page} needs one table between {start} and {end}, it has {count}")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for name, (page, _) in TABLES.items():
        path = DOCS / page
        text = path.read_text(encoding="utf-8")
        made = generated(name, text)
        if made != text:
            stale.append(page)
            if not check:
                path.write_text(made, encoding="utf-8")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run python scripts/generate_docs.py", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
