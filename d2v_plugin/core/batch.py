"""What a task hands to a model: one mini-batch of one modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import torch
from fairseq2.device import Device, SupportsDeviceTransfer
from torch import Tensor
from typing_extensions import override

_MOVED: Final = ("inputs", "ids", "padding_mask", "labels", "scaling")
"""The tensors of a batch that a device gets; lengths stay on the host."""

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
    """(N,) int64, on the host: how many symbols of each row of ``labels`` count; None = ``labels`` are no sequences."""

    lengths: Tensor | None = None
    """(N,) int64, on the host: the length of each sample, like ``min_length``; :meth:`to` counts them while the padding mask is
    there. None = nothing is padded, or the batch was not moved."""

    scaling: Tensor | None = None
    """(2, 3, 1, 1): what images that are still bytes are multiplied with on their device, and what is then added; None = they are
    numbers already."""

    @property
    def num_examples(self) -> int:
        return self.inputs.size(0)

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        """Move all tensors in place, but for lengths: losses that need them on the host would have to wait. Scale bytes there."""
        if self.padding_mask is not None and self.padding_mask.device.type == "cpu":
            self.lengths = (~self.padding_mask).sum(dim=1)
        self._replace(lambda x: x.to(device, non_blocking=non_blocking))
        if self.scaling is not None:
            scale, shift = self.scaling
            self.inputs, self.scaling = self.inputs.to(torch.float32).mul_(scale).add_(shift), None

    def pin(self) -> None:
        """Move all tensors to pinned memory, from which a GPU copies by itself; PyTorch keeps it until the copy is done."""
        self._replace(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that this stream uses all tensors, which another one made."""
        for _, x in self._tensors():
            x.record_stream(stream)

    def _replace(self, function: Callable[[Tensor], Tensor]) -> None:
        for name, x in self._tensors():
            setattr(self, name, function(x))

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, x) for name in _MOVED if (x := getattr(self, name)) is not None]
