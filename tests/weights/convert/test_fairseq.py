from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import d2v_plugin
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.weights.convert.fairseq import convert_fairseq
from d2v_plugin.weights.convert.fairseq_config import parse_conv_layers
from d2v_plugin.weights.directory import write_directory

Content = dict[str, Any]
FairseqCheckpoint = Callable[..., Path]

GOLDEN = Path(__file__).parents[2] / "golden"
MODALITIES = ["audio", "image", "text"]


def load_golden(modality: str, name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"d2v2_{modality}_tiny" / f"{name}.safetensors")


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / max(1.0, b.abs().max()))


def convert(path: Path, **options: Any) -> Path:
    out = path.with_suffix("")
    write_directory(out, convert_fairseq(path, **options))

    return out


def read_config(out: Path) -> Content:
    return json.loads((out / "config.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_converted_model_computes_the_originals_features(modality: str, fairseq_checkpoint: FairseqCheckpoint) -> None:
    model = d2v_plugin.load(convert(fairseq_checkpoint(modality), original_padding=True))
    io = load_golden(modality, "io_features")

    cases = [key.removesuffix("/source") for key in io if key.endswith("/source")]
    assert cases
    for case in cases:
        features = model.extract_features(io[f"{case}/source"], io.get(f"{case}/padding_mask"))
        assert error(features.x, io[f"{case}/x"]) < 1e-5
        num_extra = io[f"{case}/block_out.0"].size(1) - features.x.size(1)
        for i, layer in enumerate(features.layers):
            assert error(layer, io[f"{case}/block_out.{i}"][:, num_extra:]) < 1e-5


def test_padding_is_ours_unless_the_originals_is_asked_for(fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("audio")

    assert not convert_fairseq(path).config.original_padding
    assert convert_fairseq(path, original_padding=True).config.original_padding


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_teacher_is_kept_under_the_students_names(modality: str, fairseq_checkpoint: FairseqCheckpoint) -> None:
    out = convert(fairseq_checkpoint(modality))

    prefix = "blocks." if modality == "text" else ""
    golden = {prefix + key[4:]: t for key, t in load_golden(modality, "weights").items() if key.startswith("ema/")}
    teacher = load_file(out / "teacher.safetensors")
    assert teacher.keys() == golden.keys()
    assert all(teacher[key].equal(golden[key]) for key in golden)
    assert teacher.keys() < load_file(out / "model.safetensors").keys()


def test_the_teachers_weights_can_become_the_models(fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("audio")
    as_loaded = d2v_plugin.load(convert(path), weights="teacher").state_dict()
    as_converted = convert_fairseq(path, teacher_weights=True).student

    golden = load_golden("audio", "weights")
    for key, tensor in as_converted.items():
        assert tensor.equal(as_loaded[key])
        assert tensor.equal(golden.get(f"ema/{key}", golden[f"model/{key}"]))


def test_a_checkpoint_without_teacher_gives_a_directory_without_one(fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("image", lambda content: content["model"].pop("_ema"))
    out = convert(path)

    assert not (out / "teacher.safetensors").exists()
    with pytest.raises(CheckpointError, match="has no teacher"):
        d2v_plugin.load(out, weights="teacher")
    with pytest.raises(CheckpointError, match="holds no teacher"):
        convert_fairseq(path, teacher_weights=True)


def test_the_configuration_says_where_the_model_came_from(fairseq_checkpoint: FairseqCheckpoint) -> None:
    config = read_config(convert(fairseq_checkpoint("image")))

    table = config["source"].pop("transfer")
    assert sum(int(count.split()[0]) for _, count, _ in table["came over"]) > 68 and not table["new"] and not table["left out"]
    assert config["source"] == {
        "format": "fairseq",
        "file": "image.pt",
        "model": "data2vec_multi",
        "step": 7,
        "dtypes": {"float32": 68},
        "weights": "student",
        "notes": [],
    }
    pretraining = config["pretraining"]
    assert pretraining["ema"] == {"start": 0.9998, "end": 0.99999, "anneal_steps": 100_000}
    assert pretraining["teacher_scope"] == {"image": "all"}
    assert pretraining["targets"]["num_layers"] == 3
    assert pretraining["targets"]["layer_norm"] and pretraining["targets"]["instance_norm_layers"]
    assert pretraining["fairseq_masks"]["image"]["mask_prob"] == 0.8
    assert config["model"]["image"]["prenet_depth"] == 1


@pytest.mark.parametrize(("modality", "scope"), [("audio", "context"), ("text", "blocks")])
def test_what_the_teacher_averages_is_recorded(modality: str, scope: str, fairseq_checkpoint: FairseqCheckpoint) -> None:
    config = read_config(convert(fairseq_checkpoint(modality)))

    assert config["pretraining"]["teacher_scope"] == {modality: scope}


_TEXT_HEAD = "classification_heads.sentence_classification_head"
FINE_TUNED: dict[str, tuple[str, str, str, dict[str, tuple[int, ...]], set[str]]] = {
    "audio": (
        "wav2vec_ctc",
        "w2v_args",
        "w2v_encoder.w2v_model.",
        {"w2v_encoder.proj.weight": (4, 36), "w2v_encoder.proj.bias": (4,)},
        {"head.weight", "head.bias"},
    ),
    "image": (
        "mae_image_classification",
        "pretrained_model_args",
        "model.",
        {"head.weight": (10, 32), "head.bias": (10,), "fc_norm.weight": (32,), "fc_norm.bias": (32,)},
        {"head.proj.weight", "head.proj.bias", "head.norm.weight", "head.norm.bias"},
    ),
    "text": (
        "data2vec_text_classification",
        "pretrained_model_args",
        "model.",
        {
            f"{_TEXT_HEAD}.dense.weight": (32, 32),
            f"{_TEXT_HEAD}.dense.bias": (32,),
            f"{_TEXT_HEAD}.out_proj.weight": (3, 32),
            f"{_TEXT_HEAD}.out_proj.bias": (3,),
        },
        {"head.dense.weight", "head.dense.bias", "head.proj.weight", "head.proj.bias"},
    ),
}


def fine_tune(modality: str) -> Callable[[Content], None]:
    """What fairseq's fine-tuned models make of a pre-trained one: no decoder, no teacher, a prefix, a head."""
    name, config_key, prefix, head, _ = FINE_TUNED[modality]

    def change(content: Content) -> None:
        pretrained = {key: t for key, t in content["model"].items() if key != "_ema" and ".decoder." not in key}
        content["model"] = {prefix + key: tensor for key, tensor in pretrained.items()}
        content["model"] |= {key: torch.ones(shape) for key, shape in head.items()}
        content["cfg"] = {"model": {"_name": name, config_key: content["cfg"]}}

    return change


@pytest.mark.parametrize("modality", MODALITIES)
def test_fine_tuned_models_give_encoder_and_head(modality: str, fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint(modality, fine_tune(modality))
    labels = path.with_name("dict.ltr.txt")
    labels.write_text("")
    # `<s>` is the blank, and a dictionary begins with three more that its file does not have.
    out = convert(path, labels=labels if modality == "audio" else None)
    model = d2v_plugin.load(out)
    io = load_golden(modality, "io_features")

    case = "img" if modality == "image" else "nopad"
    assert error(model.extract_features(io[f"{case}/source"], io.get(f"{case}/padding_mask")).x, io[f"{case}/x"]) < 1e-5
    assert model.frontend().decoder is None
    assert load_file(out / "head.safetensors").keys() == FINE_TUNED[modality][4]
    config = read_config(out)
    assert config["source"]["model"] == FINE_TUNED[modality][0]
    assert "decoder" in config["source"]["notes"][0]
    assert config["provenance"]["criterion"]["name"] == ("ctc" if modality == "audio" else "classification")
    assert len(config["provenance"]["labels"]) == {"audio": 4, "image": 10, "text": 3}[modality]


def test_the_labels_of_a_fine_tuned_model_are_kept(
    fairseq_checkpoint: FairseqCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("fairseq.data.dictionary")
    kls = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})
    module.Dictionary = kls  # type: ignore[attr-defined]
    for name in ("fairseq", "fairseq.data"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def change(content: Content) -> None:
        fine_tune("audio")(content)
        dictionary = kls()
        dictionary.symbols = ["<s>", "<pad>", "|", "E"]
        content["task_state"] = {"target_dictionary": dictionary}

    path = fairseq_checkpoint("audio", change)
    monkeypatch.undo()

    assert read_config(convert(path))["provenance"]["labels"] == ["<blank>", "<pad>", "|", "E"]


def test_harmless_objects_of_old_checkpoints_are_read(fairseq_checkpoint: FairseqCheckpoint) -> None:
    def change(content: Content) -> None:
        content["args"] = argparse.Namespace(arch="data2vec_multi", nested=argparse.Namespace(a=1))
        content["extra_state"]["best"] = np.float64(1.5)
        content["extra_state"]["num"] = np.int64(3)

    convert_fairseq(fairseq_checkpoint("text", change))


def test_names_and_shapes_of_earlier_versions_are_understood(fairseq_checkpoint: FairseqCheckpoint) -> None:
    def change_audio(content: Content) -> None:
        for state in (content["model"], content["model"]["_ema"]):
            key = "modality_encoders.AUDIO.alibi_scale"
            state[key] = state[key].squeeze(0)

    def change_image(content: Content) -> None:
        for state in (content["model"], content["model"]["_ema"]):
            prefix = "modality_encoders.IMAGE."
            state[f"{prefix}positional_encoder.pos_embed"] = state.pop(f"{prefix}fixed_positional_encoder.positions")
            state[f"{prefix}encoder_mask"] = torch.zeros(1)

    for modality, change in (("audio", change_audio), ("image", change_image)):
        golden = load_golden(modality, "weights")
        model = convert_fairseq(fairseq_checkpoint(modality, change))
        assert model.teacher is not None
        assert all(tensor.equal(golden[f"model/{key}"]) for key, tensor in model.student.items())
        assert all(tensor.equal(golden[f"ema/{key}"]) for key, tensor in model.teacher.items())


def test_settings_that_earlier_versions_did_not_have_take_fairseqs_defaults(fairseq_checkpoint: FairseqCheckpoint) -> None:
    def change(content: Content) -> None:
        model = content["cfg"]["model"]
        for key in ("norm_affine", "mae_init", "dropout_input", "ema_anneal_end_step"):
            del model[key]
        del model["modalities"]["image"]["decoder"]["projection_layers"]

    path = fairseq_checkpoint("image")
    assert convert_fairseq(fairseq_checkpoint("image", change)).config == convert_fairseq(path).config


Keys = tuple[str, ...]
IMAGE: Keys = ("modalities", "image")


def set_at(content: Content, place: Keys, **values: Any) -> None:
    section = content["cfg"]["model"]
    for key in place:
        section = section[key]
    section.update(values)


@pytest.mark.parametrize("place", [(), ("modalities",), IMAGE, (*IMAGE, "decoder")], ids=".".join)
def test_an_unknown_key_stops_with_its_name_and_value(place: Keys, fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("image", lambda content: set_at(content, place, something_new=3))

    key = re.escape(".".join((*place, "something_new")))
    with pytest.raises(CheckpointError, match=rf"image\.pt: .*`{key}: 3` is not known here") as info:
        convert_fairseq(path)
    assert "\n" not in str(info.value)


def test_an_unknown_key_can_be_left_out_by_name(fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("image", lambda content: set_at(content, IMAGE, something_new=3))

    directory = convert_fairseq(path, ignored_keys=["something_new"])

    assert directory.config == convert_fairseq(fairseq_checkpoint("image")).config
    assert directory.info["source"]["notes"] == ["The setting `something_new` is left out, as asked for."]


def test_keys_of_modalities_that_the_model_has_not_do_not_matter(fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("image", lambda content: set_at(content, ("modalities", "audio"), something_new=3))

    convert_fairseq(path)


def test_experiments_that_released_files_switch_off_do_not_matter(fairseq_checkpoint: FairseqCheckpoint) -> None:
    """As large_imagenet.pt and huge_imagenet.pt have them."""

    def change(content: Content) -> None:
        set_at(
            content, (), cosine_attention=False, qk_scale=None, bert_init=True, alt_cls_targets=False, modality_discrim_depth=0
        )
        set_at(content, IMAGE, mask_from_extra=False, max_alibi_scale=0.0, conv_mae=False, conv_mae_masking=True, fix_masks=False)
        set_at(content, (*IMAGE, "decoder"), final_layer_norm=False, tanh_scale=0.0, residual_scale=1.0, post_residual_ln=False)

    path = fairseq_checkpoint("image")
    assert convert_fairseq(fairseq_checkpoint("image", change)).config == convert_fairseq(path).config


@pytest.mark.parametrize(
    ("place", "values", "message"),
    [
        ((), {"cosine_attention": True}, "`cosine_attention` must be False, but is True"),
        (IMAGE, {"transformer_decoder": True}, "`modalities.image.transformer_decoder` must be False, but is True"),
        (IMAGE, {"use_alibi_encoder": True, "learned_alibi": True}, "`modalities.image.learned_alibi` must be False"),
        (IMAGE, {"use_alibi_encoder": True, "alibi_dims": 3}, "`modalities.image.alibi_dims` must be 1 or 2, but is 3"),
        (
            IMAGE,
            {"use_alibi_encoder": True, "num_alibi_heads": 5},
            r"num_alibi_heads` must be from 1 to `num_heads` \(4\), but is 5",
        ),
        ((*IMAGE, "decoder"), {"add_positions_all": True}, "`modalities.image.decoder.add_positions_all` must be False"),
        ((*IMAGE, "decoder"), {"final_layer_norm": True}, "`modalities.image.decoder.final_layer_norm` must be False"),
    ],
)
def test_what_only_fairseq_has_is_refused_by_name(
    place: Keys, values: dict[str, Any], message: str, fairseq_checkpoint: FairseqCheckpoint
) -> None:
    path = fairseq_checkpoint("image", lambda content: set_at(content, place, **values))

    with pytest.raises(CheckpointError, match=message):
        convert_fairseq(path)


def test_image_decoders_have_one_projection_whatever_their_settings_say(fairseq_checkpoint: FairseqCheckpoint) -> None:
    def change(content: Content) -> None:
        set_at(content, (*IMAGE, "decoder"), projection_layers=3)

    expected, found = convert_fairseq(fairseq_checkpoint("image")), convert_fairseq(fairseq_checkpoint("image", change))

    assert found.config == expected.config
    assert found.info["source"]["notes"] == [
        "`projection_layers: 3` of the image decoder is left out: the original never read it and has 1."
    ]


def test_the_head_of_the_loss_on_pixels_is_left_out_by_name(fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("image", lambda content: content["model"].update({"recon_proj.weight": torch.zeros(32, 32)}))

    assert convert_fairseq(path).info["source"]["notes"] == [
        "`recon_proj` is left out: it belongs to the loss on pixels, not to the model."
    ]


@pytest.mark.parametrize("weight", [0, -1.0])
def test_a_regression_that_is_switched_off_has_no_weight(weight: float, fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("image", lambda content: set_at(content, (), d2v_loss=weight))

    assert convert_fairseq(path).info["pretraining"]["regression_weight"] == 0.0


@pytest.mark.parametrize("section", [{}, {"_name": "wav2vec_ctc", "w2v_args": {"arch": "data2vec_audio", "encoder_layers": 12}}])
def test_flat_arguments_are_called_so(section: Content, fairseq_checkpoint: FairseqCheckpoint) -> None:
    args = argparse.Namespace(arch="data2vec_audio", encoder_layers=12)
    path = fairseq_checkpoint("audio", lambda content: content.update(cfg={"model": section}, args=args))

    with pytest.raises(CheckpointError, match=r"audio\.pt has its settings in flat `args`.*`cfg\.model.*load_checkpoint_to_cpu"):
        convert_fairseq(path)


def test_the_weights_tell_the_frontends_of_a_model_whose_task_named_them(fairseq_checkpoint: FairseqCheckpoint) -> None:
    def change(content: Content) -> None:
        content["cfg"]["model"]["supported_modality"] = None

    assert list(convert_fairseq(fairseq_checkpoint("text", change)).config.frontends) == ["text"]


def test_several_frontends_share_one_model(fairseq_checkpoint: FairseqCheckpoint) -> None:
    text_settings = json.loads((GOLDEN / "d2v2_text_tiny" / "config.json").read_text())["model"]["modalities"]["text"]
    text_weights = {key[6:]: t for key, t in load_golden("text", "weights").items() if key.startswith("model/modality")}

    def change(content: Content) -> None:
        content["cfg"]["model"]["supported_modality"] = None
        content["cfg"]["model"]["modalities"]["text"] = text_settings
        content["model"] |= text_weights

    out = convert(fairseq_checkpoint("image", change))
    model = d2v_plugin.load(out, weights="teacher")

    assert [modality.value for modality in model.config.frontends] == ["text", "image"]
    assert read_config(out)["pretraining"]["teacher_scope"] == {"text": "context", "image": "all"}
    golden = load_golden("image", "weights")
    assert model.blocks[0].attn.qkv.weight.equal(golden["ema/blocks.0.attn.qkv.weight"])


def test_a_pre_norm_models_final_norm_is_the_students(fairseq_checkpoint: FairseqCheckpoint) -> None:
    def change(content: Content) -> None:
        content["cfg"]["model"]["layer_norm_first"] = True
        for i, state in enumerate((content["model"], content["model"]["_ema"])):
            state |= {"norm.weight": torch.full((36,), float(i)), "norm.bias": torch.zeros(36)}

    model = convert_fairseq(fairseq_checkpoint("audio", change), teacher_weights=True)
    assert model.student["norm.weight"].eq(0.0).all()
    assert model.teacher is not None and "norm.weight" not in model.teacher


def test_half_precision_becomes_fp32_and_is_noted(fairseq_checkpoint: FairseqCheckpoint) -> None:
    def change(content: Content) -> None:
        content["model"] = {k: t if k == "_ema" else t.half() for k, t in content["model"].items()}

    model = convert_fairseq(fairseq_checkpoint("text", change))
    assert {tensor.dtype for tensor in model.student.values()} == {torch.float32}
    assert model.info["source"]["dtypes"] == {"float16": len(model.student)}


def test_everything_that_does_not_fit_is_reported_at_once(fairseq_checkpoint: FairseqCheckpoint) -> None:
    def change(content: Content) -> None:
        model = content["model"]
        del model["modality_encoders.AUDIO.project_features.2.weight"]
        for key in [key for key in model if key.startswith("blocks.2.")]:
            del model[key]
        model["blocks.0.attn.qkv.weight"] = torch.zeros(96, 36)
        model["blocks.1.norm1.bias"] = torch.zeros(36, dtype=torch.int64)
        model["modality_encoders.AUDIO.surprise"] = torch.zeros(1)
        del model["_ema"]["modality_encoders.AUDIO.context_encoder.norm.bias"]

    with pytest.raises(CheckpointError) as info:
        convert_fairseq(fairseq_checkpoint("audio", change))

    message = str(info.value)
    assert "audio.pt" in message
    assert "modality_encoders.AUDIO.project_features.2.weight" in message
    assert "blocks.2.* (12 keys)" in message
    assert "blocks.0.attn.qkv.weight: (96, 36) instead of (108, 36)" in message
    assert "blocks.1.norm1.bias: int64 instead of floating point" in message
    assert "modality_encoders.AUDIO.surprise" in message
    assert "_ema.modality_encoders.AUDIO.context_encoder.norm.bias" in message


@pytest.mark.parametrize(
    "settings", [{"depth": 2}, {"depth": 4}, {"embed_dim": 48}, {"depth": 10**9}, {"num_heads": 7}, {"depth": "three"}]
)
def test_a_configuration_of_another_model_is_refused_in_few_lines(
    settings: dict[str, object], fairseq_checkpoint: FairseqCheckpoint
) -> None:
    path = fairseq_checkpoint("audio", lambda content: content["cfg"]["model"].update(settings))

    with pytest.raises(CheckpointError, match=r"audio\.pt") as info:
        convert_fairseq(path)
    assert len(str(info.value).splitlines()) <= 20


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"_name": "wav2vec2"}, r"audio\.pt: The configuration describes 20 layers"),
        ({"_name": "mae"}, r"a masked autoencoder"),
        ({"_name": "data2vec_audio"}, r"the configuration cannot be converted"),
        ({"_name": "transformer_lm"}, r"holds `transformer_lm`, which has no counterpart"),
        ({"_name": "wav2vec_ctc", "w2v_args": {"model": {"_name": "masked_lm"}}}, r"on top of a masked language model"),
        ({"_name": "wav2vec_ctc", "w2v_args": None}, r"lacks .*w2v_args"),
        ({}, "does not say which model"),
    ],
)
def test_other_models_are_called_by_their_names(model: Content, message: str, fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("audio", lambda content: content["cfg"].update(model=model))

    with pytest.raises(CheckpointError, match=message):
        convert_fairseq(path)


def test_an_old_checkpoint_is_called_by_the_name_in_its_arguments(fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("audio", lambda content: content.update(cfg=None, args=argparse.Namespace(arch="mae")))

    with pytest.raises(CheckpointError, match=r"a masked autoencoder"):
        convert_fairseq(path)


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_file_with_code_is_refused_and_not_executed(
    as_zip: bool, tmp_path: Path, fairseq_checkpoint: FairseqCheckpoint
) -> None:
    victim = tmp_path / "victim"
    if as_zip:
        path = fairseq_checkpoint("text", lambda content: content.update(criterion=Bomb(victim)))
    else:
        path = tmp_path / "text.pt"
        path.write_bytes(pickle.dumps({"model": Bomb(victim)}, protocol=2))

    with pytest.raises(CheckpointError, match=r"asks to run or create `(posix|nt)\.system`") as info:
        convert_fairseq(path)
    assert "\n" not in str(info.value)
    assert not victim.exists()


def test_objects_of_unknown_classes_are_refused(fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("text", lambda content: content.update(task_state={"path": Path("x")}))

    with pytest.raises(CheckpointError, match=r"create `pathlib\."):
        convert_fairseq(path)


def test_damaged_files_are_recognised(fairseq_checkpoint: FairseqCheckpoint, tmp_path: Path) -> None:
    path = fairseq_checkpoint("text")
    content = path.read_bytes()

    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"text\.pt: the checkpoint is truncated"):
        convert_fairseq(path)

    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :])
    with pytest.raises(CheckpointError, match=r"text\.pt: the checkpoint is damaged: the checksum"):
        convert_fairseq(path)


@pytest.mark.parametrize("content", [b"", b"<html>Not Found</html>", b"\x80\x02}q\x00", b"\x00" * 1000])
def test_files_that_are_no_checkpoints_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"in\.pt: (the file is empty|not a PyTorch checkpoint)"):
        convert_fairseq(path)


@pytest.mark.parametrize("content", [{"weight": torch.zeros(2)}, [1, 2], {"model": torch.zeros(2)}, {"model": {}, "cfg": None}])
def test_files_of_something_else_are_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save(content, path)

    with pytest.raises(CheckpointError, match=r"in\.pt (is not a fairseq|does not say)"):
        convert_fairseq(path)


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_paths_that_are_no_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No such file|is no file, but a folder"):
        convert_fairseq(tmp_path / name)


@pytest.mark.parametrize("value", [torch.zeros(1).expand(65, 32), torch.zeros(65, 32, device="meta"), "weights"])
def test_weights_without_data_are_refused(value: object, fairseq_checkpoint: FairseqCheckpoint) -> None:
    key = "modality_encoders.TEXT.local_encoder.embed_tokens.weight"
    path = fairseq_checkpoint("text", lambda content: content["model"].update({key: value}))

    with pytest.raises(CheckpointError, match=r"embed_tokens.weight` (is larger than|in the weights is not a tensor)"):
        convert_fairseq(path)


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').system('true')",
        "[(1, 1, 1)] * 100 * 100 * 100 * 100 * 100",
        "[(1, 1)]",
        "[(1, 1, -1)]",
        "[" * 10_000,
        "",
        None,
    ],
)
def test_descriptions_of_convolutions_are_data(spec: Any) -> None:
    with pytest.raises(ValueError, match="feature_encoder_spec"):
        parse_conv_layers(spec)


def test_weights_without_names_are_refused(fairseq_checkpoint: FairseqCheckpoint) -> None:
    path = fairseq_checkpoint("text", lambda content: content["model"].update({1: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="`1` in the weights is no name, but `int`"):
        convert_fairseq(path)
