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

MAX_VALUES: Final = 1 << 28
"""Samples times channels of one recording; 4.6 hours of mono at 16 kHz, 1 GiB in single precision."""

# Markers of JPEG that start a picture of some kind; among them are three that do not.
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def check_picture(data: bytes | bytearray) -> None:
    """
    :raises SampleError: the picture claims to be too large. What has no such header is for the decoder to refuse.
    """
    try:
        size = _read_picture_size(data)
    except (struct.error, IndexError):  # truncated
        return
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise SampleError(f"The picture claims {size[0]:,} x {size[1]:,} pixels; at most {MAX_PIXELS:,} are decoded.")


def check_recording(num_frames: int, num_channels: int) -> None:
    """
    :raises SampleError: more than :data:`MAX_VALUES` would be decoded.
    """
    if num_frames * num_channels > MAX_VALUES:
        raise SampleError(
            f"The recording has {num_frames:,} samples in {num_channels} channel(s); at most {MAX_VALUES:,} values are decoded."
        )


def is_gif(data: bytes | bytearray) -> bool:
    """Recognize files that may hold any number of pictures, which no header tells."""
    return data[:4] == b"GIF8"


def _read_picture_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """Width and height, of the four formats that are decoded."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return struct.unpack_from(">II", data, 16)
    if data[:2] == b"\xff\xd8":
        return _read_jpeg_size(data)
    if is_gif(data):
        return struct.unpack_from("<HH", data, 6)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _read_webp_size(data)

    return None


def _read_jpeg_size(data: bytes | bytearray) -> tuple[int, int] | None:
    at = 2
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without length
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]


def _read_webp_size(data: bytes | bytearray) -> tuple[int, int] | None:
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None
