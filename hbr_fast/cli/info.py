"""`hbr-fast info`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def info(dataset: Positional[Path]) -> None:
    """Print what a dataset is.

    Args:
        dataset: A directory that convert wrote.
    """
    from hbr_fast.data.dataset import describe, open_dataset

    about = describe(open_dataset(dataset))
    print(f"{about.name}  ({about.path}, {about.bytes / 1e6:,.1f} MB)")
    print(f"fingerprint  {about.fingerprint}")
    for name, split in about.splits.items():
        shape = "x".join(map(str, split.shape))
        print(f"{name:<11}  {split.samples:,} images of {shape}{', hardness known' if split.has_truth else ''}")
    for name, values in (("mean", about.mean), ("std", about.std)):
        print(f"{name:<11}  {', '.join(f'{value:.4f}' for value in values)}  (of pixels in 0..1, train split)")
    widest = max(len(name) for name in about.classes)
    print(f"{'class':<{widest + 5}}  " + "  ".join(f"{name:>7}" for name in about.splits))
    for c, label in enumerate(about.classes):
        counts = "  ".join(f"{split.class_counts[c]:>7,}" for split in about.splits.values())
        print(f"{c:>3}  {label:<{widest}}  {counts}")
