"""Decoding of images of every format that is read."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import torch
from PIL import BmpImagePlugin, GifImagePlugin, Image, PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # makes the formats known
from torch import Tensor

from d2v_plugin.core.lazy import LazyModule
from d2v_plugin.data.arrays import ARRAY_MAGIC
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.files import Location, read_bytes
from d2v_plugin.data.headers import PILLOW_BYTES, check_picture, check_size, find_kind, has_alpha
from d2v_plugin.data.image_channels import decode_channels, read_array

vision = LazyModule("torchvision.io")

FORMATS: Final = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
"""Formats that are read; they are told by content, not by name."""

_ORIENTATION = 0x112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(location: Location, num_channels: int = 3) -> Tensor:
    """Read an image: (C, H, W) uint8; see :func:`decode_picture`, which also says whether it is transparent."""
    return decode_picture(location, num_channels)[0]


def decode_picture(location: Location, num_channels: int = 3) -> tuple[Tensor, bool]:
    """Read an image: (3, H, W) uint8, red, green, blue, and whether any of it is transparent.

    Grey, palette, CMYK and 16-bit images are converted; what is transparent lies on white; a rotation noted in EXIF is applied;
    of an animation, or a file of several pages, the first is used.

    :param num_channels: C; 1 = grey, 4 = with transparency. Of other numbers there are arrays alone (``.npy``). Unless they are
        three, channels of 16 bits keep them: (C, H, W) fp32 in the range of 8 bits.
    :raises SampleError: the file is empty, too damaged or too large, a format that is not read, or has other channels.
    :raises OSError: it cannot be read.
    :raises RuntimeError: it is damaged.
    """
    data = read_bytes(location)
    if not data:
        raise SampleError("The file is empty.")
    if data.startswith(ARRAY_MAGIC):
        return read_array(data, num_channels), False
    kind = find_kind(data)
    if kind is None:
        raise SampleError(f"The file is no picture of a format that is read ({', '.join(FORMATS)}).")
    check_picture(data)
    if num_channels != 3:
        return decode_channels(data, kind, num_channels), False
    if kind not in ("JPEG", "PNG") or (kind == "PNG" and has_alpha(data)):
        return _decode_by_pillow(data, kind)
    image: Tensor = vision.decode_image(
        torch.frombuffer(data, dtype=torch.uint8), vision.ImageReadMode.RGB, apply_exif_orientation=True
    )
    if image.dtype == torch.uint16:
        # In place, since it is the largest there is.
        deep = image.numpy()
        image = torch.from_numpy(np.right_shift(deep, 8, out=deep).astype(np.uint8))

    return image, False


def _decode_by_pillow(data: bytes | bytearray, kind: str) -> tuple[Tensor, bool]:
    """The first picture of a file of a format that torchvision does not read, or reads without its rotation or transparency."""
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            check_size(image.width, image.height, PILLOW_BYTES)
            image.load()
            turn = _find_turn(image)
            if image.mode.startswith("I;16"):
                deep = np.asarray(image).astype(np.uint16) >> 8
                picture = Image.fromarray(deep.astype(np.uint8)).convert("RGB")
            elif image.mode in ("I", "F"):
                raise SampleError("The picture has 32 bits per value, which are not read.")
            else:
                picture = image.convert("RGBA" if image.has_transparency_data else "RGB")
            if turn is not None:
                picture = picture.transpose(turn)
            # A copy, which may be written to.
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    except (SampleError, MemoryError):
        raise
    except Exception as ex:  # whatever its many parsers make of a damaged file
        raise SampleError(f"The {kind} cannot be decoded: {ex or type(ex).__name__}") from ex

    return _lay_on_white(pixels) if len(pixels) == 4 else (pixels, False)


def _find_turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that EXIF asks for; Pillow has turned a TIFF already."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF, which spoils no picture
        return None


def _lay_on_white(image: Tensor) -> tuple[Tensor, bool]:
    """Remove the alpha channel: (4, H, W) -> (3, H, W), and whether anything showed the white below it."""
    colors, alpha = image[:3], image[3].numpy()
    if int(alpha.min(initial=255)) == 255:
        return colors, False
    wide = alpha.astype(np.uint16)
    for color in colors.numpy():
        # Rounded; the largest number on the way is 255 · 255 + 127.
        color[...] = (color * wide + (255 * 255 + 127 - 255 * wide)) // 255

    return colors, True
