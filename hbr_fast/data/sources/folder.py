"""Labelled folders and archives of pictures, in the common layouts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hbr_fast import progress
from hbr_fast.arguments import near_names
from hbr_fast.data.sources.archives import open_tree
from hbr_fast.data.sources.classes import Labelled, checked_changes, only_common, unified
from hbr_fast.data.sources.encoded import picture_source
from hbr_fast.data.sources.headers import Mode
from hbr_fast.data.sources.labels import LabelFiles, labelled_by_table
from hbr_fast.data.sources.layouts import (
    LAYOUTS,
    SPLITS,
    TEST_NAMES,
    VALIDATION_NAMES,
    Place,
    class_folders,
    find_splits,
    find_table,
    list_folders,
)
from hbr_fast.data.sources.pictures import MAX_PIXELS, Decoding, Fit
from hbr_fast.data.sources.source import Source
from hbr_fast.data.sources.stored import Storing
from hbr_fast.data.sources.tables import normal
from hbr_fast.data.sources.trees import PassedOver


def folder(
    *,
    root: str | os.PathLike[str] | None = None,
    train_dir: str | os.PathLike[str] | None = None,
    test_dir: str | os.PathLike[str] | None = None,
    validation_dir: str | os.PathLike[str] | None = None,
    more_splits: Sequence[str] = (),
    labels: str | None = None,
    test_labels: str | None = None,
    class_names: str | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    merge: Sequence[str] = (),
    drop: Sequence[str] = (),
    rename: Sequence[str] = (),
    common_classes: bool = False,
    size: tuple[int, int] | None = None,
    resize: Fit = "stretch",
    mode: Mode = "auto",
    background: tuple[int, int, int] | None = None,
    bit_depth: int | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    follow_links: bool = False,
    store: Literal["raw", "encoded"] = "raw",
    shortest: int | None = None,
    quality: int | None = None,
) -> Source:
    """Pictures with labels from their folders or from a table.

    Parameters
    ----------
    root : path
        A folder, or a zip or tar archive, which is read in place. It holds one of

        * `train/CLASS/...` and `test/CLASS/...`, upper or lower case, or `training` and `testing`; beside them `val`,
          `valid` or `validation` becomes the split "validation", without them the test split;
        * `CLASS/...`, which is a train split only;
        * pictures without class folders, with `labels` (or, for a split, a table under a usual name in it or
          beside it: `val_annotations.txt`, `LOC_val_solution.csv`, `val.csv`, `val.txt`, `labels.csv`).

        Pictures are searched at any depth below a class. Hidden files and files that are not pictures are passed over,
        counted and reported; if the suffix does not identify a picture, its content does.
    train_dir, test_dir, validation_dir : path, optional
        Folders or archives of the splits, if they do not share one root.
    more_splits : sequence of str
        Further folders beside `train` to keep as splits of their own names.
    labels, test_labels : str, optional
        A table with a label for each file, CSV, text or Parquet: on disk, or a path in the root. `labels` is for the
        train split or for all files, `test_labels` for the test split. A column `split` (train, test, validation)
        assigns files to splits.
    class_names : str, optional
        A file with the names of numbered classes, JSON or text.
    file_column, label_column : str, optional
        Columns of the tables, if they have no usual name.
    merge, rename : sequence of str
        "NEW=OLD" and "NEW=OLD,OLD,...".
    drop : sequence of str
        Classes to leave out.
    common_classes : bool
        Leave out classes that are not in every split, e.g. those of a full test split beside some classes of train.
    size : (H, W), optional
        Every picture is resized to this (bilinear, antialiased). By default all must already have the same size.
    resize : {"stretch", "crop", "pad"}
        How to resize if the aspect ratio differs.
    mode : {"auto", "rgb", "gray"}
        "auto": RGB, unless every picture is already gray.
    background : (R, G, B), optional
        Fills transparent parts and the padding of padded pictures. By default alpha is dropped and padding is black.
    bit_depth : int, optional
        9 to 16: significant bits of channels with more than 8 bits, of which the highest 8 are kept.
    max_pixels : int, optional
        The largest picture that is decoded; default 178,956,970.
    skip_bad : bool
        Leave unusable files out and list them in `skipped.csv` in the dataset.
    follow_links : bool
        Follow links that lead out of the folder. Links within it are always followed.
    store : {"raw", "encoded"}
        Pixels of one size, or encoded pictures in their own sizes (docs/photos.md): JPEGs as they are, others as PNG.
    shortest : int, optional
        For encoded pictures: make larger ones smaller, until their shortest side has this many pixels, and store all as
        JPEG.
    quality : int, optional
        Of these JPEGs, 1 to 95; default 90.

    Raises
    ------
    FileNotFoundError
        If `root` or its train split is missing.
    ValueError
        If the layout is not one of these, the splits' classes differ, or an option is out of range; while images are
        read, if files are unusable (the message names them) or sizes differ.

    Notes
    -----
    Pictures are upright: the EXIF orientation is applied. Of several frames the first is used.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for number in range(10):
    ...         path = Path(root) / ("cat", "dog")[number % 2] / f"{number}.png"
    ...         path.parent.mkdir(exist_ok=True)
    ...         Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    ...     source = folder(root=root)
    >>> source.classes, len(source.splits["train"])
    (('cat', 'dog'), 10)
    """
    how = _checked_decoding(size, resize, background, bit_depth, max_pixels)
    storing = _checked_storing(store, how, shortest, quality)
    if mode not in ("auto", "rgb", "gray"):
        raise ValueError(f"folder: mode must be auto, rgb or gray, got {mode!r}")
    changes = checked_changes(merge, drop, rename)
    passed, notes = PassedOver(), list[str]()
    dirs = {"train": train_dir, "test": test_dir, "validation": validation_dir}
    found_at, name = _places(root, dirs, more_splits, passed, test_labels=test_labels, follow_links=follow_links)
    train = found_at["train"]
    files = LabelFiles(labels, test_labels, class_names, file_column, label_column)
    labelled = _labelled(found_at, files, passed, notes)
    places = {split: found_at.get(split, train).path.name for split in (*SPLITS, *more_splits)}
    labelled = changes.apply(labelled)
    if common_classes:
        labelled, said = only_common(labelled, places=places)
        notes += said
    classes, found = unified(labelled, places=places, where=found_at.get("test", train).tree.place)
    count = sum(len(listing.paths) for listing in found.values())
    progress.say(f"{name}: found {count:,} pictures of {len(classes):,} classes")
    options: dict[str, Any] = {
        "resize": resize if resize != "stretch" else None,
        "background": None if background is None else list(background),
        "bit_depth": bit_depth,
        "merge": list(merge) or None,
        "drop": list(drop) or None,
        "rename": list(rename) or None,
        "common_classes": common_classes or None,
        "labels": [Path(table).name for table in (labels, test_labels, class_names) if table] or None,
        "shortest": shortest,
        "quality": storing.quality if storing is not None and shortest is not None else None,
    }
    return picture_source(
        name,
        tuple(classes),
        found,
        mode=mode,
        how=how,
        skip_bad=skip_bad,
        passed=passed,
        notes=notes,
        options={key: value for key, value in options.items() if value is not None},
        no_test=_no_test(train, labelled["train"].names),
        storing=storing,
    )


def _checked_decoding(
    size: tuple[int, int] | None,
    resize: Fit,
    background: tuple[int, int, int] | None,
    bit_depth: int | None,
    max_pixels: int | None,
) -> Decoding:
    if size is not None and min(size) < 1:
        raise ValueError(f"folder: size must be (height, width) of at least one pixel each, got {size}")
    if resize not in ("stretch", "crop", "pad"):
        raise ValueError(f"folder: resize must be stretch, crop or pad, got {resize!r}")
    if background is not None and not all(0 <= value <= 255 for value in background):
        raise ValueError(f"folder: background must be three values in 0..255, got {background}")
    if bit_depth is not None and not 9 <= bit_depth <= 16:
        raise ValueError(f"folder: bit_depth must be in 9..16, got {bit_depth}")
    if max_pixels is not None and max_pixels < 1:
        raise ValueError(f"folder: max_pixels must be at least 1, got {max_pixels}")
    return Decoding(size, resize, background, bit_depth, max_pixels or MAX_PIXELS)


def _checked_storing(
    store: Literal["raw", "encoded"], how: Decoding, shortest: int | None, quality: int | None
) -> Storing | None:
    if store not in ("raw", "encoded"):
        raise ValueError(f"folder: store must be raw or encoded, got {store!r}")
    if store == "raw":
        if shortest is not None or quality is not None:
            raise ValueError("folder: --shortest and --quality are of encoded pictures: give --store encoded, too")
        return None
    if how.size is not None:
        raise ValueError(
            "folder: encoded pictures keep their own sizes: leave out --size, which training takes, or make them "
            "smaller with --shortest"
        )
    if shortest is not None and shortest < 1:
        raise ValueError(f"folder: shortest must be at least one pixel, got {shortest}")
    if quality is not None and not 1 <= quality <= 95:
        raise ValueError(f"folder: quality must be in 1..95, got {quality}")
    if quality is not None and shortest is None:
        raise ValueError("folder: JPEGs are kept as they are: give --shortest with --quality, or leave it out")
    return Storing(how, shortest, 90 if quality is None else quality)


def _places(
    root: str | os.PathLike[str] | None,
    dirs: Mapping[str, str | os.PathLike[str] | None],
    more: Sequence[str],
    passed: PassedOver,
    *,
    test_labels: str | None,
    follow_links: bool,
) -> tuple[dict[str, Place], str]:
    """The places of the splits, and the dataset's name."""
    given = {split: place for split, place in dirs.items() if place is not None}
    needed = {"test": "train", "validation": "test"}
    for split, other in needed.items():
        if split in given and other not in given:
            raise ValueError(f"folder: --{split}-dir needs --{other}-dir beside it: give both")
    if given and more:
        raise ValueError("folder: --more-splits names folders in --root: leave out --train-dir, or the option")
    if given:
        found = {
            split: Place(open_tree(_expanded(place, root), passed, follow_links=follow_links), "")
            for split, place in given.items()
        }
        return found, Path(root).resolve().name if root is not None else found["train"].tree.name
    if root is None:
        raise ValueError(f"folder: say where the images are with --root (it holds {LAYOUTS})")
    tree = open_tree(Path(os.path.expanduser(root)), passed, follow_links=follow_links)
    return find_splits(tree, passed, test_table=test_labels, more=more), tree.name


def _expanded(place: str | os.PathLike[str], root: str | os.PathLike[str] | None) -> Path:
    """A folder as given, or below the root if it exists only there."""
    path = Path(os.path.expanduser(place))
    if root is not None and not path.exists() and (Path(os.path.expanduser(root)) / path).exists():
        return Path(os.path.expanduser(root)) / path
    return path


def _labelled(
    places: Mapping[str, Place], files: LabelFiles, passed: PassedOver, notes: list[str]
) -> dict[str, Labelled]:
    """The files and labels of the train split, and of the others that there are."""
    train = places["train"]
    top = Place(train.tree, train.folder.rpartition("/")[0])
    table = files.train
    if table is None:
        names = class_folders(train)
        if names:
            labelled = {"train": Labelled(names, list_folders(train, names, passed))}
        elif (table := find_table(top, train)) is None:
            raise _no_classes(train)
    if table is not None:
        read = files.table(table, top, notes)
        whole = _together(places, read.splits is not None)
        labelled = labelled_by_table(whole, read, passed, numbered=files.names(top, table, read))
    for split, place in places.items():
        if split not in labelled:
            own_table = files.test if split == "test" else None
            labelled[split] = _labelled_other(
                split, top, place, labelled["train"].names, own_table, files, passed, notes
            )
    return labelled


def _together(places: Mapping[str, Place], has_splits: bool) -> Place:
    """The splits of one table: all if it says which file is in which, else the train split."""
    train = places["train"]
    if has_splits and len(places) > 1 and all(place.tree is train.tree for place in places.values()):
        return Place(train.tree, train.folder.rpartition("/")[0])
    return train


def _labelled_other(
    split: str,
    top: Place,
    place: Place,
    train_names: Sequence[str],
    table: str | None,
    files: LabelFiles,
    passed: PassedOver,
    notes: list[str],
) -> Labelled:
    """The files and labels of the test or validation split, from its folders or a table."""
    above = top if place.tree is top.tree else place
    if table is None:
        folders = {normal(name) for name in place.folders()}
        usual = None if folders & set(train_names) else find_table(above, place)
        if usual is None and folders:
            names = class_folders(place, split=split)
            return Labelled(names, list_folders(place, names, passed))
        if usual is None:
            own = "with --test-labels" if split == "test" else f"in it, named {place.path.name}.csv"
            raise ValueError(
                f"{place.path} has no folders of classes: make one a class, or give a table of labels {own}"
            )
        table = usual
    read = files.table(table, above, notes)
    numbered = files.names(above, table, read) or train_names
    return labelled_by_table(place, replace(read, splits=None), passed, numbered=numbered)["train"]


def _no_classes(train: Place) -> Exception:
    entries = [entry.name for entry in train.tree.entries(train.folder)]
    if train.folder == "":
        missing = f"{train.path / 'train'} is missing"
        if not entries:
            return FileNotFoundError(f"{missing}: a folder source holds {LAYOUTS}")
        packed = [name for name in entries if name.lower().endswith((".tar", ".tar.gz", ".tgz", ".zip"))]
        if packed:
            return FileNotFoundError(
                f"{missing}, but there are archives, {', '.join(packed[:5])}{', ...' if len(packed) > 5 else ''}: give "
                "one as --root, or those of the splits as --train-dir and --test-dir"
            )
        tables = [name for name in entries if name.lower().endswith((".csv", ".tsv", ".parquet"))]
        hint = f"--labels {tables[0]}" if tables else "--labels TABLE"
        return FileNotFoundError(
            f"{missing}, and there are no folders of classes: a folder source holds {LAYOUTS}; for pictures with a "
            f"table of labels give {hint}"
        )
    archives = [name for name in entries if name.lower().endswith(".tar")]
    if archives:
        return ValueError(
            f"{train.path} has no sub-folder but archives, {archives[0]}{', ...' if len(archives) > 1 else ''}: unpack "
            "each into a folder of its name, or give the one archive that holds them as --train-dir"
        )
    return ValueError(f"{train.path} has no sub-folder: make one a class, or give a table of labels with --labels")


def _no_test(train: Place, names: Sequence[str]) -> Exception:
    share = "hold a share of each class out with --test-fraction 0.2"
    if train.folder == "":
        classes = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return FileNotFoundError(
            f"{train.path / 'train'} is missing: a folder source holds {LAYOUTS}; if {classes} are classes, {share}"
        )
    top = Place(train.tree, train.folder.rpartition("/")[0])
    near = [name for name in top.folders() if near_names(name, (*TEST_NAMES, *VALIDATION_NAMES))]
    hint = f"{near[0]} looks like it: rename it, or give both with --train-dir and --test-dir; or " if near else ""
    return FileNotFoundError(f"{top.path / 'test'} is missing: {hint}{share}")
