"""The image batch kernel, against its definition and the CPU kernel."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from loaders import contracts
from loaders.contracts import AUGMENTS, MakeLoader, assert_same, copies, fused_fields, textured_split
from loaders.on_device import use_memory_of_the_cpu

from hbr_fast.data.plan import Plan
from hbr_fast.kernels import reference
from hbr_fast.kernels.images import triton_batch
from hbr_fast.loaders import resident
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.loader import Loader
from hbr_fast.orders import uniform_order
from hbr_fast.seeding import Stream, stream_key

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 9, 7), (2, 1, 5), (5, 17, 70)]
MEAN, STD = np.array([0.49, 0.0, 0.7, 0.5, 0.3]), np.array([0.247, 1.0, 0.1, 0.3, 0.2])


def make_batch(
    images_nchw: np.ndarray,
    augment: Augment,
    *,
    index: Any,
    partner: Any = None,
    weight: Any = None,
    copy: Any = None,
    plain: bool = False,
    first_position: int = 0,
    step: int = 1,
    epoch: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> torch.Tensor:
    """The images of a batch; `plain` keeps them as bytes."""
    memory = torch.from_numpy(images_nchw)
    channels, height, width = shape = images_nchw.shape[1:]
    size = channels * height * width
    index = torch.as_tensor(index)
    address = memory.data_ptr() + index * size
    if partner is not None:
        partner = torch.as_tensor(partner)
        partner = torch.where(partner < 0, address, memory.data_ptr() + partner * size)
    mean, std = (np.zeros(5), np.full(5, 1 / 255)) if plain else (MEAN, STD)
    sizes = augment.resized_crop and torch.from_numpy(
        reference.crop_sizes(height, width, augment.resized_crop, augment.aspect)
    )
    draw = triton_batch.Draw(
        round(augment.flip * 2**32), augment.alternating_flip, augment.pad, augment.padding, sizes, augment.cutout
    )
    draw_key = None
    if augment.keyed_by == "sample":
        draw_key = reference.draw_key(index.numpy(), np.asarray(copy or [0] * len(index)))
    table = triton_batch.Table(
        address,
        partner,
        None if weight is None else torch.as_tensor(weight),
        7 * index,
        index,
        None if draw_key is None else torch.from_numpy(draw_key),
    )
    images, labels, ids = triton_batch.make_batch(
        table,
        torch.arange(len(index)),
        shape,
        draw,
        first_position=first_position,
        step=step,
        epoch=epoch,
        key=stream_key(seed, Stream.AUGMENTATION),
        level_c=torch.tensor(reference.mean_level(mean), dtype=torch.float32),
        scale_c=torch.tensor(1 / (255 * std), dtype=torch.float32),
        bias_c=torch.tensor(-mean / std, dtype=torch.float32),
        dtype=dtype,
        channels_last=channels_last,
    )
    assert images.shape == (len(index), *shape)
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(ids, index)
    assert torch.equal(labels, 7 * index)
    return images


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


def fits(augment: Augment, shape: tuple[int, int, int]) -> bool:
    try:
        augment.check_fits(*shape)
    except ValueError:
        return False
    return True


CASES = [(shape, augment) for shape, augment in itertools.product(SHAPES, AUGMENTS) if fits(augment, shape)]


@pytest.mark.parametrize(("shape", "augment"), CASES)
def test_triton_images_picks_same_pixels_as_reference(shape: tuple[int, int, int], augment: Augment) -> None:
    images = random_images(6, *shape)
    place: dict[str, Any] = {"first_position": 40, "step": 3, "epoch": 3, "seed": 11}
    expected = reference.make_batch(
        images,
        np.array([5, 0, 3]),
        np.full(3, -1),
        np.ones(3, np.float32),
        mean_c=np.zeros(shape[0]),
        std_c=np.full(shape[0], 1 / 255),
        **place,
        **fused_fields(augment),
    )
    for channels_last in (False, True):
        made = make_batch(images, augment, index=[5, 0, 3], plain=True, channels_last=channels_last, **place).numpy()
        if augment.resized_crop:
            np.testing.assert_allclose(made, expected, rtol=0, atol=3e-4)  # of 255
        else:
            np.testing.assert_array_equal(made, expected.round())


@pytest.mark.parametrize(("shape", "augment"), [CASES[n] for n in range(0, len(CASES), 3)])
def test_triton_images_arithmetic_matches_reference_up_to_rounding(
    shape: tuple[int, int, int], augment: Augment
) -> None:
    images = random_images(5, *shape)
    index, partner = np.array([4, 1, 0, 2]), np.array([-1, 3, 1, 3])
    weight = np.array([1.0, 0.3, 0.0, 1.0], np.float32)
    mean, std = MEAN[: shape[0]], STD[: shape[0]]
    expected = reference.make_batch(
        images, index, partner, weight, first_position=9, epoch=1, seed=5, mean_c=mean, std_c=std,
        **fused_fields(augment),
    )  # fmt: skip
    bound = 8 * 2.0**-24 * ((1 + mean) / std)[:, None, None]  # a few roundings of the largest intermediate value
    options: dict[str, Any] = {"index": index, "partner": partner, "weight": weight}
    options |= {"first_position": 9, "epoch": 1, "seed": 5}
    for channels_last in (False, True):
        single = make_batch(images, augment, channels_last=channels_last, **options)
        assert (abs(single.numpy() - expected) <= bound).all()
        half = make_batch(images, augment, channels_last=channels_last, dtype=torch.float16, **options)
        assert torch.equal(half, single.to(torch.float16))
        # The interpreter truncates to bfloat16; compiled code rounds (tests/kernels/test_triton.py).
        brain = make_batch(images, augment, channels_last=channels_last, dtype=torch.bfloat16, **options)
        assert torch.equal(brain.view(torch.int16), (single.view(torch.int32) >> 16).to(torch.int16))


@pytest.mark.parametrize(
    ("first_position", "step"), [(0, 1), (2**31 - 2, 1), (2**32 - 2, 1), (2**40 + 12_345, 8), (2**48 - 5, 1)]
)
@pytest.mark.parametrize("epoch", [0, 1, 2**32 - 1])
def test_triton_images_random_numbers_depend_on_position_and_epoch(first_position: int, step: int, epoch: int) -> None:
    images = random_images(1, 1, 9, 9)
    augment = Augment(flip=0.5, pad=4, cutout=3)
    place: dict[str, Any] = {"first_position": first_position, "step": step, "epoch": epoch, "seed": 3}
    expected = reference.make_batch(
        images, np.zeros(5, int), np.full(5, -1), np.ones(5), mean_c=np.zeros(1), std_c=np.full(1, 1 / 255), **place,
        **fused_fields(augment),
    )  # fmt: skip
    made = make_batch(images, augment, index=[0] * 5, plain=True, **place)
    np.testing.assert_array_equal(made.numpy(), expected.round())


@pytest.mark.parametrize("epoch", [0, 2**32 - 1])
def test_triton_images_random_numbers_keyed_by_sample_depend_on_copy(epoch: int) -> None:
    images = random_images(3, 1, 9, 9)
    augment = Augment(flip=0.5, pad=4, cutout=3, keyed_by="sample")
    index, copy = [2, 0, 2, 2, 1], [0, 1, 1, 300, 2**22]
    expected = reference.make_batch(
        images, np.array(index), np.full(5, -1), np.ones(5), first_position=77, epoch=epoch, seed=3,
        mean_c=np.zeros(1), std_c=np.full(1, 1 / 255), copy_b=np.array(copy), **fused_fields(augment),
    )  # fmt: skip
    made = make_batch(images, augment, index=index, copy=copy, plain=True, first_position=5, epoch=epoch, seed=3)
    np.testing.assert_array_equal(made.numpy(), expected.round())


def test_triton_images_accepts_any_seed() -> None:
    # Half of the keys are negative as the kernel's int64 argument.
    keys = [stream_key(seed, Stream.AUGMENTATION)[1] for seed in range(6)]
    assert {key >= 2**31 for key in keys} == {False, True}
    images = random_images(1, 1, 9, 9)
    for seed in range(6):
        expected = reference.make_batch(
            images, np.zeros(3, int), np.full(3, -1), np.ones(3), first_position=0, epoch=0, seed=seed, pad=4,
            mean_c=np.zeros(1), std_c=np.full(1, 1 / 255),
        )  # fmt: skip
        made = make_batch(images, Augment(pad=4), index=[0] * 3, plain=True, seed=seed)
        np.testing.assert_array_equal(made.numpy(), expected.round())


def test_triton_images_empty_batch() -> None:
    for channels_last in (False, True):
        made = make_batch(random_images(2, 3, 8, 8), Augment(pad=1), index=torch.empty(0, dtype=torch.int64),
                          channels_last=channels_last)  # fmt: skip
        assert made.shape == (0, 3, 8, 8)


def test_triton_images_reads_nothing_outside_the_image() -> None:
    images = np.full((3, 2, 5, 7), 255, np.uint8)
    images[1] = 0
    for augment in (Augment(flip=1.0, pad=4), Augment(pad=4, padding="reflect"), Augment(pad=9, padding="edge"),
                    Augment(resized_crop=(0.1, 1.0))):  # fmt: skip
        for channels_last in (False, True):
            options: dict[str, Any] = {"index": [1] * 6, "plain": True, "channels_last": channels_last}
            assert not make_batch(images, augment, **options).any()
            assert not make_batch(images, augment, partner=[1] * 6, weight=[0.3] * 6, **options).any()


# --- through the loader ---


@pytest.mark.parametrize("streamed", [False, True])
def test_triton_images_match_cpu_batches(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    split = textured_split(40)
    rng = np.random.default_rng(3)
    partner = np.where(rng.random(40) < 0.5, rng.integers(0, 40, 40), -1)
    plan = Plan(np.zeros(40, np.int16), rng.integers(0, 40, 40), partner, rng.random(40).astype(np.float32))
    order = uniform_order(40, seed=1).shard(1, 3)
    options: dict[str, Any] = {"plan": plan, "order": order, "batch_size": 4, "augment": contracts.STRONG, "seed": 6}
    expected = copies(Loader(split, **options).epoch(3))
    use_memory_of_the_cpu(monkeypatch)
    if streamed:
        monkeypatch.setattr(resident, "free_bytes", lambda device: 0.0)
    for one, other in zip(Loader(split, **options).epoch(3), expected, strict=True):
        torch.testing.assert_close(one.images, other.images, rtol=1e-6, atol=2e-6)
        assert_same([one._replace(images=other.images)], [other])


@pytest.mark.parametrize(
    "check",
    [
        contracts.check_shapes_and_types,
        contracts.check_rows_of_other_stores,
        contracts.check_trap_14_augmentation_comes_after_resampling,
        contracts.check_writing_into_a_batch_is_safe,
        contracts.check_epochs_out_of_range_are_refused,
    ],
)
def test_triton_images_contract(check: Callable[[MakeLoader], None], monkeypatch: pytest.MonkeyPatch) -> None:
    use_memory_of_the_cpu(monkeypatch)
    check(MakeLoader("native"))


def test_triton_images_kernel_is_interpreted() -> None:
    assert "interpreter" in type(triton_batch.batch_kernel).__module__
