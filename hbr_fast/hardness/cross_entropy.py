"""The loss of a training step and the recording of its hardness, from one pass over the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from hbr_fast.hardness.recorder import HardnessRecorder


def hardness_cross_entropy(
    logits_bc: torch.Tensor,
    labels_b: torch.Tensor,
    ids_b: torch.Tensor,
    recorder: HardnessRecorder,
    *,
    epoch: int,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> torch.Tensor:
    """`torch.nn.functional.cross_entropy`, recording on the way: recording adds no pass over the logits.

    One kernel makes the loss, its gradient and the observations, on the CPU (numba) and on a GPU (Triton). Works under
    autocast and `torch.compile(fullgraph=True)`.

    Parameters
    ----------
    logits_bc : float [B, C]
        float16 and bfloat16 are computed in float32, as autocast does. The gradient is kept in float32 from the
        forward pass on (float64 for float64 logits); it cannot be differentiated again.
    labels_b, ids_b : int64 or int32 [B]
        As in `HardnessRecorder.record`. Rows of label -100 are ignored by both.
    recorder : HardnessRecorder
        Records against the hard label, also with label smoothing.
    epoch : int
        From 0.
    weight : float [C], optional
        Of the classes.
    label_smoothing : float
        In [0, 1].
    reduction : "mean", "sum" or "none"
        The mean divides by the weights of the rows' classes.

    Returns
    -------
    loss : float32 [] or [B]
        float64 for float64 logits. NaN where a logit is not finite: that row is not recorded, and counted.

    Raises
    ------
    ValueError
        If an argument does not fit; then nothing of the batch is recorded. On a GPU, where that would be a wait, rows
        whose label or id is out of range are left out and counted instead: `recorder.scores()` refuses them.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if recorder.members is not None:
        raise ValueError("the loss is of one member: give each member a recorder of its own, or record beside the loss")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if weight is not None and (weight.shape != logits_bc.shape[1:] or weight.device != logits_bc.device):
        raise ValueError(
            f"weight must be [{recorder.num_classes}] on {logits_bc.device}, "
            f"got {list(weight.shape)} on {weight.device}"
        )
    form, labels, ids, epoch = recorder._checked(logits_bc, labels_b, ids_b, epoch)
    options = (weight, label_smoothing, reduction)
    loss = recorder._loss(form, logits_bc, labels, ids, *options, *recorder._into(epoch))
    recorder._note(form, logits_bc, labels, ids, epoch)
    return loss
