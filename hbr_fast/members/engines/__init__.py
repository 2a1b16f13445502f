"""What trains members: this process, several processes, or a Ray cluster.

An engine is a module with the two functions of `Engine`, listed in `ENGINES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hbr_fast.data.dataset import Dataset
from hbr_fast.members.engines import inline, processes, ray
from hbr_fast.members.execution import Execution
from hbr_fast.members.jobs import Job
from hbr_fast.members.telemetry import Board
from hbr_fast.training.recipe import Recipe


class Engine(Protocol):
    """The interface of an engine's module."""

    def wanted(self, execution: Execution, *, at_once: int) -> bool:
        """Whether this engine should train, if `at_once` members may train at the same time on this machine."""

    def run(
        self,
        jobs: Sequence[Job],
        execution: Execution,
        *,
        dataset: Dataset,
        recipe: Recipe,
        store: Path,
        at_once: int,
        board: Board,
    ) -> dict[int, FloatingPointError]:
        """Train all jobs into the store, and report their progress to the board.

        Each job trains in the main thread of a process: initial weights come from torch's global random generator, and
        signals are deferred in main threads only.

        Returns
        -------
        dict of int to FloatingPointError
            Those that diverged, by their index in `jobs`; all others are in the store.
        """


# The first that applies trains; inline always applies.
ENGINES: Mapping[str, Engine] = {"ray": ray, "processes": processes, "inline": inline}


def engine_for(execution: Execution, *, at_once: int) -> Engine:
    """The engine that an execution asks for."""
    return next(engine for engine in ENGINES.values() if engine.wanted(execution, at_once=at_once))
