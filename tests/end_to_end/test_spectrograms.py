"""A model of spectrograms, on spoken digits: pre-training and resuming, fine-tuning on classes and tags, evaluation, use."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_plugin.cli.main import main

ROOT = Path(__file__).parents[2]
WORDS = ROOT / "manifests" / "words"

RECIPE = f"""
dataset: {{family: audio_manifest, config_overrides: {{path: {WORDS}}}}}
model: {{family: data2vec, arch: spectrogram_tiny, config_overrides: {{dim: 32, depth: 2, num_heads: 2}}}}
lr_scheduler: {{config: {{num_warmup_steps: 1}}}}
regime: {{num_steps: 4, publish_metrics_every_n_steps: 1, checkpoint_every_n_steps: 2}}
common: {{torch: {{num_threads: 1}}}}
pictures: {{enabled: true, every_n_steps: 4}}
"""
PRETRAINING = f"""
task:
  name: audio_pretraining
  config: {{batches_per_update: 1, max_num_elements: 32_000, min_sample_size: 4000, max_sample_size: 16000,
            audio: {{normalize: false}}}}
criterion:
  name: data2vec2
  config:
    num_views: 2
    masking: {{name: inverse_block, config: {{ratio: 0.8, block_size: 2, adjust: 0.07}}}}
    targets: {{num_layers: 2, instance_norm_layers: true, layer_norm: true}}
    cls_weight: 1.0
{RECIPE}"""
FINE_TUNING = f"""
task:
  name: audio_classification
  config: {{batches_per_update: 1, max_num_elements: 64_000, audio: {{normalize: false}}}}
criterion:
  name: classification
  config: {{pooling: cls, label_smoothing: 0.1, spec_augment: {{bands: 0.4, frames: 0.4}}}}
validation: {{splits: [valid]}}
{RECIPE}"""


TAGGING = "{pooling: cls, masking: null, mixup: 0.5, spec_augment: {bands: 0.2, frames: 0.2}}"


def run(command: Any, *words: object) -> Any:
    outcome = command("recipe", *words)
    assert outcome.status == 0, outcome.err
    return outcome


def load_model(out: Path, step: int) -> dict[str, Tensor]:
    """Student and teacher of a checkpoint."""
    files = sorted((out / "checkpoints" / f"step_{step}" / "model").rglob("*.pt"))
    return {key: tensor for file in files for key, tensor in torch.load(file, weights_only=True).items()}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectrograms")
    (folder / "recipe.yaml").write_text(PRETRAINING)
    main(["recipe", "train", "--config-file", str(folder / "recipe.yaml"), str(folder / "out")])

    return folder / "out"


def test_a_resumed_run_ends_with_identical_weights(command: Any, pretrained: Path, tmp_path: Path) -> None:
    resumed = tmp_path / "resumed"
    shutil.copytree(pretrained / "checkpoints" / "step_2", resumed / "checkpoints" / "step_2")

    run(command, "train", "--config-file", pretrained.parent / "recipe.yaml", resumed)

    expected, actual = load_model(pretrained, 4), load_model(resumed, 4)
    assert any("teacher" in key for key in expected) and actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())
    assert not all(torch.equal(load_model(pretrained, 2)[key], tensor) for key, tensor in expected.items())


def test_clips_are_padded_as_eat_pads_them(command: Any, pretrained: Path, tmp_path: Path) -> None:
    settings = ("task.config.pad=true", "task.config.min_sample_size=400", "model.config_overrides.spectrogram.pad_frames=80")

    run(command, "train", "--config-file", pretrained.parent / "recipe.yaml", tmp_path / "out", "--config", *settings)

    assert load_model(tmp_path / "out", 4).keys() == load_model(pretrained, 4).keys()


@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_fine_tuned_evaluated_and_used(command: Any, pretrained: Path, tmp_path: Path, kind: str) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(FINE_TUNING)
    words = tmp_path / "words"
    shutil.copytree(WORDS, words)
    settings = [f"dataset.config_overrides.path={words}", f"init.path={pretrained}"]
    if kind == "tags":
        for split in ("train", "valid"):
            text = (words / f"{split}.tsv").read_text().splitlines()
            rows = [f"{line}\t{line.split(chr(9))[2]};{'loud' if i % 2 else 'soft'}" for i, line in enumerate(text[2:])]
            table = [text[0], "#columns\tpath\tsize\tlabel\ttags", *rows]
            (words / f"{split}.tsv").write_text("\n".join(table) + "\n")
        (words / "probe.tsv").unlink()
        settings += ["task.config.tags=true", "criterion.name=audio_tagging", f"criterion.config={TAGGING}"]

    run(command, "train", "--config-file", recipe, out, "--config", *settings)
    scores = (out / "metrics" / "valid").glob("*.jsonl")
    name = "Mean Average Precision" if kind == "tags" else "Accuracy"
    assert any(name in file.read_text() for file in scores)
    where = f"checkpoint.path={out}"
    scored = run(command, "evaluate", tmp_path / "scores", "--config", where, "probing.probes=[]")
    assert "mean_average_precision" in scored.out or "accuracy" in scored.out
    if kind == "tags":
        return
    with zipfile.ZipFile(words / "words.zip") as archive:
        archive.extractall(tmp_path / "wav")
    inputs = tmp_path / "wav"
    num_files = sum(file.is_file() for file in inputs.rglob("*"))

    run(command, "predict", tmp_path / "answers", "--config", where, f"inputs={inputs}")
    assert len((tmp_path / "answers" / "predictions.jsonl").read_text().splitlines()) == num_files
    run(command, "extract", tmp_path / "features", "--config", where, "features.pooling=cls", "task.config.split=valid")
    assert sorted((tmp_path / "features").rglob("*.npy")) or sorted((tmp_path / "features").rglob("*.safetensors"))
