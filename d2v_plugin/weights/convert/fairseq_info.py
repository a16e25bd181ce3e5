"""Information in fairseq's checkpoints beside the weights: settings of pre-training, the update, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from d2v_plugin.core.batch import Modality
from d2v_plugin.weights.convert.fairseq_keys import MASK_KEYS
from d2v_plugin.weights.torch_file import InertObject


def attributes_of(value: object) -> dict[str, Any]:
    """The contents of a dictionary, or of a namespace of an old checkpoint; of anything else nothing."""
    if isinstance(value, InertObject):
        return vars(value)
    return value if isinstance(value, dict) else {}


def read_step(content: Mapping[str, Any]) -> int | None:
    """The number of the checkpoint's last update, where the file says it."""
    history = content.get("optimizer_history")
    step = attributes_of(history[-1]).get("num_updates") if isinstance(history, list) and history else None
    return step if isinstance(step, int) else None


def read_labels(content: Mapping[str, Any]) -> list[str] | None:
    """The symbols of the head's outputs in their order, where the file has them."""
    state = attributes_of(content.get("task_state"))
    numbers = attributes_of(state.get("labels"))
    if numbers and all(isinstance(name, str) and isinstance(number, int) for name, number in numbers.items()):
        return sorted(numbers, key=numbers.__getitem__)  # of tags
    for dictionary in state.values():
        symbols = attributes_of(dictionary).get("symbols")
        if isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols):
            return symbols
    return None


def teacher_scope(settings: Mapping[str, Any]) -> dict[str, str]:
    """The parts of each modality that the teacher averages, in the words of ``Data2Vec2Config.teacher_scope``.

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
        "ema": describe_ema(settings),
        "teacher_scope": {name.lower(): scope[name] for name in modalities},
        "targets": describe_targets(settings, end_of_block=get("end_of_block_targets", False)),
        "loss_beta": get("loss_beta", 0.0),
        "loss_scale": get("loss_scale"),
        # Below 0 as at 0 the original leaves it out.
        "regression_weight": max(0.0, get("d2v_loss", 1.0)),
        "cls_loss_per_gpu": get("cls_loss", 0.0),
        "reconstruction_weight": get("recon_loss", 0.0),
        "num_steps": get("max_update"),
        "fairseq_masks": {
            name.lower(): {key: value for key, value in _section(settings, name.lower()).items() if key in MASK_KEYS}
            for name in modalities
        },
    }


def describe_ema(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's moving average, in the words of ``EmaConfig``."""
    return {
        "start": settings.get("ema_decay", 0.999),
        "end": settings.get("ema_end_decay", 0.9999),
        "anneal_steps": settings.get("ema_anneal_end_step", settings.get("max_update")),
    }


def describe_targets(settings: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The targets, in the words of ``TargetConfig``.

    :param others: entries that only one of the two versions has.
    """
    get = settings.get

    return {
        "num_layers": get("average_top_k_layers", 8),
        **others,
        "batch_norm_layers": get("batch_norm_target_layer", False),
        "instance_norm_layers": get("instance_norm_target_layer", False),
        "layer_norm_layers": get("layer_norm_target_layer", False),
        "layer_norm": get("layer_norm_targets", False),
        "instance_norm": get("instance_norm_targets", False),
    }


def _section(settings: Mapping[str, Any], modality: str) -> Mapping[str, Any]:
    return settings.get("modalities", {}).get(modality) or {}
