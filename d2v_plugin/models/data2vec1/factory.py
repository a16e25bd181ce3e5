"""Creation and initialisation of the models of data2vec 1.0."""

from __future__ import annotations

import math

from torch import nn

from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.models.data2vec1.audio import Data2VecAudioModel
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.blocks import BeitBlock
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.models.data2vec1.text import Data2VecTextModel
from d2v_plugin.models.data2vec1.vision import Data2VecVisionModel, cut_normal_


def create_model(config: Data2Vec1ModelConfig) -> Data2Vec1Model:
    """Build a new model with the original's initialisation.

    :raises ValueError: the configuration makes no model.
    """
    ensure_valid(config)
    model: Data2Vec1Model
    if config.audio is not None:
        model = Data2VecAudioModel(config, config.audio)
    elif config.text is not None:
        model = Data2VecTextModel(config, config.text)
    else:
        assert config.image is not None
        model = Data2VecVisionModel(config, config.image)
    initialize(model)

    return model


def initialize(model: Data2Vec1Model) -> None:
    """Apply the original's initialisation: BEiT's of images, BERT's of speech and text."""
    if isinstance(model, Data2VecVisionModel):
        _initialize_as_beit(model)
    else:
        _initialize_as_bert(model.get_submodule("encoder"))


def _initialize_as_bert(encoder: nn.Module) -> None:
    """Text: of everything; convolutions, projections and heads of speech keep PyTorch's."""
    for module in encoder.modules():
        match module:
            case nn.Linear():
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            case nn.Embedding():
                nn.init.normal_(module.weight, std=0.02)
                if module.padding_idx is not None and not module.weight.is_meta:
                    nn.init.zeros_(module.weight[module.padding_idx])


def _initialize_as_beit(model: Data2VecVisionModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            cut_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    # Deeper blocks start with smaller residuals.
    for i, block in enumerate(model.encoder.blocks):
        assert isinstance(block, BeitBlock)
        for weight in (block.attn.proj.weight, block.mlp.get_parameter("2.weight")):
            weight.data.div_(math.sqrt(2.0 * (i + 1)))
