"""The word `report` in a recipe is what `fairseq2 recipe manifest` measured of the dataset."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.recipe.error import RecipeError
from ruamel.yaml import YAML

from d2v_plugin.cli.manifest import main
from d2v_plugin.data.log_mel import LogMelConfig, log_mel
from d2v_plugin.verbs.recipe_files import look_up, merge, nest
from d2v_plugin.verbs.train.arguments import complete_arguments

MEAN, PATH, ARCH = "task.config.image.mean", "dataset.config_overrides.path", "model.arch"
LOG_MEL = "model.config_overrides.spectrogram.log_mel_"
BANDS = {"sample_rate": 16_000, "num_mels": 32, "frame_length": 25.0, "frame_shift": 10.0, "low_freq": 20.0, "high_freq": 0.0}
FACTS = {"mean": [0.25, 0.5], "log_mel": {"mean": -4.5, "std": 3.0, **BANDS}}


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "report.json").write_text(json.dumps({"facts": FACTS}))
    return str(tmp_path)


def complete(settings: dict[str, Any], output_dir: Path | None = None) -> tuple[dict[str, Any], list[str]]:
    args, notes = complete_arguments(Namespace(config_overrides=[nest(settings)], output_dir=output_dir), None)
    return merge(args.config_overrides), notes


def test_numbers_take_the_place_of_the_word(data: str) -> None:
    config, notes = complete(
        {MEAN: "report", f"{LOG_MEL}mean": "report", f"{LOG_MEL}std": 2.0, ARCH: "spectrogram_tiny", PATH: data}
    )

    found = [look_up(config, key) for key in (MEAN, f"{LOG_MEL}mean", f"{LOG_MEL}std")]
    assert found == [[0.25, 0.5], -4.5, 2.0] and notes[0] == f"`{MEAN}` is [0.25, 0.5], as {data}/report.json says."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({MEAN: "report", PATH: None}, f"`{MEAN}` is `report`, .* none is named there; write numbers"),
        ({"task.config.image.std": "report"}, "has no `std`; run `fairseq2 recipe manifest` again"),
        ({MEAN: "report", PATH: "/nowhere"}, "/nowhere/report.json cannot be read: FileNotFoundError"),
        ({f"{LOG_MEL}mean": "report", ARCH: "spectrogram_base"}, "`num_mels` 32, but `.*spectrogram` has 128; measure with"),
        (
            {f"{LOG_MEL}mean": "report", ARCH: "x", "model.config_overrides.spectrogram.num_mels": 64},
            "`num_mels` 32, but .* has 64",
        ),
    ],
)
def test_what_was_not_measured_is_one_line(data: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        complete({PATH: data, **settings})
    assert "\n" not in str(caught.value)


def test_a_run_goes_on_with_the_numbers_that_it_began_with(data: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    YAML().dump(nest({MEAN: [0.25, 0.5]}), run / "config.yaml")
    assert look_up(complete({MEAN: "report", PATH: data}, run)[0], MEAN) == [0.25, 0.5]

    YAML().dump(nest({MEAN: [0.25, 0.4]}), run / "config.yaml")
    with pytest.raises(RecipeError, match=r"is \[0.25, 0.5\] now, but .*config.yaml says that the run began with \[0.25, 0.4\]"):
        complete({MEAN: "report", PATH: data}, run)


def test_log_mel_values_are_measured_of_the_training_split(tmp_path: Path) -> None:
    values = []
    for row in range(4):
        waveform = np.random.default_rng(row).normal(0, 0.1 * (row + 1), 4000).astype(np.float32)
        path = tmp_path / "sound" / ("train" if row else "valid") / f"{row}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, 8000, subtype="FLOAT")
        if row:
            values.append(log_mel(torch.from_numpy(waveform)[None], LogMelConfig(sample_rate=8000, num_mels=24)).flatten())
    np.save(tmp_path / "sound" / "train" / "features.npy", np.zeros((3, 9000)))

    sources = [f"{split}={tmp_path}/sound/{split}" for split in ("train", "valid")]
    assert main(["audio", *sources, str(tmp_path / "data"), "--num-mels", "24", "--sample-rate", "8000"]) == 0

    report = json.loads((tmp_path / "data" / "report.json").read_text())
    measured, expected = report["facts"]["log_mel"], torch.cat(values)
    assert (measured["mean"], measured["std"]) == pytest.approx((float(expected.mean()), float(expected.std())), abs=1e-3)
    assert (measured["num_mels"], measured["recordings"]) == (24, 3)
    assert "array beside recordings" in report["dropped"][0]["reason"]
