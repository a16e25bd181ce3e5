"""What every model of this package can do: extract features, and be trained by an attached criterion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from torch import Tensor, nn
from typing_extensions import Self, override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, Objective, StepInfo
from d2v_plugin.layers.layer_drop import draw_layers

T = TypeVar("T")

CRITERION_PREFIX: Final = "criterion."
"""How the names of a criterion's parameters begin in a training checkpoint: it is the model's submodule."""


@dataclass
class Features:
    """What the encoder computes from whole samples."""

    x: Tensor
    """(N, S, D): the output, one vector per frame, patch or token, without extra tokens."""

    padding_mask: Tensor | None
    """(N, S), True = padding: those positions of ``x`` and ``layers`` mean nothing. None = nothing is padded."""

    layers: list[Tensor]
    """The output of every shared block, each (N, S, D)."""

    extra_tokens: Tensor | None
    """(N, X, D): the output at the extra tokens, the CLS token last; None = the model has none."""

    extra_layers: list[Tensor] | None = None
    """The output of every shared block at the extra tokens, each (N, X, D); None = the model has none."""


class EncoderModel(nn.Module, ABC):
    """An encoder with a slot for the criterion that trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion: Objective | None = None
        self.frozen: Sequence[str] = ()

    @override
    def forward(self, batch: Batch, step: StepInfo) -> LossOutput:
        """Compute the loss of the attached criterion; this is what the trainer calls, through its data-parallel wrapper."""
        if self.criterion is None:
            raise RuntimeError("The model has no criterion; for features call `extract_features`.")
        draw_layers(self, step, batch.ids.device)

        return self.criterion(self, batch, step)  # type: ignore[no-any-return]

    @abstractmethod
    def extract_features(
        self, inputs: Tensor, padding_mask: Tensor | None = None, *, modality: Modality | None = None
    ) -> Features:
        """Encode whole samples; gradients flow, dropout follows the mode of the module.

        :param inputs: waveforms (N, T) at 16 kHz, normalised; images (N, C, H, W), normalised; or token ids (N, S).
        :param padding_mask: True = padding, at the resolution of the input; None = nothing is padded. Samples give the
            same features in any batch.
        :param modality: needed for models with several frontends only.
        """

    @property
    @abstractmethod
    def frontend_modules(self) -> tuple[str, ...]:
        """Names of the modules that turn raw input into local features: convolutions, patch or token embeddings."""

    @property
    @abstractmethod
    def prediction_modules(self) -> tuple[str, ...]:
        """Names of the modules and parameters that :meth:`extract_features` does not use: they serve pre-training alone."""

    @property
    def num_layers(self) -> int:
        """How many blocks :meth:`extract_features` returns the outputs of."""
        return len(self.blocks)  # type: ignore[arg-type]

    def freeze_constants(self) -> None:
        """Exclude from training what is a parameter only by name, and what the criterion owns but does not train."""
        for name in self.frozen:
            if (part := find_part(self, name)) is not None:
                part.requires_grad_(False)
        if self.criterion is not None:
            self.criterion.freeze_constants()

    @override
    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As in every module, but constants and the teacher of a criterion stay frozen: fairseq2 calls this on load."""
        super().requires_grad_(requires_grad)
        self.freeze_constants()

        return self


def find_part(module: nn.Module, name: str) -> nn.Module | nn.Parameter | None:
    """The submodule or parameter of this dotted name; None if it is switched off."""
    part: Any = module
    for step in name.split("."):
        part = getattr(part, step, None)
    assert part is None or isinstance(part, nn.Module | nn.Parameter)

    return part


def drop_criterion(state_dict: Mapping[str, T], config: object = None) -> dict[str, T]:
    """A training checkpoint without what belongs to its criterion.

    :param config: not needed; fairseq2 passes the model's to the ``state_dict_converter`` of a family.
    """
    return {key: value for key, value in state_dict.items() if not key.startswith(CRITERION_PREFIX)}
