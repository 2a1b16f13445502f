"""`hbr-fast convert`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from hbr_fast.cli.options import Colour, NameOrPath, OutPath, Pixels
from hbr_fast.cli.overwriting import refuse_to_overwrite


def convert(
    source: Annotated[Positional[NameOrPath], tyro.conf.arg(metavar="SOURCE")],
    out: OutPath,
    *,
    formats: Annotated[tuple[Literal["hbr", "beton"], ...], tyro.conf.arg(metavar="hbr|beton ...")] = ("hbr",),
    root: Path | None = None,
    download: bool = False,
    force: bool = False,
    images: Literal["auto", "raw", "jpg"] = "auto",
    train_dir: Path | None = None,
    test_dir: Path | None = None,
    validation_dir: Path | None = None,
    more_splits: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = (),
    labels: NameOrPath | None = None,
    split: str | None = None,
    test_labels: NameOrPath | None = None,
    class_names: NameOrPath | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    test_fraction: float | None = None,
    seed: int | None = None,
    accept_changed: bool = False,
    merge: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NEW=OLD,OLD ...")] = (),
    drop: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CLASS ...")] = (),
    rename: Annotated[tuple[str, ...], tyro.conf.arg(metavar="OLD=NEW ...")] = (),
    common_classes: bool = False,
    size: Pixels = None,
    resize: Literal["stretch", "crop", "pad"] | None = None,
    mode: Literal["auto", "rgb", "gray"] | None = None,
    background: Colour = None,
    bit_depth: int | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    follow_links: bool = False,
    store: Literal["raw", "encoded"] | None = None,
    shortest: int | None = None,
    quality: int | None = None,
    layout: Literal["nhwc", "nchw"] | None = None,
    classes: int | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
) -> None:
    """Write a dataset in the fast format or in FFCV's.

    Layouts of folder, in a folder or in a zip or tar archive, which is read in place:
    train/CLASS and test/CLASS (also training and testing, in any case), and val, valid or validation as a split to
    choose by, or as the test split if there is no other;
    CLASS with --test-fraction; --train-dir and --test-dir, each with CLASS;
    pictures in one folder with --labels TABLE (CSV, text, Parquet: one file and its label per row);
    ImageNet's flat val (with LOC_val_solution.csv, val.txt or --test-labels) and Tiny-ImageNet's.
    docs/datasets.md shows each.

    Args:
        source: fashion-mnist, mnist, cifar10, cifar100, folder, npz, beton, synthetic, huggingface (a dataset on disk)
            or torchvision:NAME, NAME being a class of torchvision.datasets; for the format beton also the directory
            of a dataset.
        out: Directory to write, NAME.hbr. The format beton writes NAME.train.beton, NAME.test.beton, ... beside it.
        formats: hbr, beton or both; beton needs FFCV.
        root: Location of the source's files: a directory, an archive, or the .npz file.
        download: Let torchvision download missing files into --root.
        force: Replace the dataset at OUT, and the .beton files beside it.
        images: How a .beton stores images of 3 channels; auto is raw up to 64 KiB each and lossy JPEG above.
        train_dir: Folder or archive with the classes of the train split (folder).
        test_dir: As --train-dir, for the test split (folder).
        validation_dir: As --train-dir, for the validation split (folder).
        more_splits: Further folders beside train to keep as splits of their own names (folder).
        labels: Table with a label for each file: on disk, or in --root (folder); fine or coarse (cifar100).
        split: Variant of a dataset that has several, e.g. letters (torchvision:EMNIST).
        test_labels: As --labels, for the test split only (folder).
        class_names: File with the names of numbered classes, JSON or one name per line (folder).
        file_column: Column of the table with the files, if its name is unusual (folder).
        label_column: Column of the table with the labels, if its name is unusual (folder).
        test_fraction: Share of each class held out as the test split, if the source has none.
        seed: Seed of the choice of --test-fraction; for synthetic, of the generator.
        accept_changed: Use files that differ from the published ones (mnist, fashion-mnist, cifar10, cifar100,
            torchvision).
        merge: Classes to merge into one, NEW=OLD,OLD (folder).
        drop: Classes to leave out (folder).
        rename: Classes to rename, OLD=NEW (folder).
        common_classes: Leave out classes that are not in every split (folder).
        size: Height and width to resize to (folder, beton, torchvision, huggingface).
        resize: How to fit images of another aspect ratio: stretched, cropped to the middle or padded (folder).
        mode: Channels (folder).
        background: Red, green and blue, 0 to 255, seen through transparent parts and around padded pictures (folder).
        bit_depth: Significant bits, 9 to 16, of channels with more than 8: the highest 8 are kept (folder).
        max_pixels: Largest picture to decode; default 178,956,970 (folder).
        skip_bad: Leave out unusable files and list them in OUT/skipped.csv (folder).
        follow_links: Also follow links that lead out of --root (folder).
        store: Pixels of one size, or encoded pictures in their own sizes (folder; docs/photos.md).
        shortest: Make encoded pictures smaller until their shortest side has this many pixels (folder).
        quality: Quality of the JPEGs that --shortest makes, 1 to 95; default 90 (folder).
        layout: Order of the axes where it is ambiguous (npz).
        classes: Number of classes (synthetic).
        train_per_class: Train samples per class (synthetic).
        test_per_class: Test samples per class (synthetic).
    """
    from hbr_fast.data.beton_writer import require_ffcv, write_beton
    from hbr_fast.data.convert import check_output
    from hbr_fast.data.convert import convert as convert_source
    from hbr_fast.data.dataset import open_dataset
    from hbr_fast.data.verify import require_unchanged
    from hbr_fast.temporary import scratch_directory, temporary_root

    options: dict[str, Any] = {
        "root": root,
        "download": download or None,
        "train_dir": train_dir,
        "test_dir": test_dir,
        "validation_dir": validation_dir,
        "more_splits": more_splits or None,
        "labels": labels,
        "split": split,
        "test_labels": test_labels,
        "class_names": class_names,
        "file_column": file_column,
        "label_column": label_column,
        "test_fraction": test_fraction,
        "seed": seed,
        "accept_changed": accept_changed or None,
        "merge": merge or None,
        "drop": drop or None,
        "rename": rename or None,
        "common_classes": common_classes or None,
        "size": size,
        "resize": resize,
        "mode": mode,
        "background": background,
        "bit_depth": bit_depth,
        "max_pixels": max_pixels,
        "skip_bad": skip_bad or None,
        "follow_links": follow_links or None,
        "store": store,
        "shortest": shortest,
        "quality": quality,
        "layout": layout,
        "classes": classes,
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
    }
    options = {name: value for name, value in options.items() if value is not None}
    is_dataset = Path(source).suffix == ".hbr"
    if is_dataset and ("hbr" in formats or options):
        raise ValueError(f"{source} is a dataset: name a source, or use --formats beton without source options")
    check_output(out, force=force or "hbr" not in formats)
    splits = ("train", "test", "validation", *more_splits) if "beton" in formats else ()
    betons = {split: out.with_suffix(f".{split}.beton") for split in splits}
    for path in betons.values():  # before a source is read, which can take minutes
        require_ffcv()
        refuse_to_overwrite(path, force, kind=".beton file")
    with contextlib.ExitStack() as stack:
        if is_dataset:
            dataset = open_dataset(source)
            require_unchanged(dataset)
        else:
            keep = "hbr" in formats
            place = out if keep else stack.enter_context(scratch_directory(temporary_root(), "convert-")) / out.name
            dataset = convert_source(source, place, force=force, **options)
        if "hbr" in formats:
            *first, last = (f"{len(one):,} {name}" for name, one in dataset.splits.items())
            print(f"{dataset.path}: {', '.join(first)} and {last} images of {dataset.name}")
        for part, opened in dataset.splits.items():
            if part in betons:
                write_beton(opened, betons[part], mode=images, force=force)
                print(f"{betons[part]}: {len(opened):,} {part} images of {dataset.name}, for FFCV")
