import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from hbr_fast.kernels import reference
from hbr_fast.kernels.images import cpu_batch, cpu_crops
from hbr_fast.seeding import Stream, stream_key

WIDTHS = [1, 3, 7, 8, 9, 15, 16, 17, 28, 31, 32, 33, 64, 70]
# Each number of channels is compiled anew for vectors of each size.
WIDTHS_AND_CHANNELS = [*((width, channels) for width in WIDTHS for channels in (1, 3)), (3, 4), (33, 2), (70, 4)]
GUARD = 77  # odd, so that the output also starts at odd addresses


def make_batch(
    images_nchw: np.ndarray,
    index_b: Sequence[int] | np.ndarray,
    *,
    partner_b: Sequence[int] | None = None,
    weight_b: Sequence[float] | None = None,
    first_position: int = 0,
    step: int = 1,
    epoch: int = 0,
    seed: int = 0,
    flip: float = 0.0,
    pad: int = 0,
    scale_c: Sequence[float] | np.ndarray | None = None,
    bias_c: Sequence[float] | np.ndarray | None = None,
    channels_last: bool = False,
    bf16: bool = False,
    threads: int = 1,
    draw_key_b: Sequence[int] | None = None,
    **more: Any,
) -> np.ndarray:
    """The kernel's batch [B, C, H, W] (float32, or uint16 bits), from an output with guards on both sides."""
    count, (_, channels, height, width) = len(index_b), images_nchw.shape
    # Types as in loaders: the split is read-only, the rest is not.
    images = np.ascontiguousarray(images_nchw)
    labels = np.arange(len(images), dtype=np.int64) % 10
    images.flags.writeable = labels.flags.writeable = False
    size = count * channels * height * width
    memory = np.zeros(GUARD + size + GUARD, np.uint16 if bf16 else np.float32)
    memory.view(np.uint8)[:] = 0xA5
    untouched = memory[0]
    labels_out, ids_out = np.full(count, -9), np.full(count, -9)
    # The plan in reverse, so that plan row, batch row and sample all differ.
    index_r, partner_r, weight_r = (
        np.ascontiguousarray(np.array(column, dtype)[::-1])
        for column, dtype in (
            (index_b, np.int64),
            (partner_b if partner_b is not None else [-1] * count, np.int64),
            (weight_b if weight_b is not None else [1.0] * count, np.float32),
        )
    )
    cpu_batch.ImagePass(
        (channels, height, width),
        sizes=[len(images)],
        bases=[images.ctypes.data],
        labels=labels,
        store_r=np.zeros(count, np.int16),
        index_r=index_r,
        partner_r=partner_r,
        weight_r=weight_r,
        key=stream_key(seed, Stream.AUGMENTATION),
        scale_c=np.array(scale_c if scale_c is not None else [1.0] * channels),
        bias_c=np.array(bias_c if bias_c is not None else [0.0] * channels),
        channels_last=channels_last,
        bf16=bf16,
        flip_below=round(flip * 2**32),
        pad=pad,
        draw_keys_r=None if draw_key_b is None else np.array(draw_key_b[::-1], np.int64),
        **{"border_c": np.zeros(channels), "cutout_c": np.zeros(channels), **more},
    ).make(
        torch.arange(count).flip(0),
        first_position=first_position,
        step=step,
        epoch=epoch,
        images=torch.from_numpy(memory[GUARD : GUARD + size]).view(count, channels, height, width),
        labels_r=torch.from_numpy(labels_out),
        ids_r=torch.from_numpy(ids_out),
        threads=threads,
    )
    assert (memory[:GUARD] == untouched).all(), "written before the output"
    assert (memory[GUARD + size :] == untouched).all(), "written behind the output"
    np.testing.assert_array_equal(ids_out, index_b)
    np.testing.assert_array_equal(labels_out, labels[np.array(index_b, np.int64)])
    out = memory[GUARD : GUARD + size]
    if channels_last:
        return out.reshape(count, height, width, channels).transpose(0, 3, 1, 2)
    return out.reshape(count, channels, height, width)


def expected_bytes(images: np.ndarray, index_b: Sequence[int] | np.ndarray, **options: int | float) -> np.ndarray:
    """The reference's batch of plain rows, as the bytes picked: float64 [B, C, H, W], whole numbers."""
    channels = images.shape[1]
    result = reference.make_batch(
        images,
        np.asarray(index_b),
        np.full(len(index_b), -1),
        np.ones(len(index_b), np.float32),
        first_position=int(options.get("first_position", 0)),
        step=int(options.get("step", 1)),
        epoch=int(options.get("epoch", 0)),
        seed=int(options.get("seed", 0)),
        flip=float(options.get("flip", 0.0)),
        pad=int(options.get("pad", 0)),
        mean_c=np.zeros(channels),
        std_c=np.full(channels, 1 / 255),
    )
    assert abs(result - np.rint(result)).max(initial=0) < 1e-9
    return np.rint(result)


def float_of_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bf16_of_float(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return rounded.view(torch.uint16).numpy()


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("width", "channels"), WIDTHS_AND_CHANNELS)
def test_batch_matches_reference_pixels(width: int, channels: int) -> None:
    # Scale 1 and bias 0: values are the bytes themselves, in float32 and in bfloat16 (8 significant bits).
    for height, pad, flip in [(h, p, f) for h in (1, 6) for p in (0, 1, 2, 4) for f in (0.0, 0.5, 1.0)]:
        images = random_images(7, channels, height, width)
        index = [6, 0, 3, 3, 5]
        expected = expected_bytes(images, index, pad=pad, flip=flip, epoch=3, seed=11, first_position=40)
        for channels_last in (False, True):
            for bf16 in (False, True):
                batch = make_batch(
                    images, index, pad=pad, flip=flip, epoch=3, seed=11, first_position=40,
                    channels_last=channels_last, bf16=bf16,
                )  # fmt: skip
                picked = float_of_bf16(batch) if bf16 else batch
                np.testing.assert_array_equal(picked, expected, err_msg=f"{height=} {pad=} {flip=} {channels_last=}")


@pytest.mark.parametrize(("width", "channels"), WIDTHS_AND_CHANNELS)
def test_batch_arithmetic_matches_reference(width: int, channels: int) -> None:
    mean, std = np.array([0.49, 0.0, 0.7, 0.3])[:channels], np.array([0.247, 1.0, 0.1, 0.5])[:channels]
    scale, bias = 1 / (255 * std), -mean / std
    index, partner, weight = [4, 4, 1, 0, 2, 3, 2], [-1, 2, 3, 1, -1, 3, 0], [1.0, 0.3, 0.0, 1.0, 1.0, 0.3, 0.5]
    for height, pad, flip in ((1, 0, 0.5), (5, 0, 1.0), (5, 2, 0.0), (1, 4, 0.5), (4, 4, 1.0)):
        images = random_images(5, channels, height, width)
        expected = reference.make_batch(
            images, np.array(index), np.array(partner), np.array(weight, np.float32), first_position=9, epoch=1,
            seed=5, flip=flip, pad=pad, mean_c=mean, std_c=std,
        )  # fmt: skip
        # Intermediate values are at most (1 + mean) / std; allow a few roundings of 2**-24 of that.
        bound = 4 * 2.0**-24 * ((1 + mean) / std)[:, None, None]
        for channels_last in (False, True):
            single, half = (
                make_batch(
                    images, index, partner_b=partner, weight_b=weight, first_position=9, epoch=1, seed=5, flip=flip,
                    pad=pad, scale_c=scale, bias_c=bias, channels_last=channels_last, bf16=bf16,
                )
                for bf16 in (False, True)
            )  # fmt: skip
            assert (abs(single - expected) <= bound).all(), f"{height=} {pad=} {flip=} {channels_last=}"
            np.testing.assert_array_equal(half, bf16_of_float(single))


@pytest.mark.parametrize(("channels", "width"), [(1, 5), (2, 9), (3, 16), (3, 33), (4, 40), (5, 12)])
def test_batch_augmentations_match_reference(channels: int, width: int) -> None:
    height = 11
    images = random_images(6, channels, height, width)
    mean, std = np.linspace(0.2, 0.7, channels), np.linspace(0.1, 0.4, channels)
    level = reference.mean_level(mean).astype(np.uint8)
    index, partner, weight = [5, 0, 2, 2, 4, 3], [-1, 2, 3, -1, 5, -1], [1.0, 0.3, 0.0, 1.0, 0.7, 1.0]
    sizes = reference.crop_sizes(height, width, (0.1, 0.9), (0.5, 2.0))
    paddings = {"zero": cpu_crops.CONSTANT, "mean": cpu_crops.CONSTANT}
    paddings |= {"reflect": cpu_crops.REFLECT, "edge": cpu_crops.EDGE}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"flip": 0.5, "alternating_flip": True}, {"flip": 0.5, "alternating_flip": True}),
        ({"cutout": 4}, {"cutout": 4}),
        ({"resized_crop": (0.1, 0.9), "aspect": (0.5, 2.0), "flip": 0.5}, {"crop_sizes": sizes, "flip": 0.5}),
        *(
            (
                {"padding": name, "pad": 4, "flip": 0.5, "cutout": 2},
                {"padding": kind, "pad": 4, "flip": 0.5, "cutout": 2, "border_c": level * (name == "mean")},
            )
            for name, kind in paddings.items()
        ),
    ]
    bound = 16 * 2.0**-24 * ((1 + mean) / std)[:, None, None]
    for options, ours in cases:
        for epoch, (channels_last, threads) in enumerate([(False, 1), (True, 2)]):
            expected = reference.make_batch(
                images, np.array(index), np.array(partner), np.array(weight, np.float32), first_position=9, epoch=epoch,
                seed=5, mean_c=mean, std_c=std, **options,
            )  # fmt: skip
            single, half = (
                make_batch(
                    images, index, partner_b=partner, weight_b=weight, first_position=9, epoch=epoch, seed=5,
                    scale_c=1 / (255 * std), bias_c=-mean / std, channels_last=channels_last, bf16=bf16,
                    threads=threads, cutout_c=level, **ours,
                )
                for bf16 in (False, True)
            )  # fmt: skip
            assert (abs(single - expected) <= bound).all(), f"{options=} {channels_last=}"
            np.testing.assert_array_equal(half, bf16_of_float(single))


@pytest.mark.parametrize("width", [5, 8, 40])
def test_batch_weights_0_and_1_are_exact(width: int) -> None:
    images = random_images(3, 1, 4, width)
    batch = make_batch(images, [0, 1], partner_b=[2, 2], weight_b=[0.0, 1.0], flip=0.5, pad=2, epoch=2)
    np.testing.assert_array_equal(batch, expected_bytes(images, [2, 1], flip=0.5, pad=2, epoch=2))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_batch_interpolation_keeps_fractions(weight: float) -> None:
    images = np.array([0, 1], np.uint8).repeat(16).reshape(2, 1, 1, 16)
    batch = make_batch(images, [1], partner_b=[0], weight_b=[weight])
    np.testing.assert_array_equal(batch, np.full((1, 1, 1, 16), np.float32(weight)))


@pytest.mark.parametrize("width", [1, 7, 9, 17, 33])
def test_batch_bfloat16_rounds_to_nearest_even(width: int) -> None:
    # 256 bytes times 1/2 and an odd bias meet every kind of tie: bfloat16 keeps 8 of the bits.
    images = np.arange(256, dtype=np.uint8).repeat(width).reshape(256, 1, 1, width)
    for scale, bias in ((0.5, 128.0), (-0.5, -128.0), (0.01, 0.3), (2.0, 257.0)):
        single, half = (
            make_batch(images, range(256), scale_c=[scale], bias_c=[bias], bf16=bf16) for bf16 in (False, True)
        )
        np.testing.assert_array_equal(half, bf16_of_float(single))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 129])
def test_batch_of_any_size(count: int) -> None:
    images = random_images(150, 3, 8, 8)
    index = np.random.default_rng(0).integers(0, 150, count)
    batch = make_batch(images, index, flip=0.5, pad=1)
    np.testing.assert_array_equal(batch, expected_bytes(images, index, flip=0.5, pad=1).reshape(batch.shape))


@pytest.mark.parametrize("first_position", [0, 2**32 - 2, 2**32, 2**40 + 12_345, 2**48 - 5])
@pytest.mark.parametrize("epoch", [0, 1, 2**32 - 1])
def test_batch_numbers_depend_on_position_and_epoch(first_position: int, epoch: int) -> None:
    images = random_images(1, 1, 9, 9)
    batch = make_batch(images, [0] * 5, first_position=first_position, epoch=epoch, pad=4, flip=0.5, seed=3)
    expected = expected_bytes(
        images, [0] * 5, first_position=first_position, epoch=epoch, pad=4, flip=0.5, seed=3
    )  # fmt: skip
    np.testing.assert_array_equal(batch, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_batch_numbers_keyed_by_sample_depend_on_copy(threads: int) -> None:
    images = random_images(7, 1, 9, 9)
    index, copy = np.arange(40) % 7, np.arange(40) // 7
    copy[-3:] = 1000, 2**22, 2**23 - 1
    mean, std = np.zeros(1), np.full(1, 1 / 255)
    for epoch in (0, 2**32 - 1):
        expected = reference.make_batch(
            images, index, np.full(40, -1), np.ones(40), first_position=77, epoch=epoch, seed=3, mean_c=mean, std_c=std,
            flip=0.5, pad=2, cutout=3, keyed_by="sample", copy_b=copy,
        )  # fmt: skip
        batch = make_batch(
            images, index, first_position=5, step=3, epoch=epoch, seed=3, flip=0.5, pad=2, cutout=3, threads=threads,
            draw_key_b=[reference.draw_key(*pair) for pair in zip(index.tolist(), copy.tolist(), strict=True)],
        )  # fmt: skip
        np.testing.assert_array_equal(batch, np.rint(expected))


def test_batch_keeps_64_bit_positions() -> None:
    images = random_images(1, 1, 9, 9)
    low, high = (make_batch(images, [0] * 20, first_position=p, pad=4, flip=0.5) for p in (0, 2**32))
    assert (low != high).any(axis=(1, 2, 3)).sum() > 10


def test_batch_crops_and_flips_are_uniform() -> None:
    # One bright pixel in the middle of 9 x 9 shows where the crop began; its neighbour shows the flip.
    image = np.zeros((1, 1, 11, 11), np.uint8)
    image[0, 0, 5, 5], image[0, 0, 5, 6] = 255, 100
    batch = make_batch(image, [0] * 20_000, pad=4, flip=0.25, seed=1)[:, 0]
    places = batch.reshape(len(batch), -1).argmax(axis=1)
    top, left = np.divmod(places, 11)
    assert chisquare(np.bincount((top - 1) * 9 + left - 1, minlength=81)).pvalue > 1e-4
    flipped = batch[np.arange(len(batch)), top, left - 1] == 100
    assert chisquare([flipped.sum(), (~flipped).sum()], [5_000, 15_000]).pvalue > 1e-4
    # Crop and flip are drawn independently.
    table = np.array([np.bincount(top[where] - 1, minlength=9) for where in (flipped, ~flipped)])
    expected = table.sum(axis=0) * table.sum(axis=1, keepdims=True) / table.sum()
    assert chisquare(table, expected, axis=None, ddof=8).pvalue > 1e-4


@pytest.mark.parametrize("width", WIDTHS)
def test_batch_reads_nothing_outside_image(width: int) -> None:
    images = np.full((3, 2, 5, width), 255, np.uint8)
    images[1] = 0
    for pad in (0, 1, 4):
        for channels_last in (False, True):
            for flip in (0.0, 1.0):
                batch = make_batch(images, [1] * 9, pad=pad, flip=flip, channels_last=channels_last)
                assert not batch.any()
                mixed = make_batch(
                    images, [1] * 9, partner_b=[1] * 9, weight_b=[0.3] * 9, pad=pad, flip=flip,
                    channels_last=channels_last,
                )  # fmt: skip
                assert not mixed.any()


@pytest.mark.parametrize("width", [3, 8, 33])
def test_batch_clears_border_for_every_image(width: int) -> None:
    # Images of 255 with a border: any pixel left from the previous crop would show in the border.
    images = np.full((2, 1, 5, width), 255, np.uint8)
    batch = make_batch(images, [0, 1] * 50, pad=4, flip=0.5)
    np.testing.assert_array_equal(batch, expected_bytes(images, [0, 1] * 50, pad=4, flip=0.5))


def test_batch_position_stride() -> None:
    images = random_images(6, 1, 9, 12)
    index = [0, 3, 5, 1]
    np.testing.assert_array_equal(
        make_batch(images, index, first_position=5, step=3, epoch=2, pad=2, flip=0.5, seed=8),
        expected_bytes(images, index, first_position=5, step=3, epoch=2, pad=2, flip=0.5, seed=8),
    )


def test_batch_padding_larger_than_image() -> None:
    # A scratch image this large is unmapped if it is freed too early.
    images = random_images(3, 1, 8, 8)
    np.testing.assert_array_equal(
        make_batch(images, [2, 0], pad=300, seed=1), expected_bytes(images, [2, 0], pad=300, seed=1)
    )


def test_batch_uses_no_freed_memory() -> None:
    # The C library overwrites freed memory: reading it would change the pixels.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "matches_reference_pixels",
    ]
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
