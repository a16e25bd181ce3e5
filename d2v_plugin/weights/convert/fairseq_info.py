"""What fairseq's configuration says about pre-training, as information beside the converted weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from d2v_plugin.core.batch import Modality

_MASK_SETTINGS: Final = (
    "mask_prob",
    "mask_prob_min",
    "mask_prob_adjust",
    "mask_length",
    "inverse_mask",
    "mask_dropout",
    "keep_masked_pct",
    "mask_noise_std",
    "encoder_zero_mask",
    "mask_channel_prob",
    "mask_channel_length",
)


def teacher_scope(settings: Mapping[str, Any]) -> dict[str, str]:
    """What of each modality the teacher averages, in the words of ``Data2Vec2Config.teacher_scope``.

    :param settings: the ``model`` section of the pre-training configuration.
    """
    if settings.get("ema_encoder_only", True):
        return {modality.name: "blocks" for modality in Modality}

    return {m.name: "all" if _section(settings, m.value).get("ema_local_encoder") else "context" for m in Modality}


def describe_pretraining(settings: Mapping[str, Any], modalities: Sequence[str]) -> dict[str, Any]:
    """The settings that a criterion needs to go on, in the words of ``Data2Vec2Config`` except for the masks.

    :param modalities: the upper-case names of the model's frontends.
    """
    get, scope = settings.get, teacher_scope(settings)

    return {
        "num_views": get("clone_batch", 1),
        "ema": {
            "start": get("ema_decay", 0.999),
            "end": get("ema_end_decay", 0.9999),
            "anneal_steps": get("ema_anneal_end_step", get("max_update")),
        },
        "teacher_scope": {name.lower(): scope[name] for name in modalities},
        "targets": {
            "num_layers": get("average_top_k_layers", 8),
            "end_of_block": get("end_of_block_targets", False),
            "batch_norm_layers": get("batch_norm_target_layer", False),
            "instance_norm_layers": get("instance_norm_target_layer", False),
            "layer_norm_layers": get("layer_norm_target_layer", False),
            "layer_norm": get("layer_norm_targets", False),
            "instance_norm": get("instance_norm_targets", False),
        },
        "loss_beta": get("loss_beta", 0.0),
        "loss_scale": get("loss_scale"),
        "regression_weight": get("d2v_loss", 1.0),
        "cls_loss_per_gpu": get("cls_loss", 0.0),
        "reconstruction_weight": get("recon_loss", 0.0),
        "num_steps": get("max_update"),
        "fairseq_masks": {
            name.lower(): {key: value for key, value in _section(settings, name.lower()).items() if key in _MASK_SETTINGS}
            for name in modalities
        },
    }


def _section(settings: Mapping[str, Any], modality: str) -> Mapping[str, Any]:
    return settings.get("modalities", {}).get(modality) or {}
