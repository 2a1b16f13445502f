"""The contract of every loader backend: plain check functions over `make_loader(**arguments of Loader)`.

A backend's test file runs each of `checks_of(NAME)` with `MakeLoader(NAME)`. Checks of features that a backend lacks
(its entry in `hbr_fast.loaders.backends.BACKENDS`) are left out, and `check_unsupported_features_are_named` takes their
place; a backend that draws its own augmentation (not keyed) must pass everything else without augmentation.
"""

import ctypes
import dataclasses
import functools
import gc
import io
import itertools
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image

from hbr_fast.data.dataset import Split
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.images import RawImages
from hbr_fast.data.plan import Plan
from hbr_fast.data.shards import INDEX, ShardFiles
from hbr_fast.kernels import reference
from hbr_fast.loaders import backends
from hbr_fast.loaders.augment import KEYS, Augment
from hbr_fast.loaders.backends import BACKENDS, Backend
from hbr_fast.loaders.batch import Batch
from hbr_fast.loaders.loader import Loader
from hbr_fast.orders import Sampler, sequential_order, uniform_order, weighted_order

GUARD_S = 600  # against hangs; generous enough for a busy machine
STRONG = Augment(flip=0.5, pad=2)
AUGMENTS = (
    Augment(),
    Augment(flip=1.0),
    Augment(flip=0.5),
    Augment(flip=0.5, alternating_flip=True),
    Augment(pad=4),
    Augment(pad=3, padding="reflect"),
    Augment(pad=4, padding="edge"),
    Augment(pad=4, padding="mean"),
    Augment(resized_crop=(0.1, 1.0)),
    Augment(cutout=5),
    STRONG,
    Augment(flip=0.5, alternating_flip=True, pad=3, padding="reflect", cutout=4),
    Augment(flip=0.5, resized_crop=(0.3, 0.6), aspect=(0.5, 2.0), cutout=3),
    Augment(flip=0.5, pad=2, cutout=3, keyed_by="sample"),
)
ON_BATCHES = (
    Augment(flip=0.5, pad=2, vertical_flip=0.5, rotate=20, translate=0.1, scale=(0.8, 1.2), shear=10, cutout=3),
    Augment(flip=0.5, trivial_augment=True, erase=0.5),
    Augment(rand_augment=(2, 12), padding="mean", keyed_by="sample"),
    Augment(color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.3, blur=0.5, blur_sigma=(0.1, 1.0)),
    Augment(transform="torchvision:RandomPosterize", transform_args={"bits": 2}),
)


@dataclass(frozen=True)
class MakeLoader:
    """Makes loaders of one backend, `encoded` of the same pixels in pictures."""

    backend: str
    device: str = "cpu"
    encoded: bool = False

    def __call__(self, **arguments: Any) -> Loader:
        if self.encoded:
            arguments["split"] = encoded_split(arguments["split"])
            arguments["stores"] = [encoded_split(store) for store in arguments.get("stores", ())]
        return Loader(**{"backend": self.backend, "device": self.device, **arguments})

    @property
    def entry(self) -> Backend:
        return BACKENDS[self.backend]

    @property
    def fused(self) -> list[Augment]:
        """Those of `AUGMENTS` that the backend has and `reference.make_batch` defines.

        Of encoded pictures, a random-resized crop is of the stored picture: `test_random_crops_follow_the_definition`.
        """
        known = [augment for augment in AUGMENTS if self.entry.features.issuperset(augment.features)]
        return [augment for augment in known if not (self.encoded and augment.resized_crop)]

    @property
    def augment(self) -> Augment:
        """Augmentation that a check may compare pixel for pixel."""
        return STRONG if self.entry.keyed else Augment()


Check = TypeVar("Check", bound=Callable[[MakeLoader], None])

NEEDS: dict[str, tuple[str, ...]] = {}  # of a check, by its name


def needs(*features: str) -> Callable[[Check], Check]:
    """Restrict a check to backends with these features; "keyed" means augmentation equal to the reference's."""

    def mark(check: Check) -> Check:
        NEEDS[check.__name__] = features
        return check

    return mark


def checks_of(backend: str) -> list[Callable[[MakeLoader], None]]:
    """The checks that a backend must pass."""
    entry = BACKENDS[backend]
    has = entry.features | ({"keyed"} if entry.keyed else set())
    return [check for check in CHECKS if has.issuperset(NEEDS.get(check.__name__, ()))]


def checks_of_pictures(backend: str) -> list[Callable[[MakeLoader], None]]:
    """Those that say something of encoded pictures: not of arguments, nor of what is done with finished batches."""
    others = ["invalid", "out_of_range", "unsupported", "early_exit", "memory_is_not", "writing_into", "derived"]
    others += ["stay_valid", "operations_on_batches"]
    return [check for check in checks_of(backend) if not any(part in check.__name__ for part in others)]


def make_split(images_nchw: np.ndarray, *, mean: float = 0.0, std: float = 1 / 255) -> Split:
    """A split in memory, read-only as one on disk is."""
    channels = images_nchw.shape[1]
    labels = np.arange(len(images_nchw), dtype=np.int64) * 7 % 5
    for array in (images_nchw, labels):
        array.flags.writeable = False
    return Split(
        name="train",
        store=RawImages(images_nchw),
        labels=labels,
        classes=("a", "b", "c", "d", "e"),
        mean=np.full(channels, mean, np.float32),
        std=np.full(channels, std, np.float32),
    )


class HeldShards(ShardFiles):
    """A shard in memory."""

    def __init__(self, content: np.ndarray) -> None:
        super().__init__([Path("in memory")])
        self._mapped = [content]

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldShards, (self._mapped[0],)


@functools.lru_cache(maxsize=4)
def encoded_split(split: Split) -> Split:
    """A split of PNGs, which keep every pixel, at the size that they have; of two channels, the last is there twice."""
    index, files, end = np.zeros(len(split), INDEX), [], 0
    channels = [0, 1, 1] if split.image_shape[0] == 2 else list(range(split.image_shape[0]))
    for row, image in enumerate(split.images[:, channels]):
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(file, "PNG", compress_level=0)
        content = file.getvalue()
        index[row] = end, len(content), 0, *image.shape[1:], zlib.crc32(content), 1
        files.append(content)
        end += len(content)
    shards = HeldShards(np.frombuffer(b"".join(files), np.uint8))
    store = EncodedImages(shards, index, len(channels), split.image_shape[1:], "stretch")
    return dataclasses.replace(split, store=store, mean=split.mean[channels], std=split.std[channels])


def coded_split(samples: int) -> Split:
    """A split whose pixels are the sample's id in two bytes, one per channel."""
    ids = np.arange(samples)
    codes = np.stack([ids % 256, ids // 256], axis=1).astype(np.uint8)
    return make_split(np.tile(codes[:, :, None, None], (1, 1, 6, 9)))


def textured_split(samples: int, *, size: int = 9) -> Split:
    """A split of random pixels, in which every crop and flip shows."""
    images = np.random.default_rng(samples).integers(0, 256, (samples, 3, size, size), dtype=np.uint8)
    return make_split(images, mean=0.4, std=0.25)


def decoded(batch: Batch) -> torch.Tensor:
    """The ids that the pixels of a `coded_split` hold; every pixel must agree."""
    pixels = batch.images.float().round().long()
    ids = pixels[:, 0] + 256 * pixels[:, 1]
    assert (ids == ids[:, :1, :1]).all()
    return ids[:, 0, 0]


def copies(batches: Iterable[Batch]) -> list[Batch]:
    """Copies of the batches, on the CPU."""
    return [Batch(*(column.clone().cpu() for column in batch)) for batch in batches]


def joined(batches: Iterable[Batch]) -> Batch:
    return Batch(*(torch.cat(column) for column in zip(*copies(batches), strict=True)))


def assert_same(got: Iterable[Batch], expected: Iterable[Batch]) -> None:
    for one, other in zip(got, expected, strict=True):
        for column, other_column in zip(one, other, strict=True):
            assert torch.equal(column.cpu(), other_column.cpu())


def fused_fields(augment: Augment) -> dict[str, Any]:
    """The fields of the pass that `reference.make_batch` defines."""
    names = ("flip", "alternating_flip", "pad", "padding", "resized_crop", "aspect", "cutout", "keyed_by")
    return {name: getattr(augment, name) for name in names}


def assert_is_reference(
    batch: Batch, plan: Plan, split: Split, *, first_position: int, epoch: int, seed: int, augment: Augment
) -> None:
    images, labels, ids, rows = (column.cpu().numpy() for column in batch)
    expected = reference.make_batch(
        split.images,
        plan.index[rows],
        plan.partner[rows],
        plan.weight[rows],
        first_position=first_position,
        epoch=epoch,
        seed=seed,
        mean_c=split.mean.astype(np.float64),
        std_c=split.std.astype(np.float64),
        copy_b=np.array([np.count_nonzero(plan.index[:row] == plan.index[row]) for row in rows]),
        **fused_fields(augment),
    )
    np.testing.assert_allclose(images, expected, rtol=1e-6, atol=2e-6, err_msg=str(augment))
    np.testing.assert_array_equal(ids, plan.index[rows])
    np.testing.assert_array_equal(labels, split.labels[plan.index[rows]])


# --- what a batch holds ---


def check_shapes_and_types(make_loader: MakeLoader) -> None:
    split = textured_split(10)
    for dtype, channels_last in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        loader = make_loader(split=split, batch_size=4, dtype=dtype, channels_last=channels_last)
        for batch, count in zip(loader.epoch(0), (4, 4, 2), strict=True):
            assert batch.images.shape == (count, 3, 9, 9)
            assert batch.images.dtype == dtype
            layout = torch.channels_last if channels_last else torch.contiguous_format
            assert batch.images.is_contiguous(memory_format=layout)
            for column in (batch.labels, batch.ids, batch.rows):
                assert column.shape == (count,)
                assert column.dtype == torch.int64


def check_mean_and_std_may_be_given(make_loader: MakeLoader) -> None:
    split = textured_split(6)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = next(make_loader(split=split, batch_size=6, mean=mean, std=std).epoch(0))
    own = dataclasses.replace(split, mean=np.array(mean, np.float32), std=np.array(std, np.float32))
    plan = Plan.of_rows(np.arange(6))
    assert_is_reference(batch, plan, own, first_position=0, epoch=0, seed=0, augment=Augment())
    only_std = next(make_loader(split=split, batch_size=6, std=std).epoch(0))
    own = dataclasses.replace(split, std=np.array(std, np.float32))
    assert_is_reference(only_std, plan, own, first_position=0, epoch=0, seed=0, augment=Augment())


def check_pixels_labels_and_ids_belong_together(make_loader: MakeLoader) -> None:
    split = coded_split(300)
    plan = Plan.of_rows(np.random.default_rng(0).integers(0, 300, 450))
    for epoch in range(2):
        for batch in make_loader(split=split, plan=plan, batch_size=64, augment=Augment(flip=0.5)).epoch(epoch):
            assert torch.equal(decoded(batch), batch.ids)
            labels, ids, rows = (column.cpu().numpy() for column in batch[1:])
            np.testing.assert_array_equal(ids, plan.index[rows])
            np.testing.assert_array_equal(labels, split.labels[ids])


def check_every_row_once(make_loader: MakeLoader) -> None:
    split = coded_split(130)
    for batch_size in (1, 7, 13, 64, 130):
        loader = make_loader(split=split, batch_size=batch_size)
        batches = copies(loader.epoch(0))
        sizes = [len(batch.rows) for batch in batches]
        full, rest = divmod(130, batch_size)
        assert sizes == [batch_size] * full + [rest] * (rest > 0)
        assert (len(loader), loader.samples) == (len(sizes), 130)
        assert torch.equal(joined(batches).rows.sort().values, torch.arange(130))


def check_drop_last(make_loader: MakeLoader) -> None:
    split = coded_split(130)
    whole = copies(make_loader(split=split, batch_size=64, augment=make_loader.augment).epoch(3))
    loader = make_loader(split=split, batch_size=64, augment=make_loader.augment, drop_last=True)
    assert (len(loader), loader.samples) == (2, 128)
    assert_same(loader.epoch(3), whole[:2])
    even = make_loader(split=split, batch_size=65, drop_last=True)
    assert (len(even), even.samples) == (2, 130)


@needs("keyed")
def check_augmentation_is_the_reference(make_loader: MakeLoader) -> None:
    split = textured_split(40)
    plan = Plan.of_rows(np.arange(40))
    for augment in make_loader.fused:
        loader = make_loader(split=split, batch_size=16, augment=augment, seed=5)
        for epoch in (2, 3):
            for number, batch in enumerate(loader.epoch(epoch)):
                assert_is_reference(
                    batch, plan, split, first_position=16 * number, epoch=epoch, seed=5, augment=augment
                )  # fmt: skip


@needs("keyed", *backends.ON_BATCH)
def check_operations_on_batches_are_the_same_everywhere(make_loader: MakeLoader) -> None:
    """The same pixels as native on the CPU, for any batch size, rank and type, and from any batch on."""
    split = textured_split(40)
    for augment in ON_BATCHES:
        common: dict[str, Any] = {"split": split, "augment": augment, "seed": 5}
        expected = joined(Loader(**common, batch_size=40).epoch(2))
        images = expected.images[expected.ids.argsort()]
        whole = make_loader(**common, batch_size=16)
        assert len(images.flatten(1).unique(dim=0)) == 40
        for loader in (whole, whole.shard(1, 2), make_loader(**common, batch_size=7, threads=2)):
            batch = joined(loader.epoch(2))
            if make_loader.device == "cpu":
                assert torch.equal(batch.images, images[batch.ids]), augment
            else:
                torch.testing.assert_close(batch.images, images[batch.ids], rtol=0, atol=0.02)
            assert batch.labels.tolist() == split.labels[batch.ids].tolist()
        assert_same(whole.epoch(2, start=1), copies(whole.epoch(2))[1:])
        half = make_loader(**common, batch_size=16, dtype=torch.bfloat16, channels_last=True)
        batch = joined(half.epoch(2))
        torch.testing.assert_close(batch.images.float(), images[batch.ids], rtol=2**-8, atol=0.02)


def check_bfloat16_and_channels_last_are_the_same_pixels(make_loader: MakeLoader) -> None:
    split = textured_split(40)
    plain = joined(make_loader(split=split, batch_size=16, augment=make_loader.augment).epoch(1))
    last = joined(make_loader(split=split, batch_size=16, augment=make_loader.augment, channels_last=True).epoch(1))
    assert_same([last], [plain])
    for channels_last in (False, True):
        half = joined(
            make_loader(
                split=split,
                batch_size=16,
                augment=make_loader.augment,
                dtype=torch.bfloat16,
                channels_last=channels_last,
            ).epoch(1)
        )
        torch.testing.assert_close(half.images.float(), plain.images, rtol=2**-8, atol=0)
        assert torch.equal(half.rows, plain.rows)


# --- plans ---


@needs("flip", "crop with zero padding")
def check_repeated_rows_are_augmented_independently(make_loader: MakeLoader) -> None:
    split = textured_split(8)
    plan = Plan.of_rows(np.full(50, 5))
    batch = joined(make_loader(split=split, plan=plan, batch_size=20, augment=STRONG).epoch(0))
    assert (batch.ids == 5).all()
    # 25 crops, flipped or not: 50 draws out of 50 give 32 distinct ones on average.
    assert len(batch.images.flatten(1).unique(dim=0)) > 20
    still = joined(make_loader(split=split, plan=plan, batch_size=20).epoch(0))
    assert len(still.images.flatten(1).unique(dim=0)) == 1


@needs("keyed", "augmentation keyed by sample", "flip", "crop with zero padding", "cutout")
def check_augmentation_keyed_by_sample_follows_the_sample(make_loader: MakeLoader) -> None:
    """The same pixels wherever an order puts a sample and whatever else is in the plan."""
    augment = Augment(flip=0.5, pad=2, cutout=3, keyed_by="sample")
    common: dict[str, Any] = {"split": textured_split(60), "augment": augment, "seed": 4, "prefetch": 0}
    whole = make_loader(order=sequential_order(60), batch_size=60, **common)
    images = [joined(whole.epoch(epoch)).images for epoch in range(2)]  # by sample id
    assert (images[0] != images[1]).flatten(1).any(1).sum() > 50, "every epoch draws again"
    shuffled = make_loader(order=uniform_order(60, seed=9), batch_size=8, **common)
    half = Plan.of_rows(np.random.default_rng(0).permutation(60)[:30])
    for loader in (
        shuffled,
        shuffled.shard(1, 2),
        make_loader(order=weighted_order(np.arange(60), seed=3, length=40), batch_size=16, **common),  # repeats rows
        make_loader(plan=half, batch_size=7, **common),
    ):
        for epoch in range(2):
            batch = joined(loader.epoch(epoch))
            assert torch.equal(batch.images, images[epoch][batch.ids])
    copies_of_five = Plan.of_rows(np.array([3, 5, 5, 8, *[5] * 46]))
    batch = joined(make_loader(plan=copies_of_five, batch_size=20, **common).epoch(1))
    by_row = batch.images[batch.rows.argsort()]
    assert torch.equal(by_row[[0, 1, 3]], images[1][[3, 5, 8]])
    # Of 25 crops, 49 cutouts and 2 sides, 48 draws are rarely equal.
    assert len(by_row[[1, 2, *range(4, 50)]].flatten(1).unique(dim=0)) > 40


@needs("keyed", "interpolated rows")
def check_interpolated_rows(make_loader: MakeLoader) -> None:
    split = textured_split(20)
    rng = np.random.default_rng(1)
    plan = Plan(
        store=np.zeros(50, np.int16),
        index=rng.integers(0, 20, 50),
        partner=rng.integers(-1, 20, 50),
        weight=rng.choice(np.array([0, 0.3, 0.5, 1], np.float32), 50),
    )
    for augment in make_loader.fused:
        loader = make_loader(split=split, plan=plan, batch_size=16, augment=augment, seed=2)
        for number, batch in enumerate(loader.epoch(1)):
            assert_is_reference(batch, plan, split, first_position=16 * number, epoch=1, seed=2, augment=augment)


@needs("several stores")
def check_rows_of_other_stores(make_loader: MakeLoader) -> None:
    """A plan over two pools: pixels and labels of the right store, ids that continue after the split's."""
    everything = coded_split(60)  # split and pools cut from one split, so that the pixels identify the image
    split, pools = _cut(everything, 0, 30), [_cut(everything, 30, 37), _cut(everything, 37, 60)]
    plan = Plan(
        store=np.array([0, 1, 2, 2, 1, 0], np.int16),
        index=np.array([29, 0, 0, 22, 6, 3]),
        partner=np.array([-1, -1, 1, -1, -1, 3]),
        weight=np.array([1, 1, 0, 1, 1, 0.5], np.float32),
    )
    loader = make_loader(split=split, stores=pools, plan=plan, order=sequential_order(6), batch_size=4)
    batch = joined(loader.epoch(0))
    assert batch.ids.tolist() == [29, 30, 37, 59, 36, 3]
    assert decoded(batch).tolist() == [29, 30, 38, 59, 36, 3]  # row 2 is its partner, the next image of its store
    assert batch.labels.tolist() == everything.labels[batch.ids].tolist()


@needs("several stores", "keyed", "alternating flip", "augmentation keyed by sample")
def check_rows_of_other_stores_are_augmented_by_their_ids(make_loader: MakeLoader) -> None:
    """Like the same rows of one split with all images; ids of pools continue the split's in every random number."""
    everything = textured_split(40)
    split, pool = _cut(everything, 0, 15), _cut(everything, 15, 40)
    ids = np.random.default_rng(0).integers(0, 40, 50)
    in_pool = ids >= 15
    common: dict[str, Any] = {
        "order": sequential_order(50),
        "batch_size": 16,
        "seed": 4,
        "prefetch": 0,
    }
    for keyed_by, epoch in itertools.product(KEYS, range(2)):
        common["augment"] = Augment(flip=0.5, alternating_flip=True, pad=2, cutout=3, keyed_by=keyed_by)
        of_one = make_loader(split=everything, plan=_plain_plan(np.zeros(50), ids), **common)
        of_two = make_loader(split=split, stores=[pool], plan=_plain_plan(in_pool, ids - 15 * in_pool), **common)
        one, two = joined(of_one.epoch(epoch)), joined(of_two.epoch(epoch))
        assert two.ids.tolist() == one.ids.tolist() == ids.tolist()
        assert torch.equal(two.images, one.images)


def _cut(everything: Split, first: int, stop: int) -> Split:
    """A split in memory of some of the images of another."""
    images, labels = everything.images[first:stop].copy(), everything.labels[first:stop].copy()
    images.flags.writeable = labels.flags.writeable = False
    return dataclasses.replace(everything, store=RawImages(images), labels=labels)


def _plain_plan(store: np.ndarray, index: np.ndarray) -> Plan:
    """A plan of rows without partners."""
    length = len(index)
    return Plan(
        store=store.astype(np.int16),
        index=index.astype(np.int64),
        partner=np.full(length, -1, np.int64),
        weight=np.ones(length, np.float32),
    )


@needs("interpolated rows", "crop with zero padding")
def check_trap_14_augmentation_comes_after_resampling(make_loader: MakeLoader) -> None:
    # Interpolation of raw pixels: the zeros put round the image stay the zeros of a plain image, and each of the
    # repeats is cropped independently. Were pixels augmented or normalised first, borders would overlap partly.
    images = np.full((2, 1, 8, 8), 200, np.uint8)
    images[1] = 100
    split = make_split(images, mean=0.5, std=0.5)
    plan = Plan(
        store=np.zeros(60, np.int16),
        index=np.zeros(60, np.int64),
        partner=np.ones(60, np.int64),
        weight=np.full(60, 0.25, np.float32),
    )
    batch = joined(make_loader(split=split, plan=plan, batch_size=60, augment=Augment(pad=3)).epoch(0))
    border, inside = (0 - 0.5) / 0.5, (125 / 255 - 0.5) / 0.5
    distances = torch.stack([(batch.images - border).abs(), (batch.images - inside).abs()])
    assert distances.min(dim=0).values.max() < 1e-6
    assert len(batch.images.flatten(1).unique(dim=0)) > 20


def check_an_epoch_of_fewer_positions_than_rows(make_loader: MakeLoader) -> None:
    order = weighted_order(np.ones(30), length=12, seed=0)
    loader = make_loader(split=coded_split(30), order=order, batch_size=5)
    assert (len(loader), loader.samples) == (3, 12)
    assert joined(loader.epoch(7)).ids.tolist() == order.rows(0, 12, epoch=7).tolist()


# --- a pure function of seed, epoch and position ---


def check_an_epoch_repeats_and_epochs_differ(make_loader: MakeLoader) -> None:
    split = textured_split(60)
    loader = make_loader(split=split, batch_size=16, augment=make_loader.augment)
    first, second = copies(loader.epoch(0)), copies(loader.epoch(1))
    assert_same(loader.epoch(0), first)
    assert_same(make_loader(split=split, batch_size=16, augment=make_loader.augment).epoch(1), second)
    assert not torch.equal(joined(first).rows, joined(second).rows)
    still = make_loader(split=split, order=sequential_order(60), batch_size=60, augment=make_loader.augment)
    images = [joined(still.epoch(epoch)).images for epoch in (0, 1)]
    if make_loader.entry.keyed:
        assert not torch.equal(*images), "augmentation must change with the epoch, not only the order"


def check_seeds_differ(make_loader: MakeLoader) -> None:
    split, order = textured_split(60), sequential_order(60)
    one, two = (joined(make_loader(split=split, batch_size=16, seed=seed).epoch(0)) for seed in (0, 1))
    assert not torch.equal(one.rows, two.rows)
    one, two = (
        joined(make_loader(split=split, order=order, batch_size=16, seed=seed, augment=make_loader.augment).epoch(0))
        for seed in (0, 1)
    )
    assert torch.equal(one.rows, two.rows)
    if make_loader.entry.keyed:
        assert not torch.equal(one.images, two.images)


def check_batch_size_does_not_change_pixels(make_loader: MakeLoader) -> None:
    split = textured_split(50)
    whole = joined(make_loader(split=split, batch_size=50, augment=make_loader.augment).epoch(4))
    for batch_size in (1, 3, 16, 49):
        assert_same(
            [joined(make_loader(split=split, batch_size=batch_size, augment=make_loader.augment).epoch(4))], [whole]
        )


def check_threads_and_prefetch_do_not_change_batches(make_loader: MakeLoader) -> None:
    split = textured_split(100)
    expected = copies(
        make_loader(split=split, batch_size=8, augment=make_loader.augment, threads=1, prefetch=0).epoch(0)
    )
    for threads, prefetch in ((1, 1), (1, None), (1, 100), (2, 0), (2, 2), (2, None), (100, 7)):
        loader = make_loader(split=split, batch_size=8, augment=make_loader.augment, threads=threads, prefetch=prefetch)
        assert_same(loader.epoch(0), expected)


def check_an_epoch_resumes_anywhere(make_loader: MakeLoader) -> None:
    split = textured_split(50)
    loader = make_loader(split=split, batch_size=8, augment=make_loader.augment)
    whole = copies(loader.epoch(2))
    assert len(whole) == 7
    for start in range(8):
        assert_same(loader.epoch(2, start=start), whole[start:])
    for start in (-1, 8):
        with pytest.raises(ValueError, match=rf"start must be in \[0, 7\], the batches of an epoch, got {start}"):
            loader.epoch(2, start=start)


# --- iterators and memory ---


def running_threads() -> int:
    """All threads of this process."""
    tasks = Path("/proc/self/task")
    return len(os.listdir(tasks)) if tasks.exists() else threading.active_count()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Wait for other threads until a condition holds; on a busy machine that may take long."""
    deadline = time.monotonic() + GUARD_S
    while not holds():
        assert time.monotonic() < deadline, f"in {GUARD_S} seconds it did not happen that {what}"
        time.sleep(0.002)


def resident_bytes() -> int:
    """Memory of this process, less the freed memory that the C library keeps (glibc)."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_early_exit_releases_threads_and_memory(make_loader: MakeLoader) -> None:
    split = textured_split(500, size=32)  # a batch is 1.2 MB
    for prefetch in (0, 2):
        loader = make_loader(split=split, batch_size=100, augment=make_loader.augment, threads=2, prefetch=prefetch)
        expected = copies(loader.epoch(0))
        for round_ in range(5):  # memory kept for the next epoch is allocated here
            next(loader.epoch(round_))
        gc.collect()
        threads, memory = running_threads(), [resident_bytes()]
        for round_ in range(51):
            for _, _batch in zip(range(round_ % 3 + 1), loader.epoch(round_), strict=False):
                pass
            if round_ % 17 == 16:
                gc.collect()
                memory.append(resident_bytes())
        # The system takes a moment to clear away a thread that has ended.
        wait_until(lambda: running_threads() <= threads, f"{threads} threads are left")  # noqa: B023
        # A leak in each round shows in all three stretches; the C library, which keeps what threads freed and
        # spreads new threads over its arenas, moves tens of megabytes at once but not each time.
        assert min(np.diff(memory)) < 10e6, "one batch lost in each round would be 20 MB each time"
        assert_same(loader.epoch(0), expected)


def check_iterators_are_independent(make_loader: MakeLoader) -> None:
    split = textured_split(70)
    loader = make_loader(split=split, batch_size=8, augment=make_loader.augment)
    one, two = copies(loader.epoch(0)), copies(loader.epoch(1))
    both = [copies(pair) for pair in zip(loader.epoch(0), loader.epoch(1), strict=True)]
    assert_same([pair[0] for pair in both], one)
    assert_same([pair[1] for pair in both], two)
    first, second = loader.epoch(0), loader.epoch(0)
    next(first)
    assert_same(second, one)
    assert_same(first, one[1:])


def check_batches_stay_valid_while_kept(make_loader: MakeLoader) -> None:
    split = textured_split(200)
    for batch_size in (1, 16, 70):
        loader = make_loader(split=split, batch_size=batch_size, augment=make_loader.augment)
        one_by_one = copies(loader.epoch(0))
        assert_same(list(loader.epoch(0)), one_by_one)


def check_tensors_derived_from_a_batch_stay_valid(make_loader: MakeLoader) -> None:
    # Views, numpy arrays and tensors saved for backward keep the memory, though the batch itself is gone.
    split = textured_split(64, size=16)
    loader = make_loader(split=split, batch_size=8, augment=make_loader.augment)
    weight = torch.ones(8, 3, 16, 16, requires_grad=True, device=make_loader.device)
    kept = []
    for epoch in range(3):
        for number, batch in enumerate(loader.epoch(epoch)):
            expected = batch.images.clone()
            if number % 4 == 0:
                kept.append((batch.images[3:5, 1], expected[3:5, 1]))
            elif number % 4 == 1:
                kept.append((torch.from_numpy(batch.images.cpu().numpy()), expected))
            elif number % 4 == 2:
                product = (weight * batch.images).sum()
                kept.append((product, expected))
            del batch  # number % 4 == 3 is dropped: its memory is used again
    for derived, expected in kept:
        if derived.requires_grad:
            (gradient,) = torch.autograd.grad(derived, weight)
            assert torch.equal(gradient, expected)
        else:
            assert torch.equal(derived.cpu(), expected.cpu())


def check_memory_is_not_reused_while_referenced(make_loader: MakeLoader) -> None:
    split = textured_split(256, size=32)
    loader = make_loader(split=split, batch_size=32)
    kept = []
    for epoch in range(6):
        for number, batch in enumerate(loader.epoch(epoch)):
            if number % 3 == 0:
                kept.append((batch, Batch(*(column.clone() for column in batch))))
            else:
                assert batch.images.data_ptr() not in {held.images.data_ptr() for held, _ in kept}
    assert len({held.images.data_ptr() for held, _ in kept}) == len(kept) == 18
    for held, copy in kept:
        assert_same([held], [copy])


def check_writing_into_a_batch_is_safe(make_loader: MakeLoader) -> None:
    split = textured_split(40)
    loader = make_loader(split=split, batch_size=8)
    expected = copies(loader.epoch(0))
    for batch in loader.epoch(0):
        for column in batch:
            column.fill_(-1)
    assert_same(loader.epoch(0), expected)


class _BrokenOrder(Sampler):
    """Fails at the third batch of ten rows."""

    def __len__(self) -> int:
        return 100

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        if start + count > 20:
            raise RuntimeError("order is broken")
        return np.arange(start, start + count)


def check_batch_errors_reach_the_caller(make_loader: MakeLoader) -> None:
    before = threading.active_count()
    order: Sampler = _BrokenOrder()
    for threads, prefetch in ((1, 0), (1, 1), (2, 0), (2, 3)):
        loader = make_loader(
            split=coded_split(100), order=order, batch_size=10, threads=threads, prefetch=prefetch
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="order is broken"):
            list(loader.epoch(0))
    wait_until(lambda: threading.active_count() <= before, f"{before} threads are left")


class FixedRows(Sampler):
    """A user-defined order of ten fixed rows."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return 10

    def rows(self, start: int, count: int, *, epoch: int, stride: int = 1) -> np.ndarray:
        return self._rows[start : start + count]


def check_invalid_rows_are_refused(make_loader: MakeLoader) -> None:
    # The plan's columns are the front of longer arrays, so that nothing invalid is read.
    whole = Plan.of_rows(np.arange(20) % 10)
    plan = Plan(whole.store[:10], whole.index[:10], whole.partner[:10], whole.weight[:10])
    for rows, message in (
        (np.arange(10) + 3, "the order gave row 10 at position 7 of epoch 0, outside the plan's 10 rows"),
        (np.arange(10) - 1, "the order gave row -1 at position 0 of epoch 0, outside the plan's 10 rows"),
        (np.arange(10) + 0.5, "the order gave rows of float64 at position 0 of epoch 0, not whole numbers"),
        (np.arange(10) > 4, "the order gave rows of bool at position 0 of epoch 0, not whole numbers"),
        (np.arange(7), r"the order gave \(\d,\) rows at position \d of epoch 0, not \d+"),
    ):
        with pytest.raises(ValueError, match=message):
            list(make_loader(split=coded_split(10), plan=plan, order=FixedRows(rows), batch_size=4).epoch(0))


# --- arguments ---


def check_invalid_arguments_are_named(make_loader: MakeLoader) -> None:
    split = coded_split(10)

    def plan(**changes: np.ndarray) -> Plan:
        columns: dict[str, Any] = {
            "store": np.zeros(4, np.int16),
            "index": np.arange(4),
            "partner": np.full(4, -1),
            "weight": np.ones(4, np.float32),
        }
        return Plan(**{**columns, **changes})

    outside = r"outside split 'train' of 10 samples: was the plan made for another dataset\?"
    one_mean = dataclasses.replace(split, mean=np.zeros(1, np.float32))
    small, wide = coded_split(3), make_split(np.zeros((3, 2, 6, 10), np.uint8))
    from_pool = plan(store=np.array([0, 1, 0, 0], np.int16), index=np.array([0, 3, 2, 3]))
    for arguments, message in (
        ({"plan": from_pool, "stores": [small]}, "plan row 1 has index 3, outside split 'train' of 3 samples"),
        (
            {"plan": plan(store=np.array([0, 0, 2, 0], np.int16)), "stores": [small]},
            "only the split and 1 more are given",
        ),
        (
            {"stores": [wide]},
            r"images of store 'train' are \[2, 6, 10\] \(C, H, W\) but those of split 'train' are \[2, 6, 9\]",
        ),
        ({"batch_size": 11}, r"batch_size must be in \[1, 10\], the rows of an epoch of split 'train', got 11"),
        ({"batch_size": 0}, r"batch_size must be in \[1, 10\]"),
        ({"batch_size": -2}, r"batch_size must be in \[1, 10\]"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"batch_size": 5, "plan": plan()}, r"batch_size must be in \[1, 4\]"),
        ({"plan": plan(index=np.array([0, 1, 10, 3]))}, "plan row 2 has index 10, " + outside),
        ({"plan": plan(index=np.array([0, -1, 2, 3]))}, "plan row 1 has index -1, " + outside),
        ({"plan": plan(partner=np.array([-1, 3, -1, 10]))}, "plan row 3 has partner 10, " + outside),
        ({"plan": plan(partner=np.array([-2, 3, -1, 1]))}, "plan row 0 has partner -2, " + outside),
        ({"plan": plan(store=np.array([0, 2, 0, 0], np.int16))}, "plan row 1 takes its image from store 2"),
        ({"plan": plan(weight=np.array([0, 1, 1.5, 0], np.float32))}, r"plan weights must lie in \[0, 1\]"),
        ({"plan": plan(weight=np.array([0, 1, -0.1, 0], np.float32))}, r"plan weights must lie in \[0, 1\]"),
        ({"plan": plan(weight=np.array([0, 1, np.nan, 0], np.float32))}, r"plan weights must lie in \[0, 1\]"),
        ({"plan": Plan.of_rows(np.array([], np.int64))}, "the plan has no rows"),
        ({"plan": np.arange(10)}, r"plan must be a Plan, e\.g\. Plan\.of_rows\(ids\), got ndarray"),
        ({"order": np.arange(10)}, r"order must be a Sampler, e\.g\. uniform_order.*, got ndarray"),
        ({"augment": {"flip": 0.5}}, r"augment must be an Augment, e\.g\. Augment\(flip=0\.5\), got dict"),
        ({"order": uniform_order(11, seed=0)}, "the order draws from 11 rows but the plan has 10: make it of as many"),
        ({"order": uniform_order(9, seed=0)}, "the order draws from 9 rows but the plan has 10: make it of as many"),
        ({"dtype": torch.float64}, "dtype must be one of torch.float32, torch.bfloat16.*, got torch.float64"),
        ({"threads": 1.5}, "threads must be a whole number, got 1.5"),
        ({"prefetch": 0.5}, "prefetch must be a whole number, got 0.5"),
        ({"threads": 0}, "threads must be >= 1 and prefetch >= 0, got 0"),
        ({"prefetch": -1}, "threads must be >= 1 and prefetch >= 0, got .* and -1"),
        ({"augment": Augment(cutout=7)}, "a square of cutout=7 pixels does not fit images of 6 x 9"),
        (
            {"augment": Augment(pad=6, padding="reflect")},
            "a reflection reaches 5 pixels beyond an image of 6 x 9, got pad=6",
        ),
        ({"split": one_mean}, r"images of split 'train' have 2 channels but mean and std are of 1 and 2"),
        (
            {"split": dataclasses.replace(split, std=np.array([1, 0], np.float32))},
            r"std of split 'train' is \[1.0, 0.0\]: a channel that is the same everywhere",
        ),
        (
            {"split": dataclasses.replace(split, mean=np.array([0, np.nan], np.float32))},
            r"mean and std of split 'train' must be finite, got \[0.0, nan\]",
        ),
        ({"mean": [0.5] * 3}, r"mean must be one number a channel, 2 here, got \[0.5, 0.5, 0.5\]"),
        ({"std": 0.5}, r"std must be one number a channel, 2 here, got 0.5"),
        ({"mean": ["a", "b"]}, r"mean must be 2 numbers, one a channel, got \['a', 'b'\]"),
        ({"mean": [124, 117]}, r"mean must lie in \[0, 1\].* got \[124.0, 117.0\]: divide those of pixels in 0..255"),
        ({"std": [0.5, 0]}, r"std must lie in \(0, 1\], as pixels in \[0, 1\] do, got \[0.5, 0.0\]$"),
        ({"std": [0.5, np.nan]}, r"std must lie in \(0, 1\].* got \[0.5, nan\]$"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*63\), got -1"),
        ({"seed": 2**63, "order": sequential_order(10)}, r"seed must be in \[0, 2\*\*63\)"),
    ):
        with pytest.raises(ValueError, match=message):
            make_loader(**{"split": split, "batch_size": 2, **arguments})


def check_epochs_out_of_range_are_refused(make_loader: MakeLoader) -> None:
    loader = make_loader(split=coded_split(10), batch_size=2)
    for epoch in (-1, 2**32):
        with pytest.raises(ValueError, match=r"epoch must be in \[0, 2\*\*32\)"):
            loader.epoch(epoch)
    for wrong in (1.5, True, None):
        with pytest.raises(ValueError, match=f"epoch must be a whole number, got {wrong}"):
            loader.epoch(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"start must be a whole number, got {wrong}"):
            loader.epoch(0, start=wrong)  # type: ignore[arg-type]
    assert len(list(loader.epoch(2**32 - 1))) == 5


def check_unsupported_features_are_named(make_loader: MakeLoader) -> None:
    split = textured_split(8)
    for augment in AUGMENTS:
        lacking = [feature for feature in augment.features if feature not in make_loader.entry.features]
        if lacking:
            device = torch.device(make_loader.device).type
            able = [
                name for name, entry in BACKENDS.items() if device in entry.classes and lacking[0] in entry.features
            ]
            who = " or ".join(able)
            with pytest.raises(ValueError, match=f"backend '{make_loader.backend}' has no {lacking[0]}: .*{who}"):
                make_loader(split=split, batch_size=2, augment=augment)
    mixed = Plan(np.zeros(8, np.int16), np.arange(8), np.arange(8)[::-1].copy(), np.full(8, 0.5, np.float32))
    for feature, arguments in (("interpolated rows", {"plan": mixed}), ("several stores", {"stores": [split]})):
        if feature not in make_loader.entry.features:
            with pytest.raises(ValueError, match=f"backend '{make_loader.backend}' has no {feature}: use native"):
                make_loader(split=split, batch_size=2, **arguments)


CHECKS: list[Callable[[MakeLoader], None]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
