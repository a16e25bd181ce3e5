"""Commands of recipes/other_models.md about others' models and named ones, with tiny files of the same layout."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.checkpoint import ModelMetadataDumper
from fairseq2.models.wav2vec2 import Wav2Vec2Config as FairseqWav2Vec2Config
from fairseq2.models.wav2vec2 import Wav2Vec2EncoderConfig, create_wav2vec2_model
from fairseq2.utils.structured import StandardValueConverter
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel, ViTMAEConfig, ViTMAEModel, Wav2Vec2Config, Wav2Vec2Model

import d2v_plugin
from d2v_plugin.core.fairseq2_private import swap_default_resolver
from d2v_plugin.weights import library as weights_library
from d2v_plugin.weights.convert.hugging_face_others import adopt

ROOT = Path(__file__).parents[2]
WORDS = ROOT / "manifests" / "words"
SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SPEECH: dict[str, Any] = {**SIZE, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
CONVOLUTIONS = "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2"
FAIRSEQ: dict[str, Any] = {
    **{"conv_feature_layers": CONVOLUTIONS, "conv_pos": 16, "conv_pos_groups": 4, "encoder_embed_dim": 32},
    **{"encoder_ffn_embed_dim": 128, "encoder_layers": 2, "encoder_attention_heads": 4},
}
LETTERS = "|efghinorstuvwxz"

SMALL_RUN = [
    "task.config={batches_per_update: 1, max_num_elements: 48000, min_sample_size: 4000, max_sample_size: 16000}",
    "regime={num_steps: 1, publish_metrics_every_n_steps: 1}",
    "probing.probes=[]",
    "pictures.enabled=false",
    "lr_scheduler={name: passthrough, config: null}",
    "criterion.config.num_views=1",
    "common.torch.num_threads=1",
]
SMALL_MODEL = [
    "model.config_overrides.dim=32",
    "model.config_overrides.depth=2",
    "model.config_overrides.num_heads=4",
    f"model.config_overrides.audio.conv_layers={[[16, 10, 5], *[[16, 3, 2]] * 4, *[[16, 2, 2]] * 2]}",
    "model.config_overrides.audio.position_groups=4",
    "model.config_overrides.audio.decoder={dim: 16, num_groups: 4, num_layers: 1}",
    "criterion.config.targets.num_layers=1",
]


def read_commands() -> list[str]:
    """The shell commands of both sections, one line each."""
    text = (ROOT / "recipes" / "other_models.md").read_text(encoding="utf-8")
    sections = [
        text.partition(f"\n## {title}\n")[2].partition("\n## ")[0] for title in ("Start from others' models", "Named models")
    ]
    blocks = re.findall(r"^```bash\n(.*?)^```", "".join(sections), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()

    return [line.partition("   #")[0].strip() for line in lines]


COMMANDS = read_commands()


def save_fairseq(path: Path, model: dict[str, Any], settings: dict[str, Any], **content: Any) -> None:
    torch.save({"args": None, "cfg": {"model": settings}, "model": model, **content}, path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("others")
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(**SPEECH)).save_pretrained(folder / "wav2vec2-base")
    HubertModel(HubertConfig(**SPEECH)).save_pretrained(folder / "hubert-hf")
    state = dict(adopt(folder / "hubert-hf").state)
    weight = state.pop("encoder.pos_conv.0.0.weight")
    state |= {"encoder.pos_conv.0.weight_g": weight.norm(dim=(0, 1), keepdim=True), "encoder.pos_conv.0.weight_v": weight}
    state["encoder.pos_conv.0.bias"] = state.pop("encoder.pos_conv.0.0.bias")
    save_fairseq(folder / "hubert_base_ls960.pt", state, {"_name": "hubert", **FAIRSEQ})
    head = {"w2v_encoder.proj.weight": torch.randn(len(LETTERS) + 4, 32), "w2v_encoder.proj.bias": torch.zeros(len(LETTERS) + 4)}
    tuned = {f"w2v_encoder.w2v_model.{key}": tensor for key, tensor in state.items()} | head
    settings = {"_name": "wav2vec_ctc", "w2v_args": {"model": {"_name": "wav2vec2", **FAIRSEQ}}, "normalize": False}
    save_fairseq(folder / "wav2vec_small_960h.pt", tuned, settings)
    (folder / "dict.ltr.txt").write_text("".join(f"{letter} 1\n" for letter in LETTERS))
    write_mae(folder)
    write_fairseq2_run(folder / "out" / "fairseq2_run")

    data = folder / "out" / "librispeech"
    data.mkdir()
    rows = (WORDS / "valid.tsv").read_text().splitlines()[2:10]
    for split in ("train", "valid"):
        (data / f"{split}.tsv").write_text("\n".join([str(WORDS), "#columns\tpath\tsize\tlabel", *rows]) + "\n")
    return folder


def write_mae(folder: Path) -> None:
    """As MAE's own code writes a file."""
    ViTMAEModel(
        ViTMAEConfig(**SIZE | {"num_attention_heads": 12, "hidden_size": 48}, image_size=32, patch_size=8)
    ).save_pretrained(folder / "mae-hf")
    state = dict(adopt(folder / "mae-hf").state)
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), state.pop("encoder.pos_embed")], dim=1)
    for block in ("encoder.blocks.0", "encoder.blocks.1"):
        query, value = (state.pop(f"{block}.attn.{name}_bias") for name in "qv")
        state[f"{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    names = {r"^encoder\.": "", "cls_emb": "cls_token", "mask_emb": "mask_token", "patch_embed.conv": "patch_embed.proj"}
    names |= {r"mlp\.0": "mlp.fc1", r"mlp\.2": "mlp.fc2"}
    renamed = {}
    for key, tensor in state.items():
        for ours, theirs in names.items():
            key = re.sub(ours, theirs, key)
        renamed[key] = tensor
    args = argparse.Namespace(model="mae_vit_base_patch8")
    torch.save({"model": renamed, "args": args}, folder / "mae_pretrain_vit_base.pth")


def write_fairseq2_run(run: Path) -> None:
    encoder = Wav2Vec2EncoderConfig(
        model_dim=32,
        feature_dim=16,
        feature_extractor_layer_descs=[(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2],
        pos_conv_kernel_size=16,
        num_pos_conv_groups=4,
        num_encoder_layers=2,
        num_encoder_attn_heads=4,
        ffn_inner_dim=128,
    )
    config = FairseqWav2Vec2Config(encoder_config=encoder, final_dim=16, quantized_dim=16, num_codebook_entries=8)
    model = run / "checkpoints" / "step_3" / "model" / "pp_00" / "tp_00"
    model.mkdir(parents=True)
    weights_library.library().resolve(ModelMetadataDumper).dump(run / "checkpoints", "wav2vec2", config)
    torch.save(create_wav2vec2_model(config).state_dict(), model / "sdp_00.pt")


@pytest.fixture
def workplace(files: Path, monkeypatch: pytest.MonkeyPatch, fairseq_checkpoint: Callable[..., Path]) -> Iterator[Path]:
    """The folder that the commands are run in, and cards that lead to its files instead of to the network."""
    for name in ("tools", "recipes"):
        if not (files / name).exists():
            (files / name).symlink_to(ROOT / name)
    cards = files / "cards"
    cards.mkdir(exist_ok=True)
    for name, path in {
        "data2vec2_audio_base": fairseq_checkpoint("audio"),
        "data2vec2_audio_base_960h": files / "wav2vec_small_960h.pt",
    }.items():
        labels = f"labels: {files}/dict.ltr.txt\n" if name.endswith("960h") else ""
        (cards / f"{name}.yaml").write_text(f"name: {name}@user\ncheckpoint: {path}\n{labels}")
    monkeypatch.setenv("FAIRSEQ2_USER_ASSET_DIR", str(cards))
    monkeypatch.setenv("FAIRSEQ2_CACHE_DIR", str(files / "cache"))
    monkeypatch.chdir(files)
    weights_library._own_library.cache_clear()
    with swap_default_resolver(None):  # type: ignore[arg-type]
        yield files
    weights_library._own_library.cache_clear()


def convert(line: str, command: Any) -> Path:
    words = shlex.split(line)[1:]
    out = Path(words[4])
    shutil.rmtree(out, ignore_errors=True)
    outcome = command(*words)
    assert outcome.status == 0, outcome.err
    assert "came over" in outcome.out
    return out


def find(start: str) -> str:
    (line,) = (line for line in COMMANDS if line.startswith(start))
    return line


def test_the_page_has_commands_of_each_kind() -> None:
    verbs = {line.split()[2] for line in COMMANDS}
    kinds = {line.split()[3] for line in COMMANDS if " convert " in line}

    assert verbs == {"convert", "train", "evaluate"} and kinds == {"huggingface", "fairseq", "fairseq2"}


@pytest.mark.parametrize("line", [line for line in COMMANDS if " convert " in line])
def test_conversions_convert(line: str, workplace: Path, command: Any) -> None:
    out = convert(line, command)

    assert json.loads((out / "config.json").read_text())["source"]["transfer"]["came over"]
    d2v_plugin.load(out)
    assert (out / "head.safetensors").exists() == ("--labels" in line)


@pytest.mark.parametrize("line", [line for line in COMMANDS if " train " in line])
def test_runs_start_from_them(line: str, workplace: Path, command: Any) -> None:
    if "out/hubert" in line:
        convert(find("fairseq2 recipe convert fairseq hubert"), command)
    out = line.split()[5]
    shutil.rmtree(out, ignore_errors=True)
    # The tiny file in place of the published one is another size than those made here.
    model = SMALL_MODEL
    if "=data2vec2_audio_base" in line:
        config = d2v_plugin.load("data2vec2_audio_base").config
        model = [
            f"model.config_overrides={json.dumps(StandardValueConverter().unstructure(config))}",
            "criterion.config.targets.num_layers=1",
        ]
    outcome = command(*shlex.split(line)[1:], *SMALL_RUN, *model)

    assert outcome.status == 0, outcome.err
    log = "".join(path.read_text() for path in Path(out, "logs").glob("*.log"))
    assert ("came over" in log and "stays as initialised" in log) or "Loaded" in log


@pytest.mark.parametrize("line", [line for line in COMMANDS if " evaluate " in line])
def test_fine_tuned_models_of_others_are_evaluated(line: str, workplace: Path, command: Any) -> None:
    if "out/ctc" in line:
        convert(find("fairseq2 recipe convert fairseq wav2vec_small"), command)
    out = Path(line.split()[3])
    shutil.rmtree(out, ignore_errors=True)
    outcome = command(*shlex.split(line)[1:])

    assert outcome.status == 0, outcome.err
    assert json.loads((out / "scores.json").read_text())["scores"]["valid"].keys() >= {"wer", "cer"}
    assert len((out / "predictions" / "valid.tsv").read_text().splitlines()) >= 8


def test_the_converted_directory_is_what_is_in_the_cache(workplace: Path) -> None:
    d2v_plugin.load("data2vec2_audio_base_960h")

    (folder,) = (workplace / "cache" / "d2v_plugin").glob("data2vec2_audio_base_960h-*")
    assert load_file(folder / "head.safetensors")["head.weight"].shape == (len(LETTERS) + 4, 32)
