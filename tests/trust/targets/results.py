"""Results of studies, and the tables and arrays that people give to commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .target import Target


def write_study_files(path: Path, *, sealed: bool) -> None:
    """A study of two arms, two members each, without training."""
    import polars as pl

    from hbr_fast.evaluation.measures import MEASURES, METRICS
    from hbr_fast.files import sha256_of_file, write_json
    from hbr_fast.json_schema import write_sealed_json

    classes, arms = ("a", "b"), ("baseline", "hbr")
    who = [{"arm": arm, "variant": 0, "member": m, "seed": 7 + m} for arm in arms for m in range(2)]
    measured = {f"{metric}_{measure}": 0.1 for metric in METRICS for measure in MEASURES}
    member = {"accuracy": 0.9, "train_seconds": 1.0, **measured}
    of_class = {"samples": 3, "hardness": 1.5, **dict.fromkeys(METRICS, 0.9), "never_predicted": False}
    compared = {"baseline": 0.1, "treatment": 0.2, "difference": 0.1, "low": 0.0, "high": 0.2, "effect_size": 1.0}
    compared |= {"combined_low": -0.1, "combined_high": 0.3}
    interval = {"mean": 0.9, "low": 0.8, "high": 1.0, "combined_low": 0.7, "combined_high": 1.0, "test_samples": 9}
    tested = {"p": 0.5, "p_holm": 1.0, "smallest_p": 0.25, "paper_t": 1.0, "paper_p": 0.3, "direction": "wider"}
    quantities = [*(f"{metric}_{measure}" for metric in ("recall", "precision") for measure in MEASURES), "accuracy"]
    of_arm = {"arm": "hbr", "against": "baseline", "variants": 1, **compared, **tested, "no_test": ""}
    tables: dict[str, list[dict[str, Any]]] = {
        "per_member.csv": [{**one, **member} for one in who],
        "per_class.csv": [
            {**one, "class_index": c, "class_name": name, **of_class} for one in who for c, name in enumerate(classes)
        ],
        "class_intervals.csv": [
            {"arm": arm, "class_index": c, "metric": metric, **interval}
            for arm in arms
            for metric in METRICS
            for c in (0, 1)
        ],
        "confusion.csv": [
            {"arm": arm, "true_index": c, "predicted_index": c, "samples": 9} for arm in arms for c in (0, 1)
        ],
        "samples.csv": [{"sample_id": n, "class_index": 0, "class_name": "a", "aum": 1.5} for n in range(3)],
        "comparisons.csv": [{**of_arm, "quantity": quantity} for quantity in quantities],
    }
    for name, rows in tables.items():
        pl.DataFrame(rows).write_csv(path / name)
    members = [{"variant": 0, "member": m, "seed": 7 + m} for m in range(2)]
    meta: dict[str, Any] = {
        "schema": 4,
        "study": "fuzz",
        "dataset": {"name": "d", "fingerprint": "f", "classes": list(classes), "samples": 3},
        "recipe": {"name": "r"},
        "seconds": 1.5,
        "versions": {},
        "arms": [{"name": arm, "alpha": 0.1, "members": members} for arm in arms],
        "estimator": "aum",
        "class_hardness": [1.5, 1.25],
        "hardness_members": 2,
    }
    if sealed:
        files = {name: sha256_of_file(path / name) for name in tables}
        write_sealed_json(path / "study.json", {**meta, "files": files})
    else:
        write_json(path / "study.json", meta)


def _study(path: Path) -> Any:
    from hbr_fast.report.reading import read_study
    from hbr_fast.report.tables import tables_of

    study = read_study(path)
    frames = [frame.write_csv() for frame in (study.per_class, study.per_member, study.samples)]
    return study.meta, frames, study.comparisons, [table.shown() for table in tables_of(study)]


def _write_runs(path: Path) -> None:
    """Two trainings of others, in each form of outputs that `import` takes."""
    import polars as pl

    labels = np.array([0, 0, 1, 1])
    logits = np.random.default_rng(0).normal(size=(4, 2))
    np.save(path / "a.npy", logits)
    np.savez(path / "b.npz", logits=logits, ids=np.arange(4))
    pl.DataFrame({"id": range(4), "logit_0": logits[:, 0], "logit_1": logits[:, 1]}).write_csv(path / "c.csv")
    pl.DataFrame({"id": range(4), "prediction": labels}).write_csv(path / "d.csv")
    pl.DataFrame({"id": range(4), "label": labels}).write_csv(path / "labels.csv")
    runs = {"arm": ["baseline"] * 2 + ["mine"] * 2, "file": ["a.npy", "b.npz", "c.csv", "d.csv"]}
    pl.DataFrame({**runs, "variant": [0, 1] * 2, "against": [None, None, "baseline", "baseline"]}).write_csv(
        path / "runs.csv"
    )
    counts = {"arm": ["baseline"] * 2 + ["mine"] * 2, "class_index": [0, 1] * 2, "samples": [3, 3, 2, 4]}
    pl.DataFrame(counts).write_csv(path / "samples.csv")
    of_sample = {"sample_id": range(4), "class_index": labels, "class_name": ["0", "0", "1", "1"], "aum": logits[:, 0]}
    pl.DataFrame(of_sample).write_csv(path / "hardness.csv")
    pl.DataFrame({"sample_id": range(4), "place": ["in", "out", "in", "out"]}).write_csv(path / "groups.csv")


def _imported(path: Path) -> Any:
    """The whole import."""
    import shutil

    from hbr_fast.studies.run_files import import_files

    out = path.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    others: dict[str, Any] = {name: path / f"{name}.csv" for name in ("labels", "samples", "hardness", "groups")}
    import_files(path / "runs.csv", out=out, **others)
    names = ("comparisons.csv", "per_class.csv", "groups.csv", "samples.csv")
    return [(out / name).read_text() for name in names if (out / name).exists()]


def _write_labels(path: Path) -> None:
    np.save(path / "a.npy", np.arange(6) % 2)
    np.savez(path / "b.npz", clean=np.arange(6) % 2, other=np.zeros(3))


def _labels(path: Path) -> Any:
    from types import SimpleNamespace

    from hbr_fast.data.relabel import labels_from_file

    dataset: Any = SimpleNamespace(train=range(6), classes=("a", "b"), path=Path("d.hbr"))
    return [labels_from_file(path / name, key, dataset) for name, key in (("a.npy", None), ("b.npz", "clean"))]


def _write_report(path: Path) -> None:
    from hbr_fast.files import write_json
    from hbr_fast.report.page import _MARK, WRITTEN

    (path / "report").mkdir()
    (path / "report" / "index.html").write_text(f"<html>{_MARK}</html>")
    write_json(path / "report" / WRITTEN, ["index.html", WRITTEN])


def _report(path: Path) -> Any:
    """Whether the next report may replace it."""
    from hbr_fast.report.page import _require_replaceable

    _require_replaceable(path / "report")
    return "may be replaced"


TARGETS = [
    Target("study", lambda path: write_study_files(path, sealed=True), _study, sealed=True),
    Target("study, no checksum", lambda path: write_study_files(path, sealed=False), _study),
    Target("runs of others", _write_runs, _imported),
    Target("labels to relabel by", _write_labels, _labels),
    Target("report", _write_report, _report),
]
