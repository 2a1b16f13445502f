"""Hardness-based resampling at memory speed: loading, sampling, recording hardness, training ensembles.

The public names are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hbr_fast.allocation import Allocation, allocate
    from hbr_fast.data.beton import open_beton
    from hbr_fast.data.beton_writer import write_beton
    from hbr_fast.data.convert import convert
    from hbr_fast.data.dataset import Dataset, Split, open_dataset, verify_dataset
    from hbr_fast.data.pool import open_pool
    from hbr_fast.data.relabel import relabel
    from hbr_fast.evaluation.metrics import Evaluation, evaluate, gaps
    from hbr_fast.evaluation.statistics import PairedDifference, holm, paired_difference, variants_needed
    from hbr_fast.hardness.cross_entropy import hardness_cross_entropy
    from hbr_fast.hardness.estimators import ESTIMATORS
    from hbr_fast.hardness.recorder import HardnessRecorder
    from hbr_fast.hardness.scores import HardnessScores
    from hbr_fast.loaders.batch import Augment, Batch
    from hbr_fast.loaders.loader import Loader
    from hbr_fast.noise import inject_noise, suspects
    from hbr_fast.plan import Plan
    from hbr_fast.pruning import prune
    from hbr_fast.report.page import write_report
    from hbr_fast.resampling.rows import resample
    from hbr_fast.sampler.order import Sampler
    from hbr_fast.sampler.quota import quota_order, ratio_order
    from hbr_fast.sampler.uniform import sequential_order, uniform_order
    from hbr_fast.sampler.weighted import weighted_order
    from hbr_fast.studies.runner import run_study
    from hbr_fast.studies.study import Arm, Study
    from hbr_fast.torch_sampler import HardnessSampler, OrderSampler
    from hbr_fast.training.cluster import Cluster
    from hbr_fast.training.ensemble import Ensemble, open_ensemble, train_ensemble
    from hbr_fast.training.final import final_scores
    from hbr_fast.training.recipe import Recipe, named_recipe
    from hbr_fast.training.ssft import second_split_forgetting
    from hbr_fast.training.trainer import train_member

# Public name -> the module it lives in. The imports above say the same to a type checker; a test compares the two.
_HOME = {
    "ESTIMATORS": "hardness.estimators",
    "Allocation": "allocation",
    "Arm": "studies.study",
    "Augment": "loaders.batch",
    "Batch": "loaders.batch",
    "Cluster": "training.cluster",
    "Dataset": "data.dataset",
    "Ensemble": "training.ensemble",
    "Evaluation": "evaluation.metrics",
    "HardnessRecorder": "hardness.recorder",
    "HardnessSampler": "torch_sampler",
    "HardnessScores": "hardness.scores",
    "Loader": "loaders.loader",
    "OrderSampler": "torch_sampler",
    "PairedDifference": "evaluation.statistics",
    "Plan": "plan",
    "Recipe": "training.recipe",
    "Sampler": "sampler.order",
    "Split": "data.dataset",
    "Study": "studies.study",
    "allocate": "allocation",
    "convert": "data.convert",
    "evaluate": "evaluation.metrics",
    "final_scores": "training.final",
    "gaps": "evaluation.metrics",
    "hardness_cross_entropy": "hardness.cross_entropy",
    "holm": "evaluation.statistics",
    "inject_noise": "noise",
    "named_recipe": "training.recipe",
    "open_beton": "data.beton",
    "open_dataset": "data.dataset",
    "open_ensemble": "training.ensemble",
    "open_pool": "data.pool",
    "paired_difference": "evaluation.statistics",
    "prune": "pruning",
    "quota_order": "sampler.quota",
    "ratio_order": "sampler.quota",
    "relabel": "data.relabel",
    "resample": "resampling.rows",
    "run_study": "studies.runner",
    "second_split_forgetting": "training.ssft",
    "sequential_order": "sampler.uniform",
    "suspects": "noise",
    "train_ensemble": "training.ensemble",
    "train_member": "training.trainer",
    "uniform_order": "sampler.uniform",
    "variants_needed": "evaluation.statistics",
    "verify_dataset": "data.dataset",
    "weighted_order": "sampler.weighted",
    "write_beton": "data.beton_writer",
    "write_report": "report.page",
}

__version__ = "0.1.0"
__all__ = [
    "ESTIMATORS",
    "Allocation",
    "Arm",
    "Augment",
    "Batch",
    "Cluster",
    "Dataset",
    "Ensemble",
    "Evaluation",
    "HardnessRecorder",
    "HardnessSampler",
    "HardnessScores",
    "Loader",
    "OrderSampler",
    "PairedDifference",
    "Plan",
    "Recipe",
    "Sampler",
    "Split",
    "Study",
    "allocate",
    "convert",
    "evaluate",
    "final_scores",
    "gaps",
    "hardness_cross_entropy",
    "holm",
    "inject_noise",
    "named_recipe",
    "open_beton",
    "open_dataset",
    "open_ensemble",
    "open_pool",
    "paired_difference",
    "prune",
    "quota_order",
    "ratio_order",
    "relabel",
    "resample",
    "run_study",
    "second_split_forgetting",
    "sequential_order",
    "suspects",
    "train_ensemble",
    "train_member",
    "uniform_order",
    "variants_needed",
    "verify_dataset",
    "weighted_order",
    "write_beton",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hbr_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hbr_fast.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
