"""Training loss and hardness recording in one pass over the logits."""

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
    """`torch.nn.functional.cross_entropy` that also records: recording adds no pass over the logits.

    One kernel computes the loss, its gradient and the observations, on CPU (numba) and GPU (Triton). Works under
    autocast and `torch.compile(fullgraph=True)`.

    Parameters
    ----------
    logits_bc : float [B, C]
        float16 and bfloat16 are computed in float32, as under autocast. The gradient is kept in float32 from the
        forward pass on (float64 for float64 logits); it cannot be differentiated again.
    labels_b, ids_b : int64 or int32 [B]
        As in `HardnessRecorder.record`, which also takes other forms: tokens, pixels, one logit a row (float labels
        must be 0 or 1 here). Rows of label -100, and of the recorder's `ignore_index`, are ignored by both.
    recorder : HardnessRecorder
        Records against the hard label, also with label smoothing.
    epoch : int
        From 0.
    weight : float [C], optional
        Class weights: a tensor on the device of the logits.
    label_smoothing : float
        In [0, 1].
    reduction : "mean", "sum" or "none"
        The mean divides by the weights of the rows' classes.

    Returns
    -------
    loss : float32 [], or of the shape of the labels
        float64 for float64 logits. Classes may be masked by a logit of -inf, as in torch. Not finite if a logit is NaN
        or +inf or the row's own class is masked: that row is counted but not recorded. The loss of a row whose other
        classes are all masked is 0; it has no margin and is not recorded either.

    Raises
    ------
    ValueError
        If an argument does not fit; then nothing of the batch is recorded. On a GPU, where the check would synchronise,
        rows whose label or id is out of range are left out and counted instead: `recorder.scores()` refuses them.

    Examples
    --------
    >>> import torch
    >>> from hbr_fast import HardnessRecorder
    >>> recorder = HardnessRecorder(num_samples=4, num_classes=3)
    >>> logits = torch.zeros(2, 3, requires_grad=True)
    >>> loss = hardness_cross_entropy(logits, torch.tensor([0, 2]), torch.tensor([1, 3]), recorder, epoch=0)
    >>> (round(loss.item(), 4), recorder.scores().observations.tolist())
    (1.0986, [[0, 1, 0, 1]])
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if weight is not None and not hasattr(weight, "is_floating_point"):  # not a tensor
        raise ValueError(f"weight must be a torch.Tensor of [{recorder.num_classes}], got {type(weight).__name__}")
    if weight is not None and (weight.shape != (recorder.num_classes,) or weight.device != logits_bc.device):
        raise ValueError(
            f"weight must be [{recorder.num_classes}] on {logits_bc.device}, "
            f"got {list(weight.shape)} on {weight.device}"
        )
    if hasattr(labels_b, "is_floating_point") and labels_b.is_floating_point():  # anything else: refused below
        # Of one logit a row: the loss is that of hard labels, so smoothed ones become NaN, which is refused as a label.
        kept = (labels_b == 0) | (labels_b == 1) | (labels_b == -100) | (labels_b == recorder.ignore_index)
        labels_b = labels_b.where(kept, float("nan"))
    form, logits, labels, ids, epoch = recorder._checked(logits_bc, labels_b, ids_b, epoch)
    options = (weight, label_smoothing, reduction)
    loss = recorder._loss(form, logits, labels, ids, *options, *recorder._into(epoch))
    recorder._note(form, logits, labels, ids, epoch)
    return loss.reshape(labels_b.shape) if loss.ndim and labels_b.ndim > 1 else loss
