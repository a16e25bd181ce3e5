"""Every recipe loads, and those of the published configurations have the published values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))

# config/v2 of the original: views, mask ratio, adjust, block size, EMA (start, end, steps), K, rate, warm-up, updates.
PUBLISHED = {
    "audio/pretrain_base.yaml": (8, 0.5, 0.05, 5, (0.999, 0.99999, 75_000), 8, 7.5e-4, 8_000, 400_000),
    "audio/pretrain_large.yaml": (12, 0.55, 0.1, 5, (0.9997, 1.0, 300_000), 16, 4e-4, 10_000, 600_000),
    "image/pretrain_base.yaml": (16, 0.8, 0.07, 3, (0.9998, 0.99999, 100_000), 10, 1e-3, 50_040, 375_300),
    "image/pretrain_large.yaml": (16, 0.75, 0.1, 3, (0.9998, 0.99999, 150_000), 18, 4e-4, 50_040, 375_300),
    "image/pretrain_huge16.yaml": (16, 0.75, 0.1, 3, (0.9998, 0.99995, 150_000), 24, 4e-4, 50_040, 375_300),
    "image/pretrain_huge14.yaml": (16, 0.75, 0.1, 3, (0.9998, 1.0, 300_000), 24, 4e-4, 50_040, 500_000),
    "text/pretrain_base.yaml": (8, 0.48, None, None, (0.9999, 0.99999, 100_000), 12, 2e-4, 4_000, 1_000_000),
    "text/pretrain_large.yaml": (8, 0.5, None, None, (0.9999, 0.99999, 100_000), 24, 1e-4, 4_000, 600_000),
    "text/pretrain_large_1m.yaml": (8, 0.5, None, None, (0.9999, 0.99999, 100_000), 24, 1e-4, 4_000, 1_000_000),
}
# Of the optimizer: betas, epsilon, weight decay; and the largest gradient norm.
ADAM = {
    "audio/pretrain_base.yaml": ([0.9, 0.98], 1e-6, 0.01, None),
    "audio/pretrain_large.yaml": ([0.9, 0.98], 1e-6, 0.01, 1.0),
    "image": ([0.9, 0.95], 1e-8, 0.05, 4.0),
    "text": ([0.9, 0.98], 1e-6, 0.01, 1.0),
}


def dump(command: Any, name: str) -> dict[str, Any]:
    outcome = command("recipe", "train", "--config-file", ROOT / name, "--dump-config")
    assert outcome.status == 0, outcome.err

    return YAML(typ="safe").load(outcome.out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads_and_says_how_to_run_it(command: Any, name: str) -> None:
    assert dump(command, name)["regime"]["num_steps"] > 0
    text = (ROOT / name).read_text()
    if not name.startswith("ablations/"):
        assert f"recipes/{name}" in text
        for word in ("Command:", "Hardware:", "Cost:", "Expected:"):
            assert word in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_has_the_published_values(command: Any, name: str) -> None:
    views, ratio, adjust, block_size, ema, k, lr, warmup, steps = PUBLISHED[name]
    betas, eps, decay, norm = ADAM.get(name) or ADAM[name.split("/")[0]]
    config = dump(command, name)
    criterion = config["criterion"]["config"]
    masking = criterion["masking"]["config"]

    assert criterion["num_views"] == views
    assert (masking["ratio"], masking.get("adjust"), masking.get("block_size")) == (ratio, adjust, block_size)
    assert tuple(criterion["ema"][key] for key in ("start", "end", "anneal_steps")) == ema
    assert criterion["targets"]["num_layers"] == k
    assert config["optimizer"]["config"]["lr"] == lr
    assert config["lr_scheduler"]["config"]["num_warmup_steps"] == warmup
    assert config["lr_scheduler"]["config"]["final_lr_scale"] == 0.0
    assert config["regime"]["num_steps"] == steps
    adam = config["optimizer"]["config"]
    assert (list(adam["betas"]), adam["eps"], adam["weight_decay"]) == (betas, eps, decay)
    assert config["trainer"]["max_grad_norm"] == norm
