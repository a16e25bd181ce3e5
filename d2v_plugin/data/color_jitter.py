"""Random changes of brightness, contrast and saturation, as in data2vec 1.0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from d2v_plugin.core.lazy import LazyModule
from d2v_plugin.core.ranges import NonNegativeFloat
from d2v_plugin.core.validation import Checked

transforms = LazyModule("torchvision.transforms.v2.functional")


@dataclass(kw_only=True)
class ColorJitterConfig(Checked):
    """Random changes of colour, as in data2vec 1.0 (which uses 0.4 for all three)."""

    brightness: NonNegativeFloat = 0.0
    """The factor is drawn from [1 - brightness, 1 + brightness]."""

    contrast: NonNegativeFloat = 0.0
    """As ``brightness``."""

    saturation: NonNegativeFloat = 0.0
    """As ``brightness``."""

    @property
    def is_off(self) -> bool:
        return not (self.brightness or self.contrast or self.saturation)


def jitter_colors(image: Tensor, config: ColorJitterConfig, draws: Sequence[float]) -> Tensor:
    """Change brightness, contrast and saturation, in a random order."""
    order, *amounts = draws
    steps = [
        (config.brightness, transforms.adjust_brightness_image),
        (config.contrast, transforms.adjust_contrast_image),
        (config.saturation, transforms.adjust_saturation_image),
    ]
    rank = int(order * 6)
    permutation = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][rank]
    for index in permutation:
        strength, adjust = steps[index]
        if strength:
            image = adjust(image, max(0.0, 1 - strength) + amounts[index] * (1 + strength - max(0.0, 1 - strength)))

    return image
