"""fairseq's wav2vec 2.0, HuBERT and RoBERTa, and files of BEiT's and MAE's own code: tiny ones of the same layout."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    HubertConfig,
    HubertModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.models.data2vec1.factory import create_model
from d2v_plugin.weights.convert.fairseq import convert_fairseq
from d2v_plugin.weights.convert.hugging_face_others import adopt
from d2v_plugin.weights.directory import ModelDirectory, write_directory

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SPEECH: dict[str, Any] = {**SIZE, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
FAIRSEQ: dict[str, Any] = {
    "conv_feature_layers": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2",
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
}
FAIRSEQ_LARGE: dict[str, Any] = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}


def randomise(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def take_state(source: Any, folder: Path) -> dict[str, Tensor]:
    """The weights of a model of Hugging Face under our names, which are fairseq's; see test_hugging_face_others.py."""
    source.save_pretrained(folder)
    return dict(adopt(folder).state)


def split_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As fairseq's weight norm keeps the position convolution."""
    weight = state.pop("encoder.pos_conv.0.0.weight")
    state["encoder.pos_conv.0.weight_g"] = 2 * weight.norm(dim=(0, 1), keepdim=True)
    state["encoder.pos_conv.0.weight_v"] = weight / 3
    state["encoder.pos_conv.0.weight_g"] /= 2
    state["encoder.pos_conv.0.bias"] = state.pop("encoder.pos_conv.0.0.bias")
    return state


def save(path: Path, model: dict[str, Tensor], settings: dict[str, Any], *, flat: bool = False, **content: Any) -> Path:
    """As fairseq's trainer wrote it, or before it had `cfg`."""
    both: dict[str, Any] = {"args": None, "cfg": {"model": settings}}
    if flat:
        both = {"args": argparse.Namespace(**settings)}
    torch.save({**both, "model": model, **content}, path)
    return path


def error(directory: ModelDirectory, inputs: Tensor, expected: Tensor, padding: Tensor | None = None) -> float:
    model = create_model(directory.config)  # type: ignore[arg-type]
    model.load_state_dict(directory.student)
    x = model.eval().extract_features(inputs, padding).x
    valid = slice(None) if padding is None else ~padding
    return float((x[valid] - expected[valid]).abs().max() / expected.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("name", "config_kls", "model_kls", "changes", "settings"),
    [
        ("wav2vec2", Wav2Vec2Config, Wav2Vec2Model, {}, {}),
        ("hubert", HubertConfig, HubertModel, LARGE, FAIRSEQ_LARGE),
    ],
)
@torch.no_grad()
def test_speech(
    name: str, config_kls: Any, model_kls: Any, changes: dict[str, Any], settings: dict[str, Any], flat: bool, tmp_path: Path
) -> None:
    source = randomise(model_kls(config_kls(**SPEECH, **changes)))
    state = split_weight_norm(take_state(source, tmp_path / "hf"))
    state |= {"quantizer.vars": torch.ones(2), "project_q.weight": torch.ones(2), "final_proj.bias": torch.ones(2)}
    state["label_embs_concat"] = torch.ones(2)
    key = "arch" if flat else "_name"
    directory = convert_fairseq(save(tmp_path / "in.pt", state, {key: name, **FAIRSEQ, **settings}, flat=flat))

    waveforms = torch.randn(2, 4000)
    assert error(directory, waveforms, source(waveforms).last_hidden_state) < 1e-5
    table = directory.info["source"]["transfer"]
    assert {part for part, _, _ in table["left out"]} == {"quantizer.vars", "project_q", "final_proj", "label_embs_concat"}
    assert ["encoder.pos_conv", "2 tensors", "weight norm fused"] in table["came over"]


def test_a_head_for_transcripts_on_hubert(tmp_path: Path) -> None:
    state = split_weight_norm(take_state(HubertModel(HubertConfig(**SPEECH)), tmp_path / "hf"))
    model = {f"w2v_encoder.w2v_model.{key}": tensor for key, tensor in state.items()}
    model |= {"w2v_encoder.proj.weight": torch.randn(5, 32), "w2v_encoder.proj.bias": torch.randn(5)}
    settings = {"_name": "hubert_ctc", "w2v_args": {"model": {"_name": "hubert", **FAIRSEQ}}, "normalize": False}
    labels = tmp_path / "dict.ltr.txt"
    labels.write_text("| 9\n")
    directory = convert_fairseq(save(tmp_path / "in.pt", model, settings), labels=labels)

    assert directory.head is not None and directory.head["head.weight"].equal(model["w2v_encoder.proj.weight"])
    assert directory.provenance is not None and directory.provenance.labels is not None
    assert directory.provenance.labels.names == ["<blank>", "<pad>", "</s>", "<unk>", "|"]
    assert directory.provenance.sections["task"]["config"] == {"audio": {"normalize": False}}


@pytest.mark.parametrize("is_old", [False, True])
@torch.no_grad()
def test_roberta(is_old: bool, tmp_path: Path) -> None:
    config = RobertaConfig(**SIZE, vocab_size=50, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5)
    source = randomise(RobertaModel(config, add_pooling_layer=False))
    source.embeddings.token_type_embeddings.weight.zero_()
    state = take_state(source, tmp_path / "hf")
    state["encoder.lm_head.dense.weight"] = torch.ones(2)
    if is_old:
        for key in [key for key in state if ".q_proj." in key]:
            parts = [state.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            state[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
        state = {"decoder." + key.removeprefix("encoder."): tensor for key, tensor in state.items()}
        state = {key.replace(".layernorm_embedding.", ".emb_layer_norm."): tensor for key, tensor in state.items()}
    settings = {key: value for key, value in FAIRSEQ.items() if key.startswith("encoder_")}
    key = "arch" if is_old else "_name"
    directory = convert_fairseq(save(tmp_path / "in.pt", state, {key: "roberta_base", **settings}, flat=is_old))

    tokens = torch.randint(4, 50, (2, 12))
    tokens[1, 8:] = 1
    expected = source(tokens, attention_mask=tokens.ne(1).long()).last_hidden_state
    assert error(directory, tokens, expected, tokens.eq(1)) < 1e-5
    assert directory.info["source"]["transfer"]["left out"] == [
        ["encoder.lm_head.dense", "1 tensor", "belongs to the original's objective"]
    ]


def to_authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of a ViT -> those of timm, in which BEiT's and MAE's files are."""
    state = dict(state)
    cls, positions = state["cls_emb"], state.pop("encoder.pos_embed")
    state["pos_embed"] = torch.cat([torch.zeros_like(cls), positions], dim=1)
    for key in [key for key in state if key.endswith(".q_bias")]:
        query, value = state.pop(key), state.pop(key.replace(".q_bias", ".v_bias"))
        state[key.replace(".q_bias", ".qkv.bias")] = torch.cat([query, torch.ones_like(query), value])
    renamed = {}
    for key, tensor in state.items():
        for pattern, theirs in {
            r"^encoder\.": "",
            r"^cls_emb": "cls_token",
            r"^mask_emb": "mask_token",
            r"^patch_embed\.conv": "patch_embed.proj",
            r"\.mlp\.0\.": ".mlp.fc1.",
            r"\.mlp\.2\.": ".mlp.fc2.",
        }.items():
            key = re.sub(pattern, theirs, key)
        renamed[key] = tensor
    return renamed


@torch.no_grad()
def test_a_file_of_maes_own_code(tmp_path: Path) -> None:
    source = randomise(ViTModel(ViTConfig(**SIZE, image_size=32, patch_size=8, layer_norm_eps=1e-6), add_pooling_layer=False))
    state = to_authors(take_state(source, tmp_path / "hf")) | {"decoder_pred.weight": torch.ones(2)}
    args = argparse.Namespace(model="mae_vit_base_patch8")
    torch.save({"model": state, "args": args, "model_ema": state}, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match="`num_heads` must divide"):
        convert_fairseq(tmp_path / "wide.pth")

    args.model = "vit_large_patch8"  # 16 heads
    torch.save({"model": state, "args": args, "model_ema": state}, tmp_path / "in.pth")
    directory = convert_fairseq(tmp_path / "in.pth")
    source.config.num_attention_heads = 16
    for attention in (module for module in source.modules() if hasattr(module, "scaling")):
        # The last name is that of version 5 of their library.
        attention.num_attention_heads, attention.attention_head_size, attention.head_dim = 16, 2, 2
        attention.scaling = 2**-0.5
    images = torch.randn(2, 3, 32, 32)
    assert error(directory, images, source(images).last_hidden_state[:, 1:]) < 1e-5
    assert directory.teacher is not None and directory.teacher.keys() < directory.student.keys()


def build_data2vec_vision(path: Path, **more: Tensor) -> dict[str, Tensor]:
    """A tiny file as github.com/facebookresearch/data2vec_vision writes it."""
    torch.manual_seed(0)
    dim, side = 32, 4
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "mask_token": (1, 1, dim),
        "patch_embed.proj.weight": (dim, 3, 8, 8),
        "patch_embed.proj.bias": (dim,),
        "rel_pos_bias.relative_position_bias_table": ((2 * side - 1) ** 2 + 3, 4),
    }
    for i in range(2):
        block = f"blocks.{i}."
        shapes |= {
            **{f"{block}{name}": (dim,) for name in ("gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias", "attn.proj.bias")},
            **{f"{block}norm{n}.{kind}": (dim,) for n in (1, 2) for kind in ("weight", "bias")},
            f"{block}attn.qkv.weight": (3 * dim, dim),
            f"{block}attn.proj.weight": (dim, dim),
            f"{block}mlp.fc1.weight": (48, dim),
            f"{block}mlp.fc1.bias": (48,),
            f"{block}mlp.fc2.weight": (dim, 48),
            f"{block}mlp.fc2.bias": (dim,),
        }
    state = {key: 0.3 * torch.randn(shape) for key, shape in shapes.items()}
    state["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    args = argparse.Namespace(model="beit_base_patch16_224", drop_path=0.25, attn_drop_rate=0.05, layer_scale_init_value=1e-4)
    torch.save({"model": state | more, "args": args, "epoch": 799}, path)
    return state


def test_the_published_vision_models_of_data2vec_1(tmp_path: Path) -> None:
    more = {
        "norm.weight": torch.ones(32),
        "norm.bias": torch.ones(32),
        "lm_head.weight": torch.ones(32, 32),
        "lm_head.bias": torch.ones(32),
    }
    state = build_data2vec_vision(tmp_path / "in.pth", **more)
    directory = convert_fairseq(tmp_path / "in.pth")

    config = directory.config
    assert (config.depth, config.num_heads, config.ffn_dim, config.head_layers, config.drop_path) == (2, 4, 48, 1, 0.25)  # type: ignore[union-attr]
    image = config.image
    assert image is not None and (image.image_size, image.relative_positions) == (32, "shared")  # type: ignore[union-attr]
    assert directory.student["encoder.blocks.1.mlp.2.weight"].equal(state["blocks.1.mlp.fc2.weight"])
    assert directory.student["final_proj.weight"].equal(more["lm_head.weight"])
    assert directory.provenance is None


@torch.no_grad()
def test_a_fine_tuned_vision_model_of_data2vec_1(tmp_path: Path) -> None:
    norm = {"fc_norm.weight": torch.randn(32), "fc_norm.bias": torch.randn(32)}
    head = {"head.weight": torch.randn(5, 32), "head.bias": torch.randn(5)}
    build_data2vec_vision(tmp_path / "in.pth", **norm, **head)
    labels = tmp_path / "labels.txt"
    labels.write_text("ant\nbee\ncat\ndog\nelk\n")
    write_directory(tmp_path / "out", convert_fairseq(tmp_path / "in.pth", labels=labels))

    criterion = ClassificationCriterion(ClassificationConfig(pooling="mean", norm=True))
    names = LabelSet(["ant", "bee", "cat", "dog", "elk"])
    model = load_trained(tmp_path / "out", criterion, labels=names, device=torch.device("cpu"))
    images = torch.randn(2, 3, 32, 32)
    pooled = model.extract_features(images).x.mean(dim=1)
    expected = nn.functional.layer_norm(pooled, (32,), norm["fc_norm.weight"], norm["fc_norm.bias"], 1e-6) @ head["head.weight"].T
    logits = criterion.compute_logits(model, Batch(modality=Modality.IMAGE, ids=torch.arange(2), inputs=images))
    torch.testing.assert_close(logits, expected + head["head.bias"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_type": "conformer"}, "`layer_type` must be 'transformer', but is 'conformer'"),
        ({"conv_feature_layers": "import os"}, r"in\.pt: .*feature_encoder_spec"),
        ({"encoder_layers": 4}, r"missing:\n +encoder\.layers\.3"),
        ({"conv_pos_batch_norm": True}, "`conv_pos_batch_norm` must be False"),
    ],
)
def test_what_only_fairseq_has_or_the_settings_get_wrong_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    state = split_weight_norm(take_state(Wav2Vec2Model(Wav2Vec2Config(**SPEECH)), tmp_path / "hf"))
    path = save(tmp_path / "in.pt", state, {"_name": "wav2vec2", **FAIRSEQ, **settings})

    with pytest.raises(CheckpointError, match=message):
        convert_fairseq(path)


def test_a_name_that_no_rule_explains_is_an_error(tmp_path: Path) -> None:
    state = split_weight_norm(take_state(Wav2Vec2Model(Wav2Vec2Config(**SPEECH)), tmp_path / "hf"))
    path = save(tmp_path / "in.pt", state | {"surprise.weight": torch.ones(2)}, {"_name": "wav2vec2", **FAIRSEQ})

    with pytest.raises(CheckpointError, match=r"unexpected:\n +surprise\.weight"):
        convert_fairseq(path)
