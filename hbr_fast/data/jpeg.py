"""Which JPEGs are stored as they are: those that every decoder reads alike. Only markers are read, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

_START, _SCAN, _END, _EXTRA = 0xD8, 0xDA, 0xD9, 0xE1
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # tables, within the frames' range of numbers
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8))


@dataclass(frozen=True)
class PlainJpeg:
    """Height and width as stored, before any EXIF orientation; whether there are EXIF or XMP data that may hold one."""

    height: int
    width: int
    has_extra: bool


def plain_jpeg(content: bytes) -> PlainJpeg | None:
    """Describe a whole JPEG of 8 bits, gray or in colour, baseline or progressive; None for any other file.

    Arithmetic coding, CMYK and YCCK, 12 bits, and files without an end marker are others.
    """
    if content[:2] != b"\xff\xd8":
        return None
    at, frame, has_extra = 2, None, False
    try:
        while True:
            if content[at] != 0xFF:
                return None
            while content[at] == 0xFF:  # any number of fill bytes may stand before a marker
                at += 1
            marker = content[at]
            at += 1
            if marker in _WITHOUT_LENGTH:
                continue
            length = int.from_bytes(content[at : at + 2], "big")
            if length < 2:
                return None
            if marker in _HUFFMAN_FRAMES:
                frame = content[at + 2 : at + length]
            elif 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
                return None
            elif marker == _EXTRA:
                has_extra = True
            elif marker == _SCAN:
                break
            at += length
    except IndexError:
        return None
    if frame is None or len(frame) < 6 or content.rfind(b"\xff\xd9") < at:
        return None
    bits, height, width, components = frame[0], *_sides(frame), frame[5]
    if bits != 8 or components not in (1, 3) or height == 0 or width == 0:
        return None
    return PlainJpeg(height, width, has_extra)


def _sides(frame: bytes) -> tuple[int, int]:
    return int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
