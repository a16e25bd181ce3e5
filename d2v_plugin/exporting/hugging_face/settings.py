"""Settings of our models and heads -> those of the classes that an exported folder carries."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.supervised.classification import ClassificationCriterion
from d2v_plugin.criteria.supervised.ctc import CtcCriterion
from d2v_plugin.criteria.supervised.tagging import AudioTaggingCriterion
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.models.data2vec2.config import Data2VecConfig

ENCODER: Final = "Data2Vec2Model"

# What can be put on top of each modality: the automatic class, and ours.
HEADS: Final = {
    Modality.AUDIO: {
        "AutoModelForCTC": "Data2Vec2ForCTC",
        "AutoModelForAudioClassification": "Data2Vec2ForAudioClassification",
    },
    Modality.IMAGE: {"AutoModelForImageClassification": "Data2Vec2ForImageClassification"},
    Modality.TEXT: {"AutoModelForSequenceClassification": "Data2Vec2ForSequenceClassification"},
}
_CLASSIFIERS: Final = {modality: list(classes.values())[-1] for modality, classes in HEADS.items()}

_SAME: Final = (
    *("mlp_ratio", "norm_first", "norm_affine", "input_dropout", "attention_dropout", "activation_dropout"),
    *("post_mlp_dropout", "layer_drop", "drop_path", "original_padding"),
)
_RENAMED: Final = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout",
}
# They say how weights start, or serve pre-training alone.
_LEFT_OUT: Final = {"decoder", "init_extra_tokens_zero", "extra_tokens_std", "position_width"}


def describe_model(config: Data2VecConfig) -> dict[str, Any]:
    """Arguments of ``Data2Vec2Config`` for the encoder."""
    sections: dict[str, Any] = {}
    for modality, section in config.frontends.items():
        fields = {name: value for name, value in asdict(section).items() if name not in _LEFT_OUT}
        if fields["alibi"] is not None:
            del fields["alibi"]["initial_scale"], fields["alibi"]["in_kernel"]
        if modality is Modality.AUDIO:
            fields["position_kernel"] = section.position_kernel
            del fields["num_channels"]
        sections[modality.value] = fields

    return {
        **sections,
        **{name: getattr(config, name) for name in _SAME},
        **{theirs: getattr(config, ours) for ours, theirs in _RENAMED.items()},
    }


def describe_head(exportable: Exportable) -> tuple[str, dict[str, Any]]:
    """The class of a model with its head, and the arguments of ``Data2Vec2Config`` for the head.

    :raises CheckpointError: the head is none that the classes have.
    """
    criterion = exportable.criterion
    if criterion is None:
        return ENCODER, {}
    # The very classes: what an extension derives from them may compute anything.
    if type(criterion) is CtcCriterion:
        assert criterion.labels is not None
        return "Data2Vec2ForCTC", {
            "vocab_size": len(criterion.labels),
            "pad_token_id": 0,
            "head_dropout": criterion.config.dropout,
        }
    if type(criterion) is AudioTaggingCriterion:
        pooling = "linear_softmax" if criterion.config.pooling == "linear_softmax" else "frame_mean"
        settings: dict[str, Any] = {"head_pooling": pooling, "problem_type": "multi_label_classification"}
    elif type(criterion) is ClassificationCriterion:
        settings = {
            "head_pooling": criterion.config.pooling,
            "head_norm": criterion.head.norm is not None,
            **({} if criterion.head.norm is None else {"head_norm_eps": criterion.head.norm.eps}),
            "head_hidden": criterion.config.hidden,
            "problem_type": "regression" if criterion.labels is None else "single_label_classification",
        }
    else:
        raise CheckpointError(
            f"The head of {exportable.path}, a `{type(criterion).__name__}`, is none that Hugging Face's classes have. "
            "`head=false` exports the encoder."
        )
    names = ["value"] if criterion.labels is None else list(criterion.labels.names)
    settings |= {
        "head_dropout": criterion.config.dropout,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }

    return _CLASSIFIERS[exportable.modality], settings


def describe_classes(config: Data2VecConfig) -> dict[str, str]:
    """``auto_map``: which class of the folder each automatic class of transformers is."""
    classes = {"AutoModel": ENCODER}
    for modality in config.frontends:
        classes |= HEADS[modality]

    return {
        "AutoConfig": "configuration_data2vec2.Data2Vec2Config",
        **{auto: f"modeling_data2vec2.{kind}" for auto, kind in classes.items()},
    }
