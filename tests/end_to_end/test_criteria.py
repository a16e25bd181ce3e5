"""Every objective trains from the command line, by its name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fairseq2.composition import _register_library
from fairseq2.runtime.dependency import DependencyContainer

from d2v_plugin import setup_fairseq2_extension
from d2v_plugin.core.registry import registered_names
from d2v_plugin.criteria.base import Criterion

ABLATIONS = Path(__file__).parents[2] / "recipes" / "ablations"

SHORT = (
    *("regime.num_steps=2", "regime.publish_metrics_every_n_steps=1", "regime.checkpoint_every_n_steps=2"),
    *("probing.probes=[]", "pictures.enabled=false", "common.torch.num_threads=1"),
)

# Criterion -> recipes with it; between them all modalities in which it works.
RECIPES = {
    "data2vec1": ["objectives/image_data2vec1", "objectives/speech_data2vec1", "objectives/text_data2vec1"],
    "data2vec2": ["objectives/image_data2vec2", "objectives/speech_data2vec2", "objectives/text_data2vec2"],
    "last_layer_regression": ["objectives/image_last_layer"],
    "mae": ["objectives/image_mae"],
    "masked_lm": ["objectives/text_masked_lm"],
    "wav2vec2": ["objectives/speech_wav2vec2"],
}

# Trained on labels, in tests of their own.
SUPERVISED = {"audio_tagging", "classification", "ctc"}


def test_no_criterion_is_left_out() -> None:
    container = DependencyContainer()
    _register_library(container)
    if "mae" not in registered_names(container, Criterion):
        setup_fairseq2_extension(container)

    assert set(RECIPES) | SUPERVISED == set(registered_names(container, Criterion))


@pytest.mark.parametrize(("criterion", "recipe"), [(name, recipe) for name in RECIPES for recipe in RECIPES[name]])
def test_a_criterion_trains_from_the_command_line(command: Any, tmp_path: Path, criterion: str, recipe: str) -> None:
    path, out = ABLATIONS / f"{recipe}.yaml", tmp_path / "out"

    outcome = command("recipe", "train", "--config-file", path, out, "--config", *SHORT)

    assert outcome.status == 0, outcome.err
    assert (out / "checkpoints" / "step_2" / "model").is_dir()
    lines = [json.loads(line) for line in (out / "metrics" / "train.jsonl").read_text().splitlines()]
    assert [line["Step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["Loss"]) and line["Gradient Norm"] > 0 for line in lines)
    assert f"\ncriterion:\n  name: {criterion}\n" in (out / "config.yaml").read_text()


@pytest.mark.parametrize("criterion", ["last_layer_regression", "mae"])
def test_changing_the_name_is_enough(command: Any, tiny_recipe: Path, tmp_path: Path, criterion: str) -> None:
    """The model keeps its arch, its decoder included, whether the objective uses it or not."""
    recipe = tiny_recipe.read_text().split("criterion:")[0] + f"criterion: {{name: {criterion}}}\n"
    recipe = recipe.replace("depth: 2", "depth: 1")
    tiny_recipe.write_text(recipe + "regime: {num_steps: 2, publish_metrics_every_n_steps: 1}\n")

    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out")

    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ("criterion={name: masked_lm}", ("only frontend is `text`", "image", "`text_base`")),
        ("criterion={name: wav2vec2}", ("only frontend is `audio`", "image")),
        ("criterion={name: mae,config: {decoder_num_heads: 7}}", ("`decoder_num_heads` must divide `decoder_dim` (512)",)),
        ("criterion={name: mae,config: {masking: {config: {ratio: 1.5}}}}", ("`ratio`", "1.5")),
        ("criterion={name: wav2vec2,config: {num_codebook: 3}}", ("`num_codebooks`",)),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    command: Any, tiny_recipe: Path, tmp_path: Path, settings: str, parts: tuple[str, ...]
) -> None:
    recipe = tiny_recipe.read_text().split("criterion:")[0] + "regime: {num_steps: 2}\n"
    tiny_recipe.write_text(recipe)

    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", settings)

    assert outcome.status == 2 and "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err.splitlines()[-1], outcome.err
