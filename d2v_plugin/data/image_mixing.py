"""Random erasing, MixUp and CutMix of images that are tensors already; all stateless.

Samples are mixed in pairs of neighbours in the training order, which is random, each pair with a share of its own (timm calls
this the mode ``pair``). So what a sample is mixed with depends on the order alone, not on how an update is divided into batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.core.lazy import LazyModule
from d2v_plugin.core.ranges import NonNegativeFloat, Probability
from d2v_plugin.core.validation import Checked
from d2v_plugin.data.random import Purpose, draw_uniform

special = LazyModule("scipy.special")

_NUM_TRIES = 10
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 1 / 0.3)


@dataclass(kw_only=True)
class MixingConfig(Checked):
    """Settings of MixUp and CutMix."""

    mixup: NonNegativeFloat = 0.0
    """MixUp adds images up, with a share from Beta(mixup, mixup); 0 = off, published 0.7 or 0.8."""

    cutmix: NonNegativeFloat = 0.0
    """CutMix puts a part of one image into the other, whose area is drawn from Beta(cutmix, cutmix); 0 = off, published 1."""

    probability: Probability = 1.0
    """How likely a pair of images is mixed; if both ways are on, each is as likely as the other."""

    @property
    def is_off(self) -> bool:
        return self.probability == 0.0 or not (self.mixup or self.cutmix)


def erase(image: Tensor, probability: float, *, seed: int, epoch: int, sample_id: int) -> None:
    """Put noise into a random rectangle, in place (random erasing, arXiv 1708.04896; one rectangle of 2 to 33 % of the area).

    :param image: (C, H, W) normalised.
    """
    draws = draw_uniform(seed, epoch, Purpose.ERASING, sample_id, 1 + 4 * _NUM_TRIES)
    if draws[0] >= probability:
        return

    height, width = image.shape[-2:]
    for area_draw, ratio_draw, down, across in draws[1:].reshape(-1, 4).tolist():
        area = height * width * (_ERASED_AREA[0] + area_draw * (_ERASED_AREA[1] - _ERASED_AREA[0]))
        low, high = (math.log(ratio) for ratio in _ERASED_RATIO)
        ratio = math.exp(low + ratio_draw * (high - low))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top, left = int(down * (height - h + 1)), int(across * (width - w + 1))
            # The same stream, behind what was drawn above.
            noise = draw_uniform(seed, epoch, Purpose.ERASING, sample_id, len(draws) + image.size(0) * h * w)[len(draws) :]
            image[:, top : top + h, left : left + w] = torch.from_numpy(special.ndtri(noise)).view(-1, h, w).clamp_(-6.0, 6.0)
            return


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(N,) classes -> (N, C) shares, float32."""
    return F.one_hot(labels, num_classes).to(torch.float32)


def mix(images: Tensor, shares: Tensor, pairs: Sequence[tuple[int, int]], keys: Sequence[tuple[int, int]], config: MixingConfig,
        *, seed: int) -> None:  # fmt: skip
    """Mix pairs of samples, in place.

    :param images: (N, C, H, W)
    :param shares: (N, C) of all classes.
    :param pairs: rows of ``images`` that belong together.
    :param keys: (epoch, sample id) of the first of each pair: what is drawn depends on these.
    """
    for (first, second), (epoch, sample_id) in zip(pairs, keys, strict=True):
        applied, way, amount, down, across = draw_uniform(seed, epoch, Purpose.MIXING, sample_id, 5).tolist()
        if applied >= config.probability:
            continue
        cuts = config.cutmix > 0.0 and (config.mixup == 0.0 or way < 0.5)
        alpha = config.cutmix if cuts else config.mixup
        # The inverse of Beta's distribution function, at a uniform number.
        own = float(special.betaincinv(alpha, alpha, amount))
        both = images[[first, second]]
        if cuts:
            own = _exchange(images, both, first, second, own, down, across)
        else:
            images[first], images[second] = own * both[0] + (1 - own) * both[1], own * both[1] + (1 - own) * both[0]
        of_first, of_second = shares[first].clone(), shares[second].clone()
        shares[first], shares[second] = own * of_first + (1 - own) * of_second, own * of_second + (1 - own) * of_first


def _exchange(images: Tensor, both: Tensor, first: int, second: int, own: float, down: float, across: float) -> float:
    """Exchange a rectangle of two images; returns what share of the area each keeps, after cutting at the edges."""
    height, width = images.shape[-2:]
    h, w = (int(size * math.sqrt(1.0 - own)) for size in (height, width))
    middle, centre = int(down * height), int(across * width)
    top, bottom = max(0, middle - h // 2), min(height, middle + h // 2)
    left, right = max(0, centre - w // 2), min(width, centre + w // 2)
    images[first, :, top:bottom, left:right] = both[1, :, top:bottom, left:right]
    images[second, :, top:bottom, left:right] = both[0, :, top:bottom, left:right]

    return 1.0 - (bottom - top) * (right - left) / (height * width)
