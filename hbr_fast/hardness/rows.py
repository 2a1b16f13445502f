"""Converts logits, labels and ids from their common forms to the rows that the kernels take."""

from __future__ import annotations

import torch

from hbr_fast.kernels.hardness import layout


def rows_of(
    logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, num_classes: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [R, C], labels and ids [R] of a batch of tokens, pixels, or single logits.

    Anything else is returned unchanged; the recorder then reports the error.

    Parameters
    ----------
    logits : float [B, ..., C]; of two classes also [B] or [B, ..., 1]
        One logit z of a binary classifier stands for the logits 0 and z.
    labels : int [B, ...]; with one logit a row also [B, ..., 1], and floats, of which those above 0.5 are class 1
    ids : int [B] or [B, ...]
        One per sample, for all of its tokens, or one per token.
    num_classes : int
    ignore_index : int
        Label that is ignored, besides -100, also among float labels.
    """
    # Two logits a row and labels [B, 2] are no one-logit form: the labels are one-hot or soft, and are refused.
    one_logit = logits.shape[-1:] == (1,) or (
        logits.shape == labels.shape and (logits.ndim == 1 or logits.shape[-1] != 2)
    )
    if num_classes == 2 and one_logit:
        places = logits.shape if logits.shape == labels.shape and logits.shape[-1:] != (1,) else logits.shape[:-1]
        if labels.numel() == logits.numel() and logits.ndim:
            logits, labels = logits.reshape(places), labels.reshape(places)
            logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
            labels = _hard(labels, ignore_index) if labels.is_floating_point() else labels
    places = logits.shape[:-1]
    if logits.ndim > 2 and logits.shape[-1] == num_classes and labels.shape == places:
        if ids.shape == places[:1]:
            ids = ids.reshape(-1, *(1,) * (len(places) - 1)).expand(places)
        if ids.shape == places:
            return logits.reshape(-1, num_classes), labels.reshape(-1), ids.reshape(-1)
    return logits, labels, ids


def _hard(labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Classes of a binary classifier's float labels; what is out of [0, 1], or NaN, becomes a class there is not."""
    ignored = (labels == ignore_index) | (labels == layout.IGNORED_LABEL)
    hard = torch.where((labels >= 0) & (labels <= 1), (labels > 0.5).long(), 2)
    return torch.where(ignored, layout.IGNORED_LABEL, hard)


def as_long(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Labels and ids of other integer types than the kernels take."""
    for tensor in tensors:
        if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"labels and ids must be integers, got {tensors[0].dtype} and {tensors[1].dtype}")
    return [tensor.long() for tensor in tensors]
