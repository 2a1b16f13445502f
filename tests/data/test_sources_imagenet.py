"""ImageNet as people have it: its archives of archives, and some of its classes beside the whole validation split."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hbr_fast.data.convert import convert
from hbr_fast.data.sources import folder

CLASSES = ("n01440764", "n01443537", "n01484850", "n02084071")
FEW = CLASSES[:2]


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    pixels = np.full((8, 8), value, np.uint8)
    pixels[:4] += 5
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write_archives(root: Path) -> None:
    """As torchvision wants them: an archive of each class in one, and a flat one of the validation split."""
    inner = {
        f"{name}.tar": tar({f"{name}_{n}.JPEG": jpeg(40 * label + 10 * n) for n in range(3)})
        for label, name in enumerate(FEW)
    }
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar(inner))
    files = {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(100 + 10 * n) for n in range(1, 9)}
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar(files))
    rows = "".join(f"ILSVRC2012_val_{n:08d},{CLASSES[(n - 1) % 4]} 1 2 3 4\n" for n in range(1, 9))
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}")


def test_archive_of_archives_is_read_in_place(tmp_path: Path) -> None:
    write_archives(tmp_path)
    dataset = convert(
        "folder",
        tmp_path / "out.hbr",
        train_dir=tmp_path / "ILSVRC2012_img_train.tar",
        test_dir=tmp_path / "ILSVRC2012_img_val.tar",
        test_labels=str(tmp_path / "LOC_val_solution.csv"),
        common_classes=True,
    )
    assert dataset.classes == FEW
    assert dataset.train.images[:, 0, 6, 6].tolist() == [0, 10, 20, 40, 50, 60]
    assert dataset.test.images[:, 0, 6, 6].tolist() == [110, 150, 120, 160]
    assert dataset.train.sources is not None
    assert dataset.train.sources[4] == "n01443537/n01443537_1.JPEG"


def test_archive_that_runs_into_the_next_one_is_damaged(tmp_path: Path) -> None:
    """Its pictures must not be followed by those of another class."""
    first = tar({"a.JPEG": jpeg(1), "b.JPEG": jpeg(2)})
    cut = first[: first.index(b"b.JPEG") + 600]
    path = tmp_path / "train.tar"
    path.write_bytes(tar({"cat.tar": cut, "dog.tar": tar({"c.JPEG": jpeg(3)})}))
    with pytest.raises(ValueError, match=r"truncated tar archive \(cat/b\.JPEG is longer than its archive\)"):
        folder(root=path)


def test_archives_as_they_lie_there_are_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there are archives, ILSVRC2012_img_train\.tar, .*--train-dir"):
        folder(root=tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n01440764.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no sub-folder but archives, n01440764\.tar: unpack each"):
        folder(root=tmp_path)


def write_classes(place: Path, classes: tuple[str, ...]) -> None:
    for label, name in enumerate(classes):
        (place / name).mkdir(parents=True)
        for number in range(2):
            (place / name / f"{number}.jpg").write_bytes(jpeg(20 * label + number))


def test_some_classes_beside_a_full_validation_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    write_classes(root / "train", (*FEW, "extra"))
    write_classes(root / "val", CLASSES)
    with pytest.raises(ValueError, match=r"\(3 such\).* or all of these with --common-classes"):
        folder(root=root)
    dataset = convert("folder", tmp_path / "out.hbr", root=root, common_classes=True)
    assert dataset.classes == FEW
    assert [split.class_counts().tolist() for split in dataset.splits.values()] == [[2, 2], [2, 2]]
    said = capsys.readouterr().err
    assert "left out 3 classes that are not in every split, 6 pictures: 'extra', 'n01484850', 'n02084071'" in said
    assert dataset.meta["source"]["options"]["common_classes"] is True


def test_splits_without_a_common_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ("cat", "dog"))
    write_classes(tmp_path / "test", ("Cat", "Dog"))
    with pytest.raises(ValueError, match="train and test have no class in common"):
        folder(root=tmp_path, common_classes=True)


def test_folder_that_wraps_the_classes_of_test_only(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ("cat", "dog"))
    write_classes(tmp_path / "test" / "images", ("cat", "dog"))
    with pytest.raises(ValueError, match=r"test/images as --test-dir \(and its counterpart as --train-dir\)"):
        folder(root=tmp_path)
