"""RandAugment as timm's ``rand-m9-mstd0.5-inc1``, bicubic, with which MAE, BEiT and data2vec fine-tune: stateless.

Fifteen operations, of which some are drawn for each image with replacement. Each is applied with some probability, and changes
the more the larger its magnitude is, of which 10 is the most. torchvision's own ``RandAugment`` has other operations and other
magnitudes, and draws from the process's generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d2v_plugin.core.lazy import LazyModule
from d2v_plugin.core.ranges import NonNegativeFloat, NonNegativeInt, Probability, Range
from d2v_plugin.core.validation import Checked
from d2v_plugin.data.random import Purpose, draw_uniform

special = LazyModule("scipy.special")
transforms = LazyModule("torchvision.transforms.v2.functional")

_MAX_MAGNITUDE = 10.0
_DRAWS_PER_OPERATION = 4


@dataclass(kw_only=True)
class RandAugmentConfig(Checked):
    """Settings of RandAugment; the defaults are the published ones."""

    num_operations: NonNegativeInt = 2
    """How many operations are drawn for each image; 0 = off."""

    magnitude: Annotated[float, Range(">= 0, <= 10")] = 9.0
    """How much they change, on average: from 0 to 10."""

    deviation: NonNegativeFloat = 0.5
    """Standard deviation of the magnitude."""

    probability: Probability = 0.5
    """How likely an operation that was drawn is applied."""


def rand_augment(
    image: Tensor, config: RandAugmentConfig, fill: Sequence[float], *, seed: int, epoch: int, sample_id: int
) -> Tensor:
    """Change an image at random. (3, H, W) -> (3, H, W), uint8.

    :param fill: red, green and blue, from 0 to 255, of what comes from outside the image.
    """
    draws = draw_uniform(seed, epoch, Purpose.RAND_AUGMENT, sample_id, _DRAWS_PER_OPERATION * config.num_operations)
    for which, applied, size, sign in draws.reshape(-1, _DRAWS_PER_OPERATION).tolist():
        if applied >= config.probability:
            continue
        magnitude = config.magnitude + config.deviation * float(special.ndtri(size))
        share = min(max(magnitude, 0.0), _MAX_MAGNITUDE) / _MAX_MAGNITUDE
        operation = OPERATIONS[int(which * len(OPERATIONS))]
        image = operation(image, share, 1.0 if sign < 0.5 else -1.0, list(fill))

    return image


Color = tuple[int, int, int]

Operation = Callable[[Tensor, float, float, list[float]], Tensor]
"""Changes an image: the magnitude from 0 to 1, its sign, and the fill."""


def _rotate(image: Tensor, share: float, sign: float, fill: list[float]) -> Tensor:
    return _warp(
        image, lambda picture, color: picture.rotate(30.0 * share * sign, Image.Resampling.BICUBIC, fillcolor=color), fill
    )


def _shear(axis: int) -> Operation:
    def apply(image: Tensor, share: float, sign: float, fill: list[float]) -> Tensor:
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        matrix[1 + 2 * axis] = 0.3 * share * sign

        return _map_places(image, matrix, fill)

    return apply


def _translate(axis: int) -> Operation:
    def apply(image: Tensor, share: float, sign: float, fill: list[float]) -> Tensor:
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        matrix[2 + 3 * axis] = 0.45 * share * sign * image.size(-1 - axis)

        return _map_places(image, matrix, fill)

    return apply


def _map_places(image: Tensor, matrix: Sequence[float], fill: list[float]) -> Tensor:
    """
    :param matrix: (a, b, c, d, e, f): what comes to lie at (x, y) was at (a·x + b·y + c, d·x + e·y + f).
    """

    def apply(picture: Image.Image, color: Color) -> Image.Image:
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=color)

    return _warp(image, apply, fill)


def _warp(image: Tensor, apply: Callable[[Image.Image, Color], Image.Image], fill: list[float]) -> Tensor:
    """Change the geometry by Pillow: torchvision does not interpolate tensors as the originals do, bicubic."""
    red, green, blue = (int(value) for value in fill)
    # (3, H, W) -> (H, W, 3) and back
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))

    return torch.from_numpy(np.array(apply(picture, (red, green, blue)))).permute(2, 0, 1)


def _enhance(name: str) -> Operation:
    return lambda image, share, sign, fill: getattr(transforms, name)(image, max(0.1, 1.0 + 0.9 * share * sign))


def _solarize(image: Tensor, share: float, sign: float, fill: list[float]) -> Tensor:
    threshold = 256 - int(256 * share)
    return transforms.solarize_image(image, float(threshold)) if threshold < 256 else image


def _solarize_add(image: Tensor, share: float, sign: float, fill: list[float]) -> Tensor:
    lighter = (image.to(torch.int16) + int(110 * share)).clamp_(max=255).to(torch.uint8)
    return torch.where(image < 128, lighter, image)


OPERATIONS: Sequence[Operation] = (
    lambda image, share, sign, fill: transforms.autocontrast_image(image),
    lambda image, share, sign, fill: transforms.equalize_image(image),
    lambda image, share, sign, fill: transforms.invert_image(image),
    _rotate,
    lambda image, share, sign, fill: transforms.posterize_image(image, 4 - int(4 * share)),
    _solarize,
    _solarize_add,
    _enhance("adjust_saturation_image"),
    _enhance("adjust_contrast_image"),
    _enhance("adjust_brightness_image"),
    _enhance("adjust_sharpness_image"),
    _shear(0),
    _shear(1),
    _translate(0),
    _translate(1),
)
"""In timm's order."""
