"""Signals of several channels at 250 Hz: from arrays and files of sound to predictions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from d2v_plugin.data.audio import AudioReadingConfig, Recording, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.files import Location

ROOT = Path(__file__).parents[2]
STEPS = ["regime.num_steps=2", "regime.validate_every_n_steps=null", "regime.checkpoint_every_n_steps=1"]
QUICK = [*STEPS, "common.torch.num_threads=1", "common.metric_recorders.tensorboard.enabled=false", "probing.probes=[]"]
QUICK += ["pictures.enabled=false"]
SIZES = "min_sample_size: 100, max_sample_size: 250"
AUDIO = "{sample_rate: 250, channels: 3}"
SHAPE = "num_channels: 3, conv_layers: [[32, 10, 5], [32, 3, 2]]"


def write_signals(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(24):
        values = generator.normal(size=(3, 300)).astype(np.float32) * 1e-5
        values[0] += 1.0 + index % 2
        place = folder / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{index}.npy", values)


def load_model(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Student and teacher of a checkpoint."""
    files = sorted((out / "checkpoints" / f"step_{step}" / "model").rglob("*.pt"))
    return {key: tensor for file in files for key, tensor in torch.load(file, weights_only=True).items()}


def test_signals_are_learned_from_fine_tuned_and_predicted(command: Any, tmp_path: Path) -> None:
    def run(*words: object, status: int = 0) -> str:
        outcome = command("recipe", *words)
        assert outcome.status == status, outcome.err
        return str(outcome.err)

    data, out, tuned = tmp_path / "data", tmp_path / "pretrained", tmp_path / "tuned"
    write_signals(tmp_path / "signals")
    made = ("--labels", "folders", "--sample-rate", 250, "--min-samples", 25, "--valid-percent", 25)
    run("manifest", "audio", tmp_path / "signals", data, *made)
    common = [*QUICK, f"dataset.config_overrides.path={data}"]
    pretraining = [
        *(
            "--config-file",
            ROOT / "recipes" / "demo" / "signals.yaml",
            "--config",
            *common,
            "regime.keep_last_n_checkpoints=null",
        ),
        f"model.config_overrides={{audio: {{{SHAPE}}}, dim: 32, depth: 3, num_heads: 2}}",
        f"task.config={{batches_per_update: 1, max_num_elements: 1500, {SIZES}, audio: {AUDIO}}}",
        # The loss of emotion2vec on whole utterances.
        "criterion.config.targets={num_layers: 2, layer_norm: true}",
        *("criterion.config.cls_weight=1.0", "criterion.config.cls_prediction=tokens"),
    ]
    run("train", out, *pretraining)
    resumed = tmp_path / "resumed"
    shutil.copytree(out / "checkpoints" / "step_1", resumed / "checkpoints" / "step_1")
    run("train", resumed, *pretraining)
    first, last, again = (load_model(folder, step) for folder, step in ((out, 1), (out, 2), (resumed, 2)))
    assert all(torch.equal(again[key], tensor) for key, tensor in last.items())
    assert not all(torch.equal(first[key], tensor) for key, tensor in last.items())
    wrong = [str(word).replace("channels: 3}", "channels: 2}") for word in pretraining]
    said = run("train", tmp_path / "wrong", *wrong, status=2)
    assert "`task.config.audio.channels` is 2, but the model's `audio.num_channels` is 3." in said
    recipe = tmp_path / "tuning.yaml"
    recipe.write_text(
        f"task: {{name: audio_classification, config: {{batches_per_update: 1, max_num_elements: 3000, audio: {AUDIO}}}}}\n"
        f"dataset: {{family: audio_manifest}}\ncriterion: {{name: classification}}\nvalidation: {{splits: [valid]}}\n"
        f"model: {{family: data2vec, arch: audio_tiny, config_overrides: "
        f"{{audio: {{{SHAPE}, decoder: null}}, dim: 32, depth: 3, num_heads: 2}}}}\n"
    )
    run("train", "--config-file", recipe, tuned, "--config", *common, f"init.path={out}")
    run("evaluate", tmp_path / "scores", "--config", f"checkpoint.path={tuned}", "probing.probes=[]")
    run("extract", tmp_path / "features", "--config", f"checkpoint.path={out}", "split=valid")
    run("predict", tmp_path / "answers", "--config", f"checkpoint.path={tuned}", f"inputs=[{tmp_path / 'signals'}]")

    assert (tmp_path / "scores" / "scores.json").is_file() and (tmp_path / "features" / "index.json").is_file()
    assert len((tmp_path / "answers" / "predictions.jsonl").read_text().splitlines()) == 24


@pytest.mark.parametrize("suffix", ["npy", "wav", "flac"])
def test_channels_are_kept_apart_and_normalized_one_by_one(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(1).uniform(-0.5, 0.5, (400, 3)).astype(np.float32) * np.float32([1, 0.1, 0.01])
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, values.T * 1e-6)
    else:
        soundfile.write(path, values, 250, subtype="PCM_24")
    recording = Recording(Location(str(path)), 400, rate=250, statistics=(5.0, 9.0))
    config = AudioReadingConfig(sample_rate=250, channels=3)
    expected = (values - values.mean(axis=0)) / values.std(axis=0)

    np.testing.assert_allclose(read_recording(recording, config), expected, atol=1e-3)
    place = np.empty((100, 3), dtype=np.float32)
    read_recording(recording, config, 50, 100, place)
    np.testing.assert_allclose(place, expected[50:150], atol=1e-3)
    doubled = AudioReadingConfig(sample_rate=500, channels=3, resample=True)
    assert read_recording(recording, doubled, 0, 801).shape == (801, 3)
    with pytest.raises(SampleError, match=r"has 3 channel\(s\), but `task.config.audio.channels` is 2"):
        read_recording(recording, AudioReadingConfig(sample_rate=250, channels=2))


@pytest.mark.parametrize("arch", ["data2vec", "data2vec1"])
def test_models_take_signals_of_their_channels_alone(arch: str) -> None:
    from d2v_plugin.models.data2vec1.config import AudioConfig
    from d2v_plugin.models.data2vec2.frontend_config import AudioFrontendConfig
    from d2v_plugin.models.waveforms import WaveformEncoder

    config = AudioFrontendConfig if arch == "data2vec" else AudioConfig
    encoder = WaveformEncoder(config(num_channels=3, conv_layers=[(8, 10, 5), (8, 3, 2)]))
    x = torch.randn(2, 100, 3)
    whole = encoder(x)
    assert encoder(x, torch.arange(100).expand(2, -1) >= torch.tensor([[100], [60]]))[0].allclose(whole[0], atol=1e-5)
    with pytest.raises(ValueError, match=r"3 channel\(s\), \(N, T, C\), but has the shape \(2, 100\)"):
        encoder(x[..., 0])
