"""Hardness: how hard each sample is, recorded from the logits that training produces anyway."""

from hbr_fast.hardness.estimators import ESTIMATORS, FINAL, RECORDED, Estimator, estimator
from hbr_fast.hardness.recorder import HardnessRecorder, NeverLearnt
from hbr_fast.hardness.scores import HardnessScores, stack_scores

__all__ = [
    "ESTIMATORS",
    "FINAL",
    "RECORDED",
    "Estimator",
    "HardnessRecorder",
    "HardnessScores",
    "NeverLearnt",
    "estimator",
    "stack_scores",
]
