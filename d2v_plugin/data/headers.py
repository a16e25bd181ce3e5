"""Claims of files about their own size, believed up to a bound: memory is taken for what is there, not for what is said.

A picture of a few kilobytes may claim 60,000 × 60,000 pixels, a recording four billion samples. Whoever decodes it takes the
memory first and finds out later.
"""

from __future__ import annotations

import struct
from typing import Final

from d2v_plugin.data.bad_samples import SampleError

MAX_PIXELS: Final = 100_000_000
"""Of one picture; 300 MB as red, green and blue. The largest of ImageNet has 17 million."""

MAX_BYTES: Final = 600_000_000
"""Taken by one picture while it is decoded: fewer pixels where each takes more, as with 16 bits, transparency or progression."""

MAX_VALUES: Final = 1 << 28
"""Samples times channels of one recording; 4.6 hours of mono at 16 kHz, 1 GiB in single precision."""

PILLOW_BYTES: Final = 12
"""Per pixel of formats that Pillow decodes: up to two canvases with transparency, and the picture without."""

_STARTS: Final = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}

# Markers of JPEG that start a picture of some kind; among them are three that do not.
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def check_picture(data: bytes | bytearray) -> None:
    """
    :raises SampleError: the picture claims to be too large, or is of a kind that is decoded, but does not say how large it is.
    """
    try:
        size = _read_picture_size(data)
    except (struct.error, IndexError):
        raise SampleError("The picture is damaged: its header does not say how large it is.") from None
    if size is not None:
        check_size(*size)


def check_size(width: int, height: int, bytes_per_pixel: int) -> None:
    """
    :param bytes_per_pixel: taken while decoding.
    :raises SampleError: so many pixels would take too much memory.
    """
    if width * height > MAX_PIXELS:
        raise SampleError(f"The picture claims {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are decoded.")
    if width * height * bytes_per_pixel > MAX_BYTES:
        raise SampleError(
            f"The picture claims {width:,} x {height:,} pixels, each of which takes {bytes_per_pixel} bytes to decode; at most "
            f"{MAX_BYTES:,} bytes are taken."
        )


def check_recording(num_frames: int, num_channels: int) -> None:
    """
    :raises SampleError: more than :data:`MAX_VALUES` would be decoded.
    """
    if num_frames * num_channels > MAX_VALUES:
        raise SampleError(
            f"The recording has {num_frames:,} samples in {num_channels} channel(s); at most {MAX_VALUES:,} values are decoded."
        )


def find_kind(data: bytes | bytearray) -> str | None:
    """The format of a picture, as Pillow calls it; None = none of those that are decoded."""
    for start, kind in _STARTS.items():
        if data.startswith(start):
            return kind
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def has_alpha(data: bytes | bytearray) -> bool:
    """Whether a PNG holds transparency: a channel of it, or a colour that stands for it."""
    if data[25] in (4, 6):
        return True
    at = 8
    while data[at + 4 : at + 8] not in (b"IDAT", b"IEND", b""):
        if data[at + 4 : at + 8] == b"tRNS":
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")

    return False


def _read_picture_size(data: bytes | bytearray) -> tuple[int, int, int] | None:
    """Width, height and bytes per pixel while decoding; None = its decoder says so before it takes memory."""
    match find_kind(data):
        case "PNG":
            return _read_png_size(data)
        case "JPEG":
            return _read_jpeg_size(data)
        case "GIF":
            return *struct.unpack_from("<HH", data, 6), PILLOW_BYTES
        case "WEBP":
            size = _read_webp_size(data)
            if size is None:
                raise IndexError
            return *size, PILLOW_BYTES
    return None


def _read_png_size(data: bytes | bytearray) -> tuple[int, int, int]:
    # Decoders pass over chunks that they do not know, also before the header: there it could hide.
    if data[8:16] != b"\0\0\0\rIHDR":
        raise IndexError
    width, height, depth = struct.unpack_from(">IIB", data, 16)
    # Of 16 bits, those that are decoded and the 8 that are kept.
    return width, height, PILLOW_BYTES if has_alpha(data) else 9 if depth == 16 else 3


def _read_jpeg_size(data: bytes | bytearray) -> tuple[int, int, int]:
    """As libjpeg finds it, which passes over bytes that do not belong there."""
    at = 2
    while True:
        while data[at] != 0xFF:
            at += 1
        while data[at] == 0xFF:  # filling
            at += 1
        marker = data[at]
        at += 1
        if marker in _JPEG_FRAMES:
            height, width, channels = struct.unpack_from(">HHB", data, at + 3)
            # Coefficients are kept where the picture comes in several passes.
            return width, height, max(3, channels) + (0 if marker == 0xC0 else 2 * channels)
        # Between markers 0 is a byte like any other; some markers have no length.
        if marker not in (0x00, 0x01) and not 0xD0 <= marker <= 0xD7:
            at += max(2, struct.unpack_from(">H", data, at)[0])


def _read_webp_size(data: bytes | bytearray) -> tuple[int, int] | None:
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            if data[20] != 0x2F:
                return None
            (bits,) = struct.unpack_from("<I", data, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None
