"""Checkpoints of one training: a file that is complete or absent, and refused by any other training.

One safetensors file holds the tensors, and in its metadata the position, the history, what determines the training and
a checksum of it all.
It is replaced by a rename, so a crash or a full disk while writing leaves the previous one intact.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbr_fast import progress
from hbr_fast.files import DISK_FULL, canonical_json
from hbr_fast.tensor_files import CHECKSUM, read_tensors, write_tensors
from hbr_fast.training.state import TrainingState

SCHEMA = 2


@dataclass(frozen=True)
class CheckpointEvery:
    """How much of a training a crash may lose at most.

    Attributes
    ----------
    epochs : int
        Save every N epochs; 0 never.
    minutes : float
        Save N minutes after the last save, also within an epoch; 0 saves after every step, infinity never.
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
        What determines the training, JSON values: a checkpoint of another training is refused.
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
            If there is no space for it; the previous one stays.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        about = {"schema": SCHEMA, "training": self.identity, "values": state.values()}
        # A copy: networks that share weights have one tensor under two names, which safetensors refuses.
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.tensors().items()}
        try:
            write_tensors(self.path, tensors, about)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise OSError(
                f"no space left for the checkpoint {self.path}; the previous one is kept: free some and run the same "
                "again"
            ) from error
        self._last = time.monotonic()

    def restore(self, state: TrainingState) -> bool:
        """Restore a new state from the checkpoint; false if there is none.

        Raises
        ------
        ValueError
            If the file is damaged, or of another training; the message names what differs.
        """
        if not self.path.exists():
            return False
        remedy = "remove it to start again"
        tensors, about = read_tensors(self.path, what="a whole checkpoint", remedy=remedy, framework="pt")
        if about.get("schema") == 1:
            raise ValueError(
                f"{self.path} is a checkpoint of schema 1, which an earlier hbr-fast wrote: finish this training with "
                "that version, or remove it to start again"
            )
        if about.get("schema") != SCHEMA:
            raise ValueError(f"{self.path} is not a checkpoint of schema {SCHEMA}: remove it to start again")
        if not isinstance(about.get("training"), dict) or not isinstance(about.get("values"), dict):
            raise ValueError(f"{self.path} is damaged (its values are missing): {remedy}")
        self._require_same_training(about["training"])
        if CHECKSUM not in about:
            progress.say(f"{self.path} has no checksum, as an earlier hbr-fast wrote it: resuming from it unverified")
        try:
            state.load(tensors, about["values"])
        except (KeyError, TypeError, IndexError, RuntimeError, ValueError, AttributeError) as error:
            what = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{self.path} is damaged ({what}): remove it to start again") from None
        return True

    def remove(self) -> None:
        """Remove the checkpoint of a training that is finished and stored elsewhere."""
        self.path.unlink(missing_ok=True)

    def _require_same_training(self, theirs: Mapping[str, Any]) -> None:
        own, other = _flat(self.identity), _flat(theirs)
        for name in [*own, *(name for name in other if name not in own)]:
            if own.get(name) != other.get(name):
                raise ValueError(
                    f"{self.path} is the checkpoint of another training ({name} {other.get(name)!r}, not "
                    f"{own.get(name)!r}): remove it to start again"
                )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names, e.g. "recipe lr"."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, dict) else {prefix + name: value}
    return flat
