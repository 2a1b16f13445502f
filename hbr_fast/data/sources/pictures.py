"""Decoding one encoded picture to 8-bit pixels: upright, in the wanted channels and size, or a reason why not."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hbr_fast.data.encoded_images import TURNS

Fit = Literal["stretch", "crop", "pad"]

# Raster formats that Pillow decodes itself, without those that start other programs (EPS, WMF) or describe data of
# another library (HDF5, GRIB). Two have no magic number and would accept almost any file: their suffix decides.
FORMATS = (
    "AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI",
    "SUN", "TIFF", "WEBP",
)  # fmt: skip
_BY_SUFFIX = ("DIB", "TGA")
MAX_PIXELS = 178_956_970  # where Pillow itself refuses

_GRAY_MODES = {"1", "L"}
_DEEP_GRAY_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_ALPHA_MODES = {"RGBA", "LA", "PA", "La", "RGBa"}
_WIDTH, _BITS_PER_SAMPLE = 256, 258  # TIFF's tags
_SECTORS = (16, 512, 2)  # see `_repaired_jpeg`


class Unusable(Exception):
    """Why a file cannot become a sample, as the end of a sentence: "is not a readable image (...)"."""


@dataclass(frozen=True)
class Decoding:
    """How pictures become pixels.

    Attributes
    ----------
    size : (H, W) or None
        None: unchanged.
    fit : {"stretch", "crop", "pad"}
        How a picture of another aspect ratio gets that size: distorted, cropped to its largest centred part, or whole
        with padding of the background colour.
    background : (R, G, B) or None
        Fills transparent parts. None: the colour that the file stores there; padding is black.
    bit_depth : int or None
        Significant bits of channels with more than 8 bits: the highest 8 are kept. None: such pictures are refused.
    max_pixels : int
        Larger pictures are refused before they are decoded.
    """

    size: tuple[int, int] | None = None
    fit: Fit = "stretch"
    background: tuple[int, int, int] | None = None
    bit_depth: int | None = None
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Header:
    """What a picture's header says: (H, W) when upright, and whether it has one channel."""

    size: tuple[int, int]
    is_gray: bool


@dataclass(frozen=True)
class Decoded:
    """uint8 [C, H, W], and a warning if the picture is usable but incomplete."""

    pixels: np.ndarray
    warning: str | None = None
    is_transparent: bool = False


def suffixes() -> frozenset[str]:
    """File suffixes (".jpg") of the supported formats."""
    return frozenset(
        suffix for suffix, form in Image.registered_extensions().items() if form in (*FORMATS, *_BY_SUFFIX)
    )


def is_picture(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a supported format, whatever its name."""
    try:
        with Image.open(io.BytesIO(head), formats=_available(None)):
            return True
    except (UnidentifiedImageError, ValueError):
        return False
    except Exception:  # a supported format, but damaged or cut off: a full read will report it
        return True


@contextlib.contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Let `Decoding.max_pixels` decide, not Pillow's process-wide limit."""
    global _users, _pillows
    with _limit_lock:
        if _users == 0:
            _pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _users -= 1
            if _users == 0:
                Image.MAX_IMAGE_PIXELS = _pillows


_limit_lock = threading.Lock()
_users, _pillows = 0, Image.MAX_IMAGE_PIXELS


def header(file: IO[bytes], path: str) -> Header:
    """Size and channels of a picture from the beginning of its file.

    Raises
    ------
    Unusable
    """
    with _reading(), Image.open(file, formats=_available(path)) as image:
        width, height = image.size
        is_turned = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_WIDTH, width) != width
        if _orientation(image) >= 5 and not is_turned:  # for TIFF, Pillow itself gives the upright size
            width, height = height, width
        return Header((height, width), image.mode in _GRAY_MODES | _DEEP_GRAY_MODES)


def orientation_of(content: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 to 8."""
    with _reading(), Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return _orientation(image)


def decode(content: bytes, path: str, *, channels: int, how: Decoding, out: np.ndarray | None = None) -> Decoded:
    """Decode a file's content; `path` is used only for its suffix. With `out`, as `planar_pixels`.

    Raises
    ------
    Unusable
        If it is damaged, is too large, or has more than 8 bits per channel and `how` does not say how many count.
    """
    try:
        image, warning = _loaded(content, path, how), None
    except Unusable:
        repaired = _repaired_jpeg(content, path, how)
        if repaired is None:
            raise
        image, warning = repaired
    is_transparent = image.mode in _ALPHA_MODES or "transparency" in image.info
    return Decoded(planar_pixels(image, channels=channels, how=how, out=out), warning, is_transparent)


def planar_pixels(image: Image.Image, *, channels: int, how: Decoding, out: np.ndarray | None = None) -> np.ndarray:
    """uint8 [C, H, W] of an upright picture with 8 bits per channel: `out` itself if that has the picture's size.

    Raises
    ------
    Unusable
    """
    with _reading():
        is_transparent = image.mode in _ALPHA_MODES or "transparency" in image.info
        mode = "RGB" if channels == 3 else "L"
        if is_transparent and how.background is not None:
            canvas = Image.new("RGBA", image.size, (*how.background, 255))
            canvas.alpha_composite(image.convert("RGBA"))
            image = canvas
        image = _resized(image if image.mode == mode else image.convert(mode), how)
        shape = (channels, image.height, image.width)
        planes_chw = out if out is not None and out.shape == shape else np.empty(shape, np.uint8)
        for plane_hw, band in zip(planes_chw, mode, strict=True):  # in half the time of transposing all pixels
            plane_hw[:] = np.frombuffer(image.tobytes("raw", band), np.uint8).reshape(plane_hw.shape)
        return planes_chw


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Unusable:
        raise
    except UnidentifiedImageError:  # its message holds an address in memory
        raise Unusable("is not a readable image (no format that is read)") from None
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"is not a readable image ({reason})") from None


def _available(path: str | None) -> list[str]:
    """The `FORMATS` that this Pillow supports, and the suffix's format if only the suffix identifies it."""
    Image.init()
    found = [name for name in FORMATS if name in Image.OPEN]
    if path is not None:
        form = Image.registered_extensions().get("." + path.rpartition(".")[2].lower())
        found += [name for name in _BY_SUFFIX if name == form]
    return found


def _loaded(content: bytes, path: str, how: Decoding) -> Image.Image:
    """The picture, decoded, upright and with 8 bits per channel."""
    with _reading():
        opened = Image.open(io.BytesIO(content), formats=_available(path))
        width, height = opened.size
        if width * height > how.max_pixels:
            raise Unusable(
                f"has {width * height:,} pixels, more than the {how.max_pixels:,} that are allowed (--max-pixels)"
            )
        image = _eight_bits(opened, content, how)
        image.load()
        turn = TURNS.get(_orientation(image))  # after loading: Pillow turns a TIFF itself as it loads
        return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if there is none or the EXIF data are damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data say nothing about the pixels
        return 1
    return found if found in TURNS else 1


def _resized(image: Image.Image, how: Decoding) -> Image.Image:
    if how.size is None or image.size == how.size[::-1]:
        return image
    size, method = how.size[::-1], Image.Resampling.BILINEAR
    if how.fit == "crop":
        return ImageOps.fit(image, size, method)
    if how.fit == "pad":
        frame = Image.new("RGB", (1, 1), how.background or (0, 0, 0)).convert(image.mode).getpixel((0, 0))
        whole = ImageOps.contain(image, size, method)
        canvas = Image.new(image.mode, size, frame)
        canvas.paste(whole, ((size[0] - whole.width) // 2, (size[1] - whole.height) // 2))
        return canvas
    return image.resize(size, method)


def _eight_bits(image: Image.Image, content: bytes, how: Decoding) -> Image.Image:
    """The picture itself, or a copy with the highest 8 of its significant bits."""
    is_gray = image.mode in _DEEP_GRAY_MODES
    if not is_gray and image.mode != "F" and not _has_deep_colours(image, content):
        return image
    kind = f"Pillow mode {image.mode}" if is_gray or image.mode == "F" else f"16-bit {image.mode}"
    if how.bit_depth is None:
        raise Unusable(f"has more than 8 bits a channel ({kind}): say how many bits count with --bit-depth 16")
    if image.mode == "F":
        raise Unusable(f"has floating-point pixels ({kind}), whose range is not known: convert it to 8 bits")
    image.load()
    if is_gray:
        orientation, values = _orientation(image), np.asarray(image).astype(np.int64)
    elif how.bit_depth == 16:
        return image  # Pillow itself keeps the high byte of such colours
    elif image.format == "PNG":
        orientation, values = _orientation(image), _png_values(content)
    else:
        raise Unusable(f"has colours of 16 bits in a {image.format} file, for which --bit-depth can only be 16")
    if values.min(initial=0) < 0 or values.max(initial=0) >= 1 << how.bit_depth:
        raise Unusable(f"has values outside of {how.bit_depth} bits ({values.min()} to {values.max()})")
    reduced = Image.fromarray((values >> (how.bit_depth - 8)).astype(np.uint8))
    reduced.getexif()[ExifTags.Base.Orientation] = orientation
    return reduced


def _has_deep_colours(image: Image.Image, content: bytes) -> bool:
    """Whether colours of 16 bits were cut to their high byte, which is almost empty if only about 12 are used."""
    if image.format == "PNG":
        return content[24] == 16  # the bit depth in the header chunk, which always comes first
    if image.format == "TIFF":
        return max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))) > 8
    return image.format == "SGI" and content[3] == 2  # bytes a channel


def _png_values(content: bytes) -> np.ndarray:
    """int64 [H, W, C] of a 16-bit PNG, which Pillow supports for gray only."""
    import torch
    from torchvision.io import ImageReadMode, decode_png  # heavy, and needed for this only

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchvision's decoders all raise this
        image_chw = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
    return np.ascontiguousarray(image_chw.to(torch.int64).numpy().transpose(1, 2, 0))


def _repaired_jpeg(content: bytes, path: str, how: Decoding) -> tuple[Image.Image, str] | None:
    """A JPEG that lacks only its last bytes, with a warning; None for any other file.

    The missing part is where two decodings with differently filled ends differ. It may be a sixteenth of the picture,
    or two of JPEG's largest blocks if that is more, but never more than half.
    """
    if not content.startswith(b"\xff\xd8\xff") or content.endswith(b"\xff\xd9"):
        return None
    content = content.rstrip(b"\xff")  # half of the end marker
    try:
        plain = _loaded(content + b"\xff\xd9", path, how)
        garbled = _loaded(content + bytes((73 * i + 41) % 251 for i in range(4096)) * 16 + b"\xff\xd9", path, how)
    except Unusable:
        return None
    first, second = np.asarray(plain), np.asarray(garbled)
    differs = first != second
    missing = int(np.count_nonzero(differs.any(axis=2) if differs.ndim == 3 else differs))
    total = plain.width * plain.height
    share, blocks, half = _SECTORS
    if missing > max(total // share, min(blocks, total // half)):
        return None
    return plain, f"lacks its last bytes: {missing:,} of {total:,} pixels are made up"
