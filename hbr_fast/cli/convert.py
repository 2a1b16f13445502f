"""`hbr-fast convert`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from hbr_fast.cli.options import refuse_to_overwrite


def convert(
    source: Positional[str],
    out: Positional[Path],
    *,
    formats: tuple[Literal["hbr", "beton"], ...] = ("hbr",),
    root: Path | None = None,
    download: bool = False,
    force: bool = False,
    images: Literal["auto", "raw", "jpg"] = "auto",
    size: tuple[int, int] | None = None,
    mode: Literal["auto", "rgb", "gray"] | None = None,
    layout: Literal["nhwc", "nchw"] | None = None,
    test_fraction: float | None = None,
    classes: int | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    seed: int | None = None,
) -> None:
    """Write a dataset in the fast format, or FFCV's.

    Args:
        source: fashion-mnist, mnist, cifar10, cifar100, folder, npz, beton or synthetic; for the format beton also the
            directory of a dataset.
        out: Directory to write, NAME.hbr. The format beton writes NAME.train.beton and NAME.test.beton beside it.
        formats: hbr, beton or both; beton needs FFCV.
        root: Where the source's files are: a directory, an archive, or the file of npz.
        download: Let torchvision fetch what is missing into --root.
        force: Replace what is at OUT.
        images: How a .beton stores images of 3 channels; auto is raw up to 64 KiB each and JPEG, with losses, above.
        size: Height and width to resize to (folder, beton).
        mode: Channels (folder).
        layout: Order of the axes where it is ambiguous (npz).
        test_fraction: Share of each class held out where there is no test split (npz).
        classes: Number of classes (synthetic).
        train_per_class: Train samples a class (synthetic).
        test_per_class: Test samples a class (synthetic).
        seed: Seed of the generator (synthetic).
    """
    from hbr_fast.data.beton_writer import require_ffcv, write_beton
    from hbr_fast.data.convert import check_output
    from hbr_fast.data.convert import convert as convert_source
    from hbr_fast.data.dataset import open_dataset

    options: dict[str, Any] = {
        "root": root,
        "download": download or None,
        "size": size,
        "mode": mode,
        "layout": layout,
        "test_fraction": test_fraction,
        "classes": classes,
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
        "seed": seed,
    }
    options = {name: value for name, value in options.items() if value is not None}
    is_dataset = Path(source).suffix == ".hbr"
    if is_dataset and ("hbr" in formats or options):
        raise ValueError(f"{source} is a dataset: name a source, or give --formats beton and no option of a source")
    check_output(out, force=force or "hbr" not in formats)
    betons = {split: out.with_suffix(f".{split}.beton") for split in ("train", "test") if "beton" in formats}
    for path in betons.values():  # before a source is read, which can take minutes
        require_ffcv()
        refuse_to_overwrite(path, force)
    with tempfile.TemporaryDirectory() as scratch:
        if is_dataset:
            dataset = open_dataset(source)
        else:
            place = out if "hbr" in formats else Path(scratch) / out.name
            dataset = convert_source(source, place, force=force, **options)
        if "hbr" in formats:
            train, test = len(dataset.train), len(dataset.test)
            print(f"{dataset.path}: {train:,} train and {test:,} test images of {dataset.name}")
        for split, path in betons.items():
            write_beton(dataset.splits[split], path, mode=images, force=force)
            print(f"{path}: {len(dataset.splits[split]):,} {split} images of {dataset.name}, for FFCV")
