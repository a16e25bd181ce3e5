"""Interface of all models of this package: extract features, and be trained by an attached criterion.

Both families answer it, so that nobody outside asks which one a model belongs to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar, final

import torch
from fairseq2.utils.validation import ValidationResult
from torch import Tensor, nn
from typing_extensions import Self, override

from d2v_plugin.core.batch import Batch, Grid, Modality
from d2v_plugin.core.contracts import LossOutput, Objective, StepInfo
from d2v_plugin.core.validation import Checked, ensure_valid, report
from d2v_plugin.layers.layer_drop import draw_layers
from d2v_plugin.models.ranges import Depth, Size

T = TypeVar("T")

CRITERION_PREFIX: Final = "criterion."
"""Prefix of the names of a criterion's parameters in a training checkpoint: it is the model's submodule."""


NO_TORCHSCRIPT: Final = (
    "TorchScript would fix lengths and padding to those of the example, and give wrong numbers for others; use "
    "`fairseq2 recipe export OUT --config checkpoint.path=RUN format=onnx`, or `format=torch_export`."
)
"""Why models refuse ``torch.jit.trace``, ``torch.jit.script`` and the exporter to ONNX that is built on them."""


class EncoderConfig(Checked):
    """Configuration of a model, whatever its family."""

    dim: Size
    depth: Depth
    num_heads: Size
    original_padding: bool

    @override
    @final
    def validate(self) -> ValidationResult:
        result = super().validate()
        try:
            ensure_valid(vars(self))
        except ValueError:
            return result  # with what is wrong in those sections; how settings go together is computed with what they are

        return result if result.has_error() else report(*self.check_together())

    @abstractmethod
    def check_together(self) -> Iterable[tuple[bool, str]]:
        """Check settings that must fit each other, for :func:`report`; each by itself has a possible value."""

    @property
    def frontends(self) -> dict[Modality, Any]:
        """The configuration of each modality that the model takes, in the original's order."""
        configs = {modality: self._section(modality) for modality in (Modality.TEXT, Modality.AUDIO, Modality.IMAGE)}
        return {modality: config for modality, config in configs.items() if config is not None}

    def _section(self, modality: Modality) -> Any:
        return getattr(self, modality.value)

    @abstractmethod
    def count_layers(self) -> int:
        """All layers that come in a configurable number; each has parameters."""

    @abstractmethod
    def without_prediction(self) -> Self:
        """A copy that makes a model without what serves pre-training alone: no decoder, no head."""


class BlockList(nn.ModuleList):
    """A stack of blocks; the type is how sharding, checkpointing and compilation find the stacks of a model."""


@dataclass
class LocalFeatures:
    """The frontend's view of each token by itself; computed once per sample, whatever the number of views."""

    x: Tensor
    """(N, S, D). In data2vec 1.0 (N, X + S, D), extra tokens first; text has token ids instead, (N, S)."""

    padding_mask: Tensor | None
    """(N, S), True = padding; None = nothing is padded."""

    modality: Modality | None = None
    """Modality of the samples; None = the only one of the model."""

    grid: Grid | None = None
    """(H, W) in which the S tokens lie, row by row; None = in a sequence."""

    lengths: Sequence[int] | None = None
    """How many of the S tokens of each sample are no padding; None = only the padding mask, on its device, knows."""


@dataclass
class Features:
    """Results of encoding whole samples."""

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

    grid: Grid | None = None
    """(H, W) in which the S tokens lie, row by row; None = in a sequence."""


class EncoderModel(nn.Module, ABC):
    """An encoder with a slot for the criterion that trains it.

    Whole samples pass through :meth:`extract_local`, :meth:`mask_local` and :meth:`encode_whole`;
    :meth:`extract_features` is all three, without a mask.
    """

    config: EncoderConfig

    blocks: BlockList
    """The blocks that :meth:`extract_features` returns the outputs of."""

    has_mask_embedding = False
    """True = :meth:`mask_local` puts a learned embedding at masked positions and needs no ``fill``."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion: Objective | None = None
        self.frozen: Sequence[str] = ()

    @override
    def forward(self, batch: Batch, step: StepInfo) -> LossOutput:
        """Compute the loss of the attached criterion; this is what the trainer calls, through its data-parallel wrapper."""
        if self.criterion is None:
            raise RuntimeError("The model has no criterion; for features call `extract_features`.")
        draw_layers(self, step)
        return self.criterion(self, batch, step)  # type: ignore[no-any-return]

    def extract_features(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        *,
        modality: Modality | None = None,
        lengths: Tensor | None = None,
    ) -> Features:
        """Encode whole samples; gradients flow, dropout follows the mode of the module.

        :param inputs: waveforms (N, T) or, of several channels, (N, T, C); images (N, C, H, W), both normalised; ids (N, S).
        :param padding_mask: True = padding, at the resolution of the input; None = nothing is padded. Samples give the
            same features in any batch.
        :param modality: needed for models with several frontends only.
        :param lengths: (N,) on the host, what ``padding_mask`` says: with them the host need not wait for a GPU to pack samples.
        :raises ValueError: the model is not for this modality, or not for inputs of this size.
        :raises RuntimeError: TorchScript traces it.
        """
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError(NO_TORCHSCRIPT)
        local = self.extract_local(inputs, padding_mask, modality=modality, lengths=lengths)

        return self.encode_whole(self.mask_local(local, None))

    def __prepare_scriptable__(self) -> Self:
        """PyTorch calls it for ``torch.jit.script`` of this model, or of whatever has it as a part.

        :raises RuntimeError: always.
        """
        raise RuntimeError(NO_TORCHSCRIPT)

    @abstractmethod
    def extract_local(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        *,
        modality: Modality | None = None,
        lengths: Tensor | None = None,
    ) -> LocalFeatures:
        """Encode every token by itself; parameters as for :meth:`extract_features`."""

    @abstractmethod
    def mask_local(self, local: LocalFeatures, mask: Tensor | None, fill: Tensor | None = None) -> LocalFeatures:
        """Make what the encoder sees of local features, with dropout where the model has some there.

        :param mask: (N, S), True = masked; None = nothing is.
        :param fill: broadcasts to (N, S, D): what stands at masked positions, unless :attr:`has_mask_embedding`.
        """

    @abstractmethod
    def encode_whole(self, local: LocalFeatures) -> Features:
        """Run the encoder on what :meth:`mask_local` returned."""

    @abstractmethod
    def resolve_modality(self, modality: Modality | None) -> Modality:
        """
        :param modality: None = the only one.
        :raises ValueError: the model is not for this modality; or it is for several, and none was named.
        """

    @abstractmethod
    def output_length(self, input_length: int, modality: Modality | None = None) -> int:
        """Number of tokens that an input of this length (samples or token ids) gives."""

    def count_tokens(self, lengths: Tensor | None, modality: Modality | None = None) -> list[int] | None:
        """:meth:`output_length` of each of (N,) lengths on the host; None = they are not known."""
        return None if lengths is None else [self.output_length(length, modality) for length in lengths.tolist()]

    def shortest_input(self, modality: Modality | None = None) -> int:
        """The shortest input (samples or token ids) that gives a token."""
        return next(length for length in count(1) if self.output_length(length, modality) > 0)

    @abstractmethod
    def blocks_of(self, modality: Modality) -> Sequence[nn.Module]:
        """All blocks that samples of a modality pass through; each returns its output first."""

    @property
    @abstractmethod
    def frontend_modules(self) -> Sequence[str]:
        """Names of the modules that turn raw input into local features: convolutions, patch or token embeddings."""

    @property
    @abstractmethod
    def prediction_modules(self) -> Sequence[str]:
        """Names of the modules and parameters that :meth:`extract_features` does not use: they serve pre-training alone.
        Those that the configuration leaves out may be named, too."""

    @property
    def num_layers(self) -> int:
        """Number of :attr:`blocks`."""
        return len(self.blocks)

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


def split_extra(x: Tensor, local: LocalFeatures, layers: Sequence[Tensor], num_extra: int) -> Features:
    """Separate extra tokens from the others.

    :param x: (N, X + S, D) the encoder's output.
    :param local: what it was made of.
    :param layers: the outputs of its blocks, likewise.
    """
    return Features(
        x[:, num_extra:],
        local.padding_mask,
        [layer[:, num_extra:] for layer in layers],
        x[:, :num_extra] if num_extra > 0 else None,
        [layer[:, :num_extra] for layer in layers] if num_extra > 0 else None,
        local.grid,
    )


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
