"""Shared by the callbacks: labels to record against, and recordings that are dropped with a failed attempt."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from hbr_fast.hardness import GrowingRecorder, HardnessRecorder
from hbr_fast.kernels.hardness import layout


def require_distributed(recorder: HardnessRecorder, processes: int) -> None:
    """Refuse a recorder that would see one rank's part only."""
    if processes > 1 and isinstance(recorder, GrowingRecorder):
        raise ValueError(
            f"this run has {processes} processes, and GrowingRecorder records in one: number the samples and make a "
            "HardnessRecorder with distributed=True"
        )
    if processes > 1 and not recorder.distributed:
        raise ValueError(f"this run has {processes} processes: make the recorder with distributed=True")


class HardLabels:
    """The hard label of every sample, for batches that do not contain it.

    Parameters
    ----------
    labels_n : int [N] or None
        By sample id. Needed if the batches have soft labels (mixup, CutMix), which hide the sample's own label when the
        partner has the larger share.
    device : torch.device
        Device of the lookup.
    """

    def __init__(self, labels_n: torch.Tensor | np.ndarray | None, device: torch.device) -> None:
        self._labels_n = None if labels_n is None else torch.as_tensor(labels_n).to(device)

    def of(self, labels: torch.Tensor | None, ids: Any, *, kept_from_us: str) -> torch.Tensor:
        """The labels to record against.

        Raises
        ------
        ValueError
            If they are unknown: there are none (`kept_from_us` says why), or they are soft.
        """
        if self._labels_n is not None:
            return self._labels_n[ids]
        if labels is None:
            raise ValueError(f"{kept_from_us}: give labels_n, the hard labels by sample id")
        if labels.is_floating_point() and labels.ndim > 1 and labels.shape[-1] > 1:
            raise ValueError(
                f"the labels {list(labels.shape)} are soft, so they do not say which class a sample is of: give "
                "labels_n, the hard labels by sample id"
            )
        return labels


class LabelsOfIds:
    """Warns, once, of ids that come with different labels, which are then not the ids of samples.

    Two parts of a `ConcatDataset` that were numbered apart share ids, and many samples share the number of a group in
    the place of an id: their visits are recorded as those of one sample.

    Parameters
    ----------
    recorder : HardnessRecorder
    """

    def __init__(self, recorder: HardnessRecorder) -> None:
        self._samples = recorder.num_samples
        self._numbered = not isinstance(recorder, GrowingRecorder)
        device = recorder.sums.device
        self._label_n = torch.full((self._samples if self._numbered else 0,), -1, device=device)
        self._first = torch.tensor(self._samples, device=device)  # of the ids with different labels
        self._warned = False

    def see(self, labels: torch.Tensor, ids: Any) -> None:
        """Note the labels of a recorded batch; nothing is read from the device. Tokens and pixels have other labels."""
        if not self._numbered or labels.ndim != 1 or labels.is_floating_point() or ids.shape != labels.shape:
            return
        ids, known = ids.long(), self._label_n[ids]
        differ = (known >= 0) & (labels >= 0) & (known != labels)
        self._first = torch.minimum(self._first, torch.where(differ, ids, self._samples).min())
        self._label_n[ids] = labels.long()

    def warn(self) -> None:
        """Warn if there were any so far."""
        if self._warned or not self._numbered or int(self._first) == self._samples:
            return
        self._warned = True
        warnings.warn(
            f"sample id {int(self._first)} came with different labels: ids must number the samples of the whole "
            "training set (WithIds around a ConcatDataset, not inside it; no numbers of groups), else several are "
            "recorded as one",
            stacklevel=2,
        )


class NextTokens:
    """Pairs the logits [B, T, C] of tokens with their labels [B, T], as the model's own loss does.

    Causal language models shift the labels in their loss: the logits at position t belong to the label at t + 1. Others
    (token classification, masked language models, encoder-decoders) do not, and neither class names nor configurations
    tell them apart. So the loss of the first batch is compared with the cross-entropy of both.

    Parameters
    ----------
    shift_labels : bool, optional
        Whether labels are shifted. By default the loss decides.
    ignore_index : int
        Label of tokens that the loss leaves out, besides -100.
    """

    def __init__(self, shift_labels: bool | None, ignore_index: int) -> None:
        self._given = self._shifts = shift_labels
        self._ignore_index = ignore_index

    def begin(self) -> None:
        """Another training, maybe of another model."""
        self._shifts = self._given

    def paired(
        self, logits: Any, labels: torch.Tensor, ids: Any, *, loss: Any, tokens_in_batch: Any = None, parts: int = 1
    ) -> tuple[Any, torch.Tensor, Any]:
        """Logits, labels and ids to record; those of anything but tokens as they are.

        Parameters
        ----------
        logits, labels, ids
            Of the whole batch: [B, T, C], [B, T], and [B] or [B, T], of which each is the id of the label's token.
        loss : float []
            Of the model.
        tokens_in_batch : int, optional
            The loss may be the sum over the tokens divided by this.
        parts : int
            The loss may have been divided by this (accumulated gradients).

        Raises
        ------
        ValueError
            If the loss does not decide.
        """
        tokens = isinstance(logits, torch.Tensor) and logits.ndim == 3 and labels.shape == logits.shape[:2]
        if not tokens or logits.shape[-1] < 2:
            return logits, labels, ids
        if self._shifts is None:
            own = labels.masked_fill(labels == self._ignore_index, layout.IGNORED_LABEL).long()
            counts = own != layout.IGNORED_LABEL
            if not counts.any() or (counts & ((own < 0) | (own >= logits.shape[-1]))).any():
                return logits, labels, ids  # there is nothing to record, or a label to refuse
            self._shifts = _loss_is_shifted(logits, own, loss, tokens_in_batch, parts)
        if not self._shifts:
            return logits, labels, ids
        if isinstance(ids, torch.Tensor) and ids.shape == labels.shape:
            ids = ids[:, 1:]
        return logits[:, :-1], labels[:, 1:], ids


def _loss_is_shifted(logits: torch.Tensor, labels: torch.Tensor, loss: Any, tokens_in_batch: Any, parts: int) -> bool:
    """Whether the loss is the cross-entropy with shifted labels and not that with labels as they are."""
    fits = [False, False]
    if isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.is_floating_point():
        found = float(loss.detach()) * parts
        tolerance = max(2e-5, torch.finfo(loss.dtype).eps)
        logits = logits.detach()
        for shift, rows, own in ((False, logits, labels), (True, logits[:, :-1], labels[:, 1:])):
            total = torch.nn.functional.cross_entropy(
                rows.reshape(-1, rows.shape[-1]).float(), own.reshape(-1), reduction="sum"
            )
            recorded = int((own != layout.IGNORED_LABEL).sum())
            for tokens in (recorded, 0 if tokens_in_batch is None else float(tokens_in_batch)):
                fits[shift] |= tokens > 0 and abs(float(total) / tokens - found) <= tolerance * max(1.0, found)
    if fits[False] == fits[True]:
        raise ValueError(
            "the loss does not show whether the logits at a position belong to the label there or to the next one, as "
            "in causal language models: say HardnessCallback(recorder, shift_labels=False), or True"
        )
    return fits[True]


class Attempt:
    """A training run that may fail and be restarted: the recording of the failed attempt is then dropped.

    Parameters
    ----------
    recorder : HardnessRecorder
    """

    def __init__(self, recorder: HardnessRecorder) -> None:
        self._recorder = recorder
        self._before: dict[str, Any] | None = None

    def begin(self) -> None:
        """A training starts from its first step. If the previous one never ended, its visits are dropped."""
        if self._before is not None:
            self._recorder.load_state_dict(self._before)
        self._before = self._recorder.state_dict()

    def end(self) -> None:
        """The training ended, or resumes from a checkpoint: its visits are kept."""
        self._before = None
