"""Every recipe that follows an original has its values, or its header names the deviation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from fine_tuning_originals import (
    expect_audioset,
    expect_ctc,
    expect_glue,
    expect_imagenet,
    expect_run_class_finetuning,
)
from original_settings import DECODER_GROUP, EPOCHS, POSITIONS, RECIPES, Expected, Original
from pretraining_originals import (
    expect_data2vec1,
    expect_data2vec2,
    expect_mae,
    expect_run_cyclical,
    expect_wav2vec2,
)
from resolution import ROOT, dump, read_model
from ruamel.yaml import YAML

# Deviations that are meant: recipes, our key, and what the header says of it.
DEVIATIONS = [
    ("audio/finetune_base_*", "task.config.audio.normalize", "Waveforms are normalised as in pre-training"),
    ("audio/finetune_data2vec1_base_*", "task.config.audio.normalize", "Waveforms are normalised as in pre-training"),
    ("audio/finetune_audioset.yaml", "optimizer.config.lr", "The YAML has one learning rate, 6e-5; the paper has 3e-5"),
    ("audio/wav2vec2_base.yaml", POSITIONS, "positions by five narrow convolutions"),
    ("text/data2vec1_base.yaml", "task.config.break_mode", "Samples are filled to 512 tokens"),
    ("image/finetune_imagenet_[bl]*", "lr_scheduler.config.start_lr", "The warm-up starts at 0"),
    ("text/pretrain_large_1m.yaml", DECODER_GROUP, "parameter group"),
    ("text/finetune_glue_*", EPOCHS, "10 epochs"),
]


def translate(name: str) -> tuple[Original, Expected]:
    """An original, and what the recipe that follows it must have."""
    o = Original(name)
    kinds: dict[str, Callable[[Original], Expected]] = {
        "data2vec_multi": expect_data2vec2,
        "data2vec_audio": expect_data2vec1,
        "data2vec_text": expect_data2vec1,
        "data2vec_vision": expect_data2vec1,
        "mae": expect_mae,
        "wav2vec2": expect_wav2vec2,
        "wav2vec_ctc": expect_ctc,
        "audio_classification": expect_audioset,
        "mae_image_classification": expect_imagenet,
        "data2vec_text_classification": expect_glue,
        "run_cyclical": expect_run_cyclical,
        "run_class_finetuning": expect_run_class_finetuning,
    }
    expected = kinds[RECIPES[name].get("script") or o.values["model._name"]](o)
    o.pass_over(
        "of the trainer",
        "(criterion|model|task|optimizer|lr_scheduler)._name",
        "criterion.log_keys",
        "optimization.debug_param_names",
    )

    return o, expected


def resolve(command: Any, name: str) -> dict[str, Any]:
    """The whole configuration of a recipe, the model's arch and overrides made into one."""
    config = dump(command, name)
    section = config["model"]
    schedule = config["lr_scheduler"]["config"]
    if schedule is not None and schedule.get("final_lr_scale") is not None and "final_lr" in schedule:
        schedule["final_lr"] = schedule["final_lr_scale"] * config["optimizer"]["config"]["lr"]

    return config | {"model": {"family": section["family"], "arch": section["arch"], **asdict(read_model(section))}}


def look_up(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) and part in config else None

    return config


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, list | tuple):
        return isinstance(found, list | tuple) and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-12)

    return bool(found == expected)


def read_header(name: str) -> str:
    """The comment at the head of a recipe and of those that it is based on, as one line."""
    lines = (ROOT / name).read_text().split("\n\n", 1)[0].splitlines()
    text = re.sub(r"\s+", " ", " ".join(line.lstrip("#") for line in lines))
    base = YAML(typ="safe").load((ROOT / name).read_text()).get("base")

    return text if base is None else text + read_header(str(Path(name).parent / base))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_values_of_its_original_or_names_the_difference(command: Any, name: str) -> None:
    original, expected = translate(name)
    config = resolve(command, name)
    named = {key: words for pattern, key, words in DEVIATIONS if fnmatch(name, pattern)}

    assert sorted(original.left) == [], "keys of the original that nothing translates"
    differences = {key: value for key, value in expected.items() if "." not in key or not same(look_up(config, key), value)}
    assert {key: (look_up(config, key), value) for key, value in differences.items() if key not in named} == {}
    assert set(named) == set(differences), "deviations that are none"
    header = read_header(name)
    assert [words for words in [*named.values(), "float16"] if words not in header] == []
