"""The awkward-file zoo, against Pillow, and the augmentation."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.files import Location
from d2v_plugin.data.image import ColorJitterConfig, ImageReadingConfig, augment, choose_crop, fit, normalize
from d2v_plugin.data.image_decoding import decode, decode_picture
from d2v_plugin.data.random import Purpose, draw_uniform

AUGMENTATION = json.loads((Path(__file__).parents[1] / "golden" / "augmentation.json").read_text())
RAMP = np.linspace(0, 255, 600).reshape(20, 30)
COLORS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1).astype(np.uint8)
PICTURE = Image.fromarray(COLORS)
TRANSPARENT = Image.fromarray(np.dstack([COLORS, RAMP.astype(np.uint8)]))
ROTATED = Image.Exif()
ROTATED[0x112] = 6
MIRRORED = Image.Exif()
MIRRORED[0x112] = 7


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)

    return file.getvalue()


ZOO = {
    "png": encode(PICTURE, "PNG"),
    "jpeg": encode(PICTURE, "JPEG"),
    "progressive jpeg": encode(PICTURE, "JPEG", progressive=True),
    "grey png": encode(PICTURE.convert("L"), "PNG"),
    "grey jpeg": encode(PICTURE.convert("L"), "JPEG"),
    "1-bit png": encode(PICTURE.convert("1"), "PNG"),
    "palette": encode(PICTURE.quantize(16), "PNG"),
    "cmyk": encode(PICTURE.convert("CMYK"), "JPEG"),
    "rotated jpeg": encode(PICTURE, "JPEG", exif=ROTATED),
    "rotated png": encode(PICTURE, "PNG", exif=ROTATED),
    "webp": encode(PICTURE, "WEBP"),
    "rotated webp": encode(PICTURE, "WEBP", exif=ROTATED),
    "mirrored webp": encode(PICTURE, "WEBP", exif=MIRRORED),
    "animated webp": encode(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)]),
    "bmp": encode(PICTURE, "BMP"),
    "palette bmp": encode(PICTURE.quantize(16), "BMP"),
    "tiff": encode(PICTURE, "TIFF"),
    "compressed tiff": encode(PICTURE, "TIFF", compression="tiff_lzw"),
    "rotated tiff": encode(PICTURE, "TIFF", exif=ROTATED),
    "cmyk tiff": encode(PICTURE.convert("CMYK"), "TIFF"),
    "two pages": encode(PICTURE, "TIFF", save_all=True, append_images=[PICTURE.rotate(180)]),
    "opaque alpha": encode(PICTURE.convert("RGBA"), "PNG"),
    "gif": encode(PICTURE, "GIF"),
    "animated gif": encode(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)]),
}


def decode_bytes(folder: Path, data: bytes) -> torch.Tensor:
    (folder / "file").write_bytes(data)

    return decode(Location(str(folder / "file")))


@pytest.mark.parametrize("name", ZOO)
def test_awkward_images_come_out_as_pillow_shows_them(tmp_path: Path, name: str) -> None:
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(ZOO[name])))
    expected = np.asarray(shown.convert("RGB")).transpose(2, 0, 1)
    image = decode_bytes(tmp_path, ZOO[name])

    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_become_8(tmp_path: Path, kind: str) -> None:
    deep = np.round(RAMP * 257).astype(np.uint16)
    image = decode_bytes(tmp_path, encode(Image.fromarray(deep), kind))

    np.testing.assert_array_equal(image.numpy(), np.broadcast_to(deep >> 8, (3, 20, 30)))


TRANSPARENT_ZOO = {
    "alpha": encode(TRANSPARENT, "PNG"),
    "grey alpha": encode(TRANSPARENT.convert("LA"), "PNG"),
    "palette": encode(PICTURE.quantize(16), "PNG", transparency=3),
    "colour": encode(PICTURE, "PNG", transparency=tuple(COLORS[3, 4].tolist())),
    "rotated": encode(TRANSPARENT, "PNG", exif=ROTATED),
    "webp": encode(TRANSPARENT, "WEBP", lossless=True, exact=True),
    "gif": encode(PICTURE.quantize(16), "GIF", transparency=3),
    "tiff": encode(TRANSPARENT, "TIFF"),
}


@pytest.mark.parametrize("name", TRANSPARENT_ZOO)
def test_what_is_transparent_lies_on_white(tmp_path: Path, name: str) -> None:
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(TRANSPARENT_ZOO[name]))).convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    (tmp_path / "file").write_bytes(TRANSPARENT_ZOO[name])
    image, transparent = decode_picture(Location(str(tmp_path / "file")))

    assert transparent and image.shape == (3, *shown.size[::-1])
    np.testing.assert_allclose(image.numpy().astype(int), np.asarray(expected).transpose(2, 0, 1), atol=1)


def test_an_alpha_channel_that_hides_nothing_is_no_transparency(tmp_path: Path) -> None:
    for name in ("opaque alpha", "png", "webp", "gif"):
        (tmp_path / "file").write_bytes(ZOO[name])
        assert not decode_picture(Location(str(tmp_path / "file")))[1]


def test_damaged_exif_spoils_no_picture(tmp_path: Path) -> None:
    assert decode_bytes(tmp_path, encode(PICTURE, "WEBP", exif=b"Exif\0\0" + bytes(20))).shape == (3, 20, 30)


FOREIGN = [ZOO["png"][:200], ZOO["jpeg"][:400], b"some text", encode(PICTURE, "PPM"), encode(PICTURE, "BMP")[:40], b""]


@pytest.mark.parametrize("data", [*FOREIGN, ZOO["gif"][:30], ZOO["webp"][:60], ZOO["tiff"][:60], b"II*\0" + b"\xff" * 60])
def test_broken_files_and_unknown_formats_raise(tmp_path: Path, data: bytes) -> None:
    with pytest.raises((RuntimeError, SampleError)):
        decode_bytes(tmp_path, data)


def test_byte_ranges_of_an_archive_are_images(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"before" + ZOO["png"] + b"after")
    image = decode(Location(str(tmp_path / "shard"), 6, len(ZOO["png"])))

    np.testing.assert_array_equal(image.numpy(), COLORS.transpose(2, 0, 1))


def test_augmentation_depends_on_seed_epoch_and_sample_alone() -> None:
    config = ImageReadingConfig(size=16, color_jitter=ColorJitterConfig(brightness=0.4, contrast=0.4, saturation=0.4))
    image = torch.from_numpy(COLORS.transpose(2, 0, 1).copy())
    first = augment(image, config, 1, 2, 3)
    augment(image, config, 5, 5, 5)

    assert first.shape == (3, 16, 16)
    assert torch.equal(first, augment(image, config, 1, 2, 3))
    assert not any(torch.equal(first, augment(image, config, *key)) for key in [(0, 2, 3), (1, 0, 3), (1, 2, 0)])


def test_crops_have_the_areas_shapes_and_places_asked_for() -> None:
    config = ImageReadingConfig()
    crops = np.array([choose_crop(300, 200, config, draw_uniform(0, 0, Purpose.AUGMENTATION, i, 27)) for i in range(3000)])
    left, top, width, height = crops.T
    area, ratio = width * height / 60000, width / height

    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 300).all() and (top + height <= 200).all()
    assert area.min() > 0.19 and 0.87 < area.max() <= 8 / 9 + 0.01  # the widest crop of full height
    assert 0.73 < ratio.min() < 0.8 and 1.3 < ratio.max() < 1.36
    assert abs(np.log(ratio).mean()) < 0.06


def test_crops_match_torchvision_in_distribution() -> None:
    from torchvision.transforms import RandomResizedCrop

    config, image = ImageReadingConfig(), torch.empty(3, 200, 300)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])[:, [1, 0, 3, 2]]
    ours = np.array([choose_crop(300, 200, config, draw_uniform(0, 0, Purpose.AUGMENTATION, i, 27)) for i in range(3000)])

    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), rtol=0.06)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.06)


@pytest.mark.parametrize("layout", ["decoded", "planes"])
def test_pixels_are_those_of_torchvisions_resized_crop(layout: str) -> None:
    config = ImageReadingConfig(size=12, flip=0.0)
    image = torch.from_numpy(COLORS.transpose(2, 0, 1) if layout == "decoded" else COLORS.transpose(2, 0, 1).copy())
    for sample in range(20):
        draws = draw_uniform(0, 0, Purpose.AUGMENTATION, sample, 27).tolist()
        left, top, width, height = choose_crop(30, 20, config, draws)
        expected = functional.resized_crop(image, top, left, height, width, [12, 12], functional.InterpolationMode.BICUBIC)
        assert torch.equal(augment(image, config, 0, 0, sample), expected)


@pytest.mark.parametrize("name", AUGMENTATION["crops"])
def test_crops_are_distributed_as_the_originals(name: str) -> None:
    expected = AUGMENTATION["crops"][name]
    (width, height), config = expected["size"], ImageReadingConfig(crop_scale=expected["scale"])
    draws = [draw_uniform(0, 0, Purpose.AUGMENTATION, i, 27).tolist() for i in range(6000)]
    left, top, w, h = np.array([choose_crop(width, height, config, each) for each in draws], dtype=np.float64).T

    found = {"area": w * h / (width * height), "log_ratio": np.log(w / h), "left": left / width, "top": top / height}
    for key, values in found.items():
        mean, deviation, *quantiles = expected[key]
        error = 5 * deviation * np.sqrt(1 / 6000 + 1 / 20000)
        assert values.mean() == pytest.approx(mean, abs=error), key
        assert values.std() == pytest.approx(deviation, abs=error), key
        np.testing.assert_allclose(np.quantile(values, [0.1, 0.5, 0.9]), quantiles[1:4], atol=3 * error, err_msg=key)


def test_jitters_are_distributed_as_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, names = AUGMENTATION["color_jitter"], ("brightness", "contrast", "saturation")
    calls: list[tuple[int, float]] = []
    for index, name in enumerate(names):
        change = partial(lambda image, factor, index: (calls.append((index, factor)), image)[1], index=index)
        monkeypatch.setattr(functional, f"adjust_{name}_image", change)
    config, image = ImageReadingConfig(size=1, color_jitter=ColorJitterConfig(**dict.fromkeys(names, 0.4))), torch.zeros(3, 1, 1)
    for i in range(6000):
        augment(image.to(torch.uint8), config, 0, 0, i)

    for index, name in enumerate(names):
        mean, deviation, *quantiles = expected[name]
        factors = [factor for which, factor in calls if which == index]
        assert np.mean(factors) == pytest.approx(mean, abs=0.02) and np.std(factors) == pytest.approx(deviation, abs=0.01)
        np.testing.assert_allclose(np.quantile(factors, [0.0, 0.1, 0.5, 0.9, 1.0]), quantiles, atol=0.03)
    orders = ["".join(str(which) for which, _ in calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert {order: orders.count(order) / 6000 for order in expected["orders"]} == pytest.approx(expected["orders"], abs=0.03)


def test_half_of_the_images_are_flipped() -> None:
    image = torch.arange(2, dtype=torch.uint8).expand(3, 2, 2)
    config = ImageReadingConfig(size=2, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))

    assert np.mean([bool(augment(image, config, 0, 0, i)[0, 0, 0]) for i in range(4000)]) == pytest.approx(0.5, abs=0.03)


def test_colors_change_before_the_crop_so_that_contrast_is_about_the_mean_of_the_whole_picture() -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :, 20:] = 200
    config = ImageReadingConfig(size=8, crop_scale=(0.05, 0.05), color_jitter=ColorJitterConfig(contrast=0.4))
    crops = [augment(image, config, 0, 0, i) for i in range(50)]

    # Within a crop of one colour, which is its own mean, nothing would change.
    bright = [int(crop[0, 0, 0]) for crop in crops if crop.unique().numel() == 1 and crop.max() > 100]
    assert len(bright) > 10 and sum(value != 200 for value in bright) > 0.8 * len(bright)


def test_flipping_can_be_switched_off() -> None:
    image = torch.from_numpy(COLORS.transpose(2, 0, 1).copy())
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.5, 1.5), "size": 20}
    kept = [augment(image, ImageReadingConfig(flip=0.0, **whole), 0, 0, i) for i in range(20)]
    flipped = [augment(image, ImageReadingConfig(flip=0.5, **whole), 0, 0, i) for i in range(20)]

    assert all(torch.equal(kept[0], other) for other in kept)
    assert 3 < sum(torch.equal(kept[0].flip(-1), other) for other in flipped) < 17


def test_normalization_is_exact() -> None:
    config = ImageReadingConfig()
    images = [torch.randint(256, (3, 4, 4), dtype=torch.uint8) for _ in range(2)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))

    torch.testing.assert_close(normalize(images, config), (torch.stack(images) / 255 - mean) / std)


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre() -> None:
    image = torch.from_numpy(COLORS.transpose(2, 0, 1).copy())
    square = fit(image, ImageReadingConfig(size=20, eval_resize=1.0))

    assert torch.equal(square, image[:, :, 5:25])
    assert fit(image, ImageReadingConfig(size=14)).shape == (3, 14, 14)
