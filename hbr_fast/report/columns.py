"""Columns and types of the CSV files that a study leaves."""

import polars as pl

from hbr_fast.evaluation.measures import METRICS

TEXT = pl.String
WHOLE = pl.Int64
REAL = pl.Float64
MEMBER_KEY = {"arm": TEXT, "variant": WHOLE, "member": WHOLE, "seed": pl.UInt64}
PER_CLASS_COLUMNS = {
    **MEMBER_KEY,
    "class_index": WHOLE,
    "class_name": TEXT,
    "samples": REAL,  # imported runs may not know
    "hardness": REAL,
    **dict.fromkeys(METRICS, REAL),
    "never_predicted": TEXT,
}
PER_MEMBER_COLUMNS = {
    **MEMBER_KEY,
    "accuracy": REAL,
    "train_seconds": REAL,
}
INTERVALS_COLUMNS = {
    "arm": TEXT,
    "class_index": WHOLE,
    "metric": TEXT,
    **dict.fromkeys(("mean", "low", "high", "combined_low", "combined_high"), REAL),
    "test_samples": WHOLE,
}
CONFUSION_COLUMNS = {"arm": TEXT, "true_index": WHOLE, "predicted_index": WHOLE, "samples": WHOLE}
COMPARISONS_COLUMNS = {
    **dict.fromkeys(("arm", "against", "quantity"), TEXT),
    "variants": WHOLE,
    **dict.fromkeys(("baseline", "treatment", "low", "high"), REAL),
    **dict.fromkeys(("combined_low", "combined_high", "effect_size"), REAL),
    **dict.fromkeys(("p", "p_holm", "smallest_p", "paper_t", "paper_p"), REAL),
    "direction": TEXT,
}
ENSEMBLE_SIZE_COLUMNS = {
    "estimator": TEXT,
    "measure": TEXT,
    "size": WHOLE,
    "mean": REAL,
    "low": REAL,
    "high": REAL,
}
GROUPS_COLUMNS = {
    **dict.fromkeys(("arm", "attribute", "group"), TEXT),
    "samples": WHOLE,
    **dict.fromkeys(("accuracy", "low", "high"), REAL),
}
HISTORY_COLUMNS = {"arm": TEXT, "epoch": WHOLE, "train_loss": REAL, "train_accuracy": REAL}
SAMPLES_COLUMNS = {"sample_id": WHOLE, "class_index": WHOLE, "class_name": TEXT}
