"""Settings in fairseq's checkpoints: the model's name, how it was fine-tuned, and the configuration of the pre-trained one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.weights.convert import fairseq_data2vec1
from d2v_plugin.weights.convert.fairseq_info import attributes_of

DATA2VEC: Final = ("data2vec_multi", *fairseq_data2vec1.MODEL_NAMES)
"""Names of data2vec's pre-trained models."""

SPEECH: Final = ("wav2vec2", "hubert")
"""Names of pre-trained models with data2vec 1.0's encoder for speech."""


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
    "hubert_ctc": FineTuned("ctc", "w2v_args", "w2v_encoder.w2v_model.", ("w2v_encoder.proj.",)),
    "audio_classification": FineTuned("audio_tagging", "d2v_args", "d2v_model.", ("proj.", "proj2.")),
    "mae_image_classification": FineTuned("image_classification", "pretrained_model_args", "model.", ("head.", "fc_norm.")),
    "data2vec_image_classification": FineTuned("image_classification", "pretrained_model_args", "model.", ("head.", "fc_norm.")),
    "data2vec_text_classification": FineTuned(
        "text_classification", "pretrained_model_args", "model.", ("classification_heads.",)
    ),
}
WITH_HEADS: Final = FineTuned("text_classification", "", "", ("classification_heads.",))
"""Of RoBERTa and of data2vec 1.0 for text, which fairseq fine-tunes without another model around them."""

AUTHORS: Final = "authors"
"""Our name for models of data2vec 1.0's, BEiT's and MAE's own code for images, which says no name."""

_AUTHORS_FINE_TUNED: Final = FineTuned("image_classification", "", "", ("head.", "fc_norm."))

OTHER_MODELS: Final = {"mae": "a masked autoencoder", "masked_lm": "a masked language model"}


@dataclass(frozen=True)
class Settings:
    """What a checkpoint says of its model."""

    name: str
    """The name of the whole model."""

    fine_tuned: FineTuned | None
    """Layout of a fine-tuned model."""

    model: Mapping[str, Any]
    """Configuration of the pre-trained model, with its name as ``_name``."""

    outer: Mapping[str, Any]
    """Configuration of the fine-tuned one."""

    task: Mapping[str, Any]
    """Configuration of its task, as far as the file has one."""

    @property
    def is_roberta(self) -> bool:
        """Whether the pre-trained model is RoBERTa."""
        return is_roberta(self.model["_name"])


def find_authors(content: Mapping[str, Any]) -> Settings | None:
    """Find the settings of a file of data2vec 1.0's, BEiT's or MAE's own code for images; None if it is none."""
    args = attributes_of(content.get("args"))
    if "cfg" in content or "arch" in args or "patch_embed.proj.weight" not in content["model"]:
        return None
    outer = {"prediction_mode": "MEAN_POOLING" if "fc_norm.weight" in content["model"] else "CLS_TOKEN"}
    fine_tuned = _AUTHORS_FINE_TUNED if "head.weight" in content["model"] else None

    return Settings(str(args.get("model")), fine_tuned, {**args, "_name": AUTHORS}, outer, {})


def find_settings(path: Path, content: Mapping[str, Any]) -> Settings:
    """Find the name of the model, how it was fine-tuned, and the configuration of the pre-trained model.

    :raises CheckpointError: the file does not say it, or holds a model that has no counterpart here.
    """
    cfg, args = attributes_of(content.get("cfg")), attributes_of(content.get("args"))
    section, task = attributes_of(cfg.get("model")), attributes_of(cfg.get("task")) or args
    name = section.get("_name") or args.get("arch")
    if not isinstance(name, str):
        raise CheckpointError(f"{path} does not say which model it holds: neither `cfg.model._name` nor `args.arch` is there.")
    if _is_known(name):
        if name in DATA2VEC:
            _refuse_flat(path, section, "cfg.model")
        has_heads = any(str(key).startswith(WITH_HEADS.head_prefixes) for key in content["model"])
        model = {**(section or args), "_name": name}
        return Settings(name, WITH_HEADS if has_heads else None, model, model, task)

    fine_tuned = FINE_TUNED.get(name)
    if fine_tuned is None:
        raise CheckpointError(f"{path} holds {_describe_model(name)}, which has no counterpart here.")
    outer = section or args
    origin = attributes_of(outer.get(fine_tuned.config_key))
    section = attributes_of(origin.get("model"))
    if not section and origin.get("arch") in DATA2VEC:
        _refuse_flat(path, section, f"cfg.model.{fine_tuned.config_key}.model")
    section = section or origin
    origin_name = section.get("_name") or section.get("arch")
    if not isinstance(origin_name, str):
        raise CheckpointError(f"{path} lacks the configuration of the pre-trained model, `cfg.model.{fine_tuned.config_key}`.")
    if not _is_known(origin_name):
        raise CheckpointError(f"{path} holds `{name}` on top of {_describe_model(origin_name)}, which has no counterpart here.")

    return Settings(name, fine_tuned, {**section, "_name": origin_name}, outer, task)


def is_roberta(name: str) -> bool:
    """Tell RoBERTa by the name of a model."""
    return name == "roberta" or name.startswith("roberta_")


def _is_known(name: str) -> bool:
    return name in DATA2VEC or name in SPEECH or is_roberta(name)


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
