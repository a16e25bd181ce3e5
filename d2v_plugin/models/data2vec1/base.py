"""What the three models of data2vec 1.0 share.

The method in one paragraph (arXiv 2202.03555, figure 1): the student encodes a masked version of the sample, *at full length*,
with a learned embedding (text: ``<mask>``) at masked positions. From its output there a linear head predicts what an exponential
moving average of the model, the teacher, computes from the whole sample: the average of its top K blocks. 1.0 has no decoder and
no views; masks, teacher and loss are the criterion's (:mod:`d2v_plugin.criteria.data2vec1.criterion`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.models.data2vec1.blocks import BlockOutput
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2.encoder import BlockList


class EncoderInput(NamedTuple):
    """What the blocks start from."""

    x: Tensor
    """(N, X + S, D): extra tokens, then embeddings with positions."""

    mask: Tensor | None
    """True = attend to this key, broadcasts to (N, H, X + S, X + S); None = attend to everything."""

    bias: Tensor | None = None
    """Added to the attention logits of all blocks, broadcasts to (N, H, X + S, X + S)."""


class Encoder1(nn.Module, ABC):
    """Positions and the Transformer; the part of the model that has a moving average."""

    position_modules: ClassVar[tuple[str, ...]]
    """The children that :meth:`prepare` uses: the position (and feature) encoder that teacher and student may share."""

    @abstractmethod
    def prepare(self, local: Tensor, padding_mask: Tensor | None = None, context: Tensor | None = None) -> EncoderInput:
        """Add positions; no dropout.

        :param local: what the model's :meth:`Data2Vec1Model.extract_local` or ``mask_local`` returned.
        :param padding_mask: (N, S), True = padding.
        :param context: (N or 1, X + S, X + S), True = this query may attend to that key; None = to all.
        """

    @abstractmethod
    def run(self, inputs: EncoderInput) -> Iterator[BlockOutput]:
        """Run one block after the other."""

    def finish(self, x: Tensor) -> Tensor:
        """What follows the last block."""
        return x


class Data2Vec1Model(EncoderModel, ABC):
    """Student of data2vec 1.0; the names of its parameters are the original's."""

    num_extra_tokens: ClassVar[int] = 0

    def __init__(self, config: Data2Vec1ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    @abstractmethod
    def context_encoder(self) -> Encoder1:
        """Positions and Transformer."""

    @property
    @abstractmethod
    def blocks(self) -> BlockList:
        """The Transformer's blocks."""

    @property
    @abstractmethod
    def head_modules(self) -> tuple[str, ...]:
        """Names of the modules and parameters that serve the prediction alone; a teacher has no copy of them."""

    @property
    @abstractmethod
    def local_modules(self) -> tuple[str, ...]:
        """Names of the modules and parameters that :meth:`extract_local` uses."""

    @abstractmethod
    def extract_local(self, inputs: Tensor) -> Tensor:
        """Encode every frame or patch by itself: (N, X + S, D). Text has no such step: its ids (N, S) are returned."""

    @abstractmethod
    def mask_local(self, local: Tensor, mask: Tensor | None) -> Tensor:
        """What the student's encoder sees.

        :param local: from :meth:`extract_local`.
        :param mask: (N, S), True = masked; None = nothing is.
        """

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """Predict targets from the encoder's output, both (..., D)."""

    def output_length(self, input_length: int) -> int:
        """Number of positions that an input of this length (samples or token ids) gives."""
        return input_length

    def downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        """The padding mask at the resolution of the positions, (N, S)."""
        return padding_mask

    def encode(self, local: Tensor, padding_mask: Tensor | None = None) -> Iterator[BlockOutput]:
        """Run the student's encoder over masked or whole samples."""
        encoder = self.context_encoder

        return encoder.run(encoder.prepare(local, padding_mask))

    @override
    def extract_features(
        self, inputs: Tensor, padding_mask: Tensor | None = None, *, modality: Modality | None = None
    ) -> Features:
        self.check_modality(modality)
        local = self.extract_local(inputs)
        padding_mask = self.downsample_padding(padding_mask, local.size(1) - self.num_extra_tokens)

        return self.encode_whole(self.mask_local(local, None), padding_mask)

    def encode_whole(self, local: Tensor, padding_mask: Tensor | None) -> Features:
        """The second half of :meth:`extract_features`, for features that were changed, such as masked in fine-tuning.

        :param local: from :meth:`mask_local`.
        :param padding_mask: (N, S)
        """
        num_extra = self.num_extra_tokens
        layers = [output.block for output in self.encode(local, padding_mask)]
        x = self.context_encoder.finish(layers[-1])

        return Features(
            x[:, num_extra:],
            padding_mask,
            [layer[:, num_extra:] for layer in layers],
            x[:, :num_extra] if num_extra > 0 else None,
            [layer[:, :num_extra] for layer in layers] if num_extra > 0 else None,
        )

    def check_modality(self, modality: Modality | None) -> None:
        """
        :raises ValueError: the model is for another modality.
        """
        if modality is not None and modality is not self.config.modality:
            raise ValueError(f"The model is for `{self.config.modality.value}`, but `modality` is `{modality.value}`.")


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


TeacherScope = Literal["layers", "encoder", "all"]
"""Which modules the teacher has of its own; it shares the others with the student (fairseq copies them every update).

``layers``: the Transformer; feature and position encoder are shared (speech and text). ``encoder``: also position convolutions,
embeddings or relative positions (AudioSet; images in fairseq). ``all``: also the convolutions over the waveform, or patch
embedding and CLS token (images in the authors' BEiT repository).
"""
