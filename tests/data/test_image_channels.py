"""Images of any number of channels, 8 and 16 bits, and rectangles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.files import Location
from d2v_plugin.data.image import ImageReadingConfig, augment, draw_size, fit, normalize
from d2v_plugin.data.image_decoding import decode

Write = Callable[[Path], None]
DEEP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000 + 7


def array(values: np.ndarray) -> Write:
    return lambda path: np.save(path, values)


def picture(values: np.ndarray, mode: str | None = None) -> Write:
    return lambda path: Image.fromarray(values, mode).save(path)


@pytest.mark.parametrize(
    ("name", "write", "num_channels", "expected"),
    [
        ("deep.png", picture(DEEP), 1, DEEP[None] / 257),
        ("deep.tif", picture(DEEP), 1, DEEP[None] / 257),
        ("deep.npy", array(DEEP), 1, DEEP[None] / 257),
        ("grey.png", picture(np.full((6, 8), 77, np.uint8)), 1, np.full((1, 6, 8), 77)),
        ("rgba.png", picture(np.full((6, 8, 4), 77, np.uint8)), 4, np.full((4, 6, 8), 77)),
        ("last.npy", array(np.stack([DEEP] * 5, -1)), 5, np.stack([DEEP] * 5) / 257),
        ("first.npy", array(np.stack([DEEP] * 5).astype(np.uint8)), 5, np.stack([DEEP.astype(np.uint8)] * 5)),
        ("fortran.npy", array(np.asfortranarray(DEEP.astype(np.uint8))), 1, DEEP.astype(np.uint8)[None]),
    ],
)
def test_channels_and_bits_stay(tmp_path: Path, name: str, write: Write, num_channels: int, expected: np.ndarray) -> None:
    write(tmp_path / name)

    image = decode(Location(str(tmp_path / name)), num_channels)

    assert image.dtype == (torch.uint8 if np.issubdtype(expected.dtype, np.integer) else torch.float32)
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "write", "num_channels", "message"),
    [
        ("rgb.png", picture(np.zeros((6, 8, 3), np.uint8)), 4, r"The picture has 3 channel\(s\), but the model takes 4"),
        ("rgb.png", picture(np.zeros((6, 8, 3), np.uint8)), 7, r"1, 3 or 4 channels, but the model takes 7; write an array"),
        ("a.npy", array(np.zeros((6, 8, 5), np.uint8)), 4, r"has the shape \(6, 8, 5\), but the model takes 4 channel"),
        ("a.npy", array(np.zeros((6, 8, 5), np.float32)), 5, "holds float32, but uint8 or uint16 are read"),
        ("a.npy", array(np.zeros((0, 8, 5), np.uint8)), 5, r"has the shape \(0, 8, 5\)"),
        ("a.npy", array(np.array([None])), 1, "The array"),
        ("a.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), 1, "The array cannot be read"),
    ],
)
def test_other_channels_are_refused(tmp_path: Path, name: str, write: Write, num_channels: int, message: str) -> None:
    write(tmp_path / name)

    with pytest.raises(SampleError, match=message):
        decode(Location(str(tmp_path / name)), num_channels)


def test_an_array_that_is_cut_short_takes_no_memory_for_what_it_claims(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((6, 8), np.uint8))
    data = (tmp_path / "a.npy").read_bytes().replace(b"(6, 8)", b"(6, 9)")
    (tmp_path / "a.npy").write_bytes(data)

    with pytest.raises(SampleError, match="cannot be read"):
        decode(Location(str(tmp_path / "a.npy")), 1)


def test_rectangles_are_cropped_and_fitted_without_distortion() -> None:
    config = ImageReadingConfig(size=(16, 48), mean=[0.5] * 5, std=[0.25] * 5, crop_ratio=(1.0, 1.0), flip=0.0)
    # Each pixel holds its place.
    down, across = np.mgrid[:120, :240].astype(np.float32)
    image = torch.from_numpy(np.stack([down, across, down, across, down]))

    cropped, fitted = augment(image, config, 0, 0, 1), fit(image, config)

    assert cropped.shape == fitted.shape == (5, 16, 48)
    for x in (cropped, fitted):
        per_row, per_column = x[0, 1:].sub(x[0, :-1]).mean(), x[1, :, 1:].sub(x[1, :, :-1]).mean()
        assert float(per_row) == pytest.approx(float(per_column), rel=0.1)
    assert normalize([fitted], config).shape == (1, 5, 16, 48)


def test_sizes_are_drawn_for_updates() -> None:
    config = ImageReadingConfig(sizes=[16, (16, 48), 32])
    drawn = [draw_size(config, 0, update) for update in range(200)]

    assert drawn == [draw_size(config, 0, update) for update in range(200)]
    assert drawn != [draw_size(config, 1, update) for update in range(200)]
    assert {size: drawn.count(size) > 40 for size in drawn} == {(16, 16): True, (16, 48): True, (32, 32): True}
