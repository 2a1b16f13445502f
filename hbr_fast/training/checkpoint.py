"""Checkpoints of one training: a file that is whole or absent, refused to any other training.

One safetensors file holds the tensors, and in its metadata the position, the history and what determines the training.
It is replaced by a rename, so a crash or a full disk in the middle of writing leaves the one before it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbr_fast.files import DISK_FULL, atomic_write, canonical_json
from hbr_fast.training.state import TrainingState

SCHEMA = 1


@dataclass(frozen=True)
class CheckpointEvery:
    """How much of a training a crash may lose at most.

    Attributes
    ----------
    epochs : int
        Save after every this many epochs; 0 does not.
    minutes : float
        Save where this long has passed since the last time, also within an epoch; 0 saves after every step, infinity
        never.
    """

    epochs: int = 0
    minutes: float = 5.0

    def __post_init__(self) -> None:
        if self.epochs < 0 or not self.minutes >= 0:
            raise ValueError(f"checkpoint epochs and minutes must be >= 0, got {self.epochs} and {self.minutes}")


class Checkpoints:
    """Where and when one training saves itself.

    Parameters
    ----------
    path : path
        The file.
    identity : dict
        What determines the training, JSON values: a checkpoint of another one is refused.
    every : CheckpointEvery
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], every: CheckpointEvery) -> None:
        self.path = path
        self.identity = json.loads(canonical_json(identity))
        self.every = every
        self._last = time.monotonic()

    def due(self, *, epochs_done: int | None = None) -> bool:
        """Whether to save now, after a step or, with `epochs_done`, after an epoch."""
        if epochs_done is not None and self.every.epochs and epochs_done % self.every.epochs == 0:
            return True
        return self.every.minutes < math.inf and time.monotonic() - self._last >= 60 * self.every.minutes

    def save(self, state: TrainingState) -> None:
        """Replace the checkpoint.

        Raises
        ------
        OSError
            If there is no space for it; the one before it stays.
        """
        from safetensors.torch import save

        self.path.parent.mkdir(parents=True, exist_ok=True)
        about = {"schema": SCHEMA, "training": self.identity, "values": state.values()}
        content = save(
            {name: tensor.cpu().contiguous() for name, tensor in state.tensors().items()},
            metadata={"hbr_fast": json.dumps(about, allow_nan=False)},
        )
        try:
            with atomic_write(self.path) as file:
                file.write(content)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise OSError(
                f"no space left for the checkpoint {self.path}; the one before it is kept: free some and run the same "
                "again"
            ) from error
        self._last = time.monotonic()

    def restore(self, state: TrainingState) -> bool:
        """Bring a state just begun to where the checkpoint stands; false where there is none.

        Raises
        ------
        ValueError
            If the file is damaged, or of another training; the message names what differs.
        """
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return False
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("hbr_fast", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{self.path} is damaged ({error}): remove it to begin anew") from None
        if about.get("schema") != SCHEMA:
            raise ValueError(f"{self.path} is not a checkpoint of schema {SCHEMA}: remove it to begin anew")
        self._require_own(about["training"])
        try:
            state.load(tensors, about["values"])
        except (KeyError, RuntimeError, ValueError) as error:
            what = str(error).splitlines()[0]
            raise ValueError(f"{self.path} is damaged ({what}): remove it to begin anew") from None
        return True

    def remove(self) -> None:
        """Forget the checkpoint of a training that is finished and kept elsewhere."""
        self.path.unlink(missing_ok=True)

    def _require_own(self, theirs: Mapping[str, Any]) -> None:
        own, other = _flat(self.identity), _flat(theirs)
        for name in [*own, *(name for name in other if name not in own)]:
            if own.get(name) != other.get(name):
                raise ValueError(
                    f"{self.path} is the checkpoint of another training ({name} {other.get(name)!r}, not "
                    f"{own.get(name)!r}): remove it to begin anew"
                )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names, e.g. "recipe lr"."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, dict) else {prefix + name: value}
    return flat
