"""The data2vec 2.0 model: frontends, the shared Transformer, decoders.

The method in one paragraph (arXiv 2212.07525, figure 1): the frontend encodes each sample once. M masked views of it keep only
their visible tokens, which pass through the Transformer; a light convolutional decoder fills the gaps from noise and
predicts, at the masked positions, what an exponential moving average of the model (the teacher) computes from the whole sample.
This file is the student; masks, teacher and loss are the criterion's (:mod:`d2v_plugin.criteria.data2vec2.criterion`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.contracts import Views
from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.layers.precision import compute_dtype
from d2v_plugin.models.base import EncoderModel, Features, LocalFeatures, split_extra
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.decoder import ConvDecoder
from d2v_plugin.models.data2vec2.encoder import build_blocks
from d2v_plugin.models.data2vec2.frontends.audio import AudioFrontend
from d2v_plugin.models.data2vec2.frontends.base import Frontend, Tokens, fill_in, select_tokens
from d2v_plugin.models.data2vec2.frontends.image import ImageFrontend
from d2v_plugin.models.data2vec2.frontends.spectrogram import SpectrogramFrontend
from d2v_plugin.models.data2vec2.frontends.text import TextFrontend


class Data2VecModel(EncoderModel):
    """Student of data2vec 2.0; the names of its parameters are the original's."""

    config: Data2VecConfig

    def __init__(self, config: Data2VecConfig) -> None:
        super().__init__()
        self.config = config
        self.modality_encoders = nn.ModuleDict(
            {modality.name: _build_frontend(config, modality) for modality in config.frontends}
        )
        self.input_dropout = Dropout(config.input_dropout)
        self.blocks = build_blocks(config, config.depth, drop_path=config.drop_path, layer_drop=config.layer_drop)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.norm_first else None
        self.shared_decoder = (
            None if config.shared_decoder is None else ConvDecoder(config.shared_decoder, config.dim, num_spatial_dims=1)
        )
        self.freeze_constants()

    @override
    def extract_local(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        *,
        modality: Modality | None = None,
        lengths: Tensor | None = None,
    ) -> LocalFeatures:
        local = self.frontend(modality).extract_local(inputs, padding_mask)

        return replace(local, lengths=self.count_tokens(lengths, modality))

    @override
    def mask_local(self, local: LocalFeatures, mask: Tensor | None, fill: Tensor | None = None) -> LocalFeatures:
        if mask is None:
            return local
        assert fill is not None
        return replace(local, x=torch.where(mask.unsqueeze(-1), fill, local.x))

    @override
    def encode_whole(self, local: LocalFeatures) -> Features:
        frontend = self.frontend(local.modality)
        packing = frontend.find_packing(local.padding_mask, local.lengths)
        layers = [x for x, _ in self.encode(frontend.contextualize(local, packing=packing))]
        if packing is not None:
            layers = [packing.unpack(x) for x in layers]
        return split_extra(layers[-1], local, layers, frontend.num_extra_tokens)

    def encode(self, tokens: Tokens) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the shared blocks.

        :returns: output and tap of one block after the other, both (R, X + K, D); the final norm, if the model has one,
            is part of the last output.
        """
        x = self.input_dropout(tokens.x)
        for i, (block, bias) in enumerate(zip(self.blocks, tokens.biases, strict=True)):
            x, tap = block(x, bias)
            if self.norm is not None and i == len(self.blocks) - 1:
                x = self.norm(x)
            yield x, tap

    def encode_views(self, local: LocalFeatures, views: Views) -> Tensor:
        """The student's pass over M views of each sample, of which it sees the kept tokens: (N·M, X + K, D)."""
        tokens = self.frontend(local.modality).contextualize(local, views)
        return list(self.encode(tokens))[-1][0]

    def decode(self, decoder: ConvDecoder, x: Tensor, views: Views, noise: Tensor) -> Tensor:
        """Predict the masked tokens.

        :param x: (N·M, K, D) the encoder's output at the kept tokens, extra tokens removed.
        :param noise: (N·M, S - K, D) what stands at the masked tokens.
        :returns: (N·M, S - K, D)
        """
        x = decoder.input_dropout(x)
        # The encoder ends with a norm, which under autocast is fp32; the decoder need not go on in it.
        x = fill_in(views, x.to(compute_dtype(x)), noise)
        x = decoder.convolve(x, None if self.config.original_padding else views.padding_mask, views.grid)

        return decoder.project(select_tokens(x, views.masked))

    def frontend(self, modality: Modality | None = None) -> Frontend:
        """The frontend of a modality; of the only one if None.

        :raises ValueError: the model has no such frontend, or several and none was named.
        """
        return cast(Frontend, self.modality_encoders[self.resolve_modality(modality).name])

    @override
    def resolve_modality(self, modality: Modality | None) -> Modality:
        own = list(self.config.frontends)
        known = ", ".join(each.value for each in own)
        if modality is None and len(own) > 1:
            raise ValueError(f"`modality` must be one of {known}, because the model has several.")
        if modality is not None and modality not in own:
            raise ValueError(f"The model has no frontend for `{modality.value}`; it has: {known}.")

        return own[0] if modality is None else modality

    @override
    def output_length(self, input_length: int, modality: Modality | None = None) -> int:
        return self.frontend(modality).output_length(input_length)

    @override
    def blocks_of(self, modality: Modality) -> Sequence[nn.Module]:
        return [*self.frontend(modality).context_encoder.blocks, *self.blocks]

    @property
    @override
    def frontend_modules(self) -> Sequence[str]:
        return [f"modality_encoders.{name}.local_encoder" for name in self.modality_encoders]

    @property
    @override
    def prediction_modules(self) -> Sequence[str]:
        return [*(f"modality_encoders.{name}.decoder" for name in self.modality_encoders), "shared_decoder"]

    @override
    def freeze_constants(self) -> None:
        super().freeze_constants()
        for frontend in self.modality_encoders.values():
            frontend.freeze_constants()  # type: ignore[operator]


def _build_frontend(config: Data2VecConfig, modality: Modality) -> Frontend:
    if modality is Modality.AUDIO and config.audio is not None:
        return AudioFrontend(config, config.audio)
    if modality is Modality.AUDIO and config.spectrogram is not None:
        return SpectrogramFrontend(config, config.spectrogram)
    if modality is Modality.IMAGE and config.image is not None:
        return ImageFrontend(config, config.image)
    assert config.text is not None

    return TextFrontend(config, config.text)
