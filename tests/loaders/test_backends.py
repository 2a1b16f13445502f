"""What the documentation says of the backends is what they declare."""

import re
from pathlib import Path

from hbr_fast.loaders.backends import BACKENDS, FEATURES

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def test_the_table_is_what_the_backends_declare() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    names, table = rows[0][1:], {row[0]: row[1:] for row in rows[2:]}
    assert names == list(BACKENDS)
    assert set(table) == {"devices", *FEATURES, "extra"}
    for name, column in zip(names, zip(*table.values(), strict=True), strict=True):
        entry, said = BACKENDS[name], dict(zip(table, column, strict=True))
        assert said["devices"].split(", ") == list(entry.classes)
        assert {feature for feature in FEATURES if said[feature] == "yes"} == entry.features
        extras = re.findall(r"pip install 'hbr-fast\[(\w+)\]'", said["extra"])
        assert extras == ([entry.extra] if entry.extra else [])
