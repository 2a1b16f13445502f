"""The state of a running training: everything that a later process needs to continue to the same bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.hardness.ranks import all_reduce
from hbr_fast.training import optimizer_state
from hbr_fast.training.averaging import Averaged


@dataclass(frozen=True)
class EpochRecord:
    """The results of one epoch: means over its rows, in train mode.

    On a GPU also the peak memory of torch's tensors so far, in MB of 10^6 bytes, and, if NVIDIA's library is installed,
    how busy the GPU was when the epoch ended, in percent.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    seconds: float
    images_per_second: float
    gpu_memory_mb: float | None = None
    gpu_utilisation: float | None = None


@dataclass
class TrainingState:
    """A training between two steps.

    Order, augmentation and learning rate are functions of (seed, epoch, step) and need no state of their own.

    Attributes
    ----------
    model, optimizer, recorder
    loss_s : float32 [steps of an epoch]
        Mean loss of the batches of the current epoch, on the model's device; with several ranks, this rank's part.
    right_s : int64 [steps of an epoch]
        Correctly classified rows of each batch.
    merged : int
        With several ranks: steps of the epoch up to which losses, right answers and recordings cover all of them.
    epoch, step : int
        The batch to train on next.
    seconds : float
        Time spent on the current epoch so far.
    class_counts : list of int or None
        In the online mode, the samples per class of the current epoch; None before it changes them.
    history : list of EpochRecord
        The finished epochs.
    averaged : Averaged, optional
        The moving average of the weights.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    recorder: HardnessRecorder
    loss_s: torch.Tensor
    right_s: torch.Tensor
    epoch: int = 0
    step: int = 0
    merged: int = 0
    seconds: float = 0.0
    class_counts: list[int] | None = None
    history: list[EpochRecord] = field(default_factory=list)
    averaged: Averaged | None = None

    def next_epoch(self) -> None:
        """Move to the first step of the next epoch."""
        self.epoch, self.step, self.merged, self.seconds = self.epoch + 1, 0, 0, 0.0
        self.loss_s.zero_()
        self.right_s.zero_()

    def merge_ranks(self) -> None:
        """Merge the results of all ranks since the last merge; every rank must call it."""
        if not self.recorder.distributed:
            return
        for tensor_s in (self.loss_s, self.right_s):
            all_reduce(tensor_s[self.merged : self.step], None)
        self.recorder.merge_ranks()
        self.merged = self.step

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything large, by name."""
        named = {"loss": self.loss_s, "right": self.right_s}
        named |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.averaged is not None:
            named |= {f"averaged.{name}": tensor for name, tensor in self.averaged.model.state_dict().items()}
        of_optimizer, _ = optimizer_state.saved(self.optimizer)
        named |= {f"optimizer.{name}": tensor for name, tensor in of_optimizer.items()}
        recorded = self.recorder.state_dict()
        return named | {f"recorder.{name}": t for name, t in recorded.items() if isinstance(t, torch.Tensor)}

    def values(self) -> dict[str, Any]:
        """Everything small, as JSON values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "class_counts": self.class_counts,
            "history": [dataclasses.asdict(record) for record in self.history],
            "optimizer": optimizer_state.saved(self.optimizer)[1],
            "recorder": {
                name: value for name, value in self.recorder.state_dict().items() if not isinstance(value, torch.Tensor)
            },
        }

    def load(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Restore the training that returned these `tensors()` and `values()`."""
        self.loss_s.copy_(tensors["loss"])
        self.right_s.copy_(tensors["right"])
        self.model.load_state_dict(_below("model", tensors))
        if self.averaged is not None:
            self.averaged.model.load_state_dict(_below("averaged", tensors))
        optimizer_state.restore(self.optimizer, _below("optimizer", tensors), values["optimizer"])
        self.recorder.load_state_dict({**values["recorder"], **_below("recorder", tensors)})
        self.epoch, self.step, self.seconds = values["epoch"], values["step"], values["seconds"]
        self.merged = self.step
        self.class_counts = values["class_counts"]
        self.history = [EpochRecord(**record) for record in values["history"]]


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
