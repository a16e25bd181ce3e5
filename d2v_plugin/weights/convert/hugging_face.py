"""Hugging Face's data2vec 1.0 models -> ours, with the heads of :mod:`d2v_plugin.weights.convert.hugging_face_heads`.

Features and logits are equal to 1e-5 in fp32, with one exception: on padded batches of speech Hugging Face computes what fairseq
did, which is ``original_padding: true`` of our configuration. Their base models have no prediction head: ``head_layers`` is 0.
The embedding of masked positions is zero where a source has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.log import log
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig, ImageConfig, TextConfig
from d2v_plugin.models.families import create_model
from d2v_plugin.weights.convert import hugging_face_heads as heads
from d2v_plugin.weights.convert.hugging_face_inputs import (
    LEAVE_OUT,
    Inputs,
    read_audio_inputs,
    read_image_inputs,
    read_symbols,
    read_text_inputs,
)
from d2v_plugin.weights.convert.hugging_face_names import SETTINGS, rename
from d2v_plugin.weights.directory import ModelDirectory
from d2v_plugin.weights.state import Mismatch, State
from d2v_plugin.weights.torch_file import POINTER, is_pointer

# What lies on top of the encoder, also where its name is that of a part of the encoder; and what may be missing, because only
# pre-training uses it.
_ON_TOP: Final = {"pooler", "adapter"}
_XVECTOR: Final = {"feature_extractor.weight", "feature_extractor.bias"}
_MASKS: Final = {"masked_spec_embed", "embeddings.mask_token"}

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def convert_hugging_face(src_dir: Path, *, head: bool = True, scratch: Path | None = None) -> ModelDirectory:
    """Read a folder of ``save_pretrained``: a model of the family ``data2vec1``, in fp32, with its head and how inputs are read.

    :param head: False = leave out what is on top of the encoder.
    :param scratch: an empty folder for the vocabulary of a text model, if it is a part of another file.
    :raises CheckpointError: the folder cannot be read, holds something else, or uses what only Hugging Face has.
    """
    source, architecture = _read_config(src_dir)
    is_tuned = head and architecture is not None and not architecture.endswith("Model")
    if is_tuned and architecture not in heads.KNOWN:
        raise CheckpointError(f"{src_dir} holds a {architecture}, whose head no criterion here has; {LEAVE_OUT}")
    weights = _read_weights(src_dir, architecture if is_tuned else None)

    config = _import_config(source)
    notes: list[str] = []
    content = ModelDirectory(
        config=config,
        student=_import_weights(config, weights),
        info={"source": {"format": "huggingface", "folder": src_dir.name, "class": architecture, "notes": notes}},
    )
    if is_tuned:
        assert architecture is not None
        symbols = read_symbols(src_dir, source) if architecture == heads.CTC else None
        imported = heads.import_head(source, architecture, weights, symbols)
        inputs = _read_inputs(src_dir, config, scratch)
        content.head, content.files = imported.weights, inputs.files
        content.provenance = imported.describe(architecture, inputs.task)
        notes += inputs.notes

    return content


def is_data2vec1(src_dir: Path) -> bool:
    """Tell whether a folder's ``config.json`` names one of the types of data2vec 1.0, or cannot be read: the reader says why."""
    try:
        content = json.loads((src_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True

    return not isinstance(content, dict) or content.get("model_type") in (None, *SETTINGS)


def _read_config(src_dir: Path) -> tuple[PretrainedConfig, str | None]:
    """The configuration, and the class that it was saved by."""
    from transformers import AutoConfig

    if not src_dir.is_dir():  # which transformers would take for a name on its hub
        raise CheckpointError(f"{src_dir} {'is no folder' if src_dir.exists() else 'does not exist'}.")
    with _explained(src_dir):
        source = AutoConfig.from_pretrained(src_dir, local_files_only=True)
    if source.model_type not in SETTINGS:
        raise CheckpointError(f"{src_dir} holds a model of the type `{source.model_type}`, not data2vec 1.0.")

    return source, (source.architectures or [None])[0]


def _read_weights(src_dir: Path, architecture: str | None) -> State:
    """All weights, without the prefix of the encoder.

    :param architecture: the class of a model with a head; None = the encoder alone.
    """
    import transformers

    with _explained(src_dir):
        kls = transformers.AutoModel if architecture is None else getattr(transformers, architecture)
        model, info = kls.from_pretrained(
            src_dir, local_files_only=True, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    _check_loading(src_dir, model, info, has_head=architecture is not None)

    # Zero is no mask: what transformers draws for a missing embedding would be another one each time.
    prefix = f"{model.base_model_prefix}."
    return {key.removeprefix(prefix): tensor for key, tensor in model.state_dict().items() if key not in info["missing_keys"]}


@contextmanager
def _explained(src_dir: Path) -> Iterator[None]:
    """Name the folder, whatever transformers lets through."""
    try:
        yield
    except Exception as ex:
        pointers = [path for path in sorted(src_dir.glob("*")) if path.is_file() and is_pointer(path)]
        if pointers:
            raise CheckpointError(f"{pointers[0]}: {POINTER}") from ex
        reason = " ".join(f"{type(ex).__name__}: {ex}".split())
        raise CheckpointError(f"{src_dir} is not a folder of Hugging Face's `save_pretrained`: {reason}") from ex


def _check_loading(src_dir: Path, model: PreTrainedModel, info: Mapping[str, Any], *, has_head: bool) -> None:
    """Check that transformers found what it looked for: it draws at random what is missing, and warns at most.

    :param info: what ``from_pretrained`` says of the loading.
    :param has_head: whether what is on top of the encoder counts, too.
    """
    base = f"{model.base_model_prefix}."

    def part(key: str) -> str:
        return key.removeprefix(base).partition(".")[0]

    ignored = set() if has_head else _ON_TOP
    parts = {part(key) for key in model.state_dict()} - ignored
    # Versions of transformers list the keys alone, or each with two shapes.
    mismatched = [each if isinstance(each, str) else each[0] for each in info["mismatched_keys"]]
    wrong = {key: f"not {tuple(model.state_dict()[key].shape)}, as the configuration says" for key in mismatched}
    missing = set(info["missing_keys"]) - wrong.keys()
    unexpected = sorted(info["unexpected_keys"])
    is_on_top = {key: part(key) not in parts or key in _XVECTOR for key in unexpected}
    Mismatch(
        missing=sorted(key for key in missing if part(key) not in ignored and key.removeprefix(base) not in _MASKS),
        unexpected=[key.removeprefix(base) for key in unexpected if has_head or not is_on_top[key]],
        wrong={key.removeprefix(base): text for key, text in wrong.items() if part(key) not in ignored},
    ).raise_if_any(f"{src_dir} does not hold the weights of the model that its configuration describes:")
    if not has_head and (left_out := [key for key in unexpected if is_on_top[key]]):
        log.warning("Left out {} tensors of what lies on top of the encoder, such as `{}`.", len(left_out), left_out[0])


def _read_inputs(src_dir: Path, config: Data2Vec1ModelConfig, scratch: Path | None) -> Inputs:
    if config.audio is not None:
        return read_audio_inputs(src_dir)
    if config.text is not None:
        return read_text_inputs(src_dir, config.text.max_positions, scratch)
    assert config.image is not None
    return read_image_inputs(src_dir, config.image.image_shape[0])


def _import_config(source: PretrainedConfig) -> Data2Vec1ModelConfig:
    _require(source, hidden_act="gelu")
    model, part = SETTINGS[source.model_type]
    common = {ours: getattr(source, theirs) for ours, theirs in model.items()} | {"head_layers": 0}
    settings = {ours: getattr(source, theirs) for ours, theirs in part.items()}
    match source.model_type:
        case "data2vec-audio":
            return Data2Vec1ModelConfig(audio=_import_audio(source, settings), **common)
        case "data2vec-text":
            return Data2Vec1ModelConfig(text=_import_text(source, settings), **common)
        case _:
            return Data2Vec1ModelConfig(image=_import_image(source, settings), **common)


def _import_audio(source: PretrainedConfig, settings: dict[str, Any]) -> AudioConfig:
    _require(source, feat_extract_activation="gelu", conv_bias=False, add_adapter=False)
    if source.conv_pos_kernel_size < 3:
        raise CheckpointError(f"`conv_pos_kernel_size` must be at least 3, but is {source.conv_pos_kernel_size}.")
    return AudioConfig(
        conv_layers=list(zip(source.conv_dim, source.conv_kernel, source.conv_stride, strict=True)),
        position_width=source.conv_pos_kernel_size * source.num_conv_pos_embeddings,
        **settings,
    )


def _import_text(source: PretrainedConfig, settings: dict[str, Any]) -> TextConfig:
    _require(source, position_embedding_type="absolute")
    if source.pad_token_id is None:
        raise CheckpointError("`pad_token_id` must be given.")
    return TextConfig(max_positions=source.max_position_embeddings - source.pad_token_id - 1, **settings)


def _import_image(source: PretrainedConfig, settings: dict[str, Any]) -> ImageConfig:
    _require(source, use_absolute_position_embeddings=False)
    if source.use_relative_position_bias and source.use_shared_relative_position_bias:
        raise CheckpointError("Relative positions must be shared or per layer, but this model has both.")
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(source, name), int):
            raise CheckpointError(f"`{name}` must be one number, but is {getattr(source, name)}.")
    tables = "per_layer" if source.use_relative_position_bias else "none"

    return ImageConfig(
        layer_scale=source.layer_scale_init_value if source.layer_scale_init_value > 0 else None,
        relative_positions="shared" if source.use_shared_relative_position_bias else tables,  # type: ignore[arg-type]
        final_norm=not source.use_mean_pooling,
        **settings,
    )


def _require(source: PretrainedConfig, **values: object) -> None:
    for name, value in values.items():
        # Version 5 of their library has dropped settings whose other values it no longer has.
        if (given := getattr(source, name, value)) != value:
            raise CheckpointError(f"`{name}` must be {value!r}, but is {given!r}; data2vec has nothing else.")


def _import_weights(config: Data2Vec1ModelConfig, weights: State) -> State:
    if config.text is not None:
        # Segments do not exist in data2vec: what the only one adds becomes part of the positions.
        positions = weights["embeddings.position_embeddings.weight"].clone()
        positions[config.text.pad_idx + 1 :] += weights["embeddings.token_type_embeddings.weight"][0]
        weights = weights | {"embeddings.position_embeddings.weight": positions}
    if config.image is not None:
        weights = _join_projections(weights)

    with torch.device("meta"):
        expected = create_model(config).state_dict()
    state, missing = {}, []
    for name, tensor in expected.items():
        source_name = rename(config, name)
        if source_name in weights:
            state[name] = weights[source_name]
        elif name == "mask_emb":
            state[name] = torch.zeros(tensor.shape)
        else:
            missing.append(source_name)
    if missing:
        raise CheckpointError(f"The weights lack {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}.")

    return state


def _join_projections(weights: State) -> State:
    """BEiT's fused projection: ``query``, ``key`` and ``value`` of a layer -> ``qkv``, ``q_bias`` and ``v_bias``."""
    joined = dict(weights)
    for name in weights:
        if name.endswith(".attention.query.weight"):
            prefix = name.removesuffix("query.weight")
            parts = [weights[f"{prefix}{part}.weight"] for part in ("query", "key", "value")]
            joined[f"{prefix}qkv.weight"] = torch.cat(parts)
            joined[f"{prefix}q_bias"] = weights[f"{prefix}query.bias"]
            joined[f"{prefix}v_bias"] = weights[f"{prefix}value.bias"]

    return joined
