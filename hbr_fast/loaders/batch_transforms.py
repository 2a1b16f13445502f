"""The second stage of a loader: operations on a whole batch, on its device, between crop and normalisation.

The backend makes grey levels instead of normalised pixels (`level_job`). Then follow, in this order: vertical flip,
affine map, TrivialAugment or RandAugment, colour jitter, grey, blur, the user's transform, cutout, normalisation,
erasing.

Random numbers are keyed by (seed, epoch, position or sample) of each image, on the host: an image's result depends
neither on the batch size nor on the rank, and hardly on the device.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from hbr_fast.functions import function_named
from hbr_fast.kernels.words import words_of
from hbr_fast.loaders import pixel_ops, policies
from hbr_fast.loaders.augment import BINS, Augment
from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.rows import rows_of_order
from hbr_fast.seeding import Stream, stream_key

# What Philox's `use` word separates: four numbers a use. From `_POLICY` on, one use for each operation of RandAugment.
_FLIP_GRAY_BLUR_SIGMA, _AFFINE, _SHEAR, _JITTER, _ERASE, _ERASE_LEFT, _SEEDS, _POLICY = range(8)
_CUTOUT = 1  # of the stream of crops and flips, as in `reference.make_batch`


def level_job(job: Job) -> Job:
    """The job as a backend gets it, where operations on the batch follow."""
    first = dataclasses.replace(job.augment, cutout=0)
    return dataclasses.replace(job, augment=first, levels=True, dtype=torch.float32, channels_last=False)


class BatchTransforms:
    """The operations on the batches of a job.

    Raises
    ------
    ValueError
        If the user's transform cannot be found or its arguments do not fit.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._fill = job.padding_c.tolist()
        self._size = job.split.image_shape[1:]
        self._user = _Transform(job.augment) if job.augment.transform else None

    def applied(self, batches: Iterator[Batch], epoch: int, start: int) -> Iterator[Batch]:
        """The batches `start`, `start + 1`, ... of an epoch, from those of `level_job`."""
        for number, batch in enumerate(batches, start):
            yield Batch(self._images(batch.images, _Draws(self.job, epoch, number)), *batch[1:])

    def _images(self, images: torch.Tensor, draws: _Draws) -> torch.Tensor:
        augment = self.job.augment
        images = self._placed(images, draws)
        images = self._policy(images, draws)
        images = self._colored(images, draws)
        if self._user is not None:
            images = self._user(images, draws.seeds())
        if augment.cutout:
            level = torch.from_numpy(self.job.cutout_c).to(images)[:, None, None]
            images = torch.where(pixel_ops.inside(self._cutouts(draws), images), level, images)
        scale, bias = (
            torch.from_numpy(one).to(images.device)[:, None, None] for one in (self.job.scale_c, self.job.bias_c)
        )
        images = torch.addcmul(bias, images, scale)
        if augment.erase:
            images = torch.where(pixel_ops.inside(self._erased(draws), images), 0.0, images)
        layout = torch.channels_last if self.job.channels_last else torch.contiguous_format
        return images.to(self.job.dtype, memory_format=layout)

    def _placed(self, images: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """After vertical flip and affine map."""
        augment, (height, width) = self.job.augment, self._size
        if augment.vertical_flip:
            flipped = pixel_ops.column(draws.uniform(_FLIP_GRAY_BLUR_SIGMA)[0] < augment.vertical_flip, images)
            images = torch.where(flipped > 0, images.flip(2), images)
        if augment.rotate or augment.translate or augment.scale or augment.shear:
            either_way = 2 * draws.uniform(_AFFINE) - 1
            small, large = augment.scale or (1.0, 1.0)
            matrices = pixel_ops.affine_matrices(
                len(images),
                angle=augment.rotate * either_way[0],
                translate=(
                    np.rint(augment.translate * width * either_way[1]),
                    np.rint(augment.translate * height * either_way[2]),
                ),
                scale=small + (large - small) * draws.uniform(_AFFINE)[3],
                shear=(augment.shear * (2 * draws.uniform(_SHEAR)[0] - 1), 0.0),
            )
            images = pixel_ops.affine(images, matrices, self._fill)
        return images

    def _policy(self, images: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """After TrivialAugment or RandAugment."""
        augment = self.job.augment
        if not augment.trivial_augment and augment.rand_augment is None:
            return images
        count, strength = augment.rand_augment or (1, None)
        strengths = policies.trivial_strengths() if strength is None else policies.rand_strengths(*self._size)
        for number in range(count):
            kind, bins, side, _ = draws.uniform(_POLICY + number)
            operation = (kind * len(policies.OPERATIONS)).astype(np.int64)
            drawn = (bins * (BINS + 1)).astype(np.int64)
            bin_b = drawn if strength is None else np.full_like(drawn, strength)
            images = policies.apply(images, operation, bin_b, np.where(side < 0.5, 1, -1), strengths, self._fill)
        return images

    def _colored(self, images: torch.Tensor, draws: _Draws) -> torch.Tensor:
        """After colour jitter, grey and blur."""
        augment = self.job.augment
        changes = (*(augment.color_jitter or ()), 0.0, 0.0, 0.0, 0.0)
        drawn = draws.uniform(_JITTER) if any(changes) else np.zeros((4, 0))
        adjusts = (pixel_ops.adjust_brightness, pixel_ops.adjust_contrast, pixel_ops.adjust_saturation)
        for adjust, change, uniform in zip(adjusts, changes[:3], drawn[:3], strict=True):
            if change:
                low = max(0.0, 1 - change)
                images = adjust(images, low + (1 + change - low) * uniform)
        if changes[3]:
            images = pixel_ops.adjust_hue(images, changes[3] * (2 * drawn[3] - 1))
        chances = draws.uniform(_FLIP_GRAY_BLUR_SIGMA) if augment.grayscale or augment.blur else np.ones((4, 0))
        if augment.grayscale:
            grayed = pixel_ops.column(chances[1] < augment.grayscale, images)
            images = torch.where(grayed > 0, pixel_ops.gray(images), images)
        if len(rows := np.flatnonzero(chances[2] < augment.blur)):
            small, large = augment.blur_sigma
            chosen = torch.from_numpy(rows).to(images.device)
            sigma = small + (large - small) * chances[3, rows]
            images = images.clone()
            images[chosen] = pixel_ops.gaussian_blur(images[chosen], sigma, largest=large)
        return images

    def _cutouts(self, draws: _Draws) -> np.ndarray:
        side = self.job.augment.cutout
        words = draws.words(_CUTOUT, Stream.AUGMENTATION)
        boxes = np.full((words.shape[1], 4), side)
        for place, size in enumerate(self._size):
            boxes[:, place] = words[place] * np.uint64(size - side + 1) >> np.uint64(32)
        return boxes

    def _erased(self, draws: _Draws) -> np.ndarray:
        """Boxes to erase, of no pixels in images that are left as they are: float64 [B, 4]."""
        augment, (height, width) = self.job.augment, self._size
        chance, of_area, of_aspect, at_top = draws.uniform(_ERASE)
        small, large = augment.erase_area
        area = height * width * (small + (large - small) * of_area)
        narrow, broad = np.log(augment.erase_aspect)
        aspect = np.exp(narrow + (broad - narrow) * of_aspect)
        tall = np.clip(np.rint(np.sqrt(area * aspect)), 1, height) * (chance < augment.erase)
        wide = np.clip(np.rint(np.sqrt(area / aspect)), 1, width)
        top = np.floor(at_top * (height - tall + 1))
        left = np.floor(draws.uniform(_ERASE_LEFT)[0] * (width - wide + 1))
        return np.stack([top, left, tall, wide], axis=1)


class _Draws:
    """The random numbers of the images of one batch."""

    def __init__(self, job: Job, epoch: int, number: int) -> None:
        self._job, self._epoch = job, epoch
        position = number * job.batch_size
        count = min(job.batch_size, len(job.order) - position)
        if job.draw_keys is None:
            first, step = job.order.global_positions(position)
            self._keys = first + step * np.arange(count)
        else:
            self._keys = job.draw_keys[rows_of_order(job, position, count, epoch)]

    def words(self, use: int, stream: Stream = Stream.TRANSFORMS) -> np.ndarray:
        """Four random words below 2**32 for each image: uint64 [4, B]."""
        words = np.empty((4, len(self._keys)), np.uint64)
        key0, key1 = np.array(stream_key(self._job.seed, stream), np.uint64)
        words_of(self._keys, self._epoch, use, key0, key1, words)
        return words

    def uniform(self, use: int) -> np.ndarray:
        """Four numbers in [0, 1) for each image: float64 [4, B]."""
        return self.words(use) / 2.0**32

    def seeds(self) -> np.ndarray:
        """A seed for each image: int64 [B], in [0, 2**63)."""
        words = self.words(_SEEDS)
        return (words[0] << np.uint64(31) | words[1] >> np.uint64(1)).astype(np.int64)


class _Transform:
    """The user's function, or a transform of torchvision: of the batch if it takes `seeds`, else of each picture."""

    def __init__(self, augment: Augment) -> None:
        name, arguments = augment.transform, dict(augment.transform_args)
        module, _, path = name.partition(":")
        self._name, self._on_batch = name, False
        function = function_named("transform", f"torchvision.transforms.v2:{path}" if module == "torchvision" else name)
        self._function: Callable[..., Any]
        if module == "torchvision":
            self._function = _constructed(name, function, arguments)
        else:
            self._on_batch = "seeds" in _parameters(name, function)
            _require_fit(name, function, ("images", "seeds") if self._on_batch else ("image",), arguments)
            self._function = functools.partial(function, **arguments)

    def __call__(self, levels: torch.Tensor, seeds_b: np.ndarray) -> torch.Tensor:
        """Grey levels after the transform of images in [0, 1]."""
        images = levels / pixel_ops.LEVELS
        if self._on_batch:
            changed = self._called(images, torch.from_numpy(seeds_b).to(images.device))
            return self._checked(changed, images) * pixel_ops.LEVELS
        on_gpu = images.device.type == "cuda"
        generator = torch.cuda.default_generators[images.device.index] if on_gpu else torch.default_generator
        with torch.random.fork_rng([images.device] if on_gpu else []):
            for row, seed in enumerate(seeds_b.tolist()):
                generator.manual_seed(seed)
                images[row] = self._checked(self._called(images[row]), images[row])
        return images * pixel_ops.LEVELS

    def _called(self, images: torch.Tensor, *seeds: torch.Tensor) -> Any:
        try:
            return self._function(images, *seeds)
        except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError) as error:
            raise ValueError(
                f"transform {self._name!r} fails on images {list(images.shape)}, {images.dtype} in [0, 1]: "
                f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            ) from error

    def _checked(self, changed: Any, images: torch.Tensor) -> torch.Tensor:
        wanted = f"it must return {images.dtype} {list(images.shape)}, as it got"
        if not isinstance(changed, torch.Tensor):
            raise ValueError(f"transform {self._name!r} returned {type(changed).__name__}: {wanted}")
        if changed.shape != images.shape or changed.dtype != images.dtype:
            raise ValueError(f"transform {self._name!r} returned {changed.dtype} {list(changed.shape)}: {wanted}")
        return changed


def _parameters(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except ValueError:
        raise ValueError(f"transform {name!r} has no signature: wrap it in a function") from None


def _require_fit(name: str, function: Callable[..., Any], given: tuple[str, ...], arguments: dict[str, Any]) -> None:
    try:
        inspect.signature(function).bind(*given, **arguments)
    except TypeError as error:
        raise ValueError(
            f"transform {name!r} takes {inspect.signature(function)}, not ({', '.join(given)}) and "
            f"{arguments} ({error}): change transform_args"
        ) from None


def _constructed(name: str, kind: Callable[..., Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    """A transform of torchvision.

    Raises
    ------
    ValueError
        If its arguments do not fit, or it is no transform.
    """
    try:
        made: Any = kind(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"transform {name!r} cannot be made with {arguments} ({error}); its signature is {inspect.signature(kind)}"
        ) from None
    if not isinstance(made, torch.nn.Module):
        raise ValueError(f"transform {name!r} is not a transform class: see torchvision.transforms.v2")
    transform: Callable[..., Any] = made
    return transform
