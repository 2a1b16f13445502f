"""Recording in Lightning: `Trainer(callbacks=[HardnessCallback(recorder)])`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.integrations.ids import labels_and_ids


class HardnessCallback(Callback):
    """Records every training step of a Lightning module.

    `training_step` must return a dict with "loss" and "logits" [B, C]; the batch carries labels and sample ids (see
    `WithIds`). Accumulated gradients need nothing. The recording goes into Lightning's checkpoints and comes back from
    them, and the ranks of a distributed run are merged at the end of every epoch.

    Parameters
    ----------
    recorder : HardnessRecorder
        On the device that trains; of several processes, each with `distributed=True`.
    """

    def __init__(self, recorder: HardnessRecorder) -> None:
        self.recorder = recorder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a recorder that would see one rank's part only."""
        if trainer.world_size > 1 and not self.recorder.distributed:
            raise ValueError(f"this run has {trainer.world_size} processes: make the recorder with distributed=True")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step's logits, which are those from before the update."""
        if not isinstance(outputs, Mapping) or "logits" not in outputs:
            found = f"a dict with {', '.join(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__
            raise ValueError(f"training_step must return a dict with 'loss' and 'logits' to be recorded, got {found}")
        labels, ids = labels_and_ids(batch)
        self.recorder.record(outputs["logits"], labels, ids, epoch=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make one recording of what the ranks visited in this epoch."""
        if self.recorder.distributed:
            self.recorder.merge_ranks()

    def state_dict(self) -> dict[str, Any]:
        """The recording, for a checkpoint; Lightning asks every rank."""
        if self.recorder.distributed:
            self.recorder.merge_ranks()
        return self.recorder.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.recorder.load_state_dict(state_dict)
