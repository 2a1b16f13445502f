"""Decoding images: upright, 8 bits, in the requested channels and size, compared with Pillow's decoder."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, features

from hbr_fast.data.sources import pictures
from hbr_fast.data.sources.pictures import Decoded, Decoding, Unusable, header, is_picture


def decode(content: bytes, path: str, *, channels: int, how: Decoding) -> Decoded:
    """`pictures.decode`, its pixels arranged as Pillow's are: [H, W] or [H, W, 3]."""
    found = pictures.decode(content, path, channels=channels, how=how)
    assert found.pixels.shape[0] == channels
    return dataclasses.replace(found, pixels=found.pixels[0] if channels == 1 else found.pixels.transpose(1, 2, 0))


FORMATS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "P", "LA", "RGB", "RGBA"),
    "TIFF": ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "MPO": ("RGB",),
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def blocks(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """An image of large coloured squares that looks different in every orientation."""
    return Image.fromarray(noise(3, 4, 3)).resize((width, height), Image.Resampling.NEAREST).convert(mode)


def encoded(image: Image.Image, form: str, orientation: int | None = None, **options: Any) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(values_hwc: np.ndarray) -> bytes:
    """A PNG with 16 bits per channel: gray, gray with alpha, RGB or RGBA."""
    height, width, channels = values_hwc.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_hwc)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in FORMATS.items() for mode in modes])
def test_decode_every_format_mode_and_orientation(form: str, mode: str, channels: int) -> None:
    """All eight orientations match Pillow's transposed decode, and so does the size in the header."""
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    for orientation in (None, 1, 2, 3, 4, 5, 6, 7, 8):
        content = encoded(blocks(24, 40, mode), form, orientation)
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L"))
        assert expected.shape[:2] == ((40, 24) if orientation and orientation >= 5 else (24, 40))
        found = decode(content, "a.bin", channels=channels, how=Decoding())
        np.testing.assert_array_equal(found.pixels, expected)
        assert header(io.BytesIO(content), "a.bin").size == expected.shape[:2]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_decode_applies_orientation_before_resizing(orientation: int) -> None:
    content = encoded(blocks(24, 40), "PNG", orientation)
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
    expected = np.asarray(upright.resize((9, 7), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode(content, "a.png", channels=3, how=Decoding((7, 9))).pixels, expected)


def test_decode_ignores_damaged_exif() -> None:
    content = encoded(blocks(8, 8), "JPEG", exif=b"Exif\0\0" + b"MM\0\x2a\0\0\xff\xff" + b"\xff" * 20)
    assert decode(content, "a.jpg", channels=3, how=Decoding()).pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_decode_scales_16_bits_only_on_request(channels: int, bits: int) -> None:
    """Keeping only the high byte of 12 significant bits in 16 would give a nearly black image."""
    values = np.random.default_rng(0).integers(0, 1 << bits, (6, 5, channels), dtype=np.uint16)
    values[0, 0] = (1 << bits) - 1
    content = deep_png(values)
    with pytest.raises(Unusable, match=r"has more than 8 bits a channel .*--bit-depth 16"):
        decode(content, "a.png", channels=3, how=Decoding())
    expected = (values >> (bits - 8)).astype(np.uint8)
    colours = np.repeat(expected[..., :1], 3, axis=2) if channels < 3 else expected[..., :3]
    np.testing.assert_array_equal(decode(content, "a.png", channels=3, how=Decoding(bit_depth=bits)).pixels, colours)
    if bits == 16:
        with pytest.raises(Unusable, match="has values outside of 10 bits"):
            decode(content, "a.png", channels=3, how=Decoding(bit_depth=10))


def test_decode_orients_and_scales_16_bit_tiff() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (6, 5), dtype=np.uint16)
    content = encoded(Image.fromarray(values), "TIFF", 6)
    with pytest.raises(Unusable, match="more than 8 bits"):
        decode(content, "a.tif", channels=1, how=Decoding())
    found = decode(content, "a.tif", channels=1, how=Decoding(bit_depth=16)).pixels
    np.testing.assert_array_equal(found, np.rot90(values >> 8, -1))


def test_decode_rejects_floating_point() -> None:
    content = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(Unusable, match="floating-point"):
        decode(content, "a.tif", channels=1, how=Decoding(bit_depth=16))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_decode_background_shows_through_transparency(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (200, 200, 200, 255))
    image.paste((0, 0, 0, 0), (2, 0, 4, 2))
    content = encoded(image.convert(mode), "PNG")
    found = decode(content, "a.png", channels=3, how=Decoding(background=(10, 20, 30)))
    assert found.is_transparent
    assert found.pixels[0, 0].tolist() == [200, 200, 200]
    assert found.pixels[0, 3].tolist() == [10, 20, 30]
    assert not decode(encoded(blocks(4, 4), "PNG"), "a.png", channels=3, how=Decoding()).is_transparent


def test_decode_resize_by_crop_or_pad() -> None:
    thirds = np.repeat(np.array([50, 100, 150], np.uint8), 8)[None, :].repeat(8, axis=0)  # 8 high, 24 wide
    content = encoded(Image.fromarray(thirds), "PNG")
    crop = decode(content, "a.png", channels=1, how=Decoding((4, 4), "crop")).pixels
    assert (crop[:, 1:3] == 100).all()
    pad = decode(content, "a.png", channels=1, how=Decoding((12, 12), "pad", background=(255, 255, 255))).pixels
    assert (pad[:4] == 255).all()
    assert (pad[8:] == 255).all()
    assert (pad[4:8, 1] == 50).all()
    assert (decode(content, "a.png", channels=1, how=Decoding((12, 12), "pad")).pixels[:4] == 0).all()
    stretch = decode(content, "a.png", channels=1, how=Decoding((12, 12))).pixels
    assert (stretch[:, 1] == 50).all()


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("lost", [1, 2, 10])
def test_decode_truncated_jpeg_warns(lost: int, subsampling: int) -> None:
    whole = encoded(Image.fromarray(noise(96, 64, 3)), "JPEG", subsampling=subsampling)
    expected = decode(whole, "a.jpg", channels=3, how=Decoding())
    found = decode(whole[:-lost], "a.jpg", channels=3, how=Decoding())
    assert expected.warning is None
    assert found.warning is not None
    assert "lacks its last bytes" in found.warning
    np.testing.assert_array_equal(found.pixels[:72], expected.pixels[:72])


def test_decode_rejects_half_a_jpeg() -> None:
    whole = encoded(Image.fromarray(noise(96, 64, 3)), "JPEG")
    for content in (whole[: len(whole) // 2], whole[:100], encoded(Image.fromarray(noise(9, 9, 3)), "PNG")[:-60]):
        with pytest.raises(Unusable, match="is not a readable image"):
            decode(content, "a.jpg", channels=3, how=Decoding())


def test_decode_pixel_limit_is_configurable() -> None:
    content = encoded(blocks(20, 30), "PNG")
    with pytest.raises(Unusable, match=r"has 600 pixels, more than the 599 that are allowed \(--max-pixels\)"):
        decode(content, "a.png", channels=3, how=Decoding(max_pixels=599))
    assert decode(content, "a.png", channels=3, how=Decoding(max_pixels=600)).pixels.shape == (20, 30, 3)


def test_decode_detects_format_by_content() -> None:
    for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        assert is_picture(encoded(blocks(200, 200), form)[:4096]), form
    for head in (
        b"",
        b"text",
        b"P1 is a word",
        b"\x89HDF\r\n\x1a\n" + bytes(500),
        b"PK\3\4" + bytes(60),
        b"\x0c\0\0\0\1",
    ):
        assert not is_picture(head), head
    assert not is_picture(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
