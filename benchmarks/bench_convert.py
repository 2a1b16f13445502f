"""Converting a folder of photographs, compared with plain loops that only decode and resize: processor time.

`--root` names a folder with train/CLASS and test/CLASS; without it, photograph-sized JPEGs are generated.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import functional

from hbr_fast.data.convert import convert

SIDE = 224
# size of the run -> generated photographs per class and split, side, rounds
SIZES = {"full": (200, SIDE, 5), "quick": (40, SIDE, 3), "tiny": (2, 32, 1)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    chosen = harness.settings("bench_convert", __doc__ or "", argv, pictures=True)
    torch.set_num_threads(1)
    count, side, rounds = SIZES[chosen.size]
    with tempfile.TemporaryDirectory() as scratch:
        root = chosen.root or photographs(Path(scratch) / "photographs", count)
        case = conversion(root, Path(scratch) / "out.hbr", side, rounds)
    fastest = max(case.speed_ratio(loop, "convert") or 0.0 for loop in ("pillow loop", "torchvision loop"))
    harness.finish(
        chosen,
        [case],
        {"cpu_time_over_fastest_loop": fastest, "cpu_time_over_pillow": case.speed_ratio("pillow loop", "convert")},
        cache="in memory",
        notes="Seconds are processor time of all threads, not time on the clock. "
        + ("Photographs of --root." if chosen.root else "Generated photographs."),
    )


def photographs(root: Path, count: int) -> Path:
    """Smooth random JPEGs of 400x300 and 400x600, two classes."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                width = 300 * (1 + number % 2)
                coarse = Image.fromarray(rng.integers(0, 256, (50, width // 8, 3), dtype=np.uint8))
                picture = coarse.resize((width, 400), Image.Resampling.BICUBIC)
                picture.save(root / split / name / f"{number}.jpg", quality=90)
    return root


def conversion(root: Path, out: Path, side: int, rounds: int) -> harness.Case:
    """The case: all images below `root`, resized to `side` pixels."""
    files = sorted(path for split in ("train", "test") for path in (root / split).rglob("*.jpg"))

    def ours() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            convert("folder", out, root=root, size=(side, side), force=True)

    ours()
    dataset = convert("folder", out, root=root, size=(side, side), force=True)
    written = np.concatenate([dataset.train.images[:2], dataset.test.images[:2]])
    order = sorted(path for path in (root / "train").rglob("*.jpg"))[:2]
    order += sorted(path for path in (root / "test").rglob("*.jpg"))[:2]

    def error(load: Callable[[Path, int], np.ndarray]) -> float:
        same = np.stack([load(path, side) for path in order]).astype(np.int64)
        return float(np.abs(same - written).max()) / 255

    def loop(load: Callable[[Path, int], np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            for path in files:
                load(path, side)

        return run

    variants = [
        harness.Variant("convert", ours, len(files), error=0.0),
        harness.Variant("pillow loop", loop(by_pillow), len(files), error=error(by_pillow)),
        harness.Variant("torchvision loop", loop(by_torchvision), len(files), error=error(by_torchvision)),
        harness.Variant(harness.NOOP, lambda: None, len(files)),
    ]
    timings = harness.measure(variants, rounds=rounds, seconds=0.0, clock=time.process_time)
    return harness.Case(f"photographs to {side}x{side}", "images", 3 * side * side, "pillow loop", timings)


def by_pillow(path: Path, side: int) -> np.ndarray:
    """uint8 [3, side, side]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def by_torchvision(path: Path, side: int) -> np.ndarray:
    """uint8 [3, side, side]."""
    image = decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)
    resized: np.ndarray = functional.resize(image, [side, side], antialias=True).numpy()
    return resized


if __name__ == "__main__":
    main()
