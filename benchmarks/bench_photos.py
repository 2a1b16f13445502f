"""Photographs to batches: decode, random-resized crop, flip, normalise, float32; and conversion and training.

`--root` names a folder with train/CLASS and test/CLASS of JPEGs; without it, photograph-sized JPEGs are generated.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import photo_rivals as rivals
import torch
from bench_convert import photographs
from PIL import Image
from torchvision.transforms import v2

from hbr_fast.data.convert import convert
from hbr_fast.data.dataset import Split
from hbr_fast.data.encoded_images import EncodedImages
from hbr_fast.data.views import views
from hbr_fast.files import linked
from hbr_fast.loaders.augment import Augment
from hbr_fast.loaders.loader import Loader
from hbr_fast.training.build import initial_model
from hbr_fast.training.recipe import Recipe

LARGE = (3000, 4000)
SMALL_RIVALS = ("torchvision", "dali")  # at the second side, of which there is no ratio


class Size(NamedTuple):
    """Size of a run.

    Attributes
    ----------
    generated : int
        Photographs per class and split, if no folder is given.
    sides : tuple of int
        Of the output.
    large : int
        Pairs of pictures of 12 megapixels.
    many : int
        How often every file is there in the larger conversion.
    rounds, more_rounds : int
        Of loading at the first side, and of everything else.
    steps : int
        Training batches a call.
    """

    generated: int
    sides: tuple[int, ...]
    large: int
    many: int
    rounds: int
    more_rounds: int
    steps: int


SIZES = {
    "full": Size(200, (224, 96), 8, 4, 5, 3, 4),
    "quick": Size(40, (224, 96), 4, 4, 3, 3, 3),
    "tiny": Size(4, (32,), 1, 2, 1, 1, 1),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    chosen = harness.settings("bench_photos", __doc__ or "", argv, pictures=True)
    torch.set_num_threads(chosen.threads)
    size = SIZES[chosen.size]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        root = chosen.root or photographs(place / "photographs", size.generated)
        split, small = (
            converted(root, place / name, **options).train
            for name, options in (("keep.hbr", {}), ("small.hbr", {"shortest": 256}))
        )
        names = [name for name in rivals.RIVALS if name != "ffcv" or chosen.size != "tiny"]  # it compiles for seconds
        first, *more = size.sides
        loading = [loading_case(root, split, small, first, chosen.threads, size.rounds, names)]
        loading += [
            loading_case(root, split, small, side, chosen.threads, size.more_rounds, SMALL_RIVALS) for side in more
        ]
        pictures = large_case(large_pictures(place / "large", split, size.large), size.more_rounds)
        conversions = [conversion_case(root, place, size.more_rounds, times) for times in (1, size.many)]
        training = training_case(split, min(96, size.sides[-1]), chosen.threads, size.more_rounds, size.steps)
    at_first = loading[0]
    harness.finish(
        chosen,
        [*loading, pictures, *conversions, training],
        {
            "native_over_torchvision": at_first.speed_ratio("native", "torchvision"),
            "native_over_dali": at_first.speed_ratio("native", "dali"),
            "native_over_ffcv": at_first.speed_ratio("native", "ffcv"),
            "native_over_timm": at_first.speed_ratio("native", "timm"),
            "native_over_spdl": at_first.speed_ratio("native", "spdl"),
            "native_over_bound": at_first.speed_ratio("native", "bare decode"),
            "large_over_pillow": pictures.speed_ratio("native", "pillow"),
            "convert_over_copy": conversions[0].speed_ratio("convert", "copy"),
            "convert_many_over_copy": conversions[1].speed_ratio("convert", "copy"),
            "efficiency": training.speed_ratio("with loader", "constant batch"),
        },
        cache="in memory",
        notes="Photographs of --root." if chosen.root else "Generated photographs.",
    )


def converted(root: Path, out: Path, **options: Any) -> Any:
    """A dataset of encoded pictures."""
    with contextlib.redirect_stderr(io.StringIO()):
        return convert("folder", out, root=root, store="encoded", force=True, **options)


def loading_case(
    root: Path, split: Split, small: Split, side: int, threads: int, rounds: int, names: Sequence[str]
) -> harness.Case:
    """An epoch of the train split, random-resized crops of `side` pixels; every variant decodes JPEGs."""
    augment = Augment(flip=0.5, resized_crop=rivals.AREA)

    def native(of: Split) -> Callable[[], None]:
        loader = Loader(of, size=side, augment=augment, batch_size=min(rivals.BATCH, len(of)), threads=threads)
        return lambda: rivals.drain(iter(loader))

    variants = [
        harness.Variant("native", native(split), len(split)),
        harness.Variant("native, re-encoded at 256", native(small), len(small)),
        harness.Variant("bare decode", rivals.bare_decode(rivals.contents(split), threads), len(split)),
        harness.Variant(harness.NOOP, lambda: None, len(split)),
    ]
    with contextlib.ExitStack() as stack:
        for name in names:
            with contextlib.suppress(ImportError):  # spdl is in no extra of ours
                variants.append(
                    harness.Variant(name, rivals.RIVALS[name](root, split, side, threads, stack), len(split))
                )
        timings = harness.measure(variants, rounds=rounds, seconds=0.0)
    return harness.Case(f"epoch at {side}", "images", 12 * side * side, "torchvision", timings)


def large_pictures(root: Path, split: Split, count: int) -> Split:
    """Pictures of 12 megapixels, made from the first ones."""
    for part in ("train", "test"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
    for number, content in enumerate(rivals.contents(split)[: 2 * count + 2]):
        with Image.open(io.BytesIO(content)) as picture:
            large = picture.convert("RGB").resize(LARGE[::-1], Image.Resampling.BICUBIC)
        large.save(root / ("train" if number >= 2 else "test") / "ab"[number % 2] / f"{number}.jpg", quality=90)
    dataset = converted(root, root.with_suffix(".hbr"))
    train: Split = dataset.train
    return train


def large_case(split: Split, rounds: int) -> harness.Case:
    """Photographs of 12 megapixels to 224, as in evaluation, one thread: partial decoding against Pillow's full."""
    pictures = rivals.contents(split)
    store = split.at_size(224).store
    assert isinstance(store, EncodedImages)
    standard = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])

    def by_pillow() -> list[np.ndarray]:
        return [np.asarray(standard(Image.open(io.BytesIO(one)).convert("RGB"))) for one in pictures]

    rows = np.arange(len(split))
    images = np.empty((len(split), 3, 224, 224), np.uint8)
    boxes, places = views(store.index["height"], store.index["width"], (224, 224), "crop")

    def native() -> None:
        assert store.decode(rows, boxes, places, images, threads=1) == []

    native()
    expected = np.stack(by_pillow()).transpose(0, 3, 1, 2)
    error = float(np.abs(images.astype(int) - expected).mean()) / 255
    variants = [
        harness.Variant("native", native, len(split), error=error),
        harness.Variant("pillow", by_pillow, len(split), error=0.0),
        harness.Variant(harness.NOOP, lambda: None, len(split)),
    ]
    timings = harness.measure(variants, rounds=rounds, seconds=0.0)
    return harness.Case("12 megapixels to 224, one thread", "images", 3 * 224 * 224, "pillow", timings)


def conversion_case(root: Path, place: Path, rounds: int, times: int) -> harness.Case:
    """Keeping the files' bytes, against copying the files; both remove what the last call made."""
    files = sorted(root.rglob("*.jpg"))
    mean_bytes = sum(path.stat().st_size for path in files) // len(files)
    if times > 1:
        root = repeated(root, files, place / "repeated", times)

    def copy() -> None:
        shutil.rmtree(place / "copy", ignore_errors=True)
        shutil.copytree(root, place / "copy")

    def kept() -> None:
        shutil.rmtree(place / "again.hbr", ignore_errors=True)
        converted(root, place / "again.hbr")

    count = times * len(files)
    variants = [
        harness.Variant("convert", kept, count),
        harness.Variant("copy", copy, count),
        harness.Variant(harness.NOOP, lambda: None, count),
    ]
    timings = harness.measure(variants, rounds=rounds, seconds=0.0)
    return harness.Case(f"conversion of {count:,}", "images", 2 * mean_bytes, "copy", timings)


def repeated(root: Path, files: Sequence[Path], out: Path, times: int) -> Path:
    """A folder that has every file several times, as hard links."""
    for path in files:
        target = out / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            linked(path, target.with_stem(f"{path.stem}-{number}"))
    return out


def training_case(split: Split, side: int, threads: int, rounds: int, steps: int) -> harness.Case:
    """Training torchvision's resnet18 with the loader, against the same steps on one batch made before."""
    batch_size = min(rivals.BATCH, len(split))
    loader = Loader(
        split, size=side, augment=Augment(flip=0.5, resized_crop=rivals.AREA), batch_size=batch_size, threads=threads,
        channels_last=True,
    )  # fmt: skip
    recipe = Recipe(name="resnet18", model="torchvision:resnet18", epochs=1, precision="float32")
    model = initial_model(recipe, split.at_size(side), seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    constant = next(iter(loader))

    def train(batches: Any) -> None:
        for batch, _ in zip(batches, range(steps), strict=False):
            loss = torch.nn.functional.cross_entropy(model(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    variants = [
        harness.Variant("with loader", lambda: train(_endless(loader)), steps * batch_size),
        harness.Variant("constant batch", lambda: train([constant] * steps), steps * batch_size),
        harness.Variant(harness.NOOP, lambda: None, steps * batch_size),
    ]
    timings = harness.measure(variants, rounds=rounds, seconds=0.0)
    return harness.Case(f"training resnet18 at {side}", "images", 12 * side * side, "constant batch", timings)


def _endless(loader: Loader) -> Any:
    while True:
        yield from (batch for batch in loader if len(batch.ids) == loader.job.batch_size)


if __name__ == "__main__":
    main()
