"""Pictures for the tutorial: circles, ellipses, squares and triangles as PNG files, one folder per class.

    python scripts/examples/draw_shapes.py shapes --per-class 250

Ellipses are nearly round, so they are the class that a network confuses most: with circles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, FINER = 16, 4  # pixels; drawn finer, then reduced, for smooth edges
NOISE = 25  # grey levels, standard deviation
CLASSES = ("circle", "ellipse", "square", "triangle")


def picture(shape: str, random: np.random.Generator) -> Image.Image:
    """One shape of random size, position and grey level, with noise: 16x16, gray."""
    image = Image.new("L", (SIDE * FINER, SIDE * FINER), 40)
    draw = ImageDraw.Draw(image)
    radius = random.uniform(4, 6.5) * FINER
    x, y = random.uniform(radius, SIDE * FINER - radius, size=2)
    grey = int(random.integers(120, 220))
    height = radius * (random.uniform(0.72, 0.9) if shape == "ellipse" else 1)
    if shape in ("circle", "ellipse"):
        draw.ellipse((x - radius, y - height, x + radius, y + height), fill=grey)
    elif shape == "square":
        draw.rectangle((x - 0.8 * radius, y - 0.8 * radius, x + 0.8 * radius, y + 0.8 * radius), fill=grey)
    else:
        draw.polygon([(x, y - radius), (x - radius, y + 0.8 * radius), (x + radius, y + 0.8 * radius)], fill=grey)
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    return Image.fromarray(np.clip(pixels + random.normal(0, NOISE, pixels.shape), 0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    for shape in CLASSES:
        folder = arguments.folder / shape
        folder.mkdir(parents=True)
        for number in range(arguments.per_class):
            picture(shape, random).save(folder / f"{number:04}.png")
    print(f"{arguments.folder}: {len(CLASSES)} x {arguments.per_class} pictures of {SIDE}x{SIDE}")


if __name__ == "__main__":
    main()
