"""fairseq2's wav2vec 2.0 -> data2vec 1.0's encoder, which computes the same; see :mod:`speech`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fairseq2.assets import AssetStore
from fairseq2.device import CPU
from fairseq2.error import NotSupportedError
from fairseq2.gang import create_fake_gangs
from fairseq2.model_checkpoint import CorruptModelCheckpointError, ModelCheckpointLoader, ModelCheckpointLoadOptions
from fairseq2.models import ModelFamily
from fairseq2.models.transformer import TransformerNormOrder
from fairseq2.models.wav2vec2 import Wav2Vec2EncoderConfig
from fairseq2.utils.structured import StandardValueConverter, StructureError
from fairseq2.utils.yaml import YamlError, YamlLoader

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig
from d2v_plugin.weights.convert import speech
from d2v_plugin.weights.convert.transfer import Foreign, check_fixed
from d2v_plugin.weights.download import download
from d2v_plugin.weights.library import library
from d2v_plugin.weights.run_folder import MODEL_FILE, find_checkpoints, list_steps, named_step, step_folder
from d2v_plugin.weights.torch_file import explain_corrupt

FAMILIES: Final = ("wav2vec2", "wav2vec2_asr")
"""Families of fairseq2."""


def adopt(path_or_name: str | Path) -> Foreign:
    """Read a wav2vec 2.0 model of fairseq2.

    :param path_or_name: the output directory of a run of fairseq2, its ``checkpoints`` (both mean the last checkpoint) or one of
        its ``step_N``; or the name of a model that fairseq2 knows.
    :raises CheckpointError: there is none, it is of another family, cannot be read, or uses something that only fairseq2 has.
    """
    checkpoints = find_checkpoints(path_or_name)
    path, family, config = (
        _find_by_name(str(path_or_name)) if checkpoints is None else _find_in_run(Path(path_or_name), checkpoints)
    )
    options = ModelCheckpointLoadOptions(gangs=create_fake_gangs(CPU), mmap=True, restrict=True)
    try:
        weights: dict[str, Any] = dict(library().resolve(ModelCheckpointLoader).lazy_load(path, {}, options))
    except CorruptModelCheckpointError as ex:
        raise CheckpointError(explain_corrupt(path, ex)) from ex
    except (OSError, NotSupportedError) as ex:
        raise CheckpointError(f"{path}: {ex}") from ex
    weights = {key.removeprefix("module."): tensor for key, tensor in weights.get("model", weights).items()}
    # A counter, not a weight.
    weights.pop("quantizer.num_updates", None)

    return speech.adopt_speech(path, f"fairseq2's {family}", _import_config(path, config), weights, speech.FAIRSEQ2)


def _find_in_run(path: Path, checkpoints: Path) -> tuple[Path, str, Wav2Vec2EncoderConfig]:
    steps = list_steps(checkpoints)
    if (step := named_step(path)) is None and not steps:
        raise CheckpointError(f"{checkpoints} holds no checkpoint yet.")
    description = checkpoints / MODEL_FILE
    try:
        (content, *_) = library().resolve(YamlLoader).load(description)
        family = content["model_family"]  # type: ignore[index]
        if family not in FAMILIES:
            raise ValueError(f"it describes a model of the family `{family}`")
        kls = library().resolve(ModelFamily, key=family).config_kls
        config: Any = StandardValueConverter().structure(content["model_config"], kls)  # type: ignore[index]
    except (OSError, YamlError, KeyError, StructureError, TypeError, ValueError) as ex:
        raise CheckpointError(f"{description} does not describe a wav2vec 2.0 model of fairseq2: {ex}") from ex

    return (step or step_folder(checkpoints, steps[-1])) / "model", family, config.encoder_config


def _find_by_name(name: str) -> tuple[Path, str, Wav2Vec2EncoderConfig]:
    card = library().resolve(AssetStore).maybe_retrieve_card(name)
    field = None if card is None else card.maybe_get_field("model_family")
    if card is None or field is None or field.value not in FAMILIES:
        raise CheckpointError(f"`{name}` is neither a run of fairseq2 nor the name of a wav2vec 2.0 model that it knows.")
    family = field.as_(str)
    config: Any = library().resolve(ModelFamily, key=family).get_model_config(card)

    return download(card, "checkpoint"), family, config.encoder_config


def _import_config(path: Path, config: Wav2Vec2EncoderConfig) -> Data2Vec1ModelConfig:
    is_post_norm = config.norm_order == TransformerNormOrder.POST
    check_fixed(path, config, use_fbank=False, use_conformer=False, pos_encoder_type="conv", layer_norm_features=is_post_norm)

    return Data2Vec1ModelConfig(
        audio=AudioConfig(
            conv_layers=[(channels, kernel, stride) for channels, kernel, stride in config.feature_extractor_layer_descs],
            conv_norm="layer_norm" if config.feature_extractor_layer_norm_convs else "group_norm",
            conv_bias=config.feature_extractor_bias,
            position_width=config.pos_conv_kernel_size,
            position_groups=config.num_pos_conv_groups,
            position_depth=config.pos_encoder_depth,
            position_norm=config.pos_encoder_depth > 1,
            local_grad_scale=config.feature_grad_scale,
            input_dropout=config.first_pass_dropout_p,
        ),
        dim=config.model_dim,
        ffn_dim=config.ffn_inner_dim,
        depth=config.num_encoder_layers,
        num_heads=config.num_encoder_attn_heads,
        norm_first=not is_post_norm,
        dropout=config.dropout_p,
        attention_dropout=config.attn_dropout_p,
        activation_dropout=config.ffn_inner_dropout_p,
        layer_drop=config.layer_drop_p,
        head_layers=0,
    )
