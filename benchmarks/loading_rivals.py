"""The loaders that ours is measured against, each in its own fastest form; bench_loading.py describes the work."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hbr_fast.data.dataset import Split

PAD, FLIP = 4, 0.5
BATCH = 128  # the paper's, and the best for FFCV and DALI on the machines tried

Epoch = Callable[[], Iterable[Any]]  # batches of one epoch: images as a tensor or array, float32 [B, C, H, W]


def ffcv(split: Split, threads: int, stack: contextlib.ExitStack) -> Epoch:
    """FFCV's own loader on a raw `.beton` in the page cache."""
    # FFCV sets the thread counts of numba and torch for the whole process when it is imported.
    with _torch_threads_kept():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader as FFCVLoader
        from ffcv.loader import OrderOption
        from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor, ToTorchImage
        from ffcv.transforms.normalize import NormalizeImage
        from ffcv.writer import DatasetWriter

        from hbr_fast.loaders.ffcv import next_batch  # also keeps FFCV from changing numba's types

        beton = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "train.beton")
        fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        DatasetWriter(beton, fields, num_workers=threads).from_indexed_dataset(ArrayImages(split), chunksize=500)
        loader = FFCVLoader(
            beton,
            batch_size=BATCH,
            num_workers=threads,
            os_cache=True,
            order=OrderOption.RANDOM,
            drop_last=False,
            pipelines={
                "image": [
                    SimpleRGBImageDecoder(),
                    RandomHorizontalFlip(FLIP),
                    RandomTranslate(padding=PAD, fill=(0, 0, 0)),
                    NormalizeImage(split.mean * 255, split.std * 255, np.float32),
                    ToTensor(),
                    ToTorchImage(channels_last=False),
                ],
                "label": [IntDecoder(), ToTensor(), Squeeze()],
            },
        )

    def epoch() -> Iterator[torch.Tensor]:
        with _torch_threads_kept():
            reading = iter(loader)
            for _ in range(len(loader)):
                images, _labels = next_batch(reading)
                yield images

    return epoch


@contextlib.contextmanager
def _torch_threads_kept() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def dali(split: Split, threads: int, stack: contextlib.ExitStack) -> Epoch:
    """DALI on the CPU, fed with batches by index; planar images were faster for it than H x W x C."""
    from nvidia.dali import Pipeline, fn
    from nvidia.dali.types import DALIDataType

    rng = np.random.default_rng(0)

    class Source:
        def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            order = rng.permutation(len(split))
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                yield split.images[rows], split.labels[rows]

    pipeline = Pipeline(batch_size=BATCH, num_threads=threads, device_id=None, seed=1, prefetch_queue_depth=2)
    with pipeline:
        images, labels = fn.external_source(Source(), num_outputs=2, batch=True, cycle="raise", layout=["CHW", ""])
        offsets = [float(offset) for offset in range(-PAD, PAD + 1)]
        cropped = fn.slice(
            images,
            start=fn.random.uniform(values=offsets, shape=(2,), dtype=DALIDataType.INT32),
            shape=split.images.shape[2:],
            axis_names="HW",
            out_of_bounds_policy="pad",
            fill_values=0,
        )
        normalised = fn.crop_mirror_normalize(
            cropped,
            mirror=fn.random.coin_flip(probability=FLIP),
            mean=(split.mean * 255).tolist(),
            std=(split.std * 255).tolist(),
            dtype=DALIDataType.FLOAT,
            output_layout="CHW",
        )
        pipeline.set_outputs(normalised, labels)
    pipeline.build()

    def epoch() -> Iterator[torch.Tensor]:
        with contextlib.suppress(StopIteration):
            while True:
                images, _ = pipeline.run()
                yield torch.from_dlpack(images.as_tensor())
        pipeline.reset()

    return epoch


def torchvision(split: Split, threads: int) -> Epoch:
    """What most people run, including the paper's authors."""
    loader = torchvision_loader(split, threads, BATCH)

    def epoch() -> Iterator[torch.Tensor]:
        for images, _, _ in loader:
            yield images

    return epoch


def torchvision_loader(split: Split, workers: int, batch_size: int) -> Any:
    """A DataLoader with transforms on PIL images in worker processes; its batches are images, labels, ids."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(split.images.shape[2:], padding=PAD),
            transforms.RandomHorizontalFlip(FLIP),
            transforms.ToTensor(),
            transforms.Normalize(split.mean.tolist(), split.std.tolist()),
        ]
    )
    # Persistent workers: starting them is not measured.
    return torch.utils.data.DataLoader(
        PilImages(split, transform),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
    )


class PilImages(torch.utils.data.Dataset[tuple[torch.Tensor, int, int]]):
    """A split as a map-style dataset: transformed image, label, id."""

    def __init__(self, split: Split, transform: Callable[[Any], torch.Tensor]) -> None:
        self.arrays = ArrayImages(split)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        from PIL import Image

        image, label = self.arrays[index]
        return self.transform(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)), label, index


class ArrayImages:
    """A split as FFCV's writer and PIL expect it: H x W x C arrays and labels."""

    def __init__(self, split: Split) -> None:
        self.images = np.ascontiguousarray(split.images.transpose(0, 2, 3, 1))
        self.labels = split.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])
