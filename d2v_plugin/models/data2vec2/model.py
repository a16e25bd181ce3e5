"""The data2vec 2.0 model: frontends, the shared Transformer, decoders.

The method in one paragraph (arXiv 2212.07525, figure 1): the frontend encodes each sample once. M masked views of it keep only
their visible tokens, which pass through the Transformer; a light convolutional decoder fills the gaps from noise and
predicts, at the masked positions, what an exponential moving average of the model (the teacher) computes from the whole sample.
This file is the student; masks, teacher and loss are the criterion's (:mod:`d2v_plugin.criteria.data2vec2.criterion`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.contracts import Views
from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.models.data2vec2.config import AudioConfig, Data2VecConfig, ImageConfig, TextConfig
from d2v_plugin.models.data2vec2.decoder import ConvDecoder
from d2v_plugin.models.data2vec2.encoder import build_blocks
from d2v_plugin.models.data2vec2.frontends.audio import AudioFrontend
from d2v_plugin.models.data2vec2.frontends.base import Frontend, LocalFeatures, Tokens, fill_in, select_tokens
from d2v_plugin.models.data2vec2.frontends.image import ImageFrontend
from d2v_plugin.models.data2vec2.frontends.text import TextFrontend


class Data2VecModel(EncoderModel):
    """Student of data2vec 2.0; the names of its parameters are the original's."""

    def __init__(self, config: Data2VecConfig) -> None:
        super().__init__()
        if not config.frontends:
            raise ValueError("One of `audio`, `image` and `text` must be configured, but all are None.")
        self.config = config
        self.modality_encoders = nn.ModuleDict(
            {modality.name: _build_frontend(config, frontend) for modality, frontend in config.frontends.items()}
        )
        self.input_dropout = Dropout(config.input_dropout)
        self.blocks = build_blocks(config, config.depth, drop_path=config.drop_path, layer_drop=config.layer_drop)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.norm_first else None
        self.shared_decoder = (
            None if config.shared_decoder is None else ConvDecoder(config.shared_decoder, config.dim, num_spatial_dims=1)
        )
        self.freeze_constants()

    @override
    def extract_features(
        self, inputs: Tensor, padding_mask: Tensor | None = None, *, modality: Modality | None = None
    ) -> Features:
        frontend = self.frontend(modality)

        return self.encode_whole(frontend, frontend.extract_local(inputs, padding_mask))

    def encode_whole(self, frontend: Frontend, local: LocalFeatures) -> Features:
        """The second half of :meth:`extract_features`, for features that were changed, such as masked in fine-tuning."""
        tokens = frontend.contextualise(local)
        num_extra = frontend.num_extra_tokens
        layers = [x for x, _ in self.encode(tokens)]
        x = layers[-1]

        return Features(
            x[:, num_extra:],
            local.padding_mask,
            [layer[:, num_extra:] for layer in layers],
            x[:, :num_extra] if num_extra > 0 else None,
            [layer[:, :num_extra] for layer in layers] if num_extra > 0 else None,
        )

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

    def encode_views(self, frontend: Frontend, local: LocalFeatures, views: Views) -> Tensor:
        """The student's pass over M views of each sample, of which it sees the kept tokens: (N·M, X + K, D)."""
        tokens = frontend.contextualise(local, views)

        return list(self.encode(tokens))[-1][0]

    def decode(self, decoder: ConvDecoder, x: Tensor, views: Views, noise: Tensor) -> Tensor:
        """Predict the masked tokens.

        :param x: (N·M, K, D) the encoder's output at the kept tokens, extra tokens removed.
        :param noise: (N·M, S - K, D) what stands at the masked tokens.
        :returns: (N·M, S - K, D)
        """
        x = fill_in(views, decoder.input_dropout(x), noise)
        x = decoder.convolve(x, None if self.config.original_padding else views.padding_mask)

        return decoder.project(select_tokens(x, views.masked))

    def frontend(self, modality: Modality | None = None) -> Frontend:
        """The frontend of a modality; of the only one if None.

        :raises ValueError: the model has no such frontend, or several and none was named.
        """
        known = ", ".join(name.lower() for name in self.modality_encoders)
        if modality is None:
            if len(self.modality_encoders) > 1:
                raise ValueError(f"`modality` must be one of {known}, because the model has several.")
            modality = Modality[next(iter(self.modality_encoders))]
        if modality.name not in self.modality_encoders:
            raise ValueError(f"The model has no frontend for `{modality.value}`; it has: {known}.")

        return self.modality_encoders[modality.name]  # type: ignore[return-value]

    @property
    @override
    def frontend_modules(self) -> tuple[str, ...]:
        return tuple(f"modality_encoders.{name}.local_encoder" for name in self.modality_encoders)

    @property
    @override
    def prediction_modules(self) -> tuple[str, ...]:
        decoders = [
            f"modality_encoders.{name}" for name, frontend in self.modality_encoders.items() if frontend.decoder is not None
        ]
        shared = () if self.shared_decoder is None else ("shared_decoder",)

        return (*(f"{name}.decoder" for name in decoders), *shared)

    @override
    def freeze_constants(self) -> None:
        super().freeze_constants()
        for frontend in self.modality_encoders.values():
            frontend.freeze_constants()  # type: ignore[operator]


def _build_frontend(config: Data2VecConfig, frontend: Any) -> Frontend:
    match frontend:
        case AudioConfig():
            return AudioFrontend(config, frontend)
        case ImageConfig():
            return ImageFrontend(config, frontend)
        case TextConfig():
            return TextFrontend(config, frontend)
    raise TypeError(f"`{type(frontend)}` is not the configuration of a frontend.")
