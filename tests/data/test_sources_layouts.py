"""Layouts of labelled folders, archives and tables, and the errors for invalid ones."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from PIL import Image
from scipy.io import savemat

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Dataset
from hbr_fast.data.sources import Source, folder
from hbr_fast.data.sources.opening import open_source
from hbr_fast.data.verify import verify_dataset

CLASSES = ("ape", "zebra")


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, 4), value, np.uint8)
    pixels[0, 0] = 255 - value
    Image.fromarray(pixels).save(path)


def write_classes(place: Path, *, first: int = 0, count: int = 5, classes: tuple[str, ...] = CLASSES) -> None:
    """Pictures whose gray value counts up from `first`, class by class."""
    for label, name in enumerate(classes):
        for number in range(count):
            picture(place / name / f"{number}.png", first + label * count + number)


def values(source: Source | Dataset, split: str) -> list[int]:
    if isinstance(source, Dataset):
        return [int(image[0, 3, 3]) for image in source.splits[split].images]
    return [int(image[0, 3, 3]) for block in source.splits[split].blocks() for image in block]


def labels(source: Source, split: str) -> list[int]:
    return source.splits[split].labels_n.tolist()


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "Testing", "val", "VALID", "validation"])
def test_folder_split_names_in_any_case(tmp_path: Path, train: str, test: str) -> None:
    write_classes(tmp_path / train)
    write_classes(tmp_path / test, first=100)
    source = folder(root=tmp_path)
    assert values(source, "train") == list(range(10))
    assert values(source, "test") == list(range(100, 110))


def test_folder_keeps_validation_beside_test_and_counts_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    for name, first in (("train", 0), ("Valid", 50), ("test", 100), ("testing", 150), ("validation", 200)):
        write_classes(root / name, first=first)
    dataset = convert("folder", tmp_path / "a.hbr", root=root)
    assert list(dataset.splits) == ["train", "test", "validation"]
    assert values(dataset, "test") == list(range(100, 110))
    assert values(dataset, "validation") == list(range(50, 60))
    assert dataset.validation is dataset.splits["validation"]
    assert (
        "passed over 2 split folders beside test, which is the test split: testing, validation"
        in capsys.readouterr().err
    )
    assert verify_dataset(dataset.path).samples == 30
    picture(root / "Valid" / "gnu" / "0.png", 3)
    with pytest.raises(ValueError, match="class 'gnu' is in only one of train and Valid"):
        folder(root=root)
    shutil.rmtree(root / "Valid" / "gnu")
    shutil.rmtree(root / "Valid" / "ape")
    assert labels(folder(root=root), "validation") == [1] * 5, "a validation split may lack classes"


def test_folder_splits_of_other_names(tmp_path: Path) -> None:
    for name, first in (("train", 0), ("test", 50), ("field night", 100), ("a", 150), ("b", 200)):
        write_classes(tmp_path / name, first=first, classes=CLASSES if first != 100 else CLASSES[1:])
    dataset = convert("folder", tmp_path / "x.hbr", root=tmp_path, more_splits=["field night"])
    assert list(dataset.splits) == ["train", "test", "field night"]
    assert values(dataset, "field night") == list(range(100, 105))
    assert dataset.splits["field night"].labels.tolist() == [1] * 5
    assert dataset.validation is None
    with pytest.raises(ValueError, match=r"has no folder field-night to keep as a split: did you mean field night\?"):
        folder(root=tmp_path, more_splits=["field-night"])
    dirs: dict[str, Any] = {
        f"{split}_dir": tmp_path / name for split, name in (("train", "train"), ("test", "a"), ("validation", "b"))
    }
    source = folder(**dirs)
    assert values(source, "validation") == list(range(200, 210))
    with pytest.raises(ValueError, match="--more-splits names folders in --root"):
        folder(**dirs, more_splits=["test"])
    with pytest.raises(ValueError, match="--validation-dir needs --test-dir"):
        folder(train_dir=tmp_path / "a", validation_dir=tmp_path / "b")


def test_folder_top_level_classes_with_stratified_fraction(tmp_path: Path) -> None:
    write_classes(tmp_path, count=10)
    with pytest.raises(FileNotFoundError, match=r"if ape, zebra are classes, hold a share .* --test-fraction"):
        open_source("folder", root=tmp_path)
    source = open_source("folder", root=tmp_path, test_fraction=0.3)
    assert [labels(source, split) for split in ("train", "test")] == [[0] * 7 + [1] * 7, [0] * 3 + [1] * 3]
    assert sorted(values(source, "train") + values(source, "test")) == list(range(20))
    assert values(open_source("folder", root=tmp_path, test_fraction=0.3), "test") == values(source, "test")
    assert values(open_source("folder", root=tmp_path, test_fraction=0.3, seed=1), "test") != values(source, "test")


def test_folder_fraction_with_only_train(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match=r"test is missing: hold a share .* --test-fraction"):
        open_source("folder", root=tmp_path)
    assert len(values(open_source("folder", root=tmp_path, test_fraction=0.2), "test")) == 2
    write_classes(tmp_path / "test", first=100)
    with pytest.raises(ValueError, match=r"has a test split of its own: leave out --test-fraction"):
        open_source("folder", root=tmp_path, test_fraction=0.2)


def test_folder_train_dir_and_test_dir(tmp_path: Path) -> None:
    write_classes(tmp_path / "a")
    write_classes(tmp_path / "b", first=100)
    source = folder(train_dir=tmp_path / "a", test_dir=tmp_path / "b")
    assert source.name == "a"
    assert values(source, "test") == list(range(100, 110))
    assert folder(root=tmp_path, train_dir="a", test_dir="b").name == tmp_path.name
    with pytest.raises(ValueError, match="--test-dir needs --train-dir"):
        folder(test_dir=tmp_path / "b")


def test_folder_rejects_class_that_wraps_the_others(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / split / "images")
    with pytest.raises(
        ValueError, match=r"only one class, 'images', with the folders ape, zebra in it: .*train.images"
    ):
        folder(root=tmp_path)


def test_folder_suggests_misspelt_names(tmp_path: Path) -> None:
    write_classes(tmp_path / "a" / "trian")
    write_classes(tmp_path / "a" / "test")
    with pytest.raises(FileNotFoundError, match="train is missing; trian looks like it"):
        folder(root=tmp_path / "a")
    write_classes(tmp_path / "b" / "train")
    write_classes(tmp_path / "b" / "tset")
    with pytest.raises(FileNotFoundError, match="test is missing: tset looks like it"):
        open_source("folder", root=tmp_path / "b")
    write_classes(tmp_path / "c" / "data" / "train")
    with pytest.raises(FileNotFoundError, match=r"train is missing, but .*data has it: give that as --root"):
        folder(root=tmp_path / "c")
    with pytest.raises(FileNotFoundError, match=r"does not exist: did you mean .*/b\?"):
        folder(root=tmp_path / "B")


def test_folder_names_all_classes_that_differ(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", classes=("ape", "Zebra", "yak"))
    write_classes(tmp_path / "test", classes=("ape", "zebra"))
    with pytest.raises(ValueError, match=r"class 'Zebra' is in only one of train and test, and so are 'yak', 'zebra' "
                       r"\(3 such\); 'Zebra' and 'zebra' look alike: --rename"):  # fmt: skip
        folder(root=tmp_path)
    source = folder(root=tmp_path, rename=["Zebra=zebra"], drop=["yak"])
    assert source.classes == ("zebra", "ape")
    assert labels(source, "train") == [0] * 5 + [1] * 5
    assert values(source, "train") == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert values(source, "test") == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert labels(source, "test") == [1] * 5 + [0] * 5


def test_folder_merge_drop_and_rename(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / split, classes=("ant", "bee", "cat", "dog"), count=2)
    source = folder(root=tmp_path, merge=["insect=ant,bee"], drop=["cat"], rename=["dog=hound"])
    assert source.classes == ("insect", "hound")
    assert labels(source, "train") == [0, 0, 0, 0, 1, 1]
    assert values(source, "train") == [0, 1, 2, 3, 6, 7]
    with pytest.raises(ValueError, match=r"there is no class 'Cat' to merge, drop or rename: did you mean 'cat'\?"):
        folder(root=tmp_path, drop=["Cat"])
    with pytest.raises(ValueError, match="--merge takes NEW=OLD,OLD, got 'x'"):
        folder(root=tmp_path, merge=["x"])
    with pytest.raises(ValueError, match="class 'ant' is to be merged, dropped or renamed twice"):
        folder(root=tmp_path, merge=["x=ant"], drop=["ant"])


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("above", ["", "mine/"])
def test_folder_reads_archives_in_place(tmp_path: Path, kind: str, above: str) -> None:
    """Members in any order, with system clutter and names that point outside the archive."""
    write_classes(tmp_path / "root" / "train")
    write_classes(tmp_path / "root" / "test", first=100)
    files = {above + path.relative_to(tmp_path / "root").as_posix(): path.read_bytes()
             for path in sorted((tmp_path / "root").rglob("*.png"), reverse=True)}  # fmt: skip
    files["__MACOSX/train/ape/._0.png"] = b"resource"
    files["../../escape.png"] = b"no"
    archive = tmp_path / f"photos.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in files.items():
                packed.writestr(name, content)
    else:
        compression: Any = f"w:{kind.partition('.')[2]}"
        with tarfile.open(archive, compression) as packed_tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                packed_tar.addfile(info, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    source = folder(root=archive)
    assert source.name == "photos"
    plain = folder(root=tmp_path / "root")
    for split in ("train", "test"):
        assert values(source, split) == values(plain, split)
        assert labels(source, split) == labels(plain, split)
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_names_damaged_archives(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(30))
    (tmp_path / "b.bin").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.tar\.gz is a damaged or truncated archive"):
        folder(root=tmp_path / "a.tar.gz")
    with pytest.raises(ValueError, match=r"b\.bin is neither a folder nor a zip or tar archive"):
        folder(root=tmp_path / "b.bin")


def write_flat(place: Path, count: int = 10) -> list[str]:
    names = [f"im{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        picture(place / name, number)
    return names


TABLES: dict[str, Any] = {
    "comma": ("labels.csv", "file,label\n{rows}", "{file},{label}\n"),
    "semicolon": ("labels.csv", "x;Label;Filename\n{rows}", "0;{label};{file}\n"),
    "tab without header": ("labels.tsv", "{rows}", "{file}\t{label}\n"),
    "space": ("labels.txt", "{rows}", "{file} {label}\n"),
    "without suffix": ("labels.csv", "id,class\n{rows}", "{stem},{label}\n"),
}


@pytest.mark.parametrize("form", TABLES)
def test_table_reads_labels(tmp_path: Path, form: str) -> None:
    """On disk or in the root, columns in any order; images without a row are counted."""
    names = write_flat(tmp_path / "root" / "pictures")
    file, whole, row = TABLES[form]
    rows = "".join(row.format(file=n, stem=n[:-4], label=CLASSES[i % 2]) for i, n in enumerate(names[:8]))
    table = tmp_path / "root" / file
    table.write_text(whole.format(rows=rows))
    for given in (str(table), file):
        source = open_source("folder", root=tmp_path / "root", labels=given, test_fraction=0.25)
        assert source.classes == CLASSES
        assert sorted(values(source, "train") + values(source, "test")) == list(range(8))
        assert all(
            value % 2 == label for value, label in zip(values(source, "train"), labels(source, "train"), strict=True)
        )


def test_table_parquet_with_split_column_and_numbered_classes(tmp_path: Path) -> None:
    names = write_flat(tmp_path)
    frame = polars.DataFrame(
        {
            "image": names,
            "target": [i % 2 for i in range(10)],
            "split": ["train"] * 6 + ["val"] * 4,
            "boxes": [[1]] * 10,
        }
    )
    frame.write_parquet(tmp_path / "labels.parquet")
    source = folder(root=tmp_path, labels="labels.parquet")
    assert source.classes == ("0", "1")
    assert sorted(values(source, "test")) == [6, 7, 8, 9]
    for content in (
        '["cat", "dog"]',
        '{"cat": 0, "dog": 1}',
        '{"0": ["n01", "cat"], "1": ["n02", "dog"]}',
        "cat\ndog\n",
    ):
        (tmp_path / "names").write_text(content)
        assert folder(root=tmp_path, labels="labels.parquet", class_names="names").classes == ("cat", "dog")


def test_table_latin_1_and_decomposed_names(tmp_path: Path) -> None:
    picture(tmp_path / "root" / "gu\u0308n.png", 1)
    picture(tmp_path / "root" / "b.png", 2)
    picture(tmp_path / "root" / "c.png", 3)
    picture(tmp_path / "root" / "d.png", 4)
    table = tmp_path / "labels.csv"
    table.write_bytes("file,label\ng\u00fcn.png,gr\u00fcn\nb.png,rot\nc.png,gr\u00fcn\nd.png,rot\n".encode("latin-1"))
    source = folder(root=tmp_path / "root", labels=str(table))
    assert source.classes == ("gr\u00fcn", "rot")


def test_table_names_faults(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_flat(root)
    table = tmp_path / "labels.csv"

    def refused(content: str, **options: Any) -> str:
        table.write_text(content)
        given: dict[str, Any] = {"root": root, "labels": str(table), **options}
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            folder(**given)
        return str(raised.value)

    assert "2 of 3 files are not in" in (message := refused("file,label\nim0.png,a\nim11.png,a\nx,b\n"))
    assert "did you mean im1" in message
    assert "im11.png, x: add them or remove their rows" in message
    assert "has columns a, b, c: say which one holds the file with --file-column" in refused(
        "a,b,c\nlabel,1,2\n", file_column=None, label_column="b"
    )
    assert "no column 'lable': did you mean 'label'?" in refused("file,label\nim0.png,a\n", label_column="lable")
    assert "gives im0.png two labels or splits" in refused("file,label\nim0.png,a\nim0.png,b\n")
    assert "im0.png has no label (1 such)" in refused("file,label\nim0.png,\nim1.png,b\n")
    assert "holds no row" in refused("file,label\n")
    assert "there is no file lable.csv" in refused("", labels="lable.csv")
    assert "for pictures with a table of labels give --labels TABLE" in refused("", labels=None)


def write_imagenet(root: Path) -> None:
    write_classes(root / "train", classes=("n01", "n02"))
    for number in range(4):
        picture(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 100 + number)


@pytest.mark.parametrize("form", ["kaggle", "numbers", "option"])
def test_folder_imagenet_flat_val(tmp_path: Path, form: str) -> None:
    write_imagenet(tmp_path)
    names = [f"ILSVRC2012_val_{number:08d}" for number in range(4)]
    with pytest.raises(ValueError, match=r"val has no folders of classes: .* --test-labels"):
        folder(root=tmp_path)
    options: dict[str, Any] = {}
    if form == "kaggle":
        rows = "".join(f"{name},n0{1 + i % 2} 1 2 30 40 \n" for i, name in enumerate(names))
        (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    else:
        name = "val.txt" if form == "numbers" else "other.txt"
        (tmp_path / name).write_text("".join(f"{name}.JPEG {i % 2}\n" for i, name in enumerate(names)))
        options = {"test_labels": "other.txt"} if form == "option" else {}
    source = folder(root=tmp_path, **options)
    assert source.classes == ("n01", "n02")
    assert labels(source, "test") == [0, 0, 1, 1]
    np.testing.assert_allclose(values(source, "test"), [105, 107, 106, 108], atol=2)  # JPEG


def meta_mat(numbers: dict[int, str], *, compress: bool = True) -> bytes:
    """The development kit's file: the classes, and a synset that has some of them as children."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    synsets = np.empty((len(numbers) + 1, 1), dtype=kinds)
    for row, (number, name) in enumerate(numbers.items()):
        synsets[row, 0] = (float(number), name, f"word {number}", np.uint8(0), np.zeros(0))
    synsets[-1, 0] = (1861.0, "n00001740", "entity", np.uint8(2), np.array([1.0, 2.0]))
    file = io.BytesIO()
    savemat(file, {"other": np.arange(3), "synsets": synsets}, do_compression=compress)
    return file.getvalue()


GROUND_TRUTH = {
    f"val/ILSVRC2012_val_{number:08d}.JPEG": label for number, label in enumerate([2, 2, 0, 0, 1, 1], start=1)
}


def write_ground_truth(root: Path, *, place: str = "") -> Path:
    """ImageNet as its own archives unpack: numbers in an order that is not that of the names."""
    write_classes(root / "train", classes=("n01440764", "n01443537", "n02119789"))
    for number in range(1, 7):
        picture(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 40 * number)
    kit = root / place
    kit.mkdir(parents=True, exist_ok=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n1\n2\n2\n3\n3\n")
    return kit


@pytest.mark.parametrize("place", ["", "val", "data", "ILSVRC2012_devkit_t12/data"])
def test_folder_imagenet_ground_truth_with_meta_mat(tmp_path: Path, place: str) -> None:
    kit = write_ground_truth(tmp_path, place=place)
    with pytest.raises(
        FileNotFoundError, match=r"ground_truth.txt numbers the classes in an order of its own: put meta"
    ):
        folder(root=tmp_path)
    content = meta_mat({1: "n02119789", 2: "n01440764", 3: "n01443537"}, compress=place != "val")
    (kit / "meta.mat").write_bytes(content)
    source = folder(root=tmp_path)
    assert source.classes == ("n01440764", "n01443537", "n02119789")
    origins = source.splits["test"].origins
    assert {origins[row]: label for row, label in enumerate(labels(source, "test"))} == GROUND_TRUTH


@pytest.mark.parametrize("form", ["meta.mat", "map_clsloc.txt", "classes.json", "classes.txt", "archive"])
def test_folder_imagenet_ground_truth_by_options(tmp_path: Path, form: str) -> None:
    """The list and the names from elsewhere, in any of their forms; beside Kaggle's unlabelled test folder."""
    root = tmp_path / "root"
    kit = write_ground_truth(root, place="../kit")
    for number in range(1, 4):
        picture(root / "test" / f"ILSVRC2012_test_{number:08d}.JPEG", 9)
    numbers = {1: "n02119789", 2: "n01440764", 3: "n01443537"}
    names = {
        "meta.mat": meta_mat(numbers),
        "map_clsloc.txt": "".join(f"{name} {number} kit fox\n" for number, name in numbers.items()).encode(),
        "classes.json": json.dumps({str(number): name for number, name in numbers.items()}).encode(),
        "classes.txt": "".join(f"{number} {name}\n" for number, name in numbers.items()).encode(),
    }
    options: dict[str, Any] = {"test_labels": str(kit / "ILSVRC2012_validation_ground_truth.txt")}
    if form == "archive":
        shutil.move(kit, root / "kit")
        (root / "kit" / "meta.mat").write_bytes(names["meta.mat"])
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, f"imagenet/{path.relative_to(root)}")
        root = tmp_path / "a.zip"
        options = {"test_labels": "kit/ILSVRC2012_validation_ground_truth.txt"}
    else:
        (kit / ("names" + form)).write_bytes(names[form])
        options["class_names"] = str(kit / ("names" + form))
    source = folder(root=root, **options)
    origins = source.splits["test"].origins
    found = [origins[row].removeprefix("imagenet/") for row in range(6)]
    assert dict(zip(found, labels(source, "test"), strict=True)) == GROUND_TRUTH


def test_folder_imagenet_kit_faults(tmp_path: Path) -> None:
    kit = write_ground_truth(tmp_path)
    for content, complaint in (
        (b"", "it is not a little-endian MATLAB file of version 5"),
        (meta_mat({1: "n1"})[:-20], "meta.mat is not ImageNet's meta.mat .*take it from the development kit"),
        (meta_mat({1: "n02119789", 2: "n01440764"}), "there are 2 classes, numbered 1 to 2, but labels from 1 to 3"),
    ):
        (kit / "meta.mat").write_bytes(content)
        with pytest.raises(ValueError, match=complaint):
            folder(root=tmp_path)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\nn01\n")
    with pytest.raises(ValueError, match=r"ground_truth.txt is not a list with the number of a class in each line"):
        folder(root=tmp_path)


def test_table_order_is_that_of_paths(tmp_path: Path) -> None:
    """By class and whole path, in which a dot comes before the slash of a folder."""
    for name in ("a/x.png", "a.png", "b.png"):
        picture(tmp_path / "root" / name, 1)
    (tmp_path / "labels.csv").write_text("file,label\nb.png,1\na.png,1\na/x.png,0\n")
    source = folder(root=tmp_path / "root", labels=str(tmp_path / "labels.csv"))
    origins = source.splits["train"].origins
    assert [origins[row] for row in range(3)] == ["a/x.png", "a.png", "b.png"]
    (tmp_path / "labels.csv").write_text("file,label\nb.png,1\na.png,0\na/x.png,0\n")
    origins = folder(root=tmp_path / "root", labels=str(tmp_path / "labels.csv")).splits["train"].origins
    assert [origins[row] for row in range(3)] == ["a.png", "a/x.png", "b.png"]


def test_folder_rejects_numbers_that_do_not_match_classes(tmp_path: Path) -> None:
    """Numbers from 1 are not shifted silently: that would be a guess, as ImageNet's own order differs."""
    write_imagenet(tmp_path)
    rows = "".join(f"ILSVRC2012_val_{number:08d}.JPEG {1 + number % 2}\n" for number in range(4))
    (tmp_path / "val.txt").write_text(rows)
    with pytest.raises(ValueError, match="there are 2 classes, numbered 0 to 1, but labels from 1 to 2"):
        folder(root=tmp_path)


def test_folder_tiny_imagenet_layout(tmp_path: Path) -> None:
    """train/CLASS/images with a table of boxes, val/images with a table of labels, an unlabelled test split."""
    for label, name in enumerate(("n01", "n02")):
        for number in range(3):
            picture(tmp_path / "train" / name / "images" / f"{name}_{number}.JPEG", 10 * label + number)
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t3\t3\n")
    for number in range(4):
        picture(tmp_path / "val" / "images" / f"val_{number}.JPEG", 100 + number)
        picture(tmp_path / "test" / "images" / f"test_{number}.JPEG", 200)
    rows = "".join(f"val_{number}.JPEG\tn0{1 + number % 2}\t0\t0\t3\t3\n" for number in range(4))
    (tmp_path / "val" / "val_annotations.txt").write_text(rows)
    (tmp_path / "wnids.txt").write_text("n01\nn02\n")
    source = folder(root=tmp_path)
    assert source.classes == ("n01", "n02")
    assert labels(source, "train") == [0, 0, 0, 1, 1, 1]
    assert labels(source, "test") == [0, 0, 1, 1]


def test_folder_options_are_in_the_metadata(tmp_path: Path) -> None:
    write_classes(tmp_path / "root", count=10)
    dataset = convert("folder", tmp_path / "a.hbr", root=tmp_path / "root", test_fraction=0.2, seed=3, rename=["ape=a"])
    made = json.loads((tmp_path / "a.hbr" / "meta.json").read_text())["source"]["options"]
    assert made == {"size": [4, 4], "mode": "gray", "test_fraction": 0.2, "seed": 3, "rename": ["ape=a"]}
    assert dataset.classes == ("a", "zebra")
