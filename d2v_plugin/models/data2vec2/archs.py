"""Architectures by name: the released configurations of data2vec 2.0 and small ones for tests and demos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from d2v_plugin.models.data2vec2.config import AlibiConfig, AudioConfig, Data2VecConfig, DecoderConfig, ImageConfig, TextConfig


def audio_base() -> Data2VecConfig:
    return Data2VecConfig(
        audio=AudioConfig(
            prenet_layer_drop=0.05,
            prenet_dropout=0.1,
            alibi=AlibiConfig(),
            decoder=DecoderConfig(dim=384, num_groups=16, kernel_size=7, num_layers=4),
        ),
        dim=768,
        depth=12,
        num_heads=12,
        layer_drop=0.05,
    )


def audio_large() -> Data2VecConfig:
    return Data2VecConfig(
        audio=AudioConfig(
            prenet_depth=8,
            prenet_dropout=0.1,
            alibi=AlibiConfig(),
            decoder=DecoderConfig(dim=768, num_groups=16, kernel_size=7, num_layers=4),
        ),
        dim=1024,
        depth=16,
        num_heads=16,
    )


def audio_tiny() -> Data2VecConfig:
    return Data2VecConfig(
        audio=AudioConfig(
            conv_layers=[(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2],
            position_width=15,  # in a second's 50 frames the usual 95 say where each frame is, and nothing else is learned
            position_groups=8,
            alibi=AlibiConfig(),
            decoder=DecoderConfig(dim=64, num_groups=8, kernel_size=7, num_layers=3, input_dropout=0.0),
        ),
        dim=96,
        depth=4,
        num_heads=4,
        dropout=0.0,
        attention_dropout=0.0,
        post_mlp_dropout=0.0,
    )


def _image(
    *,
    dim: int,
    depth: int,
    num_heads: int,
    prenet_depth: int,
    decoder: DecoderConfig,
    image_size: int = 224,
    patch_size: int = 16,
) -> Data2VecConfig:
    return Data2VecConfig(
        image=ImageConfig(
            image_size=image_size,
            patch_size=patch_size,
            prenet_depth=prenet_depth,
            num_extra_tokens=1,
            init_extra_tokens_zero=False,
            decoder=decoder,
        ),
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        norm_eps=1e-6,
        dropout=0.0,
        attention_dropout=0.0,
        post_mlp_dropout=0.0,
    )


def image_base() -> Data2VecConfig:
    decoder = DecoderConfig(dim=768, num_groups=16, kernel_size=3, num_layers=6, input_dropout=0.0)

    return _image(dim=768, depth=10, num_heads=12, prenet_depth=2, decoder=decoder)


def _wide_image_decoder() -> DecoderConfig:
    return DecoderConfig(dim=1024, num_groups=16, kernel_size=5, num_layers=3, input_dropout=0.0)


def image_large() -> Data2VecConfig:
    return _image(dim=1024, depth=24, num_heads=16, prenet_depth=0, decoder=_wide_image_decoder())


def image_huge16() -> Data2VecConfig:
    return _image(dim=1280, depth=32, num_heads=16, prenet_depth=0, decoder=_wide_image_decoder())


def image_huge14() -> Data2VecConfig:
    return _image(dim=1280, depth=32, num_heads=16, prenet_depth=0, decoder=_wide_image_decoder(), patch_size=14)


def image_tiny() -> Data2VecConfig:
    decoder = DecoderConfig(dim=64, num_groups=8, kernel_size=3, num_layers=3, input_dropout=0.0)

    return _image(dim=96, depth=3, num_heads=4, prenet_depth=1, decoder=decoder, image_size=32, patch_size=4)


def _text(*, dim: int, depth: int, num_heads: int) -> Data2VecConfig:
    return Data2VecConfig(
        text=TextConfig(
            decoder=DecoderConfig(
                dim=768, num_groups=1, kernel_size=9, num_layers=5, residual=False, projection_layers=2, projection_ratio=2.0
            )
        ),
        dim=dim,
        depth=depth,
        num_heads=num_heads,
    )


def text_base() -> Data2VecConfig:
    return _text(dim=768, depth=12, num_heads=12)


def text_large() -> Data2VecConfig:
    return _text(dim=1024, depth=24, num_heads=16)


def text_tiny() -> Data2VecConfig:
    return Data2VecConfig(
        text=TextConfig(
            vocab_size=2000,
            max_positions=128,
            dropout=0.0,
            decoder=DecoderConfig(
                dim=64, num_groups=1, kernel_size=9, num_layers=2, input_dropout=0.0, residual=False, projection_layers=2
            ),
        ),
        dim=96,
        depth=4,
        num_heads=4,
        dropout=0.0,
        attention_dropout=0.0,
        post_mlp_dropout=0.0,
    )


def multimodal_tiny() -> Data2VecConfig:
    return Data2VecConfig(
        audio=audio_tiny().audio,
        image=image_tiny().image,
        text=text_tiny().text,
        dim=96,
        depth=4,
        num_heads=4,
        dropout=0.0,
        attention_dropout=0.0,
        post_mlp_dropout=0.0,
    )


ARCHS: Final[dict[str, Callable[[], Data2VecConfig]]] = {
    arch.__name__: arch
    for arch in (
        audio_base,
        audio_large,
        audio_tiny,
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
