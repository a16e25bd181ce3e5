"""Arrays of two channels and 16 bits, as rectangles of several sizes, with layers kept apart: from a folder to predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

ORIGIN = "checkpoints/origin.yaml"
ROOT = Path(__file__).parents[2]
QUICK = ["pictures.enabled=false", "common.torch.num_threads=1", "common.metric_recorders.tensorboard.enabled=false"]
STEPS = ["regime.num_steps=4", "regime.validate_every_n_steps=null", "regime.checkpoint_every_n_steps=2"]


def load_model(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Student and teacher of a checkpoint."""
    files = sorted((out / "checkpoints" / f"step_{step}" / "model").rglob("*.pt"))
    return {key: tensor for file in files for key, tensor in torch.load(file, weights_only=True).items()}


def test_images_of_any_shape_are_learned_from_fine_tuned_and_predicted(command: Any, tmp_path: Path) -> None:
    def run(*words: str | Path) -> None:
        outcome = command(*words)
        assert outcome.status == 0, outcome.err

    generator = np.random.default_rng(0)
    for index in range(60):
        folder = tmp_path / "arrays" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{index}.npy", generator.integers(0, 4096, (20, 36, 2)).astype(np.uint16))
    data, out, tuned = tmp_path / "data", tmp_path / "pretrained", tmp_path / "tuned"
    run("recipe", "manifest", "image", tmp_path / "arrays", data, "--labels", "folders", "--channels", 2, "--valid-percent", 20)
    facts = json.loads((data / "report.json").read_text())["facts"]
    # Of 12 bits in 16: nothing of them is lost.
    assert facts["mean"] == pytest.approx([2048 / 65535] * 2, rel=0.05) and len(facts["std"]) == 2

    shape = "image_size: [16, 32], patch_size: [4, 8], num_channels: 2"
    reading = "size: [16, 32], mean: report, std: report, flip: 0.0"
    common = [*QUICK, *STEPS, "probing.probes=[]", f"dataset.config_overrides.path={data}"]
    pretraining = [
        *("--config", *common, "regime.keep_last_n_checkpoints=null", "guard.collapse_every_n_steps=2"),
        f"task.config={{batch_size: 8, max_batch_size: 4, image: {{{reading}, sizes: [[16, 32], [24, 32]]}}}}",
        f"model.config_overrides={{image: {{{shape}}}, depth: 2}}",
        "criterion.config.masking={name: inverse_block, config: {ratio: 0.7, block_size: 2}}",
        "criterion.config.num_views=2",
        "criterion.config.targets={num_layers: 2, separate_layers: true}",
    ]
    recipe, resumed = ROOT / "recipes" / "demo" / "digits.yaml", tmp_path / "resumed"
    run("recipe", "train", "--config-file", recipe, out, *pretraining)
    metrics = "".join(path.read_text() for path in (out / "metrics").rglob("*.jsonl"))
    assert all(name in metrics for name in ("Target RankMe", "Target Alpha-ReQ", "Prediction LiDAR"))
    shutil.copytree(out / "checkpoints" / "step_2", resumed / "checkpoints" / "step_2")
    run("recipe", "train", "--config-file", recipe, resumed, *pretraining)
    expected, found = load_model(out, 4), load_model(resumed, 4)
    assert any("layer_proj" in key for key in found) and all(torch.equal(found[key], x) for key, x in expected.items())
    # What was measured is written out, and what is made of the run reads so.
    recorded = [YAML(typ="safe").load(path)["task"]["config"]["image"] for path in (out / "config.yaml", out / ORIGIN)]
    assert all((image["mean"], image["std"]) == (facts["mean"], facts["std"]) for image in recorded)
    run(
        *("recipe", "train", "--config-file", ROOT / "recipes" / "demo" / "finetune_digits.yaml", tuned, "--config", *common),
        f"task.config={{batch_size: 8, split: train, rand_augment: {{num_operations: 0}}, image: {{{reading}}}}}",
        f"model.config_overrides={{image: {{{shape}, decoder: null}}, depth: 2, drop_path: [0.0, 0.0]}}",
        f"init.path={out}",
        "regime.validate_every_n_steps=2",
    )
    run("recipe", "evaluate", tmp_path / "scores", "--config", f"checkpoint.path={tuned}")
    run("recipe", "extract", tmp_path / "features", "--config", f"checkpoint.path={out}", "split=valid")
    run("recipe", "predict", tmp_path / "answers", "--config", f"checkpoint.path={tuned}", f"inputs=[{tmp_path / 'arrays'}]")

    assert (tmp_path / "features" / "index.json").is_file()
    answers = (tmp_path / "answers" / "predictions.jsonl").read_text().splitlines()
    assert len(answers) == 60 and all("classes" in json.loads(answer) for answer in answers)
