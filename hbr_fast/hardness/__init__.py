"""Hardness: how hard each sample is, recorded from the logits that training produces anyway."""

from hbr_fast.hardness.cross_entropy import hardness_cross_entropy
from hbr_fast.hardness.estimators import ESTIMATORS, FINAL, RECORDED, Estimator, estimator
from hbr_fast.hardness.growing import GrowingRecorder
from hbr_fast.hardness.recorder import HardnessRecorder
from hbr_fast.hardness.scores import HardnessScores, stack_scores
from hbr_fast.hardness.stability import EnsembleSizeCurve, ensemble_size_curve
from hbr_fast.hardness.state import NeverLearnt

__all__ = [
    "ESTIMATORS",
    "FINAL",
    "RECORDED",
    "EnsembleSizeCurve",
    "Estimator",
    "GrowingRecorder",
    "HardnessRecorder",
    "HardnessScores",
    "NeverLearnt",
    "ensemble_size_curve",
    "estimator",
    "hardness_cross_entropy",
    "stack_scores",
]
