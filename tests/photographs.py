"""Made photographs for tests: smooth colours with some texture, which survive JPEG, in folders of classes."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image


def photograph(height: int, width: int, *, seed: int = 0) -> Image.Image:
    """An RGB picture of large coloured areas that looks different in every orientation."""
    areas = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(areas).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", *, orientation: int | None = None, **options: Any) -> bytes:
    """The file of a picture; JPEG of quality 92."""
    if form == "JPEG":
        options = {"quality": 92, **options}
    if orientation is not None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_photographs(root: Path, *, per_class: int = 6, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A folder of JPEGs, `train/CLASS/0.jpg` and so on, half as many in test, each of a size of its own."""
    for split, count in (("train", per_class), ("test", -(-per_class // 2))):
        for label, name in enumerate(classes):
            for number in range(count):
                seed = 100 * label + number + 50 * (split == "test")
                path = root / split / name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(photograph(40 + 7 * number, 70 - 5 * number, seed=seed)))
    return root


# `photograph(40, 56)` with arithmetic coding, which Pillow does not write: by cjpeg -arithmetic -quality 30.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6j"
    "q62rZ4C8ybqmx5moq6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSk"
    "pKSkpKSkpKT/yQARCAAoADgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDdYpHQ8nxyXsJ2oT0HkUUrOcq7MfK2"
    "x1oRwrQN7MuVohe4c9zVAzaM4DvZUhxHSRkVambRTGrM+W/KGt7XAqsT8FpWu0fw2ZXlWuzeETPo511H4yWpqNRHK5thBQGkKjWv"
    "z8y0S7MM+e/eYOL6EVSFcBOki5s8hKDe1Aq0BU2uohY5gs5Lg8c8eCcqEOyIjjiZIYH3SKNwXQ8hLGYNfADQIBkbRVmyVTxtdQn3"
    "it0cT6MaH9tfuWdus3rjaDip+Af/2Q=="
)
