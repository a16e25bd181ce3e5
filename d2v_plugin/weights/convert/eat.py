"""EAT's checkpoints (github.com/cwx-worst-one/EAT) -> data2vec 2.0 with a frontend of spectrograms.

In fairseq's layout EAT is data2vec 2.0 for images of one channel; its folders of Hugging Face have the encoder and a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from d2v_plugin.data.labels import LabelSet
from d2v_plugin.models.data2vec2.archs import spectrogram_base
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontend_config import SpectrogramFrontendConfig
from d2v_plugin.weights.convert.converted import explained
from d2v_plugin.weights.convert.fairseq_head_parts import Head, LeftOutError, found_head, name_classes, read_linear
from d2v_plugin.weights.convert.fairseq_info import attributes_of
from d2v_plugin.weights.convert.fairseq_settings import Settings
from d2v_plugin.weights.convert.transfer import Foreign, Names, Transfer, check_fixed, complete, rename
from d2v_plugin.weights.state import Mismatch, State

_NUM_MELS: Final = 128
_STATISTICS: Final = {"esc50_eval": (-6.627, 5.359), "spcv2_eval": (-6.846, 5.565)}
"""Mean and deviation of the log-mel values of ESC-50 and Speech Commands, which EAT's code switches to by these settings."""

_POSITIONS: Final = ".fixed_positional_encoder.positions"
_HUGGING_FACE: Final = Names(
    rules=[
        (r"model\.(extra_tokens|fixed_positional_encoder\.positions|local_encoder\.proj\.\w+)", r"modality_encoders.AUDIO.\1"),
        (r"model\.pre_norm\.(\w+)", r"modality_encoders.AUDIO.context_encoder.norm.\1"),
        (r"model\.(blocks\..*)", r"\1"),
    ],
    left_out={r"model\.(fc_norm|head)\.": "a head on top of the encoder"},
)


def is_eat(settings: Mapping[str, Any], student: Mapping[str, Tensor]) -> bool:
    """Tell EAT's models from others of fairseq's data2vec 2.0: their table of positions is none of a square.

    :param settings: the ``model`` section of the pre-training configuration.
    """
    image = attributes_of(attributes_of(settings.get("modalities")).get("image"))
    positions = student.get(f"modality_encoders.IMAGE{_POSITIONS}")
    if positions is None or image.get("in_chans", 3) != 1:
        return False
    side: int = image.get("input_size", 224) // image.get("patch_size", 16)
    return positions.size(1) != side**2


def as_audio(settings: Mapping[str, Any], positions: Tensor) -> dict[str, Any]:
    """The settings of an EAT model as if fairseq's data2vec 2.0 had a frontend of spectrograms for ``audio``.

    :param positions: its table of positions (1, S, D), which says how long recordings may be.
    """
    image = attributes_of(settings["modalities"])["image"]
    length = positions.size(1) * image.get("patch_size", 16) // _NUM_MELS
    return {
        **settings,
        "modalities": {"audio": {**image, "max_length": length, "target_length": image.get("target_length", 1024)}},
        "supported_modality": "AUDIO",
    }


def rename_modality(state: Mapping[str, Tensor]) -> State:
    """Names of a frontend of images -> those of one of sound."""
    return {key.replace("modality_encoders.IMAGE.", "modality_encoders.AUDIO."): tensor for key, tensor in state.items()}


def fit_reading(config: Data2VecConfig, outer: Mapping[str, Any], *, original_padding: bool) -> None:
    """Set how a model of EAT hears, in place: statistics of what it was fine-tuned on, and its padding.

    :param outer: settings of the fine-tuned model; of a pre-trained one its own.
    """
    if (spectrogram := config.spectrogram) is None:
        return
    for name, (mean, std) in _STATISTICS.items():
        if outer.get(name, False):
            spectrogram.log_mel_mean, spectrogram.log_mel_std = mean, std
    if not original_padding:
        spectrogram.pad_frames = None


def adopt_hugging_face(path: Path, source: Any, weights: Mapping[str, Tensor]) -> Foreign:
    """Make a model of ours of a folder of EAT's ``save_pretrained``, without its head.

    :param path: the folder, for messages.
    :param source: its configuration.
    :param weights: under Hugging Face's names.
    :raises CheckpointError: the model uses something that only EAT has, or the weights are not those of it.
    """
    with explained(path):
        check_fixed(path, source, in_chans=1, qkv_bias=True, fixed_positions=True, stride=source.patch_size)
        config = spectrogram_base()
        config.spectrogram = SpectrogramFrontendConfig(
            num_mels=source.mel_bins,
            patch_size=source.patch_size,
            max_frames=source.max_length * source.patch_size,
            num_extra_tokens=1,
            init_extra_tokens_zero=False,
            decoder=None,
        )
        config.dim, config.depth, config.num_heads = source.embed_dim, source.depth, source.num_heads
        config.mlp_ratio, config.norm_first = source.mlp_ratio, source.layer_norm_first
        config.norm_eps, config.norm_affine = source.norm_eps, source.norm_affine
    transfer, problems = Transfer("Hugging Face's eat"), Mismatch()

    return complete(path, config, rename(weights, _HUGGING_FACE, transfer, problems), transfer, problems, may_lack=[])


def convert_clips(
    path: Path, settings: Settings, head: Mapping[str, Tensor], symbols: Sequence[str] | None, labels: Path | None
) -> Head:
    """EAT's: a class, or tags as on AudioSet, from the class token."""
    get = settings.outer.get
    mode = str(get("prediction_mode", "CLS_TOKEN")).rpartition(".")[2].upper()
    if mode != "CLS_TOKEN" or "fc_norm.weight" not in head:
        raise LeftOutError(f"`prediction_mode: {mode}`, or a head without `fc_norm`, is nothing that our criteria compute")
    weight, bias = read_linear(path, head, "head")
    norm = read_linear(path, head, "fc_norm")
    has_tags = not (get("esc50_eval", False) or get("spcv2_eval", False))
    share = get("mask_ratio", 0.0) if get("specaug", False) else 0.0
    criterion = {"pooling": "cls", "spec_augment": {"bands": share, "frames": share} if share > 0.0 else None}
    if has_tags:
        names = ("norm.weight", "norm.bias", "head.weight", "head.bias")
        criterion |= {"masking": None, "mixup": None}
    else:
        names = ("head.norm.weight", "head.norm.bias", "head.proj.weight", "head.proj.bias")
        criterion |= {"label_smoothing": get("label_smoothing", 0.0)}

    return found_head(
        dict(zip(names, (*norm, weight, bias), strict=True)),
        LabelSet(name_classes(path, symbols, labels, len(weight))),
        ("audio_classification", {"tags": has_tags, "audio": {"normalize": False}}),
        "audio_manifest",
        ("audio_tagging" if has_tags else "classification", criterion),
    )
