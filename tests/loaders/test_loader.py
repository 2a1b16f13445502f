"""Checks before a backend runs: the augmentation's values, and which backend is chosen."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hbr_fast.loaders import backends
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.batch import Batch
from hbr_fast.loaders.loader import Loader
from loaders.contracts import (
    AUGMENTS,
    MakeLoader,
    check_early_exit_releases_threads_and_memory,
    checks_of,
    coded_split,
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1.1}, r"flip is a probability in \[0, 1\], got 1\.1"),
        ({"flip": -0.1}, r"flip is a probability in \[0, 1\], got -0\.1"),
        ({"flip": float("nan")}, r"flip is a probability in \[0, 1\], got nan"),
        ({"flip": 1.0, "alternating_flip": True}, "set flip=0.5, got 1.0"),
        ({"alternating_flip": True}, "set flip=0.5, got 0.0"),
        ({"pad": -1}, r"pad is a number of pixels >= 0, got -1"),
        ({"pad": 2, "padding": "wrap"}, "padding must be one of zero, reflect, edge, mean, got 'wrap'"),
        ({"padding": "edge"}, "padding='edge' without pad does nothing"),
        ({"keyed_by": "row"}, "keyed_by must be one of position, sample, got 'row'"),
        ({"cutout": -3}, "cutout is the side of a square in pixels, >= 0, got -3"),
        ({"pad": 4, "resized_crop": (0.5, 1.0)}, "pad and resized_crop are both crops: give one of them"),
        ({"resized_crop": (0.0, 1.0)}, r"two shares of the area in \(0, 1\], got \(0.0, 1.0\)"),
        ({"resized_crop": (0.5, 0.4)}, r"two shares of the area in \(0, 1\], got \(0.5, 0.4\)"),
        ({"resized_crop": (0.5, 1.1)}, r"two shares of the area in \(0, 1\], got \(0.5, 1.1\)"),
        ({"resized_crop": (0.5, 1), "aspect": (2, 1)}, r"aspect is two ratios above 0, the smaller first"),
        ({"pad": 1.5}, "pad must be a whole number, got 1.5"),
        ({"cutout": 1.5}, "cutout must be a whole number, got 1.5"),
        ({"resized_crop": 0.5}, "resized_crop is two shares of the area .*, got 0.5"),
        ({"resized_crop": (0.5, 1), "aspect": 1.0}, "aspect is two ratios above 0, .*, got 1.0"),
        ({"resized_crop": (0.5, 1), "aspect": (0, 1)}, r"aspect is two ratios above 0, the smaller first"),
    ],
)
def test_augment_refuses_values_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**arguments)


def test_loader_features_cover_every_augmentation() -> None:
    named = {feature for augment in AUGMENTS for feature in augment.features}
    of_data = {"interpolated rows", "several stores", "encoded pictures", "cache of decoded pictures"}
    assert named == set(backends.FEATURES) - of_data - set(backends.ON_BATCH)  # these: test_batch_transforms.py
    for entry in backends.BACKENDS.values():
        assert entry.features <= set(backends.FEATURES)


def test_loader_auto_is_native() -> None:
    loader = Loader(coded_split(10), batch_size=2)
    assert type(loader._backend).__name__ == "NativeBackend"


def test_loader_refuses_unknown_backend_and_device() -> None:
    with pytest.raises(ValueError, match="unknown backend 'tfds': available are auto, native"):
        Loader(coded_split(10), batch_size=2, backend="tfds")
    with pytest.raises(ValueError, match=r"backend 'native' makes batches on cpu.*, not on 'mps': no backend does"):
        Loader(coded_split(10), batch_size=2, device="mps")


@pytest.mark.parametrize("name", ["foo", "", "cuda:x", None])
def test_loader_refuses_invalid_device(name: Any) -> None:
    with pytest.raises(ValueError, match=f"device must be cpu, cuda or cuda:N, got {name!r}$"):
        Loader(coded_split(10), batch_size=2, device=name)


def test_loader_refuses_gpu_index_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ValueError, match="device 'cuda:99' asked for, but there are GPUs 0 to 1 only: name one of them"
    ):
        Loader(coded_split(10), batch_size=2, device="cuda:99")


@pytest.mark.parametrize("backend", ["native", "dali"])
def test_loader_refuses_missing_gpu(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'cuda:1' asked for, but torch sees no GPU here: use device='cpu'"):
        Loader(coded_split(10), batch_size=2, device="cuda:1", backend=backend)


def test_loader_names_backends_with_missing_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = dataclasses.replace(backends.BACKENDS["native"], features=frozenset({"cutout"}))
    monkeypatch.setitem(backends.BACKENDS, "bare", bare)
    with pytest.raises(ValueError, match="backend 'bare' has no flip: use native"):
        Loader(coded_split(10), batch_size=2, augment=Augment(flip=0.5), backend="bare")


def test_loader_missing_extra_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(backends.BACKENDS["native"], classes={"cpu": "other:Other"}, extra="other")
    monkeypatch.setitem(backends.BACKENDS, "other", entry)
    monkeypatch.setitem(sys.modules, "hbr_fast.loaders.other", None)  # as if an import in it failed
    with pytest.raises(ImportError, match=r"backend 'other' needs .*: pip install 'hbr-fast\[other\]'$"):
        Loader(coded_split(10), batch_size=2, backend="other")


def _roll_ids(batch: Batch) -> Batch:
    return batch._replace(ids=batch.ids.roll(1))


def _roll_labels(batch: Batch) -> Batch:
    return batch._replace(labels=batch.labels.roll(1))


def _roll_rows(batch: Batch) -> Batch:
    return batch._replace(rows=batch.rows.roll(1))


def _swap_two_images(batch: Batch) -> Batch:
    order = torch.arange(len(batch.ids))
    order[:2] = order[:2].flip(0)
    return batch._replace(images=batch.images[order])


def _shift_one_image(batch: Batch) -> Batch:
    images = batch.images.clone()
    images[-1] = images[-1].roll(1, dims=-1)
    return batch._replace(images=images)


@pytest.mark.parametrize("spoil", [_roll_ids, _roll_labels, _roll_rows, _swap_two_images, _shift_one_image])
def test_contract_detects_planted_error(spoil: Callable[[Batch], Batch]) -> None:
    class Spoilt(Loader):
        def epoch(self, epoch: int, *, start: int = 0) -> Any:
            return (spoil(batch) for batch in super().epoch(epoch, start=start))

    class MakeSpoilt(MakeLoader):
        def __call__(self, **arguments: Any) -> Loader:
            return Spoilt(**{"backend": "native", **arguments})

    failed = []
    for check in checks_of("native"):
        try:
            check(MakeSpoilt("native"))
        except AssertionError:
            failed.append(check.__name__)
    assert {"check_augmentation_is_the_reference"} <= set(failed)
    assert len(failed) < len(checks_of("native"))


def test_contract_detects_lost_batches() -> None:
    lost = []

    class Leaking(Loader):
        def epoch(self, epoch: int, *, start: int = 0) -> Any:
            for number, batch in enumerate(super().epoch(epoch, start=start)):
                if number == 0:
                    lost.append(batch.images.clone())
                yield batch

    class MakeLeaking(MakeLoader):
        def __call__(self, **arguments: Any) -> Loader:
            return Leaking(**{"backend": "native", **arguments})

    with pytest.raises(AssertionError, match="one batch lost in each round"):
        check_early_exit_releases_threads_and_memory(MakeLeaking("native"))
