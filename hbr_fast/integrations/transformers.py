"""Recording in Hugging Face's `Trainer`: `Trainer(..., callbacks=[HardnessCallback(recorder)])`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.integrations.ids import KEY


class HardnessCallback(TrainerCallback):
    """Records every forward pass of the model in train mode.

    The items of the training set carry their number as `sample_id` (see `WithIds`), and
    `TrainingArguments(remove_unused_columns=False)` lets it through. While training, a hook takes it out of the model's
    inputs and another reads the logits [B, C], so that neither the model nor the Trainer is changed. Accumulated
    gradients need nothing; the ranks of a distributed run are merged at the end of every epoch.

    Parameters
    ----------
    recorder : HardnessRecorder
        On the device that trains; of several processes, each with `distributed=True`.
    labels_n : int64 [N], optional
        Labels by sample id. Needed with `label_smoothing_factor` or `compute_loss_func`: the Trainer then keeps the
        labels from the model.
    """

    def __init__(self, recorder: HardnessRecorder, *, labels_n: torch.Tensor | None = None) -> None:
        self.recorder = recorder
        self._labels_n = None if labels_n is None else torch.as_tensor(labels_n).to(recorder.sums.device)
        self._ids: torch.Tensor | None = None
        self._epoch = 0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook into the model."""
        if args.remove_unused_columns:
            raise ValueError(f"TrainingArguments must have remove_unused_columns=False: else '{KEY}' is removed")
        if args.world_size > 1 and not self.recorder.distributed:
            raise ValueError(f"this run has {args.world_size} processes: make the recorder with distributed=True")
        if state.global_step > 0 and self.recorder.epochs == 0:
            raise ValueError(
                f"training resumes at step {state.global_step} but the recorder is empty: load what was recorded "
                "before with recorder.load_state_dict"
            )
        model: nn.Module = kwargs["model"]
        self._hooks = [
            model.register_forward_pre_hook(self._take_ids, with_kwargs=True),
            model.register_forward_hook(self._record, with_kwargs=True),
        ]

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the epoch that the coming steps belong to."""
        self._epoch = int(state.epoch or 0)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make one recording of what the ranks visited in this epoch."""
        if self.recorder.distributed:
            self.recorder.merge_ranks()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _take_ids(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        self._ids = kwargs.pop(KEY, None)
        if self._ids is None and model.training:
            raise ValueError(f"the batch has no '{KEY}', only {', '.join(kwargs)}: wrap the training set in WithIds")
        return args, kwargs

    def _record(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not model.training or self._ids is None:
            return
        labels = kwargs.get("labels")
        if self._labels_n is not None:
            labels = self._labels_n[self._ids]
        if labels is None:
            raise ValueError("the Trainer keeps the labels from the model (label smoothing?): give labels_n")
        self.recorder.record(output["logits"], labels, self._ids, epoch=self._epoch)
