"""Recording in Hugging Face's `Trainer`: `Trainer(..., callbacks=[HardnessCallback(recorder)])`."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hbr_fast.hardness import HardnessRecorder
from hbr_fast.hardness.state_file import load_state, save_state
from hbr_fast.integrations.batches import Attempt, HardLabels, LabelsOfIds, NextTokens, require_distributed
from hbr_fast.integrations.ids import KEY

FILE = "hardness.safetensors"  # of a checkpoint

# The callback whose hooks a model has: an exception ends a training without an event and leaves them behind.
_hooked: weakref.WeakKeyDictionary[nn.Module, HardnessCallback] = weakref.WeakKeyDictionary()


class HardnessCallback(TrainerCallback):
    """Records every forward pass of the model in train mode.

    The items of the training set carry their number as `sample_id` (see `WithIds`), and
    `TrainingArguments(remove_unused_columns=False)` lets it through. While training, one hook removes it from the
    model's inputs and another reads the logits [B, C], so that neither the model nor the Trainer is changed. The hooks
    are removed when the training ends, when a forward pass raises, and before the next training of the model.

    An epoch is a pass over the data: starts of passes are counted, for sets of known and unknown length. Gradient
    accumulation needs no special care; the ranks of a distributed run are merged at the end of every epoch. A training
    that restarts from its first step, as `auto_find_batch_size` does when memory is short, drops the recording of the
    failed attempt. The recording is saved in the trainer's checkpoints (`hardness.safetensors`, no pickle) and resumes
    with them.

    Parameters
    ----------
    recorder : HardnessRecorder
        On the training device; with several processes, each made with `distributed=True`.
    labels_n : int [N], optional
        Hard labels by sample id. Needed with `label_smoothing_factor` or `compute_loss_func`, where the Trainer
        withholds the labels from the model, and with soft labels (mixup, CutMix).
    resume_from : path, optional
        The checkpoint's directory, if training resumes from one outside `output_dir`.
    shift_labels : bool, optional
        For logits [B, T, C]: whether those at position t belong to the label at t + 1, as in causal language models. By
        default the model's loss on the first batch decides.

    Raises
    ------
    ValueError
        While training: if sample ids, logits or labels are missing, the loss does not show whether labels are shifted,
        the recording of a checkpoint is from another step, or the processes do not fit the recorder.
    FileNotFoundError
        If training resumes from a checkpoint that has no recording.
    """

    def __init__(
        self,
        recorder: HardnessRecorder,
        *,
        labels_n: torch.Tensor | np.ndarray | None = None,
        resume_from: str | os.PathLike[str] | None = None,
        shift_labels: bool | None = None,
    ) -> None:
        self.recorder = recorder
        self._labels = HardLabels(labels_n, recorder.sums.device)
        self._resume_from = resume_from
        self._tokens = NextTokens(shift_labels, recorder.ignore_index)
        self._attempt = Attempt(recorder)
        self._labels_of_ids = LabelsOfIds(recorder)
        self._state: TrainerState | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._ids: Any = None
        self._found_ids = False
        self._epoch, self._next_epoch = 0, 0  # of the current steps; of the next pass that has steps
        self._begins, self._in_epoch, self._in_step = False, False, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook into the model, and load the checkpoint's recording if training resumes."""
        model: nn.Module = kwargs["model"]
        before = _hooked.get(model)
        if before is not None:
            if before is not self and before._state is state:
                raise ValueError("two HardnessCallbacks cannot record one training: keep one of them")
            before.detach()
        self.detach()
        if args.remove_unused_columns:
            raise ValueError(f"TrainingArguments must have remove_unused_columns=False: else '{KEY}' is removed")
        if args.n_gpu > 1:
            raise ValueError(
                f"one process with {args.n_gpu} GPUs copies the model to each of them, out of sight: start one process "
                "a GPU with torchrun, or show this one a single GPU"
            )
        require_distributed(self.recorder, args.world_size)
        if state.global_step > 0:
            self._resume(args, state.global_step)
        else:
            self._attempt.begin()
            self._next_epoch = self.recorder.epochs
        self._state, self._ids, self._found_ids, self._in_step = state, None, False, False
        self._tokens.begin()
        self._hooks = [
            model.register_forward_pre_hook(self._take_ids, with_kwargs=True),
            model.register_forward_hook(self._record, with_kwargs=True, always_call=True),
        ]
        _hooked[model] = self

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A pass over the data begins. It may have no step: a resumed pass skips batches already trained on."""
        self._begins = True

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the number of the pass that the next steps belong to, and record from here on."""
        self._in_step = True
        if self._begins:
            self._epoch, self._begins, self._in_epoch = self._next_epoch, False, True
            self._next_epoch += 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record nothing until the next step: a data loader that raises there leaves the hooks behind."""
        self._in_step = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Merge the ranks' visits of this epoch."""
        self._in_epoch = False
        if self.recorder.distributed:
            self.recorder.merge_ranks()
        self._labels_of_ids.warn()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the recording with the checkpoint; every rank takes part, one writes."""
        if self.recorder.distributed:
            self.recorder.merge_ranks()
        folder = _checkpoint(args, state.global_step)
        if not args.should_save or not folder.is_dir():  # a hyper-parameter search has its own directories
            return
        # After the last step of a pass of known length, `state.epoch` is whole but its end was not announced yet.
        goes_on = self._in_epoch and not float(state.epoch or 0).is_integer()
        next_epoch = self._epoch if goes_on else self._next_epoch
        save_state(folder / FILE, self.recorder.state_dict(), global_step=int(state.global_step), next_epoch=next_epoch)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the model, and keep the recording."""
        self.detach()
        self._attempt.end()

    def detach(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _resume(self, args: TrainingArguments, step: int) -> None:
        named = [self._resume_from or args.resume_from_checkpoint or _checkpoint(args, step), _checkpoint(args, step)]
        folders = [Path(folder) for folder in named if isinstance(folder, str | os.PathLike)]  # True: the last one
        path = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"training resumes at step {step}, but {folders[0]} has no {FILE}: give the checkpoint's directory to "
                "HardnessCallback(resume_from=...), or train from the first step"
            )
        recorded, about = load_state(path)
        if about["global_step"] != step:
            raise ValueError(
                f"training resumes at step {step}, but {path} was recorded up to step {about['global_step']}: resume "
                "from the checkpoint it belongs to"
            )
        self.recorder.load_state_dict(recorded)
        self._next_epoch = int(about["next_epoch"])
        self._attempt.end()

    def _take_ids(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        self._ids = kwargs.pop(KEY, None)
        if not (model.training and self._in_step):
            return args, kwargs
        if self._ids is not None:
            self._found_ids = True
        elif not self._found_ids:
            raise ValueError(f"the batch has no '{KEY}', only {', '.join(kwargs)}: wrap the training set in WithIds")
        return args, kwargs

    def _record(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        ids, self._ids = self._ids, None
        if output is None:  # the forward pass raised
            self.detach()
            return
        if not (model.training and self._in_step) or ids is None:
            return
        labels = kwargs.get("labels")
        why = "the Trainer withholds the labels from the model (label smoothing?)"
        try:
            shifted = kwargs.get("shift_labels")  # by the collator or a parallel sequence: the loss takes these
            has_loss = labels is not None or shifted is not None
            logits = _logits_of(output, has_loss=has_loss)
            if shifted is None:
                own = self._labels.of(labels, ids, kept_from_us=why)
                loss = output.get("loss") if isinstance(output, Mapping) else output[0] if has_loss else None
                tokens = kwargs.get("num_items_in_batch")
                logits, own, ids = self._tokens.paired(logits, own, ids, loss=loss, tokens_in_batch=tokens)
            else:
                own = shifted
            self.recorder.record(logits, own, ids, epoch=self._epoch)
            self._labels_of_ids.see(own, ids)
        except Exception:
            self.detach()
            raise


def _checkpoint(args: TrainingArguments, step: int) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{step}"


def _logits_of(output: Any, *, has_loss: bool) -> Any:
    """Logits of the model's output: a mapping, or a tuple with the logits first, or after the loss."""
    if isinstance(output, Mapping):
        if "logits" not in output:
            raise ValueError(f"the model must give 'logits' to be recorded, got {', '.join(map(str, output))}")
        return output["logits"]
    if isinstance(output, tuple) and len(output) > has_loss:
        return output[int(has_loss)]
    if isinstance(output, torch.Tensor) and not has_loss:
        return output
    raise ValueError(f"the model must give a mapping with 'logits' or (loss, logits), got {type(output).__name__}")
