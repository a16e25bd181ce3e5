"""Heads of fairseq's fine-tuned models -> our criteria, with what they predict and how their inputs are read.

A head that none of our criteria computes is left out, with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.transcripts import BLANK
from d2v_plugin.models.families import AnyConfig
from d2v_plugin.weights.convert import eat
from d2v_plugin.weights.convert.fairseq_head_parts import (
    Head,
    LeftOutError,
    check_count,
    found_head,
    name_classes,
    read_linear,
    read_names,
)
from d2v_plugin.weights.convert.fairseq_settings import Settings
from d2v_plugin.weights.state import State

_DICTIONARY_SPECIAL: Final = ("<pad>", "</s>", "<unk>")
_TAG_POOLING: Final = {"lin_softmax": "linear_softmax", "average_sigmoid": "mean"}
_TEXT_HEAD: Final = r"classification_heads\.([^.]+)\."


def convert_head(
    path: Path,
    settings: Settings,
    config: AnyConfig,
    head: Mapping[str, Tensor],
    *,
    symbols: Sequence[str] | None,
    labels: Path | None,
) -> Head:
    """Convert what stands on top of a fine-tuned model.

    :param path: the checkpoint, for messages.
    :param config: the model below, in our terms.
    :param head: its parameters, under fairseq's names without the model's prefix.
    :param symbols: the names of the outputs that the checkpoint itself has.
    :param labels: a file with names: fairseq's ``dict.ltr.txt`` for transcripts, otherwise one name on each line.
    :raises CheckpointError: the names are not as many as the outputs.
    """
    assert settings.fine_tuned is not None
    kind = settings.fine_tuned.kind
    try:
        if kind == "ctc":
            return _convert_ctc(path, settings, head, symbols, labels)
        if kind == "audio_tagging":
            return _convert_tagging(path, settings, head, symbols, labels)
        if kind == "image_classification" and getattr(config, "spectrogram", None) is not None:
            return eat.convert_clips(path, settings, head, symbols, labels)
        if kind == "image_classification":
            return _convert_image(path, settings, config, head, symbols, labels)
        return _convert_text(path, settings, config, head, symbols, labels)
    except LeftOutError as ex:
        return Head(None, None, str(ex))


def _convert_ctc(
    path: Path, settings: Settings, head: Mapping[str, Tensor], symbols: Sequence[str] | None, labels: Path | None
) -> Head:
    get = settings.outer.get
    weight, bias = read_linear(path, head, "proj")
    if blank_weight := get("blank_weight", 0):
        if get("blank_mode", "add") != "add":
            raise LeftOutError("`blank_mode` sets the blank to a constant, which `ctc` cannot")
        bias = bias.clone()
        bias[0] += blank_weight
    if labels is not None:
        symbols = ["<s>", *_DICTIONARY_SPECIAL, *(row.rsplit(" ", 1)[0] for row in read_names(labels))]
    if symbols is None:
        raise LeftOutError("nothing says what its outputs are: name the dictionary, `--labels dict.ltr.txt`")
    # fairseq takes its first symbol, `<s>`, for the blank.
    names = check_count(path, [BLANK, *symbols[1:]], len(weight), labels)
    criterion = {"dropout": get("final_dropout", 0.0), "masking": _masking(settings), "freeze_updates": _freeze_updates(settings)}

    return found_head(
        {"head.weight": weight, "head.bias": bias},
        LabelSet(names),
        ("speech_recognition", {"audio": {"normalize": _is_normalized(settings)}}),
        "audio_manifest",
        ("ctc", criterion),
    )


def _convert_tagging(
    path: Path, settings: Settings, head: Mapping[str, Tensor], symbols: Sequence[str] | None, labels: Path | None
) -> Head:
    get = settings.outer.get
    mode = get("eval_prediction_mode") or get("prediction_mode", "lin_softmax")
    if mode not in _TAG_POOLING or get("conv_kernel", -1) > 0:
        raise LeftOutError(f"`prediction_mode: {mode}`, with convolutions or not, is nothing that `audio_tagging` computes")
    weight, bias = read_linear(path, head, "proj")
    names = name_classes(path, symbols, labels, len(weight))
    mixup = get("source_mixup", -1)
    criterion = {
        "pooling": _TAG_POOLING[mode],
        "dropout": get("final_dropout", 0.0),
        "masking": _masking(settings),
        "mixup": mixup if 0.0 <= mixup < 1.0 else None,
        "freeze_updates": _freeze_updates(settings),
    }

    return found_head(
        {"head.weight": weight, "head.bias": bias},
        LabelSet(names),
        ("audio_classification", {"tags": True, "audio": {"normalize": _is_normalized(settings)}}),
        "audio_manifest",
        ("audio_tagging", criterion),
    )


def _convert_image(
    path: Path,
    settings: Settings,
    config: AnyConfig,
    head: Mapping[str, Tensor],
    symbols: Sequence[str] | None,
    labels: Path | None,
) -> Head:
    if settings.name == "data2vec_image_classification":
        raise LeftOutError("its norm has another epsilon (1e-5) than that of `classification` (1e-6)")
    mode = str(settings.outer.get("prediction_mode", "MEAN_POOLING")).rpartition(".")[2].upper()
    poolings = {"MEAN_POOLING": "mean", "CLS_TOKEN": "cls"}
    image = config.image
    assert image is not None
    if mode not in poolings or (mode == "CLS_TOKEN" and getattr(image, "num_extra_tokens", 1) != 1):
        raise LeftOutError(f"`prediction_mode: {mode}` is nothing that `classification` computes")
    weight, bias = read_linear(path, head, "head")
    state = {"head.proj.weight": weight, "head.proj.bias": bias}
    has_norm = "fc_norm.weight" in head
    if has_norm:
        state["head.norm.weight"], state["head.norm.bias"] = read_linear(path, head, "fc_norm")
    criterion = {
        "pooling": poolings[mode],
        "norm": has_norm,
        "label_smoothing": settings.outer.get("label_smoothing", 0.0),
        "scores": ["accuracy", "top5_accuracy"],
    }

    return found_head(
        state,
        LabelSet(name_classes(path, symbols, labels, len(weight))),
        ("image_classification", {"image": {"size": image.image_size}}),
        "image_manifest",
        ("classification", criterion),
    )


def _convert_text(
    path: Path,
    settings: Settings,
    config: AnyConfig,
    head: Mapping[str, Tensor],
    symbols: Sequence[str] | None,
    labels: Path | None,
) -> Head:
    names = sorted({found[1] for key in head if (found := re.match(_TEXT_HEAD, key)) is not None})
    if len(names) != 1:
        raise LeftOutError(f"there are {len(names)} ({', '.join(names)}), but a model has one")
    if (activation := settings.outer.get("pooler_activation_fn", "tanh")) != "tanh":
        raise LeftOutError(f"`pooler_activation_fn: {activation}` is nothing that `classification` computes")
    prefix = f"classification_heads.{names[0]}."
    state: State = {}
    for theirs, ours in (("dense", "dense"), ("out_proj", "proj")):
        state[f"head.{ours}.weight"], state[f"head.{ours}.bias"] = read_linear(path, head, f"{prefix}{theirs}")
    if state["head.dense.weight"].shape != (config.dim, config.dim):
        raise LeftOutError("its hidden layer has another width than the model")
    num_outputs = len(state["head.proj.weight"])
    is_number = num_outputs == 1
    # The dictionary of labels begins with the symbols that every dictionary has.
    classes = (
        None if symbols is None else [symbol for symbol in symbols if symbol not in ("<s>", *_DICTIONARY_SPECIAL)][:num_outputs]
    )
    text = config.text
    assert text is not None
    criterion = {
        "pooling": "cls",
        "norm": False,
        "hidden": True,
        "dropout": settings.outer.get("pooler_dropout", 0.0),
        "scores": ["pearson"] if is_number else ["accuracy"],
    }

    return found_head(
        state,
        None if is_number else LabelSet(name_classes(path, classes, labels, num_outputs)),
        ("text_classification", {"max_length": min(512, text.max_positions)}),
        "sentences",
        ("classification", criterion),
    )


def _masking(settings: Settings) -> dict[str, Any] | None:
    """The masks of fine-tuning, for going on with it."""
    get = settings.outer.get
    if not get("apply_mask", False):
        return None
    shares = {"probability": get("mask_prob", 0.5), "channel_probability": get("mask_channel_prob", 0.0)}
    return {
        **{name: min(max(0.0, share), 0.99) for name, share in shares.items()},
        "length": get("mask_length", 10),
        "channel_length": get("mask_channel_length", 10),
        "noise_std": 0.0 if get("zero_mask", False) else 0.01,
    }


def _freeze_updates(settings: Settings) -> int:
    updates = settings.outer.get("freeze_finetune_updates", 0)
    return updates if isinstance(updates, int) and updates > 0 else 0


def _is_normalized(settings: Settings) -> bool:
    """Whether waveforms are normalised; in the configuration of a model this may be a reference to the task's."""
    found = settings.outer.get("normalize")
    return found if isinstance(found, bool) else bool(settings.task.get("normalize", settings.model["_name"] == "data2vec_multi"))
