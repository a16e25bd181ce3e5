"""Patches of images, which both families share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.validation import report

_MAX_PATCHES: Final = 1 << 14


@dataclass(kw_only=True)
class PatchConfig(Validatable):
    """Square images cut into square patches."""

    image_size: int = 224
    """Height and width, in pixels."""

    patch_size: int = 16
    """Height and width of a patch, in pixels."""

    num_channels: int = 3
    """Channels of the images."""

    @property
    def side(self) -> int:
        """Patches along each side."""
        return self.image_size // self.patch_size

    @override
    def validate(self) -> ValidationResult:
        return report(
            (
                self.patch_size > 0 and self.image_size % self.patch_size != 0,
                f"`patch_size` must divide `image_size` ({self.image_size}), but is {self.patch_size}.",
            )
        )


def check_patches(config: PatchConfig) -> Iterator[tuple[bool, str]]:
    """Check that an image has a number of patches for which the tables of positions fit into memory."""
    count = config.side**2
    yield (
        count > _MAX_PATCHES,
        f"`image.image_size` ({config.image_size:,}) and `image.patch_size` ({config.patch_size}) make {count:,} patches of an "
        f"image; at most {_MAX_PATCHES:,} are possible.",
    )


class PatchEmbedding(nn.ModuleDict):
    """A linear map of every patch: (N, C, H, W) -> (N, S, D), row by row.

    A dictionary of one, for the name of its parameters in the original.
    """

    def __init__(self, config: PatchConfig, dim: int, *, name: str) -> None:
        super().__init__({name: nn.Conv2d(config.num_channels, dim, config.patch_size, stride=config.patch_size)})

    def forward(self, x: Tensor) -> Tensor:
        (conv,) = self.values()

        # (N, C, H, W) -> (N, D, H/P, W/P) -> (N, S, D)
        return conv(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def refuse_padding(padding_mask: Tensor | None) -> None:
    """
    :raises ValueError: images are padded.
    """
    if padding_mask is not None:
        raise ValueError("`padding_mask` must be None for images.")
