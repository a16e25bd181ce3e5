"""fairseq's data2vec 1.0 configurations and weights, of all ages, become ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import d2v_plugin
from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.data2vec1.teacher import Data2Vec1Teacher
from d2v_plugin.criteria.supervised.tagging import AudioTaggingConfig, AudioTaggingCriterion
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.models.data2vec1.archs import ARCHS
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.weights.convert.fairseq import convert_fairseq
from d2v_plugin.weights.convert.fairseq_data2vec1 import (
    convert_config,
    convert_state_dict,
    convert_teacher,
    describe_pretraining,
    teacher_scope,
)
from d2v_plugin.weights.directory import write_directory

TESTS = Path(__file__).parents[2]
NAMES = ["audio", "text", "vision"]
ORIGINALS = json.loads((TESTS / "golden" / "full_models.json").read_text())
SCOPES = {"audio": "layers", "text": "layers", "vision": "encoder"}


def load_original(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings, and the weights as in a checkpoint, teacher and constants included."""
    folder = TESTS / "golden" / f"d2v1_{name}_tiny"
    settings = json.loads((folder / "config.json").read_text())["model"]
    tensors = load_file(folder / "weights.safetensors")
    weights: dict[str, Any] = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    teacher = {k.removeprefix("ema/"): v for k, v in tensors.items() if k.startswith("ema/")}
    if name == "text":
        weights["encoder.sentence_encoder.version"] = teacher["version"] = torch.tensor([3.0])
        weights["encoder._ema"] = teacher
    else:
        weights["_ema"] = teacher
    if name == "vision":
        weights["encoder.rel_pos_bias.relative_position_index"] = torch.zeros(65, 65, dtype=torch.int64)

    return settings, weights


@pytest.mark.parametrize("name", NAMES)
def test_student_and_teacher_fit_the_converted_model(name: str) -> None:
    settings, weights = load_original(name)

    state = convert_state_dict(settings, weights)
    model = create_data2vec1(convert_config(settings, state))
    teacher = convert_teacher(settings, weights["encoder._ema" if name == "text" else "_ema"])

    model.load_state_dict(state)
    assert teacher.keys() <= state.keys()
    averaged = Data2Vec1Teacher(model, "encoder").state_dict()
    assert averaged.keys() <= teacher.keys()
    assert teacher_scope(settings) == SCOPES[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_base_configurations_are_the_base_archs(name: str) -> None:
    settings = ORIGINALS[f"d2v1_{name}_base"]["model_cfg"]
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, (shape, *_) in ORIGINALS[f"d2v1_{name}_base"]["state"].items()}

    config = convert_config(settings, convert_state_dict(settings, weights))

    arch = ARCHS[f"{name}_base"]()
    if name == "vision":
        # Ours is that of the published models, see recipes/image/data2vec1_base_fairseq.yaml.
        arch.norm_eps, arch.head_layers = 1e-5, 0
    assert config == arch


def test_names_of_earlier_versions_are_understood() -> None:
    settings, weights = load_original("text")
    expected = convert_state_dict(settings, weights)
    old = {
        key.replace("encoder.", "decoder.", 1)
        .replace(".layernorm_embedding.", ".emb_layer_norm.")
        .replace(".regression_head.", ".lm_head."): value
        for key, value in weights.items()
        if not key.endswith("_ema")
    }
    assert convert_state_dict(settings, old).keys() == expected.keys()

    settings, weights = load_original("audio")
    old = {key.replace("final_proj.", "final_proj.0."): value for key, value in weights.items()}
    assert convert_state_dict(settings, old).keys() == convert_state_dict(settings, weights).keys()


@pytest.mark.parametrize("name", NAMES)
def test_models_without_head_or_mask_embedding_are_complete(name: str) -> None:
    settings, weights = load_original(name)
    gone = ("final_proj.", "encoder.regression_head.", "mask_emb", "_ema", "encoder._ema")
    weights = {key: value for key, value in weights.items() if not key.startswith(gone)}

    state = convert_state_dict(settings, weights)
    config = convert_config(settings, state)

    assert config.head_layers == 0
    create_data2vec1(config).load_state_dict(state)


def save_checkpoint(name: str, path: Path, *, fine_tuned: bool = False) -> Path:
    """As fairseq's trainer wrote it."""
    settings, weights = load_original(name)
    cfg: dict[str, Any] = {"model": settings}
    if fine_tuned:
        weights.pop("_ema")
        weights = {f"w2v_encoder.w2v_model.{key}": value for key, value in weights.items() if not key.startswith("final_proj")}
        weights |= {"w2v_encoder.proj.weight": torch.ones(5, 32), "w2v_encoder.proj.bias": torch.zeros(5)}
        cfg = {"model": {"_name": "wav2vec_ctc", "w2v_args": {"model": settings}}}
    torch.save({"args": None, "cfg": cfg, "model": weights, "optimizer_history": [{"num_updates": 7}]}, path)

    return path


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_converted_file_computes_the_originals_features(name: str, tmp_path: Path) -> None:
    directory = convert_fairseq(save_checkpoint(name, tmp_path / "in.pt"), original_padding=True)
    write_directory(tmp_path / "out", directory)

    model = d2v_plugin.load(tmp_path / "out")

    case = "img" if name == "vision" else "nopad"
    io = load_file(TESTS / "golden" / f"d2v1_{name}_tiny" / "io_features.safetensors")
    torch.testing.assert_close(model.extract_features(io[f"{case}/source"]).x, io[f"{case}/x"], atol=1e-5, rtol=1e-5)
    assert directory.info["source"]["step"] == 7
    assert directory.info["pretraining"]["teacher_scope"] == SCOPES[name]
    averaged = d2v_plugin.load(tmp_path / "out", weights="teacher").state_dict()
    assert directory.teacher is not None
    assert all(torch.equal(averaged[key], value) for key, value in directory.teacher.items())


def test_a_fine_tuned_file_gives_encoder_and_head(tmp_path: Path) -> None:
    labels = tmp_path / "dict.ltr.txt"
    labels.write_text("| 9\n")
    directory = convert_fairseq(save_checkpoint("audio", tmp_path / "in.pt", fine_tuned=True), labels=labels)

    assert directory.teacher is None
    assert directory.head is not None and set(directory.head) == {"head.weight", "head.bias"}
    assert directory.config.head_layers == 0  # type: ignore[union-attr]


@torch.no_grad()
def test_the_head_of_a_tagger_computes_the_same(tmp_path: Path) -> None:
    settings, weights = load_original("audio")
    weights.pop("_ema")
    model = {f"d2v_model.{key}": tensor for key, tensor in weights.items() if not key.startswith("final_proj")}
    weight, bias = torch.randn(3, 32), torch.randn(3)
    model |= {"proj.weight": weight, "proj.bias": bias}
    outer = {"_name": "audio_classification", "d2v_args": {"model": settings}, "source_mixup": 0.5, "normalize": True}
    content = {"cfg": {"model": outer}, "model": model, "task_state": {"labels": {"dog": 1, "bell": 0, "rain": 2}}}
    torch.save(content, tmp_path / "in.pt")
    directory = convert_fairseq(tmp_path / "in.pt")

    assert directory.provenance is not None and directory.provenance.labels is not None
    assert directory.provenance.labels.names == ["bell", "dog", "rain"]
    criterion = AudioTaggingCriterion(AudioTaggingConfig(**directory.provenance.sections["criterion"]["config"]))
    write_directory(tmp_path / "out", directory)
    labels = directory.provenance.labels
    loaded = load_trained(tmp_path / "out", criterion, labels=labels, device=torch.device("cpu"))
    waveforms = torch.randn(2, 4000)
    log_probs = criterion.compute_log_probs(loaded, Batch(modality=Modality.AUDIO, ids=torch.arange(2), inputs=waveforms))
    frames = F.logsigmoid(loaded.extract_features(waveforms).x @ weight.T + bias)
    torch.testing.assert_close(log_probs, (2 * frames).logsumexp(1) - frames.logsumexp(1), atol=1e-5, rtol=1e-5)

    outer["prediction_mode"] = "summary_proj"
    torch.save(content, tmp_path / "in.pt")
    ((part, _, remark),) = convert_fairseq(tmp_path / "in.pt").info["source"]["transfer"]["left out"]
    assert part == "proj" and "`prediction_mode: summary_proj`" in remark


def test_a_file_that_does_not_agree_with_its_configuration_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint("text", tmp_path / "in.pt")
    content = torch.load(path, weights_only=True)
    del content["model"]["encoder.sentence_encoder.layers.1.fc1.bias"]
    content["model"]["encoder._ema"].pop("layers.0.fc2.weight")
    torch.save(content, path)

    with pytest.raises(CheckpointError, match=r"layers\.1\.fc1\.bias") as info:
        convert_fairseq(path)
    assert "_ema.encoder.sentence_encoder.layers.0.fc2.weight" in str(info.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("audio", ()),
        ("vision", ()),
        ("text", ()),
        ("text", ("transformer",)),
        ("text", ("transformer", "encoder")),
        ("text", ("transformer", "quant_noise")),
    ],
)
def test_an_unknown_key_stops_with_its_name_and_value(name: str, place: tuple[str, ...]) -> None:
    settings, weights = load_original(name)
    state = convert_state_dict(settings, weights)
    changed = json.loads(json.dumps(settings))
    section = changed
    for key in place:
        section = section[key]
    section["mask_something"] = 3

    with pytest.raises(CheckpointError, match=rf"`{re.escape('.'.join((*place, 'mask_something')))}: 3` is not known here"):
        convert_config(changed, state)


def test_the_blocks_of_images_have_four_times_the_width_whatever_the_settings_say(tmp_path: Path) -> None:
    path = save_checkpoint("vision", tmp_path / "in.pt")
    content = torch.load(path, weights_only=True)
    content["cfg"]["model"]["mlp_ratio"] = 2
    torch.save(content, path)

    directory = convert_fairseq(path)

    assert directory.config.ffn_dim == 4 * directory.config.dim  # type: ignore[union-attr]
    assert "`mlp_ratio: 2` is left out: the original never read it, its blocks have 4." in directory.info["source"]["notes"]


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("text", 0.0, None),
        ("text", -1, None),
        ("vision", 0, 1.0),
        ("vision", -2.0, 1.0),
        ("vision", None, None),
        ("audio", 0.5, 0.5),
    ],
)
def test_a_scale_that_is_not_positive_has_the_originals_meaning(name: str, scale: float | None, expected: float | None) -> None:
    settings, _ = load_original(name)

    assert describe_pretraining(settings | {"loss_scale": scale})["loss_scale"] == expected


def test_norms_of_speech_act_over_the_batch_where_nothing_transposes_the_layers() -> None:
    settings, _ = load_original("audio")
    settings |= {"instance_norm_target_layer": False, "instance_norm_targets": True}

    assert describe_pretraining(settings)["targets"]["original_axes"]
    assert not describe_pretraining(settings | {"batch_norm_target_layer": True})["targets"]["original_axes"]
    assert not describe_pretraining(settings | {"instance_norm_targets": False})["targets"]["original_axes"]
    assert describe_pretraining(settings | {"group_norm_target_layer": True})["targets"]["group_norm_layers"]


def test_a_teacher_with_the_convolutions_gives_all_layers_as_targets() -> None:
    settings, _ = load_original("audio")
    whole = describe_pretraining(settings | {"ema_layers_only": False, "ema_transformer_only": False})

    assert whole["teacher_scope"] == "all"
    assert whole["targets"]["num_layers"] == settings["encoder_layers"] > settings["average_top_k_layers"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("audio", {"self_attn_norm_type": "deepnorm"}, "`self_attn_norm_type` must be None, but is 'deepnorm'"),
        ("text", {"transformer": {"encoder": {"layers_to_keep": "0,2"}}}, "`transformer.encoder.layers_to_keep` must be None"),
        ("audio", {"layer_norm_first": True}, "`layer_norm_first` must be False, but is True"),
        ("audio", {"pos_conv_depth": 1}, "`pos_conv_depth` must be at least 2"),
        ("text", {"transformer": {"activation_fn": "relu"}}, "`transformer.activation_fn` must be 'gelu', but is 'relu'"),
        (
            "text",
            {"transformer": {"encoder": {"normalize_before": True}}},
            "`transformer.encoder.normalize_before` must be False",
        ),
        ("vision", {"_name": "mae"}, "`_name` must be one of data2vec_audio"),
    ],
)
def test_what_no_published_model_uses_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    settings, weights = load_original(name)
    state = convert_state_dict(settings, weights)
    changed = json.loads(json.dumps(settings))
    target, change = changed, changes
    while isinstance(next(iter(change.values())), dict):
        key = next(iter(change))
        target, change = target[key], change[key]
    target.update(change)

    with pytest.raises(CheckpointError, match=message):
        convert_config(changed, state)
