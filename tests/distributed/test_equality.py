"""Two and four ranks compute what one process does on the same samples, whatever divides the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Ranks
from torch import Tensor

ROOT = Path(__file__).parents[2]

# With a large epsilon Adam's update is smooth in the gradient; see test_ddp.py.
SETTINGS = [
    *("regime.num_steps=4", "regime.publish_metrics_every_n_steps=1", "regime.checkpoint_every_n_steps=4"),
    *("optimizer.config.eps=1.0", "optimizer.config.lr=0.1", "trainer.max_grad_norm=4.0"),
    "lr_scheduler={name: passthrough, config: null}",
]

# Whole blocks are left out of an update: of the same ones on all ranks and in all of its passes.
LAYER_DROP = "model.config_overrides.layer_drop=0.4"

# Of each rank's images one half after the other; blocks are computed again in the backward pass.
DIVIDED = ["task.config.max_batch_size={half}", "trainer.activation_checkpointing.mode=layerwise"]

PARALLELISM = {
    "ddp": ["trainer.data_parallelism=ddp"],
    "fsdp": ["trainer.data_parallelism=fsdp"],
    "hsdp": ["trainer.data_parallelism=fsdp", "trainer.fsdp.hybrid=true"],  # whole models on two machines, shards within
}


def words_of(recipe: Path, out: Path, *settings: str) -> list[object]:
    return ["recipe", "train", "--config-file", recipe, out, "--config", *SETTINGS, LAYER_DROP, *settings]


def load_model(out: Path) -> dict[str, Tensor]:
    """The weights of the last checkpoint, shards put together."""
    parts = [torch.load(path, weights_only=True) for path in sorted((out / "checkpoints" / "step_4" / "model").rglob("*.pt"))]

    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def read_metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics" / "train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_text: str) -> Path:
    path = tmp_path_factory.mktemp("equality") / "tiny.yaml"
    path.write_text(tiny_recipe_text)

    return path


@pytest.fixture(scope="module")
def one_process(recipe: Path) -> dict[str, Path]:
    """Where runs of one process are, in fp32 and in bf16."""
    outs = {mode: recipe.parent / f"one_{mode}" for mode in ("off", "auto")}
    for mode, out in outs.items():
        ranks = Ranks(words_of(recipe, out, f"trainer.mixed_precision.mode={mode}"), out / "output", size=1)
        assert ranks.wait() == [0], ranks.output()

    return outs


@pytest.mark.parametrize(
    ("size", "parallelism", "mode"),
    [
        *((4, parallelism, "off") for parallelism in PARALLELISM),
        *((2, parallelism, mode) for parallelism in ("ddp", "fsdp") for mode in ("static", "auto")),
    ],
)
def test_ranks_equal_one_process(
    recipe: Path, one_process: dict[str, Path], tmp_path: Path, size: int, parallelism: str, mode: str
) -> None:
    divided = [setting.format(half=8 // size // 2) for setting in DIVIDED]
    settings = [*divided, *PARALLELISM[parallelism], f"trainer.mixed_precision.mode={mode}"]

    nodes = 2 if parallelism == "hsdp" else 1
    ranks = Ranks(words_of(recipe, tmp_path / "several", *settings), tmp_path, size=size, nodes=nodes)

    assert ranks.wait(120) == [0] * size, ranks.output()
    shards = {"ddp": 1, "fsdp": size, "hsdp": size // nodes}[parallelism]
    assert len(list((tmp_path / "several" / "checkpoints" / "step_4" / "model").rglob("*.pt"))) == shards
    one = one_process["off" if mode == "off" else "auto"]
    expected, actual = load_model(one), load_model(tmp_path / "several")
    assert actual.keys() == expected.keys()
    tolerance = 1e-6 if mode == "off" else 5e-3
    for name, value in expected.items():
        assert torch.allclose(actual[name], value, rtol=tolerance, atol=tolerance), name
    for one_line, several_line in zip(read_metrics(one), read_metrics(tmp_path / "several"), strict=True):
        for name in ("Loss", "Gradient Norm"):
            assert several_line[name] == pytest.approx(one_line[name], rel=2 * tolerance), name


# The demo of three modalities with as little of everything as still alternates between them.
MULTIMODAL = [
    *("regime.num_steps=4", "regime.publish_metrics_every_n_steps=1", "regime.checkpoint_every_n_steps=4"),
    *("regime.validate_every_n_steps=null", "regime.validate_at_start=false", "probing.probes=[]", "pictures.enabled=false"),
    *("criterion.config.num_views=2", "lr_scheduler={name: passthrough, config: null}", "optimizer.config={eps: 1.0, lr: 0.1}"),
    *("model.config_overrides={dropout: 0.0, attention_dropout: 0.0}", "common.torch.num_threads=1"),
]


def test_several_modalities_on_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """The frontends that an update does not use get no gradients."""
    recipe = tmp_path / "multimodal.yaml"
    demo = (ROOT / "recipes" / "demo" / "multimodal.yaml").read_text()
    # One length batch of recordings cannot be shared by two ranks.
    recipe.write_text(demo.replace("${dir}/../../", f"{ROOT}/").replace("batches_per_update: 1", "batches_per_update: 2"))
    words = ["recipe", "train", "--config-file", recipe]

    one = Ranks([*words, tmp_path / "one", "--config", *MULTIMODAL], tmp_path / "1", size=1)
    assert one.wait() == [0], one.output()
    two = Ranks([*words, tmp_path / "two", "--config", *MULTIMODAL], tmp_path / "2", size=2)
    assert two.wait() == [0, 0], two.output()

    metrics = read_metrics(tmp_path / "one")
    assert len({round(line["Masked Fraction"], 2) for line in metrics}) >= 2, "the updates should be of several modalities"
    expected, actual = load_model(tmp_path / "one"), load_model(tmp_path / "two")
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(actual[name], value, rtol=1e-6, atol=1e-6), name
