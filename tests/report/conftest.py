"""A small study directory as a study leaves it: 10 classes, 3 members an arm, seeded numbers."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hbr_fast.evaluation.metrics import gaps

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "<b>50%_x",
)
RECALL = np.array([0.86, 0.98, 0.87, 0.92, 0.86, 0.98, 0.71, 0.97, 0.98, 0.96])
AUM = np.array([2.1, 6.9, 2.2, 3.9, 1.9, 5.5, 0.3, 5.0, 6.0, 5.8])
SAMPLES = np.array([55, 26, 53, 36, 59, 30, 150, 32, 29, 30])

StudyWriter = Callable[..., Path]


def write_study(
    path: Path,
    *,
    recall: dict[str, np.ndarray] | None = None,
    variants: dict[str, Sequence[tuple[int, int]]] | None = None,
    seeds: dict[str, Sequence[int]] | None = None,
    classes: Sequence[str] = CLASSES,
    aum: np.ndarray = AUM,
    dataset: Path | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    ensemble_size: bool = False,
) -> Path:
    """Write a study; `recall` is `[members, classes]` by arm, `variants` (variant, member) by arm, `settings` what
    `study.json` says of an arm."""
    rng = np.random.default_rng(7)
    num_classes = len(classes)
    if recall is None:
        noise = rng.normal(0, 0.005, (2, 3, num_classes))
        shift = np.zeros(num_classes)
        shift[6], shift[4], shift[1] = 0.06, 0.01, -0.01
        recall = {"baseline": RECALL + noise[0], "hbr": RECALL + shift + noise[1]}
    counts = {arm: (np.full(num_classes, 50) if arm == "baseline" else SAMPLES[:num_classes]) for arm in recall}
    arms: list[dict[str, Any]] = []
    per_class: list[dict[str, Any]] = []
    per_member: list[dict[str, Any]] = []
    for arm, recall_mc in recall.items():
        keys = (variants or {}).get(arm) or [(0 if arm == "baseline" else m, m) for m in range(len(recall_mc))]
        arm_seeds = (seeds or {}).get(arm) or [1000 + m for m in range(len(recall_mc))]
        members = []
        for (variant, member), seed, recall_c in zip(keys, arm_seeds, recall_mc, strict=True):
            who = {"arm": arm, "variant": variant, "member": member, "seed": seed}
            members.append({"key": f"{arm}{variant}{member}", "path": "members/x", **who})
            values = gaps(recall_c, counts_c=SAMPLES[:num_classes])
            per_member.append(
                {
                    **who,
                    "accuracy": float(recall_c.mean()),
                    "train_seconds": 40.0,
                    "images_per_second": 8000.0,
                    **{f"recall_{name}": value for name, value in values.items()},
                }
            )
            per_class += [
                {
                    **who,
                    "class_index": c,
                    "class_name": classes[c],
                    "samples": int(counts[arm][c]),
                    "hardness": float(aum[c]),
                    "recall": float(recall_c[c]),
                    "precision": 0.9,
                    "f1": 0.9,
                    "mcc": 0.9,
                    "never_predicted": False,
                }
                for c in range(num_classes)
            ]
        alpha = 0.0 if arm == "baseline" else 0.25
        says = {"alpha": alpha, "undersample": "easy", "oversample": "random", **(settings or {}).get(arm, {})}
        arms.append({"name": arm, **says, "members": members})
    labels = rng.permutation(np.repeat(np.arange(num_classes), 50))
    samples = [
        {
            "sample_id": i,
            "class_index": int(c),
            "class_name": classes[c],
            "aum": float(aum[c] + rng.normal(0, 2)),
            "observations": 18,
        }
        for i, c in enumerate(labels)
    ]
    for sample in samples:  # a second and a third estimator: one that agrees but for its end, one that does not
        sample["confidence"] = float(1 / (1 + np.exp(-sample["aum"])))
        sample["loss"] = -sample["aum"]
        sample["forgetting"] = int(sample["sample_id"]) % 7
    samples[0]["aum"] = float("nan")  # never observed
    path.mkdir(parents=True, exist_ok=True)
    for name, rows in (("per_class", per_class), ("per_member", per_member), ("samples", samples)):
        with open(path / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if ensemble_size:
        measures = [f"{what}_{how}" for what in ("class", "sample") for how in ("spearman", "kendall")]
        with open(path / "ensemble_size.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["estimator", "measure", "size", "mean", "low", "high"])
            for name in ("aum", "loss"):
                for measure in (*measures, "pruned_jaccard"):
                    table.writerows([name, measure, j, 1 - 0.3 / j, 1 - 0.4 / j, 1 - 0.2 / j] for j in (1, 2, 3))
                table.writerows([name, "counts_change", j, 30 / j, 20 / j, 40 / j] for j in (2, 3))
    meta = {
        "schema": 2,
        "study": "quickstart",
        "dataset": {
            "path": str(dataset or path / "none.hbr"),
            "name": "fashion-mnist",
            "fingerprint": "f" * 64,
            "classes": list(classes),
            "samples": len(labels),
        },
        "recipe": {
            "name": "quickstart",
            "epochs": 6,
            "optimiser": {"lr": 0.1, "nesterov": True},
            "milestones": [],
        },
        "seconds": 312.25,
        "versions": {"hbr_fast": "0.1.0", "python": "3.11"},
        "arms": arms,
        "estimator": "aum",
        "enough_members": {"aum": 2, "loss": None},
        "allocation": {
            "alpha": 0.25,
            "max_alpha": 1.1,
            "counts": SAMPLES[:num_classes].tolist(),
            "class_hardness": aum.tolist(),
        },
    }
    (path / "study.json").write_text(json.dumps(meta))
    return path


@pytest.fixture
def study_writer(tmp_path: Path) -> StudyWriter:
    """`write_study` into a fresh directory."""

    def write(name: str = "study", **options: Any) -> Path:
        return write_study(tmp_path / name, **options)

    return write


@pytest.fixture
def dataset() -> SimpleNamespace:
    """What the report needs of an open dataset: 500 images of 1 x 8 x 8, each filled with its own grey."""
    images = np.broadcast_to((np.arange(500) % 251)[:, None, None, None], (500, 1, 8, 8)).astype(np.uint8)
    return SimpleNamespace(fingerprint="f" * 64, train=SimpleNamespace(images=images))
