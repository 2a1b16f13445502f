"""Every format that the package reads, with an example of it."""

from __future__ import annotations

from . import own, remote, results, sources
from .target import Target

TARGETS: dict[str, Target] = {
    target.name: target for target in (*own.TARGETS, *remote.TARGETS, *sources.TARGETS, *results.TARGETS)
}
