"""`hbr-fast info`."""

from __future__ import annotations

from hbr_fast.cli.options import DatasetPath


def info(dataset: DatasetPath) -> None:
    """Print a summary of a dataset and the sources of its first and last samples.

    Args:
        dataset: A directory that convert wrote.
    """
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.description import describe
    from hbr_fast.progress import printable

    about = describe(open_dataset(dataset))
    print(f"{about.name}  ({about.path}, {about.bytes / 1e6:,.1f} MB)")
    print(f"fingerprint  {about.fingerprint}")
    for name, split in about.splits.items():
        if split.shape is not None:
            kind = f"images of {'x'.join(map(str, split.shape))}"
        else:
            small, large = ("x".join(map(str, size)) for size in (split.smallest, split.largest))
            kind = f"encoded pictures, {split.channels} channels, {small} to {large} pixels"
        print(f"{name:<11}  {split.samples:,} {kind}{', hardness known' if split.has_truth else ''}")
        if split.sources is not None:
            print(f"{'':<11}  from {' to '.join(map(printable, split.sources))}")
    for name, values in (("mean", about.mean), ("std", about.std)):
        print(f"{name:<11}  {', '.join(f'{value:.4f}' for value in values)}  (of pixels in 0..1, train split)")
    widest = max(len(name) for name in about.classes)
    print(f"{'class':<{widest + 5}}  " + "  ".join(f"{name:>7}" for name in about.splits))
    for c, label in enumerate(about.classes):
        counts = "  ".join(f"{one.class_counts[c]:>{max(7, len(name))},}" for name, one in about.splits.items())
        print(f"{c:>3}  {label:<{widest}}  {counts}")
