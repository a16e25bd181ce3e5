"""Interface of the three models of data2vec 1.0.

The method in one paragraph (arXiv 2202.03555, figure 1): the student encodes a masked version of the sample, *at full length*,
with a learned embedding (text: ``<mask>``) at masked positions. From its output there a linear head predicts what an exponential
moving average of the model, the teacher, computes from the whole sample: the average of its top K blocks. 1.0 has no decoder and
no views; masks, teacher and loss are the criterion's (:mod:`d2v_plugin.criteria.data2vec1.criterion`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Grid, Modality
from d2v_plugin.layers.attention import Bias
from d2v_plugin.layers.packing import PackedBias, find_packing
from d2v_plugin.models.base import BlockList, EncoderModel, Features, LocalFeatures, find_part, split_extra
from d2v_plugin.models.data2vec1.blocks import BlockOutput
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig

TeacherScope = Literal["layers", "encoder", "all"]
"""Modules that the teacher has of its own; it shares the others with the student (fairseq copies them every update).

``layers``: the Transformer; feature and position encoder are shared (speech and text). ``encoder``: also position convolutions,
embeddings or relative positions (AudioSet; images in fairseq). ``all``: also the convolutions over the waveform, or patch
embedding and CLS token (images in the authors' BEiT repository).
"""


class EncoderInput(NamedTuple):
    """Input of the blocks."""

    x: Tensor
    """(N, X + S, D): extra tokens, then embeddings with positions."""

    bias: Bias | None
    """The attention bias of all blocks: added to the logits if floating, selects the keys to attend to if boolean; broadcasts to
    (N, H, X + S, X + S)."""

    grid: Grid | None = None
    """(H, W) in which the tokens of images lie."""


class Encoder(nn.Module, ABC):
    """Positions and the Transformer; the part of the model that has a moving average."""

    stack_name: ClassVar[str] = "layers"
    """The child that holds the blocks."""

    position_modules: ClassVar[Sequence[str]]
    """The children that :meth:`prepare` uses: the position (and feature) encoder that teacher and student may share."""

    @property
    def stack(self) -> BlockList:
        """The Transformer's blocks."""
        return cast(BlockList, getattr(self, self.stack_name))

    @abstractmethod
    def prepare(self, local: LocalFeatures, context: Tensor | None = None) -> EncoderInput:
        """Add positions; no dropout.

        :param local: from :meth:`Data2Vec1Model.extract_local` or ``mask_local``.
        :param context: (N or 1, X + S, X + S), True = this query may attend to that key; None = to all.
        """

    def start(self, x: Tensor) -> Tensor:
        """Apply what comes between positions and blocks, dropout included."""
        return x

    def bias_of(self, block: nn.Module, inputs: EncoderInput) -> Bias | None:
        """Choose the attention bias of one block."""
        return inputs.bias

    def run(self, inputs: EncoderInput) -> Iterator[BlockOutput]:
        """Run one block after the other."""
        x = self.start(inputs.x)
        for block in self.stack:
            output: BlockOutput = block(x, self.bias_of(block, inputs))
            x = output.block
            yield output

    def finish(self, x: Tensor) -> Tensor:
        """Apply what follows the last block."""
        return x


class Data2Vec1Model(EncoderModel):
    """Student of data2vec 1.0; the names of its parameters are the original's."""

    config: Data2Vec1ModelConfig

    encoder_name: ClassVar[str] = "encoder"
    """The submodule that is the :attr:`context_encoder`."""

    head_name: ClassVar[str] = "final_proj"
    """The submodule that predicts; there may be none."""

    has_mask_embedding = True
    num_extra_tokens: ClassVar[int] = 0

    local_modules: ClassVar[Sequence[str]]
    """Names of the modules and parameters that :meth:`extract_local` uses."""

    head_modules: ClassVar[Sequence[str]]
    """Names of the modules and parameters that only the student has; some may be switched off."""

    def __init__(self, config: Data2Vec1ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def context_encoder(self) -> Encoder:
        """Positions and Transformer."""
        return cast(Encoder, self.get_submodule(self.encoder_name))

    @property
    def blocks(self) -> BlockList:  # type: ignore[override]
        """The Transformer's blocks."""
        return self.context_encoder.stack

    @override
    def blocks_of(self, modality: Modality) -> Sequence[nn.Module]:
        self.resolve_modality(modality)
        return list(self.blocks)

    @override
    def resolve_modality(self, modality: Modality | None) -> Modality:
        own = self.config.modality
        if modality is not None and modality is not own:
            raise ValueError(f"The model is for `{own.value}`, but `modality` is `{modality.value}`.")
        return own

    @override
    def extract_local(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        *,
        modality: Modality | None = None,
        lengths: Tensor | None = None,
    ) -> LocalFeatures:
        modality = self.resolve_modality(modality)
        grid = self.find_grid(inputs)
        x = self.embed_tokens(inputs, padding_mask)
        padding_mask = self.downsample_padding(padding_mask, x.size(1) - self.num_extra_tokens)
        return LocalFeatures(x, padding_mask, modality, grid, self.count_tokens(lengths, modality))

    @abstractmethod
    def embed_tokens(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Encode every frame or patch by itself: (N, X + S, D). Text has no such step: its ids (N, S) are returned.

        :param padding_mask: as for :meth:`extract_local`.
        """

    def find_grid(self, inputs: Tensor) -> Grid | None:
        """The grid in which the tokens of inputs lie; None = they lie in a sequence."""
        return None

    def predict(self, x: Tensor) -> Tensor:
        """Predict targets from the encoder's output, both (..., D)."""
        head = find_part(self, self.head_name)
        return head(x) if isinstance(head, nn.Module) else x

    @override
    def output_length(self, input_length: int, modality: Modality | None = None) -> int:
        return input_length

    def downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        """The padding mask at the resolution of the positions, (N, S)."""
        return padding_mask

    def encode(self, local: LocalFeatures) -> Iterator[BlockOutput]:
        """Run the student's encoder over masked or whole samples."""
        encoder = self.context_encoder
        return encoder.run(encoder.prepare(local))

    @override
    def encode_whole(self, local: LocalFeatures) -> Features:
        encoder = self.context_encoder
        inputs = encoder.prepare(local)
        packing = None if self.config.original_padding else find_packing(local.padding_mask, local.lengths)
        if packing is not None:
            inputs = EncoderInput(packing.pack(inputs.x), PackedBias(packing, None), inputs.grid)
        layers = [output.block for output in encoder.run(inputs)]
        x = encoder.finish(layers[-1])
        if packing is not None:
            x, *layers = (packing.unpack(part) for part in (x, *layers))

        return split_extra(x, local, layers, self.num_extra_tokens)


def attention_mask(padding_mask: Tensor | None, context: Tensor | None) -> Tensor | None:
    """Combine padding of keys with a restricted context: True = attend.

    :param padding_mask: (N, S)
    :param context: (N or 1, S, S)
    :returns: broadcasts to (N, H, S, S)
    """
    if context is None:
        return None if padding_mask is None else ~padding_mask[:, None, None, :]
    mask = context.unsqueeze(1)
    if padding_mask is not None:
        mask = mask & ~padding_mask[:, None, None, :]

    # Every position attends to itself, so that no row is empty, not even in padding.
    return mask | torch.eye(context.size(-1), dtype=torch.bool, device=context.device)
