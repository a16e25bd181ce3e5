"""Creation and initialisation of the models of data2vec 2.0."""

from __future__ import annotations

from torch import nn

from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontends.audio import AudioFrontend
from d2v_plugin.models.data2vec2.frontends.image import ImageFrontend
from d2v_plugin.models.data2vec2.frontends.spectrogram import SpectrogramFrontend
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.initialization import initialize_as_bert, normal, scale_prediction
from d2v_plugin.models.patches import PatchEmbedding


def create_model(config: Data2VecConfig) -> Data2VecModel:
    """Build a new model with the original's initialisation.

    :raises ValueError: the configuration makes no model.
    """
    ensure_valid(config)
    model = Data2VecModel(config)
    initialize(model, mae_init=config.mae_init)
    for decoder in (model.shared_decoder, *(frontend.decoder for frontend in model.modality_encoders.values())):
        scale_prediction(decoder, config.prediction_init_scale)

    return model


def initialize(model: Data2VecModel, *, mae_init: bool = False) -> None:
    """Apply BERT's initialisation, then what the modalities do differently; convolutions keep PyTorch's unless named here."""
    for module in model.modules():
        if isinstance(module, PatchEmbedding):
            nn.init.xavier_uniform_(module["proj"].get_parameter("weight").flatten(1))
        else:
            initialize_as_bert(module, nn.init.xavier_uniform_ if mae_init else normal)

    for frontend in model.modality_encoders.values():
        if isinstance(frontend, AudioFrontend) and frontend.project_features is not None:
            frontend.project_features[2].reset_parameters()  # type: ignore[index]
        if isinstance(frontend, AudioFrontend | ImageFrontend | SpectrogramFrontend) and frontend.decoder is not None:
            for module in frontend.decoder.proj.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
    if model.shared_decoder is not None:
        for module in model.shared_decoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
