"""EAT's checkpoints (github.com/cwx-worst-one/EAT) -> data2vec 2.0 with a frontend of spectrograms.

In fairseq's layout EAT is data2vec 2.0 for images of one channel; its folders of Hugging Face have the encoder and a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from d2v_plugin.models.data2vec2.archs import spectrogram_base
from d2v_plugin.models.data2vec2.config import Data2VecConfig, SpectrogramFrontendConfig
from d2v_plugin.weights.convert.fairseq_info import attributes_of
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
    return positions.size(1) != (image.get("input_size", 224) // image.get("patch_size", 16)) ** 2


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
            spectrogram.mean, spectrogram.std = mean, std
    if not original_padding:
        spectrogram.pad_frames = None


def adopt_hugging_face(path: Path, source: Any, weights: Mapping[str, Tensor]) -> Foreign:
    """Make a model of ours of a folder of EAT's ``save_pretrained``, without its head.

    :param path: the folder, for messages.
    :param source: its configuration.
    :param weights: under Hugging Face's names.
    :raises CheckpointError: the model uses something that only EAT has, or the weights are not those of it.
    """
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
    config.dim, config.depth, config.num_heads, config.mlp_ratio = source.embed_dim, source.depth, source.num_heads, source.mlp_ratio
    config.norm_first, config.norm_eps, config.norm_affine = source.layer_norm_first, source.norm_eps, source.norm_affine
    transfer, problems = Transfer("Hugging Face's eat"), Mismatch()

    return complete(path, config, rename(weights, _HUGGING_FACE, transfer, problems), transfer, problems, may_lack=[])
