"""Images of other channels than red, green and blue: grey, with transparency, and arrays of any number of channels."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from d2v_plugin.data.arrays import read_npy
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.headers import PILLOW_BYTES, check_size

_MODES: Final = {1: "L", 4: "RGBA"}


def read_array(data: bytes | bytearray, num_channels: int) -> Tensor:
    """Read an array (H, W), (H, W, C) or (C, H, W) of a ``.npy`` file: (C, H, W), see :func:`scale`.

    :raises SampleError: it has another type or another number of channels, or is cut short.
    """
    values = read_npy(data)
    shape = values.shape
    if values.dtype not in (np.uint8, np.uint16):
        raise SampleError(f"The array holds {values.dtype}, but uint8 or uint16 are read.")
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[-1] != num_channels == values.shape[0]:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[-1] != num_channels or not values.size:
        raise SampleError(
            f"The array has the shape {shape}, but the model takes {num_channels} channel(s): (H, W, {num_channels})."
        )

    return scale(values)


def decode_channels(data: bytes | bytearray, kind: str, num_channels: int) -> Tensor:
    """Decode a picture as grey (1) or with transparency (4): (C, H, W), see :func:`scale`.

    :param kind: its format, as Pillow calls it.
    :raises SampleError: it has other channels, or cannot be decoded.
    """
    if num_channels not in _MODES:
        raise SampleError(f"A picture has 1, 3 or 4 channels, but the model takes {num_channels}; write an array (.npy) instead.")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            check_size(image.width, image.height, PILLOW_BYTES)
            picture: Image.Image = ImageOps.exif_transpose(image)
            if num_channels == 4 and not picture.has_transparency_data:
                raise SampleError(f"The picture has {len(picture.getbands())} channel(s), but the model takes {num_channels}.")
            if picture.mode in ("I", "F"):
                raise SampleError("The picture has 32 bits per value, which are not read.")
            if picture.mode.startswith("I;16"):
                return scale(np.asarray(picture).astype(np.uint16)[..., None])
            if num_channels == 1 and picture.has_transparency_data:
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
            values = np.array(picture.convert(_MODES[num_channels]))
    except (SampleError, MemoryError):
        raise
    except Exception as ex:  # whatever its many parsers make of a damaged file
        raise SampleError(f"The {kind} cannot be decoded: {ex or type(ex).__name__}") from ex

    return scale(values[..., None] if values.ndim == 2 else values)


def scale(values: NDArray[np.uint8] | NDArray[np.uint16]) -> Tensor:
    """(H, W, C) -> (C, H, W): 8 bits as they are, 16 bits as fp32 from 0 to 255, of which none is lost."""
    if values.dtype != np.uint8:
        values = values.astype(np.float32) / 257  # type: ignore[assignment]

    return torch.from_numpy(np.array(values, order="C")).permute(2, 0, 1)
