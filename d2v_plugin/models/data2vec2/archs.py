"""Architectures by name: the released configurations of data2vec 2.0 and small ones for tests and demos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontend_config import (
    AlibiConfig,
    AudioFrontendConfig,
    DecoderConfig,
    ImageFrontendConfig,
    SpectrogramFrontendConfig,
    TextFrontendConfig,
)

_NO_DROPOUT: Final[dict[str, Any]] = {"dropout": 0.0, "attention_dropout": 0.0, "post_mlp_dropout": 0.0}
_TINY: Final[dict[str, Any]] = {"dim": 96, "depth": 4, "num_heads": 4, **_NO_DROPOUT}


def audio_base() -> Data2VecConfig:
    audio = AudioFrontendConfig(
        prenet_layer_drop=0.05,
        prenet_dropout=0.1,
        alibi=AlibiConfig(),
        decoder=DecoderConfig(dim=384, num_groups=16, kernel_size=7, num_layers=4),
    )

    return Data2VecConfig(audio=audio, dim=768, depth=12, num_heads=12, layer_drop=0.05)


def audio_large() -> Data2VecConfig:
    audio = AudioFrontendConfig(
        prenet_depth=8,
        prenet_dropout=0.1,
        alibi=AlibiConfig(),
        decoder=DecoderConfig(dim=768, num_groups=16, kernel_size=7, num_layers=4),
    )

    return Data2VecConfig(audio=audio, dim=1024, depth=16, num_heads=16)


def audio_tiny() -> Data2VecConfig:
    audio = AudioFrontendConfig(
        conv_layers=[(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2],
        position_width=15,  # in a second's 50 frames the usual 95 say where each frame is, and nothing else is learned
        position_groups=8,
        alibi=AlibiConfig(),
        decoder=DecoderConfig(dim=64, num_groups=8, kernel_size=7, num_layers=3, input_dropout=0.0),
    )

    return Data2VecConfig(audio=audio, **_TINY)


def spectrogram_base() -> Data2VecConfig:
    decoder = DecoderConfig(dim=768, num_groups=16, kernel_size=3, num_layers=6, input_dropout=0.0)
    spectrogram = SpectrogramFrontendConfig(num_extra_tokens=1, init_extra_tokens_zero=False, decoder=decoder)
    return Data2VecConfig(spectrogram=spectrogram, dim=768, depth=12, num_heads=12, norm_eps=1e-6, **_NO_DROPOUT)


def spectrogram_large() -> Data2VecConfig:
    decoder = DecoderConfig(dim=1024, num_groups=16, kernel_size=5, num_layers=3, input_dropout=0.0)
    spectrogram = SpectrogramFrontendConfig(num_extra_tokens=1, init_extra_tokens_zero=False, decoder=decoder)
    return replace(spectrogram_base(), spectrogram=spectrogram, dim=1024, depth=24, num_heads=16)


def spectrogram_tiny() -> Data2VecConfig:
    decoder = DecoderConfig(dim=64, num_groups=8, kernel_size=3, num_layers=3, input_dropout=0.0)
    spectrogram = SpectrogramFrontendConfig(
        num_mels=32, patch_size=8, max_frames=1024, num_extra_tokens=1, init_extra_tokens_zero=False, decoder=decoder
    )
    return replace(spectrogram_base(), spectrogram=spectrogram, **_TINY)


def _image(*, prenet_depth: int, decoder: DecoderConfig, image_size: int = 224, patch_size: int = 16) -> ImageFrontendConfig:
    return ImageFrontendConfig(
        image_size=image_size,
        patch_size=patch_size,
        prenet_depth=prenet_depth,
        num_extra_tokens=1,
        init_extra_tokens_zero=False,
        decoder=decoder,
    )


def image_base() -> Data2VecConfig:
    decoder = DecoderConfig(dim=768, num_groups=16, kernel_size=3, num_layers=6, input_dropout=0.0)
    image = _image(prenet_depth=2, decoder=decoder)
    return Data2VecConfig(image=image, dim=768, depth=10, num_heads=12, norm_eps=1e-6, **_NO_DROPOUT)


def image_large() -> Data2VecConfig:
    decoder = DecoderConfig(dim=1024, num_groups=16, kernel_size=5, num_layers=3, input_dropout=0.0)
    return replace(image_base(), image=_image(prenet_depth=0, decoder=decoder), dim=1024, depth=24, num_heads=16)


def image_huge16() -> Data2VecConfig:
    return replace(image_large(), dim=1280, depth=32)


def image_huge14() -> Data2VecConfig:
    config = image_huge16()
    assert config.image is not None
    return replace(config, image=replace(config.image, patch_size=14))


def image_tiny() -> Data2VecConfig:
    decoder = DecoderConfig(dim=64, num_groups=8, kernel_size=3, num_layers=3, input_dropout=0.0)
    image = _image(prenet_depth=1, decoder=decoder, image_size=32, patch_size=4)
    return replace(image_base(), image=image, **_TINY | {"depth": 3})


def text_base() -> Data2VecConfig:
    decoder = DecoderConfig(dim=768, num_groups=1, kernel_size=9, num_layers=5, residual=False, projection_layers=2)
    return Data2VecConfig(text=TextFrontendConfig(decoder=decoder), dim=768, depth=12, num_heads=12)


def text_large() -> Data2VecConfig:
    return replace(text_base(), dim=1024, depth=24, num_heads=16)


def text_tiny() -> Data2VecConfig:
    decoder = DecoderConfig(
        dim=64, num_groups=1, kernel_size=9, num_layers=2, input_dropout=0.0, residual=False, projection_layers=2
    )
    text = TextFrontendConfig(vocab_size=2000, max_positions=128, dropout=0.0, decoder=decoder)
    return Data2VecConfig(text=text, **_TINY)


def multimodal_tiny() -> Data2VecConfig:
    return Data2VecConfig(audio=audio_tiny().audio, image=image_tiny().image, text=text_tiny().text, **_TINY)


ARCHS: Final[dict[str, Callable[[], Data2VecConfig]]] = {
    arch.__name__: arch
    for arch in (
        audio_base,
        audio_large,
        audio_tiny,
        spectrogram_base,
        spectrogram_large,
        spectrogram_tiny,
        image_base,
        image_large,
        image_huge16,
        image_huge14,
        image_tiny,
        text_base,
        text_large,
        text_tiny,
        multimodal_tiny,
    )
}
