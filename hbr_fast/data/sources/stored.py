"""Pictures to be stored encoded: JPEGs as they are, everything else as PNG, or all of them smaller, as JPEG."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hbr_fast.data.jpeg import plain_jpeg
from hbr_fast.data.shards import EncodedPicture
from hbr_fast.data.sources import pictures
from hbr_fast.data.sources.pictures import Decoding, Unusable
from hbr_fast.data.sources.trees import Tree


@dataclass(frozen=True)
class Stored:
    """A picture as it will be stored, and what `Decoded` says of it."""

    picture: EncodedPicture
    warning: str | None = None
    is_transparent: bool = False


@dataclass(frozen=True)
class Storing:
    """How pictures are stored.

    Attributes
    ----------
    decoding : Decoding
        Of pictures that are not kept as they are.
    shortest : int or None
        Pictures whose shortest side is longer than this are made smaller, and all become JPEG. None: JPEGs are kept
        byte for byte, and other pictures become PNG, which loses nothing.
    quality : int
        Of the JPEGs that are made, 1 to 95.
    """

    decoding: Decoding
    shortest: int | None = None
    quality: int = 90


def read_and_store(tree: Tree, path: str, *, channels: int, how: Storing) -> tuple[str, Stored | str]:
    """SHA-256 of a file and what is stored of it, or what is wrong with it."""
    try:
        content = tree.read(path)
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error})"
    checksum = hashlib.sha256(content).hexdigest()
    try:
        return checksum, stored(content, path, channels=channels, how=how)
    except Unusable as error:
        return checksum, str(error)


def stored(content: bytes, path: str, *, channels: int, how: Storing) -> Stored:
    """What is stored of a file's content.

    Raises
    ------
    Unusable
    """
    header = plain_jpeg(content) if how.shortest is None else None
    if header is not None and header.height * header.width <= how.decoding.max_pixels:
        orientation = pictures.orientation_of(content) if header.has_extra else 1
        height, width = header.height, header.width
        if orientation >= 5:
            height, width = width, height
        return Stored(EncodedPicture(content, "jpg", height, width, orientation))
    decoded = pictures.decode(content, path, channels=channels, how=how.decoding)
    planes = decoded.pixels
    image = Image.fromarray(planes[0] if channels == 1 else np.ascontiguousarray(planes.transpose(1, 2, 0)))
    file = io.BytesIO()
    if how.shortest is None:
        image.save(file, "PNG", compress_level=1)
        suffix = "png"
    else:
        image = _made_smaller(image, how.shortest)
        image.save(file, "JPEG", quality=how.quality)
        suffix = "jpg"
    encoded = EncodedPicture(file.getvalue(), suffix, image.height, image.width)
    return Stored(encoded, decoded.warning, decoded.is_transparent)


def _made_smaller(image: Image.Image, shortest: int) -> Image.Image:
    now = min(image.size)
    if now <= shortest:
        return image
    width, height = (max(1, round(side * shortest / now)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)
