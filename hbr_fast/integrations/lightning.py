"""Recording in Lightning: `Trainer(callbacks=[HardnessCallback(recorder)])`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.integrations.batches import Attempt, HardLabels, LabelsOfIds, NextTokens, require_distributed
from hbr_fast.integrations.ids import labels_and_ids

_EPOCHS_BEFORE = "epochs_before"  # in a callback's state, beside the recorder's


class HardnessCallback(Callback):
    """Records every training step of a Lightning module.

    `training_step` returns a dict with "loss" and "logits" [B, C], or None to skip the batch, which then does not count
    as a visit; the batch carries labels and sample ids (see `WithIds`), or comes from our `Loader`. Gradient
    accumulation needs no special care, and a second `fit` counts its epochs on from those of the first. The recording
    is saved in Lightning's checkpoints and restored with them, and the ranks of a distributed run are merged at the end
    of every epoch. The recording of a failed attempt is dropped when `fit` restarts from the first step.

    Parameters
    ----------
    recorder : HardnessRecorder
        On the training device; with several processes, each made with `distributed=True`.
    labels_n : int [N], optional
        Hard labels by sample id. Needed with soft labels in the batches (mixup, CutMix).
    shift_labels : bool, optional
        For logits [B, T, C]: whether those at position t belong to the label at t + 1, as in causal language models. By
        default the loss of the first batch decides.

    Raises
    ------
    ValueError
        While training: if a step returns no logits, a batch has no labels or ids, the loss does not show whether
        labels are shifted, or one of several processes has a recorder that was not made with `distributed=True`.
    """

    def __init__(
        self,
        recorder: HardnessRecorder,
        *,
        labels_n: torch.Tensor | np.ndarray | None = None,
        shift_labels: bool | None = None,
    ) -> None:
        self.recorder = recorder
        self._labels = HardLabels(labels_n, recorder.sums.device)
        self._attempt = Attempt(recorder)
        self._labels_of_ids = LabelsOfIds(recorder)
        self._epochs_before = 0  # of earlier trainings
        self._tokens = NextTokens(shift_labels, recorder.ignore_index)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a recorder that would see only one rank's part."""
        require_distributed(self.recorder, trainer.world_size)
        self._tokens.begin()
        if trainer.global_step == 0:
            self._attempt.begin()
            self._epochs_before = self.recorder.epochs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step's logits, from before the update."""
        if pl_module.automatic_optimization and not outputs:
            return  # the step returned None, and Lightning skipped the batch
        if not isinstance(outputs, Mapping) or "logits" not in outputs:
            found = f"a dict with {', '.join(outputs)}" if outputs else "nothing"
            raise ValueError(f"training_step must return a dict with 'loss' and 'logits' to be recorded, got {found}")
        labels, ids = labels_and_ids(batch)
        labels = self._labels.of(labels, ids, kept_from_us="the batch has no labels")
        loss, parts = outputs.get("loss"), trainer.accumulate_grad_batches
        logits, labels, ids = self._tokens.paired(outputs["logits"], labels, ids, loss=loss, parts=parts)
        self.recorder.record(logits, labels, ids, epoch=self._epochs_before + trainer.current_epoch)
        self._labels_of_ids.see(labels, ids)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the ranks' visits of this epoch."""
        if self.recorder.distributed:
            self.recorder.merge_ranks()
        self._labels_of_ids.warn()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the recording."""
        self._attempt.end()

    def state_dict(self) -> dict[str, Any]:
        """The recording, for a checkpoint; Lightning asks every rank."""
        if self.recorder.distributed:
            self.recorder.merge_ranks()
        return {**self.recorder.state_dict(), _EPOCHS_BEFORE: self._epochs_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self.recorder.load_state_dict({name: value for name, value in state_dict.items() if name != _EPOCHS_BEFORE})
        self._epochs_before = int(state_dict.get(_EPOCHS_BEFORE, 0))
        self._attempt.end()
