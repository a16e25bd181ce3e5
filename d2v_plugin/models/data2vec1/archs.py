"""Architectures by name: the released configurations of data2vec 1.0 and small ones for tests and demos.

No large configuration was released for speech and text (fairseq #4844): sizes are the paper's, dropout is that of the base
models, layer drop is off as in data2vec 2.0's large speech model. ``vision_large`` is that of the authors' BEiT repository.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig, ImageConfig, TextConfig

_LARGE: Final[dict[str, Any]] = {"dim": 1024, "ffn_dim": 4096, "depth": 24, "num_heads": 16}
_NO_DROPOUT: Final[dict[str, Any]] = {"dropout": 0.0, "attention_dropout": 0.0}
_TINY: Final[dict[str, Any]] = {"dim": 96, "ffn_dim": 384, "depth": 4, "num_heads": 4, **_NO_DROPOUT}


def audio_base() -> Data2Vec1ModelConfig:
    return Data2Vec1ModelConfig(audio=AudioConfig(), layer_drop=0.05)


def audio_large() -> Data2Vec1ModelConfig:
    return replace(audio_base(), layer_drop=0.0, **_LARGE)


def audio_tiny() -> Data2Vec1ModelConfig:
    conv_layers = [(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2]
    audio = AudioConfig(conv_layers=conv_layers, position_width=15, position_groups=8)
    return replace(audio_large(), audio=audio, **_TINY)


def text_base() -> Data2Vec1ModelConfig:
    return Data2Vec1ModelConfig(text=TextConfig(), head_layers=2)


def text_large() -> Data2Vec1ModelConfig:
    return replace(text_base(), **_LARGE)


def text_tiny() -> Data2Vec1ModelConfig:
    return replace(text_base(), text=TextConfig(vocab_size=2000, max_positions=128), **_TINY)


def vision_base() -> Data2Vec1ModelConfig:
    return Data2Vec1ModelConfig(image=ImageConfig(), norm_eps=1e-6, dropout=0.0, attention_dropout=0.05, drop_path=0.25)


def vision_large() -> Data2Vec1ModelConfig:
    return replace(vision_base(), image=ImageConfig(layer_scale=1e-5), attention_dropout=0.15, drop_path=0.2, **_LARGE)


def vision_tiny() -> Data2Vec1ModelConfig:
    return replace(vision_base(), image=ImageConfig(image_size=32, patch_size=4, layer_scale=0.1), drop_path=0.0, **_TINY)


_ALL = (audio_base, audio_large, audio_tiny, text_base, text_large, text_tiny, vision_base, vision_large, vision_tiny)
ARCHS: Final[dict[str, Callable[[], Data2Vec1ModelConfig]]] = {arch.__name__: arch for arch in _ALL}
