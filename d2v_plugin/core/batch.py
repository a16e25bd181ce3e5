"""What a task hands to a model: one mini-batch of one modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from fairseq2.device import Device, SupportsDeviceTransfer
from torch import Tensor
from typing_extensions import override

Grid = tuple[int, int]
"""Height and width: of an image in pixels or patches."""


def as_grid(size: int | Sequence[int]) -> Grid:
    """Height and width as settings give them: two numbers, or one for both."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return height, width


class Modality(str, Enum):
    """The three kinds of input; the value is the name used in configurations and file names."""

    AUDIO = "audio"
    IMAGE = "image"
    TEXT = "text"


@dataclass
class Batch(SupportsDeviceTransfer):
    """N samples of one modality.

    Besides the model's input it carries what makes randomness stateless (``ids``) and what would otherwise cost a
    device-to-host copy (``min_length``).
    """

    modality: Modality

    inputs: Tensor
    """Waveforms (N, T) at 16 kHz, images (N, C, H, W), or token ids (N, S)."""

    ids: Tensor
    """(N,) int64: the index of each sample in its manifest; the same sample has the same id in every epoch."""

    padding_mask: Tensor | None = None
    """(N, T) or (N, S), True = padding; None = nothing is padded."""

    min_length: int | None = None
    """Length of the shortest sample, in the units of ``inputs``' last dimension; None = nothing is padded."""

    labels: Tensor | None = None
    """What the manifest says of each sample: classes (N,) int64; shares or tags of all classes (N, C) float; values (N,)
    float; or sequences of symbols (N, L) int64. None = nothing is said."""

    label_lengths: Tensor | None = None
    """(N,) int64: how many symbols of each row of ``labels`` count; None = ``labels`` are no sequences."""

    @property
    def num_examples(self) -> int:
        return self.inputs.size(0)

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        """Move all tensors in place."""
        self.inputs = self.inputs.to(device, non_blocking=non_blocking)
        self.ids = self.ids.to(device, non_blocking=non_blocking)
        if self.padding_mask is not None:
            self.padding_mask = self.padding_mask.to(device, non_blocking=non_blocking)
        if self.labels is not None:
            self.labels = self.labels.to(device, non_blocking=non_blocking)
        if self.label_lengths is not None:
            self.label_lengths = self.label_lengths.to(device, non_blocking=non_blocking)
