"""The built-in losses, and how a recipe's loss joins the recording of hardness.

A loss is a function of (logits [B, C], labels [B]) that returns their mean []. A parameter `class_counts`, float [C],
receives the training samples of each class, a parameter `class_weight` the weights that `loss_args` ask for.

The mean is over rows: means over parts of a batch, weighted by their rows, then add up to that of the batch, for
accumulation and for batches shared by processes. Class weights are therefore scaled to a mean of 1 over the training
samples, where torch divides by the sum of a batch's weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from hbr_fast.hardness import HardnessRecorder
    from hbr_fast.training.recipe import Recipe

FUSED_CLASSES_ON_CPU = 1000  # measured: docs/training-speed.md


def cross_entropy(
    logits_bc: torch.Tensor,
    labels_b: torch.Tensor,
    *,
    label_smoothing: float,
    class_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of hard labels, smoothed or not, weighted by class or not."""
    from torch.nn import functional

    if class_weight is None:
        return functional.cross_entropy(logits_bc, labels_b, label_smoothing=label_smoothing)
    return functional.cross_entropy(
        logits_bc, labels_b, weight=class_weight, label_smoothing=label_smoothing, reduction="none"
    ).mean()


def focal(
    logits_bc: torch.Tensor,
    labels_b: torch.Tensor,
    *,
    gamma: float = 2.0,
    class_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Focal loss, -(1 - p)^gamma log p of the label's probability p; gamma 0 is cross-entropy.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017; their alpha is `class_weight`.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma of the focal loss must be at least 0, got {gamma}")
    log_p_b = logits_bc.log_softmax(1).gather(1, labels_b[:, None]).squeeze(1)
    # p rounds to 1 for a sure row; below a tiny distance from 1 the power's gradient would be infinite for gamma < 1.
    wrong_b = (-log_p_b.expm1()).clamp(min=1e-7)
    loss_b = -(wrong_b**gamma) * log_p_b
    if class_weight is not None:
        loss_b = loss_b * class_weight[labels_b]
    return loss_b.mean()


def logit_adjusted(
    logits_bc: torch.Tensor,
    labels_b: torch.Tensor,
    *,
    class_counts: torch.Tensor,
    label_smoothing: float = 0.0,
    tau: float = 1.0,
) -> torch.Tensor:
    """Cross-entropy of the logits plus tau times the log share of each class among the training samples.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021. Predictions use the logits alone.
    A class without a training sample counts as one.
    """
    from torch.nn import functional

    share_c = class_counts.clamp(min=1) / class_counts.clamp(min=1).sum()
    return functional.cross_entropy(logits_bc + tau * share_c.log(), labels_b, label_smoothing=label_smoothing)


def balanced_softmax(
    logits_bc: torch.Tensor, labels_b: torch.Tensor, *, class_counts: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Balanced softmax: `logit_adjusted` with tau 1.

    Source: Ren et al., "Balanced meta-softmax for long-tailed visual recognition", NeurIPS 2020.
    """
    return logit_adjusted(logits_bc, labels_b, class_counts=class_counts, label_smoothing=label_smoothing)


@dataclass(frozen=True)
class Loss:
    """A recipe's loss, with its options.

    Attributes
    ----------
    mean : callable
        Logits [B, C] and labels [B] to their mean loss [].
    recording : callable, optional
        Also takes ids, a recorder and `epoch=`, and records in the same pass; None if the loss has no such form.
    """

    mean: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    recording: Callable[..., torch.Tensor] | None

    def recorded(
        self,
        logits_bc: torch.Tensor,
        labels_b: torch.Tensor,
        ids_b: torch.Tensor,
        recorder: HardnessRecorder,
        *,
        epoch: int,
    ) -> torch.Tensor:
        """The mean loss, with hardness recorded: in one pass on a GPU or with many classes."""
        if self.recording is not None and (logits_bc.is_cuda or logits_bc.shape[1] >= FUSED_CLASSES_ON_CPU):
            return self.recording(logits_bc, labels_b, ids_b, recorder, epoch=epoch)
        recorder.record(logits_bc, labels_b, ids_b, epoch=epoch)
        return self.mean(logits_bc, labels_b)


def has_one_pass_form(recipe: Recipe) -> bool:
    """Whether the loss of a recipe can be computed and recorded in one pass: plain cross-entropy of unmixed images."""
    return recipe.loss == "cross-entropy" and "class_weight" not in recipe.loss_args and not recipe.mixes


def is_one_pass(recipe: Recipe, *, classes: int) -> bool:
    """Whether a step on a CPU records in the pass that computes the loss; on a GPU every loss that can does."""
    return classes >= FUSED_CLASSES_ON_CPU and has_one_pass_form(recipe)


def one_pass_form(*, label_smoothing: float) -> Callable[..., torch.Tensor]:
    """`hardness_cross_entropy`: cross-entropy up to rounding, recorded in the same pass over the logits."""
    from hbr_fast.hardness.cross_entropy import hardness_cross_entropy

    return functools.partial(hardness_cross_entropy, label_smoothing=label_smoothing)


def class_weights(class_weight: str | Sequence[float], counts_c: torch.Tensor) -> torch.Tensor:
    """The weights that a recipe's `class_weight` asks for, with a mean of 1 over the training samples.

    Parameters
    ----------
    class_weight : "balanced" or sequence of float
        "balanced": the inverse of the class's training samples (of 1 for a class without any); or one per class.
    counts_c : float [C]
        Training samples of each class.

    Returns
    -------
    float32 [C]
        On the device of the counts.

    Raises
    ------
    ValueError
        If it is neither, or no class that is trained has a weight above 0.
    """
    import torch

    classes = len(counts_c)
    if class_weight == "balanced":
        weight_c = 1 / counts_c.clamp(min=1)
    else:
        numbers = isinstance(class_weight, Sequence) and all(isinstance(one, int | float) for one in class_weight)
        given = torch.tensor(class_weight if numbers else [], dtype=torch.float32)
        if given.shape != (classes,) or not bool((given >= 0).all() and given.isfinite().all()):
            raise ValueError(
                f"class_weight must be 'balanced' or {classes} finite weights of at least 0, one per class, "
                f"got {class_weight!r}"
            )
        weight_c = given.to(counts_c.device)
    total = float((weight_c * counts_c).sum())
    if not total > 0:
        raise ValueError(
            f"class_weight {class_weight!r} weighs every training sample 0: give a class that has some more"
        )
    return weight_c * (float(counts_c.sum()) / total)
