"""A small study directory as a study writes it: 10 classes, 3 members an arm, seeded numbers."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from hbr_fast.data.images import RawImages
from hbr_fast.evaluation.measures import METRICS, gaps
from hbr_fast.studies.comparisons import Sides, Trained, comparison_table
from hbr_fast.studies.of_classes import class_intervals, confusion_table

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

TESTED = 1000  # test samples a class

StudyWriter = Callable[..., Path]


def trainings_of(arms: Sequence[dict[str, Any]], recall: dict[str, np.ndarray]) -> dict[str, list[Trained]]:
    """Evaluated trainings of `TESTED` samples a class; recall stands in for the other metrics."""
    found: dict[str, list[Trained]] = {}
    for arm in arms:
        found[arm["name"]] = []
        for member, row in zip(arm["members"], recall[arm["name"]], strict=True):
            num_classes = len(row)
            right = np.round(row * TESTED).astype(int)
            # The mistaken samples of a class go to the next one.
            predicted = np.concatenate(
                [np.where(np.arange(TESTED) < right[c], c, (c + 1) % num_classes) for c in range(num_classes)]
            )
            confusion = np.diag(right) + np.roll(np.diag(TESTED - right), 1, axis=1)
            evaluation: Any = SimpleNamespace(
                accuracy=row.mean(), calibration=0.1, confusion=confusion, **dict.fromkeys(METRICS, row)
            )
            found[arm["name"]].append(
                Trained(
                    member["variant"], member["member"], member["seed"], evaluation, predicted, SAMPLES[:num_classes]
                )
            )
    return found


def write_of_classes(
    path: Path, trainings: dict[str, list[Trained]], labels: np.ndarray, classes: Sequence[str]
) -> None:
    rows = [
        row
        for arm, of_arm in trainings.items()
        for row in class_intervals(of_arm, labels, nested=arm != "baseline", arm=arm)
    ]
    pl.DataFrame(rows).write_csv(path / "class_intervals.csv")
    evaluations = {arm: [one.evaluation for one in of_arm] for arm, of_arm in trainings.items()}
    confusion_table(evaluations, classes).write_csv(path / "confusion.csv")


def write_comparisons(
    path: Path, arms: Sequence[dict[str, Any]], trainings: dict[str, list[Trained]], labels: np.ndarray, metric: str
) -> None:
    against = {arm["name"]: arm.get("against", "baseline") for arm in arms if arm["name"] != "baseline"}
    counts = SAMPLES[: len(np.unique(labels))]
    sides = dict.fromkeys(against, Sides(counts, np.ones(len(counts))))
    comparison_table(trainings, against, sides, labels_n=labels, metric=metric, seed=0).write_csv(path)


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
    sources: bool = False,
    changed: str | None = None,
    metric: str = "recall",
    recorded: dict[str, Any] | None = None,
) -> Path:
    """Write a study; `recall` is `[members, classes]` by arm, `variants` (variant, member) by arm, `settings` what
    `study.json` says of an arm, `recorded` of the whole."""
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
            values = {
                f"{name}_{measure}": value
                for name, about in METRICS.items()
                for measure, value in gaps(recall_c, counts_c=SAMPLES[:num_classes], better=about.better).items()
            }
            per_member.append(
                {
                    **who,
                    "accuracy": float(recall_c.mean()),
                    "train_seconds": 40.0,
                    "images_per_second": 8000.0,
                    **values,
                }
            )
            per_class += [
                {
                    **who,
                    "class_index": c,
                    "class_name": classes[c],
                    "samples": int(counts[arm][c]),
                    "hardness": float(aum[c]),
                    **dict.fromkeys(METRICS, 0.9),
                    "recall": float(recall_c[c]),
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
    for sample in samples:  # a second and a third estimator: one agrees except for its hard end, the other does not
        sample["confidence"] = float(1 / (1 + np.exp(-sample["aum"])))
        sample["loss"] = -sample["aum"]
        sample["forgetting"] = int(sample["sample_id"]) % 7
        if sources:
            sample["source"] = f"photos/{sample['class_name']}/DSC_{sample['sample_id']:010}_WIDEMM.jpeg"
    if changed is not None:
        for sample in samples:
            sample["changed"] = changed if sample["sample_id"] % 50 == 3 else ""
    samples[0]["aum"] = float("nan")  # never observed
    path.mkdir(parents=True, exist_ok=True)
    for name, rows in (("per_class", per_class), ("per_member", per_member), ("samples", samples)):
        with open(path / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    trainings, tested = trainings_of(arms, recall), np.repeat(np.arange(num_classes), TESTED)
    write_of_classes(path, trainings, tested, classes)
    if len(arms) > 1:
        write_comparisons(path / "comparisons.csv", arms, trainings, tested, metric)
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
        "schema": 4,
        "metric": metric,
        "evaluated_samples": [TESTED] * num_classes,
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
        **(recorded or {}),
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
    """The parts of an open dataset that the report uses: 500 images of 1 x 8 x 8, each filled with its own grey."""
    images = np.broadcast_to((np.arange(500) % 251)[:, None, None, None], (500, 1, 8, 8)).astype(np.uint8)
    train = SimpleNamespace(images=images, store=RawImages(images))
    return SimpleNamespace(fingerprint="f" * 64, train=train, path=Path("none.hbr"), meta={"files": {}})
