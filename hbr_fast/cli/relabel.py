"""`hbr-fast relabel`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hbr_fast.cli.options import DatasetPath, OutPath


def relabel(
    dataset: DatasetPath,
    out: OutPath,
    *,
    noise: float | None = None,
    kind: Literal["uniform", "pairwise"] = "uniform",
    threshold_samples: bool = False,
    labels: Path | None = None,
    key: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Write the same images with new train labels: known noise, labels of a file, or an extra class for no sample.

    Args:
        dataset: A directory that convert wrote; it keeps the true labels.
        out: Directory to write, NAME.hbr. Images are linked, not copied.
        noise: Share of each class that gets a wrong label.
        kind: Pick any other class with equal chance, or the next one.
        threshold_samples: Move a share of 1 / (classes + 1) of the samples into an extra class: their hardness
            shows how hard a wrong label is (see suspects).
        labels: File of the new labels, the class index of each train sample in the order of sample ids: .npy or .npz.
        key: The array of the .npz file.
        seed: Seed of the random choice.
        force: Replace the dataset at OUT.
    """
    from hbr_fast.data.convert import check_output
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.relabel import THRESHOLD, labels_from_file, real_classes
    from hbr_fast.data.relabel import relabel as write
    from hbr_fast.resampling.noise import inject_noise, threshold_labels

    if [noise is not None, labels is not None, threshold_samples].count(True) != 1:
        raise ValueError("give one of --noise RATE, --labels FILE and --threshold-samples")
    if key is not None and labels is None:
        raise ValueError("--key names an array of --labels FILE")
    check_output(out, force=force)
    opened = open_dataset(dataset)
    own, classes = opened.train.labels, len(opened.classes)
    if labels is not None:
        given = labels_from_file(labels, key, opened)
        write(opened, given, out, origin={"labels": labels.name, "key": key}, force=force)
        print(f"{out}: {(given != own).sum():,} of {len(own):,} train labels are not those of {dataset}")
        return
    if noise is not None:
        noisy = inject_noise(own, noise, num_classes=classes, kind=kind, seed=seed)
        write(opened, noisy.labels, out, origin={"noise": kind, "rate": noise, "seed": seed}, force=force)
        print(f"{out}: {noisy.wrong.sum():,} of {len(own):,} train labels are wrong; the truth is in {dataset}")
        return
    if real_classes(opened) < classes:
        raise ValueError(f"{dataset} has threshold samples already: give the dataset that it was made from")
    moved = threshold_labels(own, num_classes=classes, seed=seed)
    origin = {THRESHOLD: opened.fingerprint, "seed": seed}
    write(opened, moved, out, classes=[*opened.classes, "threshold samples"], origin=origin, force=force)
    print(f"{out}: {(moved == classes).sum():,} of {len(own):,} train samples are threshold samples")
