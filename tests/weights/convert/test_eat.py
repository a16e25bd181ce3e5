"""EAT's checkpoints, in fairseq's layout and in Hugging Face's, compute what EAT's own code computed (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.families import create_model
from d2v_plugin.weights.convert import hugging_face_others
from d2v_plugin.weights.convert.fairseq import convert_fairseq

GOLDEN = Path(__file__).parents[2] / "golden" / "d2v2_spectrogram_tiny"
IO = load_file(GOLDEN / "io_features.safetensors")
STUDENT = {key[6:]: tensor for key, tensor in load_file(GOLDEN / "weights.safetensors").items() if key.startswith("model/")}
PREFIX = "modality_encoders.IMAGE."


def write(path: Path, model: dict[str, Any], cfg: dict[str, Any]) -> Path:
    torch.save({"cfg": {"model": cfg}, "model": model}, path)
    return path


def read_settings() -> dict[str, Any]:
    return json.loads((GOLDEN / "config.json").read_text())["model"]  # type: ignore[no-any-return]


def check(config: Any, state: dict[str, Tensor]) -> EncoderModel:
    model = create_model(config).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        features = model.extract_features(IO["clips/source"])
    assert (features.x - IO["clips/x"]).abs().max() / IO["clips/x"].abs().max() < 1e-5
    return model


def test_pretrained_with_its_padding_and_without(tmp_path: Path) -> None:
    teacher = {key[4:]: t for key, t in load_file(GOLDEN / "weights.safetensors").items() if key.startswith("ema/")}
    path = write(tmp_path / "eat.pt", {**STUDENT, "_ema": teacher}, read_settings())

    original, ours = convert_fairseq(path, original_padding=True), convert_fairseq(path)

    check(original.config, original.student)
    assert original.config.spectrogram.pad_frames == 80 and ours.config.spectrogram.pad_frames is None  # type: ignore[union-attr]
    assert ours.config.spectrogram.max_frames == 128 and ours.config.audio is None  # type: ignore[union-attr]
    assert ours.teacher is not None and ours.teacher.keys() == {key.replace("IMAGE", "AUDIO") for key in teacher}
    assert ours.info["pretraining"]["teacher_scope"] == {"audio": "all"}


@pytest.mark.parametrize("is_esc50", [False, True])
def test_fine_tuned_on_tags_or_classes(tmp_path: Path, is_esc50: bool) -> None:
    weights = {f"model.{key}": tensor for key, tensor in STUDENT.items() if ".decoder." not in key}
    weights |= {"head.weight": torch.ones(5, 32), "head.bias": torch.zeros(5)}
    weights |= {"fc_norm.weight": torch.ones(32), "fc_norm.bias": torch.zeros(32)}
    outer = {"_name": "mae_image_classification", "esc50_eval": is_esc50, "specaug": True, "mask_ratio": 0.4}
    cfg = {**outer, "pretrained_model_args": {"model": read_settings()}}

    found = convert_fairseq(write(tmp_path / "eat.pt", weights, cfg), original_padding=True)

    assert found.provenance is not None and found.head is not None and found.config.spectrogram is not None  # type: ignore[union-attr]
    sections = found.provenance.sections
    assert sections["task"] == {
        "name": "audio_classification", "config": {"tags": not is_esc50, "audio": {"normalize": False}}
    }  # fmt: skip
    assert sections["criterion"]["name"] == ("classification" if is_esc50 else "audio_tagging")
    assert sections["criterion"]["config"]["spec_augment"] == {"bands": 0.4, "frames": 0.4}
    assert found.config.spectrogram.log_mel_mean == (-6.627 if is_esc50 else -4.268)  # type: ignore[union-attr]
    assert len(found.head) == 4 and found.provenance.labels is not None and len(found.provenance.labels) == 5


def test_a_folder_of_hugging_face(tmp_path: Path) -> None:
    names = {f"{PREFIX}context_encoder.norm.": "pre_norm.", PREFIX: "", "blocks.": "blocks."}
    weights = {}
    for key, tensor in STUDENT.items():
        if ".decoder." not in key:
            theirs, ours = next((theirs, ours) for ours, theirs in names.items() if key.startswith(ours))
            weights[f"model.{theirs}{key.removeprefix(ours)}"] = tensor.clone()
    weights["model.head.weight"] = torch.zeros(5, 32)
    settings = {"model_type": "eat", "embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 16, "stride": 16, "in_chans": 1}
    settings |= {"mel_bins": 128, "max_length": 8, "mlp_ratio": 4.0, "layer_norm_first": False, "norm_eps": 1e-6}
    settings |= {"norm_affine": True, "auto_map": {"AutoConfig": "configuration_eat.EATConfig"}, "img_size": [1024, 128]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file(weights, tmp_path / "model.safetensors")

    foreign = hugging_face_others.adopt(tmp_path)

    assert any(row.action == "left out" for row in foreign.transfer.rows)
    foreign.config.spectrogram.pad_frames = 80  # type: ignore[union-attr]
    check(foreign.config, foreign.state)
