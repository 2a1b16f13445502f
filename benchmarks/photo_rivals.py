"""What loading of photographs is measured against, each in its own fastest form; bench_photos.py describes the work."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from hbr_fast.data.dataset import Split
from hbr_fast.data.encoded_images import EncodedImages

BATCH = 64
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)

Run = Callable[[], None]  # one epoch


def contents(split: Split) -> list[bytes]:
    """The encoded pictures of a split."""
    assert isinstance(split.store, EncodedImages)
    return [split.store.content(row) for row in range(len(split))]


def drain(batches: Any) -> None:
    """Take every batch."""
    for _ in batches:
        pass


def torchvision(root: Path, split: Split, side: int, threads: int, stack: contextlib.ExitStack) -> Run:
    """ImageFolder and DataLoader with as many workers as threads, torchvision's transforms."""
    steps = [
        v2.PILToTensor(),
        v2.RandomResizedCrop(side, scale=AREA, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(split.mean.tolist(), split.std.tolist()),
    ]
    data = ImageFolder(str(root / "train"), v2.Compose(steps))
    loader: DataLoader[Any] = DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=threads)
    return lambda: drain(loader)


def bare_decode(pictures: list[bytes], threads: int) -> Run:
    """Every picture decoded at full size, by libjpeg-turbo through torchvision, and nothing else."""
    tensors = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in pictures]

    def decode(part: list[torch.Tensor]) -> None:
        for one in part:
            decode_jpeg(one, mode=ImageReadMode.RGB)

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, [tensors[start::threads] for start in range(threads)]))

    return run


def dali(root: Path, split: Split, side: int, threads: int, stack: contextlib.ExitStack) -> Run:
    """DALI's own decoder on the CPU, which decodes only the crop, from the same shards."""
    from nvidia.dali import Pipeline, fn
    from nvidia.dali.types import DALIDataType

    operators: Any = fn
    assert isinstance(split.store, EncodedImages)
    batch = min(BATCH, len(split))
    pipeline = Pipeline(batch_size=batch, num_threads=threads, device_id=None)
    with pipeline:
        encoded, _ = operators.readers.webdataset(
            paths=[str(path) for path in split.store.shards.paths], ext=["jpg", "cls"], random_shuffle=True
        )
        pixels = operators.decoders.image_random_crop(encoded, random_area=list(AREA))
        pixels = operators.resize(pixels, size=[side, side], antialias=True)
        pixels = operators.crop_mirror_normalize(
            pixels,
            mirror=operators.random.coin_flip(),
            mean=(255 * split.mean).tolist(),
            std=(255 * split.std).tolist(),
            dtype=DALIDataType.FLOAT,
            output_layout="CHW",
        )
        pipeline.set_outputs(pixels)
    pipeline.build()

    def run() -> None:
        for _ in range(-(-len(split) // batch)):
            pipeline.run()

    return run


def timm(root: Path, split: Split, side: int, threads: int, stack: contextlib.ExitStack) -> Run:
    """timm's `create_loader` with the augmentation of the others and as many workers as threads."""
    from timm.data import create_dataset, create_loader

    data = create_dataset("", root=str(root), split="train", is_training=True)
    loader = create_loader(
        data,
        input_size=(3, side, side),
        batch_size=BATCH,
        is_training=True,
        scale=AREA,
        ratio=ASPECT,
        hflip=0.5,
        color_jitter=0.0,
        interpolation="bilinear",
        mean=tuple(split.mean.tolist()),
        std=tuple(split.std.tolist()),
        num_workers=threads,
        device=torch.device("cpu"),
        persistent_workers=False,
    )
    return lambda: drain(loader)


def ffcv(root: Path, split: Split, side: int, threads: int, stack: contextlib.ExitStack) -> Run:
    """FFCV's own loader on a `.beton` of JPEGs, as its ImageNet example does; it encodes them anew, at quality 90."""
    from hbr_fast.loaders.ffcv import next_batch, thread_counts_kept  # isort: skip - keeps FFCV from changing settings

    import ffcv.transforms as steps
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms.normalize import NormalizeImage
    from ffcv.writer import DatasetWriter

    beton = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "train.beton")
    with thread_counts_kept():
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
        DatasetWriter(beton, fields, num_workers=threads).from_indexed_dataset(ImageFolder(str(root / "train")))
        image = [
            RandomResizedCropRGBImageDecoder((side, side), scale=AREA, ratio=ASPECT),
            steps.RandomHorizontalFlip(0.5),
            NormalizeImage(split.mean * 255, split.std * 255, np.float32),
            steps.ToTensor(),
            steps.ToTorchImage(channels_last=False),
        ]
        label = [IntDecoder(), steps.ToTensor(), steps.Squeeze()]
        loader = Loader(
            beton,
            batch_size=min(BATCH, len(split)),
            num_workers=threads,
            os_cache=True,
            order=OrderOption.RANDOM,
            drop_last=False,
            pipelines={"image": image, "label": label},
        )

    def run() -> None:
        with thread_counts_kept():
            reading = iter(loader)
            for _ in range(len(loader)):
                next_batch(reading)

    return run


def spdl(root: Path, split: Split, side: int, threads: int, stack: contextlib.ExitStack) -> Run:
    """spdl's pipeline: FFmpeg decodes whole pictures and crops, scales and flips them, in threads."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    assert isinstance(split.store, EncodedImages)
    pictures, index = contents(split), split.store.index
    rng = np.random.default_rng(0)
    mean, std = (torch.tensor(255 * one.reshape(1, 3, 1, 1)) for one in (split.mean, split.std))

    def decoded(row: int) -> Any:
        top, left, tall, wide = _crop(int(index["height"][row]), int(index["width"][row]), rng)
        flip = ",hflip" if rng.random() < 0.5 else ""
        steps = f"crop={wide}:{tall}:{left}:{top},scale={side}:{side}{flip},format=pix_fmts=rgb24"
        return spdl.io.decode_packets(spdl.io.demux_image(pictures[row]), filter_desc=steps)

    try:
        decoded(0)
    except RuntimeError as error:  # it looks for FFmpeg's libraries when they are first used
        raise ImportError(str(error)) from None

    def batch(frames: list[Any]) -> torch.Tensor:
        pixels = spdl.io.to_torch(spdl.io.convert_frames(frames))
        result: torch.Tensor = (pixels.permute(0, 3, 1, 2).to(torch.float32) - mean) / std
        return result

    def run() -> None:
        builder = PipelineBuilder().add_source(rng.permutation(len(split)).tolist())
        builder = builder.pipe(decoded, concurrency=threads).aggregate(BATCH).pipe(batch).add_sink(2)
        pipeline = builder.build(num_threads=threads)
        with pipeline.auto_stop():
            drain(pipeline)

    return run


def _crop(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random-resized crop, drawn as torchvision does."""
    for _ in range(10):
        area = height * width * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            return int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1)), tall, wide
    return 0, 0, height, width


RIVALS = {"torchvision": torchvision, "dali": dali, "ffcv": ffcv, "timm": timm, "spdl": spdl}
