"""Settings in fairseq's checkpoints: the model's name, how it was fine-tuned, and the configuration of the pre-trained one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.weights.convert import fairseq_data2vec1
from d2v_plugin.weights.convert.fairseq_info import attributes_of

KNOWN_MODELS: Final = ("data2vec_multi", *fairseq_data2vec1.MODEL_NAMES)
"""Names of pre-trained models."""


@dataclass(frozen=True)
class FineTuned:
    """Layout of one of fairseq's fine-tuned models around the pre-trained one."""

    kind: str
    """Our word for it."""

    config_key: str
    """Where in ``cfg.model`` the pre-training configuration is."""

    prefix: str
    """Before the names of the pre-trained weights."""

    head_prefixes: tuple[str, ...]
    """Before the names of the others."""


FINE_TUNED: Final = {
    "wav2vec_ctc": FineTuned("ctc", "w2v_args", "w2v_encoder.w2v_model.", ("w2v_encoder.proj.",)),
    "mae_image_classification": FineTuned("image_classification", "pretrained_model_args", "model.", ("head.", "fc_norm.")),
    "data2vec_text_classification": FineTuned(
        "text_classification", "pretrained_model_args", "model.", ("classification_heads.",)
    ),
}

OTHER_MODELS: Final = {
    "data2vec_image_classification": "a fine-tuned data2vec 1.0 for images",
    "wav2vec2": "wav2vec 2.0",
    "hubert": "HuBERT",
    "mae": "a masked autoencoder",
    "masked_lm": "a masked language model",
}


def find_settings(path: Path, content: Mapping[str, Any]) -> tuple[str, FineTuned | None, Mapping[str, Any]]:
    """The name of the model, how it was fine-tuned, and the configuration of the pre-trained model."""
    section = attributes_of(attributes_of(content.get("cfg")).get("model"))
    name = section.get("_name") or attributes_of(content.get("args")).get("arch")
    if not isinstance(name, str):
        raise CheckpointError(f"{path} does not say which model it holds: neither `cfg.model._name` nor `args.arch` is there.")
    if name in KNOWN_MODELS:
        _refuse_flat(path, section, "cfg.model")
        return name, None, {**section, "_name": name}

    fine_tuned = FINE_TUNED.get(name)
    if fine_tuned is None:
        raise CheckpointError(f"{path} holds {_describe_model(name)}, not data2vec.")

    origin = attributes_of(section.get(fine_tuned.config_key))
    section = attributes_of(origin.get("model"))
    if not section and "arch" in origin:
        _refuse_flat(path, section, f"cfg.model.{fine_tuned.config_key}.model")
    section = section or origin
    origin_name = section.get("_name") or section.get("arch")
    if not isinstance(origin_name, str):
        raise CheckpointError(f"{path} lacks the configuration of the pre-trained model, `cfg.model.{fine_tuned.config_key}`.")
    if origin_name not in KNOWN_MODELS:
        raise CheckpointError(f"{path} holds `{name}` on top of {_describe_model(origin_name)}, not of data2vec.")

    return name, fine_tuned, {**section, "_name": origin_name}


def leave_out(settings: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Settings without some keys, in whatever section they are."""
    return {
        key: leave_out(value, keys) if isinstance(value, dict) else value for key, value in settings.items() if key not in keys
    }


def _refuse_flat(path: Path, section: Mapping[str, Any], place: str) -> None:
    if not section:
        raise CheckpointError(
            f"{path} has its settings in flat `args`, as fairseq wrote them before it had `{place}`, which is missing. Let "
            "fairseq's `checkpoint_utils.load_checkpoint_to_cpu` read the file, and save what it returns."
        )


def _describe_model(name: str) -> str:
    return f"{OTHER_MODELS[name]} (`{name}`)" if name in OTHER_MODELS else f"`{name}`"
