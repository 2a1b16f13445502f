"""What the fuzzer needs to know of a format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Target:
    """A format: how to write an example into an empty directory, and how to read it.

    `read` returns all of the content; `sealed` are those that a checksum protects. `changed` is a pattern of the files
    that are mutated.
    """

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    sealed: bool = False
    changed: str = "*"
