"""Creation and initialisation of the models of data2vec 1.0."""

from __future__ import annotations

import math

from torch import nn

from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.models.base import find_part
from d2v_plugin.models.data2vec1.audio import Data2VecAudioModel
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.blocks import BeitBlock
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.models.data2vec1.text import Data2VecTextModel
from d2v_plugin.models.data2vec1.vision import Data2VecVisionModel, cut_normal_
from d2v_plugin.models.initialization import initialize_as_bert, scale_prediction


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
    scale_prediction(find_part(model, model.head_name), config.prediction_init_scale)

    return model


def initialize(model: Data2Vec1Model) -> None:
    """Apply the original's initialisation: BEiT's (images), or BERT's of the encoder, while the rest keeps PyTorch's."""
    if isinstance(model, Data2VecVisionModel):
        _initialize_as_beit(model)
        return
    for module in model.get_submodule("encoder").modules():
        initialize_as_bert(module)


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
