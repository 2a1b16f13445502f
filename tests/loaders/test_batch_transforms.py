"""Augmentation of whole batches: each operation is torchvision's, and each image's result is its own."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from hbr_fast.loaders import pixel_ops, policies
from hbr_fast.loaders.augment import BINS, Augment
from hbr_fast.loaders.loader import Loader
from loaders.contracts import joined, make_split, textured_split

STRENGTHS = np.array([0.0, 0.3, 1.0, 1.7])


@pytest.fixture
def images() -> torch.Tensor:
    """Grey levels, smooth in some places; one image is flat."""
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 256, (4, 3, 12, 15))
    levels[1] = np.arange(15) * 9 + 20
    levels[3] = 77
    return torch.from_numpy(levels).float()


def each(images: torch.Tensor, function: Any, values: Any) -> torch.Tensor:
    """torchvision's function on every image alone, in [0, 1], with its value; as levels."""
    return torch.stack([function(one / 255, value) * 255 for one, value in zip(images, values, strict=True)])


def whole(images: torch.Tensor, function: Any, values: Any) -> torch.Tensor:
    """The same on bytes."""
    return torch.stack([function(one.byte(), value).float() for one, value in zip(images, values, strict=True)])


def test_colors_are_torchvisions(images: torch.Tensor) -> None:
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-3}
    for ours, theirs in (
        (pixel_ops.adjust_brightness, tv.adjust_brightness),
        (pixel_ops.adjust_saturation, tv.adjust_saturation),
        (pixel_ops.adjust_sharpness, tv.adjust_sharpness),
    ):
        torch.testing.assert_close(ours(images, STRENGTHS), each(images, theirs, STRENGTHS), **close)
    turns = [-0.5, -0.1, 0.2, 0.5]
    torch.testing.assert_close(
        pixel_ops.adjust_hue(images, np.array(turns)), each(images, tv.adjust_hue, turns), **close
    )
    gray = torch.stack([tv.rgb_to_grayscale(one / 255) * 255 for one in images])
    torch.testing.assert_close(pixel_ops.gray(images), gray, **close)
    # torchvision truncates to bytes; its mean of grey levels is that of bytes only there.
    contrast = whole(images, tv.adjust_contrast, STRENGTHS)
    torch.testing.assert_close(pixel_ops.adjust_contrast(images, STRENGTHS).floor(), contrast, rtol=0, atol=1.0)
    assert (pixel_ops.adjust_contrast(images, STRENGTHS).floor() != contrast).float().mean() < 0.02


def test_levels_are_torchvisions(images: torch.Tensor) -> None:
    bits = [8, 5, 2, 4]
    torch.testing.assert_close(pixel_ops.posterize(images, np.array(bits)), whole(images, tv.posterize, bits))
    thresholds = [0.0, 90.0, 254.9, 255.0]
    torch.testing.assert_close(pixel_ops.solarize(images, np.array(thresholds)), whole(images, tv.solarize, thresholds))
    stretched = each(images, lambda one, _: tv.autocontrast(one), range(4))
    torch.testing.assert_close(pixel_ops.autocontrast(images), stretched, rtol=0, atol=1e-3)
    equal = whole(images, lambda one, _: tv.equalize(one), range(4))
    torch.testing.assert_close(pixel_ops.equalize(images), equal)


def test_gaussian_blur_is_torchvisions(images: torch.Tensor) -> None:
    sigmas = [0.1, 0.5, 1.0, 1.5]
    expected = each(images, lambda one, sigma: tv.gaussian_blur(one, [11, 11], [sigma, sigma]), sigmas)
    got = pixel_ops.gaussian_blur(images, np.array(sigmas), largest=5 / 3)  # cut off at 5 pixels
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)


def test_affine_is_torchvisions(images: torch.Tensor) -> None:
    angles, scales = np.array([0.0, 30.0, -75.0, 180.0]), np.array([1.0, 0.7, 1.4, 2.0])
    right, down = np.array([0, 3, -4, 0]), np.array([0, -2, 5, 1])
    along, below = np.array([0.0, 20.0, -35.0, 5.0]), np.array([0.0, 0.0, 12.0, -8.0])
    matrices = pixel_ops.affine_matrices(4, angle=angles, translate=(right, down), scale=scales, shear=(along, below))
    expected = [
        tv.affine(one, angle, [int(x), int(y)], scale, [sx, sy], interpolation=InterpolationMode.BILINEAR)
        for one, angle, x, y, scale, sx, sy in zip(images, angles, right, down, scales, along, below, strict=True)
    ]
    got = pixel_ops.affine(images, matrices, [0.0, 0.0, 0.0])
    torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=0.05)


@pytest.mark.parametrize("policy", [v2.TrivialAugmentWide, v2.RandAugment])
def test_policies_are_torchvisions(images: torch.Tensor, policy: Any) -> None:
    """Every operation at several strengths, against torchvision's own on the same image."""
    theirs = policy(interpolation=InterpolationMode.BILINEAR)
    height, width = images.shape[2:]
    strengths = (
        policies.trivial_strengths() if policy is v2.TrivialAugmentWide else policies.rand_strengths(height, width)
    )
    assert tuple(theirs._AUGMENTATION_SPACE) == policies.OPERATIONS
    bins, signs = np.array([0, 11, 30, 30]), np.array([1, -1, 1, -1])
    for number, name in enumerate(policies.OPERATIONS):
        got = policies.apply(images.clone(), np.full(4, number), bins, signs, strengths, [0.0, 0.0, 0.0])
        make, signed = theirs._AUGMENTATION_SPACE[name]
        values = make(BINS + 1, height, width)
        for one, image, bin_, sign in zip(got, images, bins, signs, strict=True):
            magnitude = 0.0 if values is None else float(values[bin_]) * (sign if signed else 1)
            # Levels as bytes where that matters: contrast's mean, posterisation and equalisation.
            of_bytes = name in ("Contrast", "Posterize", "Equalize")
            given = image.byte() if of_bytes else image / 255
            want = theirs._apply_image_or_video_transform(
                given, name, magnitude, interpolation=InterpolationMode.BILINEAR, fill={torch.Tensor: None}
            )
            want = want.float() * (1 if of_bytes else 255)
            torch.testing.assert_close(
                one, want, rtol=0, atol=1.01 if name == "Contrast" else 0.05, msg=f"{name} {bin_}"
            )


def test_policies_apply_each_images_own_operation(images: torch.Tensor) -> None:
    """Mixed operations give what each gives alone."""
    many = images.repeat(7, 1, 1, 1)
    operations, bins = np.arange(28) % 14, np.arange(28) + 1
    signs = np.where(np.arange(28) % 3, 1, -1)
    strengths = policies.trivial_strengths()
    got = policies.apply(many.clone(), operations, bins, signs, strengths, [0.0, 0.0, 0.0])
    for row in range(28):
        own = slice(row, row + 1)
        alone = policies.apply(many[own].clone(), operations[own], bins[own], signs[own], strengths, [0.0, 0.0, 0.0])
        assert torch.equal(got[own], alone), policies.OPERATIONS[operations[row]]


# --- in a loader ---


def batch_of(augment: Augment, *, size: int = 12, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels of the augmented images of one epoch, and of the plain ones, by position."""
    split = textured_split(rows, size=size)
    made = []
    for one in (augment, Augment()):
        images = joined(Loader(split, batch_size=100, augment=one, seed=3).epoch(2)).images
        made.append((images * 0.25 + 0.4) * 255)
    return made[0], made[1]


@pytest.mark.parametrize("field", ["vertical_flip", "grayscale", "blur", "erase"])
def test_probabilities_are_those_asked_for(field: str) -> None:
    only: dict[str, Any] = {field: 0.3}
    got, plain = batch_of(Augment(**only))
    changed = (got != plain).flatten(1).any(1)
    assert 0.22 < changed.float().mean() < 0.38  # 4.4 standard deviations
    if field == "vertical_flip":
        assert torch.equal(got[changed], plain[changed].flip(2))
    if field == "grayscale":
        assert torch.equal(got[changed][:, 0], got[changed][:, 1])
    if field == "erase":
        pixels = (got[changed] != plain[changed]).any(1)
        assert torch.allclose(got[changed].permute(0, 2, 3, 1)[pixels], torch.tensor(0.4 * 255), atol=1e-3)
        tall, wide = pixels.any(2).sum(1), pixels.any(1).sum(1)
        assert torch.equal(pixels.flatten(1).sum(1), tall * wide), "a rectangle"
        assert tall.unique().numel() > 4
        assert (tall * wide).max() <= 0.33 * 144 + 12
        assert (tall * wide).min() >= 1


def test_color_jitter_stays_in_its_range() -> None:
    split = make_split(np.full((300, 1, 4, 4), 100, np.uint8), mean=0.4, std=0.25)
    images = joined(Loader(split, batch_size=300, augment=Augment(color_jitter=(0.4,))).epoch(0)).images
    factors = (images[:, 0, 0, 0] * 0.25 + 0.4) * 2.55
    assert 0.6 <= factors.min() < 0.62
    assert 1.38 < factors.max() <= 1.4001
    assert 0.95 < factors.mean() < 1.05


def test_rotate_and_translate_fill_with_black_or_the_mean() -> None:
    white = make_split(np.full((50, 3, 8, 8), 255, np.uint8), mean=0.4, std=0.25)
    for padding, level in (("zero", 0.0), ("mean", 102.0)):
        augment = Augment(translate=0.4, padding=padding)
        images = joined(Loader(white, batch_size=50, augment=augment).epoch(0)).images
        levels = ((images * 0.25 + 0.4) * 255).round()
        assert set(levels.unique().tolist()) == {level, 255.0}


def test_trivial_augment_leaves_about_an_eighteenth_as_it_is() -> None:
    got, plain = batch_of(Augment(trivial_augment=True))
    same = ((got - plain).abs() < 0.01).flatten(1).all(1).float().mean()
    assert 0.05 < same < 0.25  # identity, and operations at strength 0


MINE = """
import torch


def dim(image, by=0.5):
    return image * by


def noisy(image):
    return image + 0.1 * torch.rand_like(image)


def keyed(images, seeds, by=1.0):
    shifts = (seeds % 1000).float() / 1000
    return (images + by * shifts[:, None, None, None]).clamp(0, 1)


def cropped(image):
    return image[:, 1:]


def nothing(image):
    return None
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mytransforms.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mytransforms", raising=False)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("transform", "arguments"),
    [
        ("mytransforms:noisy", {}),
        ("mytransforms:keyed", {"by": 0.5}),
        ("torchvision:ElasticTransform", {"alpha": 30.0, "sigma": 1.0}),
    ],
)
def test_users_transform_does_not_depend_on_the_batch_and_leaves_torchs_generator(
    transform: str, arguments: dict[str, Any]
) -> None:
    split = textured_split(24)
    augment = Augment(transform=transform, transform_args=arguments)
    torch.manual_seed(1)
    one = joined(Loader(split, batch_size=24, augment=augment, seed=3).epoch(1))
    drawn = torch.rand(1)
    other = joined(Loader(split, batch_size=5, augment=augment, seed=3).epoch(1))
    assert torch.equal(one.images, other.images)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    plain = joined(Loader(split, batch_size=24, seed=3).epoch(1))
    assert (one.images != plain.images).flatten(1).any(1).all()
    assert not torch.equal(one.images, joined(Loader(split, batch_size=24, augment=augment, seed=3).epoch(2)).images)


@pytest.mark.usefixtures("mine")
def test_users_transform_gets_images_between_0_and_1() -> None:
    split = textured_split(10)
    dimmed = Augment(transform="mytransforms:dim", transform_args={"by": 0.25})
    got, plain = (joined(Loader(split, batch_size=10, augment=one).epoch(0)).images for one in (dimmed, Augment()))
    torch.testing.assert_close(got * 0.25 + 0.4, (plain * 0.25 + 0.4) * 0.25, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (Augment(transform="mytransforms:absent"), "transform 'mytransforms:absent': mytransforms has no absent"),
        (Augment(transform="not_there_at_all:f"), "not_there_at_all cannot be imported"),
        (Augment(transform="torchvision:Nothing"), "has no Nothing"),
        (Augment(transform="torchvision:functional"), "is of type module, not a function"),
        (Augment(transform="torchvision:query_size"), "is not a transform class|cannot be made"),
        (
            Augment(transform="torchvision:GaussianNoise", transform_args={"sigmas": 1}),
            r"cannot be made with \{'sigmas': 1\} .*its signature is \(",
        ),
        (
            Augment(transform="mytransforms:dim", transform_args={"to": 1}),
            r"takes \(image, by=0.5\), not \(image\) and",
        ),
        (
            Augment(transform="mytransforms:cropped"),
            r"returned torch.float32 \[3, 8, 9\]: it must return .* \[3, 9, 9\]",
        ),
        (Augment(transform="mytransforms:nothing"), "returned NoneType: it must return"),
        (
            Augment(transform="torchvision:CenterCrop", transform_args={"size": 4}),
            r"returned torch.float32 \[3, 4, 4\]",
        ),
    ],
)
def test_users_transform_that_does_not_fit_is_named(augment: Augment, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(Loader(textured_split(4), batch_size=2, augment=augment).epoch(0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vertical_flip": 1.5}, r"vertical_flip is a probability in \[0, 1\], got 1.5"),
        ({"erase": -0.1, "blur": float("nan")}, r"blur is a probability.*; erase is a probability"),
        ({"rotate": 200}, r"rotate is an angle in degrees in \[0, 180\], got 200"),
        ({"shear": 90}, r"shear is an angle in degrees in \[0, 89\], got 90"),
        ({"translate": 1}, r"translate is a share of the side in \[0, 1\), got 1"),
        ({"scale": (0, 1)}, r"scale is two factors above 0, the smaller first, got \(0, 1\)"),
        ({"rand_augment": (0, 9)}, r"rand_augment is a number of operations in \[1, 14\] and a strength in \[0, 30\]"),
        ({"rand_augment": (2, 9), "trivial_augment": True}, "two policies: give one of them"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "color_jitter is the largest change of brightness"),
        ({"color_jitter": ()}, "color_jitter is the largest change of brightness"),
        ({"blur_sigma": (2, 1)}, "blur_sigma is two numbers of pixels"),
        ({"transform": "flip"}, "transform must be torchvision:CLASS or package.module:function, got 'flip'"),
        ({"transform_args": {"a": 1}}, "transform_args without transform do nothing"),
        ({"erase_area": (0.1, 2)}, "erase_area is two shares of the area"),
        ({"erase_aspect": (3, 1)}, "erase_aspect is two ratios above 0"),
        ({"padding": "edge", "rotate": 9}, "padding='edge' without pad does nothing"),
    ],
)
def test_augment_names_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**values)


def test_colors_of_images_without_colors_are_refused_and_grey_ones_jittered() -> None:
    two = make_split(np.zeros((4, 2, 6, 6), np.uint8))
    with pytest.raises(ValueError, match=r"color jitter, grayscale: for images of 1 channel \(grey\) or 3 \(RGB\)"):
        Loader(two, batch_size=2, augment=Augment(color_jitter=(0.1,), grayscale=0.5))
    every = Augment(color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.5, rand_augment=(3, 20), blur=0.5, vertical_flip=0.5)
    grey = make_split(np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8))
    assert joined(Loader(grey, batch_size=30, augment=every).epoch(0)).images.shape == (60, 1, 8, 8)


def test_cutout_comes_after_the_colors() -> None:
    """Its square is the channel's mean, whatever happens to the colours, where the fused pass has it."""
    fused = Augment(flip=0.5, pad=2, cutout=4)
    both = dataclasses.replace(fused, color_jitter=(0.8, 0.8))
    got, expected = (batch_of(one)[0] for one in (both, fused))
    square = (expected - 102).abs().amax(1) < 0.01
    assert (square.flatten(1).sum(1) >= 16).all()
    squares = (got - 102).abs().amax(1) < 0.01
    assert (squares & square).flatten(1).sum(1).min() >= 16
