"""`hbr-fast relabel`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def relabel(
    dataset: Positional[Path],
    out: Positional[Path],
    *,
    noise: float | None = None,
    kind: Literal["uniform", "pairwise"] = "uniform",
    threshold_samples: bool = False,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Write the same images with other labels in the train split: known noise, or an extra class that nothing is in.

    Args:
        dataset: A directory that convert wrote; it keeps the true labels.
        out: Directory to write, NAME.hbr. Images are linked, not copied.
        noise: Share of each class that gets a wrong label.
        kind: Any other class with equal chance, or the next one.
        threshold_samples: Move a share of 1 / (classes + 1) of the samples into an extra class: how hard they are to
            learn says how hard a wrong label is (see suspects).
        seed: Of the choice.
        force: Replace what is at OUT.
    """
    from hbr_fast.data.convert import check_output
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.relabel import THRESHOLD, real_classes
    from hbr_fast.data.relabel import relabel as write
    from hbr_fast.noise import inject_noise, threshold_labels

    if (noise is None) != threshold_samples:
        raise ValueError("give --noise RATE or --threshold-samples, one of them")
    check_output(out, force=force)
    opened = open_dataset(dataset)
    labels, classes = opened.train.labels, len(opened.classes)
    if noise is not None:
        noisy = inject_noise(labels, noise, num_classes=classes, kind=kind, seed=seed)
        write(opened, noisy.labels, out, origin={"noise": kind, "rate": noise, "seed": seed}, force=force)
        print(f"{out}: {noisy.wrong.sum():,} of {len(labels):,} train labels are wrong; the truth is in {dataset}")
        return
    if real_classes(opened) < classes:
        raise ValueError(f"{dataset} has threshold samples already: give the dataset that it was made from")
    moved = threshold_labels(labels, num_classes=classes, seed=seed)
    origin = {THRESHOLD: opened.fingerprint, "seed": seed}
    write(opened, moved, out, classes=[*opened.classes, "threshold samples"], origin=origin, force=force)
    print(f"{out}: {(moved == classes).sum():,} of {len(labels):,} train samples are threshold samples")
