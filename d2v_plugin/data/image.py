"""Images: how they become tensors, with the augmentation of data2vec 2.0 (that of MAE), stateless."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from fairseq2.utils.validation import ValidationResult
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import override

from d2v_plugin.core.batch import Grid, as_grid
from d2v_plugin.core.lazy import LazyModule
from d2v_plugin.core.ranges import PositiveFloat, PositiveInt, PositiveShare, Probability, Range
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.data.color_jitter import ColorJitterConfig, jitter_colors
from d2v_plugin.data.random import Purpose, draw_uniform

transforms = LazyModule("torchvision.transforms.v2.functional")

_NUM_CROP_TRIES = 10
_MAX_ASPECT = 16


@dataclass(kw_only=True)
class ImageReadingConfig(Checked):
    """Settings of how images become tensors."""

    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224
    """Height and width, in pixels, of what the model sees; one number = both."""

    sizes: Sequence[PositiveInt | tuple[PositiveInt, PositiveInt]] = ()
    """Training draws the size of an update from these, all as likely; empty = it is always ``size``."""

    crop_scale: Sequence[PositiveShare] = (0.2, 1.0)
    """Smallest and largest area of the random crop, as a share of the image."""

    crop_ratio: Sequence[PositiveFloat] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the random crop, as a multiple of that of ``size``."""

    flip: Probability = 0.5
    """Probability of a horizontal flip; 0 where left and right matter, as in writing."""

    color_jitter: ColorJitterConfig = field(default_factory=ColorJitterConfig)
    """Off in data2vec 2.0."""

    eval_resize: PositiveFloat = 256 / 224
    """Without augmentation the shorter side is resized to this times ``size``, then the centre is cropped; 1 = no margin."""

    mean: Sequence[Annotated[float, Range(">= -1e6, <= 1e6")]] = (0.485, 0.456, 0.406)
    """Subtracted from the values of each channel in [0, 1]; the default is ImageNet's, for red, green and blue. There are as many
    channels as numbers: one = pictures are read as grey. ``report`` = those that ``fairseq2 recipe manifest`` measured."""

    std: Sequence[Annotated[float, Range("> 0, <= 1e6")]] = (0.229, 0.224, 0.225)
    """Divides what is left; ``report`` likewise."""

    @property
    def num_channels(self) -> int:
        return len(self.mean)

    @override
    def validate(self) -> ValidationResult:
        return report(
            *(
                (len(pair) != 2 or pair[0] > pair[1], f"`{name}` must be two numbers, the smaller first, but is {list(pair)}.")
                for name, pair in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio))
            ),
            (
                len(self.mean) != len(self.std) or not self.mean,
                f"`mean` and `std` must hold a number for each channel, but are {list(self.mean)} and {list(self.std)}.",
            ),
            (
                self.num_channels != 3 and not self.color_jitter.is_off,
                f"`color_jitter` is for 3 channels, but `mean` has {self.num_channels}; leave it out.",
            ),
            base=super().validate(),
        )


def augment(image: Tensor, config: ImageReadingConfig, seed: int, epoch: int, sample_id: int, size: Grid | None = None) -> Tensor:
    """Jitter, crop, resize and flip. (C, H, W) -> (C, height, width), of the same type.

    :param size: None = that of the settings.
    """
    new_height, new_width = as_grid(config.size) if size is None else size
    draws = draw_uniform(seed, epoch, Purpose.AUGMENTATION, sample_id, 2 * _NUM_CROP_TRIES + 7).tolist()
    if not config.color_jitter.is_off:
        # Of the whole picture, as in BEiT: changes of contrast are about its mean.
        image = jitter_colors(image, config.color_jitter, draws[-5:-1])
    left, top, width, height = choose_crop(image.size(-1), image.size(-2), config, draws, new_width / new_height)
    image = _resize(image.numpy()[:, top : top + height, left : left + width], new_height, new_width)
    if draws[-1] < config.flip:
        image = image.flip(-1)

    return image


def choose_crop(
    width: int, height: int, config: ImageReadingConfig, draws: Sequence[float], aspect: float = 1.0
) -> tuple[int, int, int, int]:
    """Choose a crop of random area, shape and place, as torchvision's ``RandomResizedCrop`` does.

    :param draws: at least 22 numbers in [0, 1).
    :param aspect: width / height of what it becomes, by which the ratios of the settings are multiplied.
    :returns: left, top, width and height.
    """
    shapes = iter(draws)
    narrowest, widest = (ratio * aspect for ratio in config.crop_ratio)
    low, high = math.log(narrowest), math.log(widest)
    smallest, largest = config.crop_scale
    across, down = draws[2 * _NUM_CROP_TRIES : 2 * _NUM_CROP_TRIES + 2]
    for _ in range(_NUM_CROP_TRIES):
        area = width * height * (smallest + next(shapes) * (largest - smallest))
        ratio = math.exp(low + next(shapes) * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h

    # No try fits: the largest centred crop of an allowed shape.
    w = min(width, round(height * widest))
    h = min(height, round(width / narrowest))

    return (width - w) // 2, (height - h) // 2, w, h


def fit(image: Tensor, config: ImageReadingConfig) -> Tensor:
    """Resize and crop the centre, without randomness. (C, H, W) -> (C, height, width), of the same type.

    Of an image more than 16 times as long as wide only the middle is resized: a line of pixels would become gigabytes.
    """
    longest = _MAX_ASPECT * min(image.shape[-2:])
    if max(image.shape[-2:]) > longest:
        image = transforms.center_crop_image(image, [min(side, longest) for side in image.shape[-2:]])
    height, width = image.shape[-2:]
    size = as_grid(config.size)
    down, across = (max(side, round(side * config.eval_resize)) for side in size)
    scale = max(down / height, across / width)
    image = _resize(image.numpy(), max(down, round(height * scale)), max(across, round(width * scale)))

    cropped: Tensor = transforms.center_crop_image(image, list(size))

    return cropped


def normalize(images: Sequence[Tensor], config: ImageReadingConfig) -> Tensor:
    """Stack and scale. N × (C, H, W) -> (N, C, H, W) float32."""
    normalized = np.empty((len(images), *images[0].shape), dtype=np.float32)
    normalizer = Normalizer(config)
    for image, place in zip(images, normalized, strict=True):
        normalizer.write(image, place)
    return torch.from_numpy(normalized)


class Normalizer:
    """Writes images to their places in a batch: while they are in the processor's cache, as a whole batch would not be."""

    def __init__(self, config: ImageReadingConfig) -> None:
        # (x / 255 - mean) / std = x · scale + shift
        self._scale = 1 / (255 * np.array(config.std, dtype=np.float32).reshape(-1, 1, 1))
        self._shift = -255 * np.array(config.mean, dtype=np.float32).reshape(-1, 1, 1) * self._scale

    @property
    def scaling(self) -> Tensor:
        """The same for whole batches: see :attr:`d2v_plugin.core.batch.Batch.scaling`."""
        return torch.from_numpy(np.stack([self._scale, self._shift]))

    def write(self, image: Tensor, place: NDArray[np.float32]) -> None:
        """Scale. (C, H, W) -> (C, H, W) float32."""
        place[...] = image.numpy()
        place *= self._scale
        place += self._shift


def _resize(image: NDArray[np.uint8] | NDArray[np.float32], height: int, width: int) -> Tensor:
    """(C, H, W) -> (C, height, width)"""
    if image.shape[-2:] == (height, width):
        return torch.from_numpy(image)
    # PyTorch resizes whole pixels, the layout in which images are decoded, and converts others there and back: also a crop,
    # unless it is copied and comes as a batch of one. Views are NumPy's, because with PyTorch each lets other threads interrupt.
    # (C, H, W) -> (1, C, H, W), channels last
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(1, 2, 0))[None]).permute(0, 3, 1, 2)
    return interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0]


def draw_size(config: ImageReadingConfig, seed: int, update: int) -> Grid:
    """Draw the height and width of an update."""
    if not config.sizes:
        return as_grid(config.size)
    (place,) = draw_uniform(seed, update, Purpose.SIZE, 0, 1)
    return as_grid(config.sizes[int(place * len(config.sizes))])
