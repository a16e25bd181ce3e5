"""The learning rate follows fairseq's schedule, and schedulers can be exchanged by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.recipe.config import CosineAnnealingLRConfig, RegimeSection
from fairseq2.recipe.internal.lr_schedulers import _CosineAnnealingLRFactory

# From fairseq itself, for v2/base_audio_only_task.yaml: the rate after n updates.
FAIRSEQ_RATES = {
    0: 0.0,
    1: 9.375e-08,
    10: 9.375e-07,
    4000: 0.000375,
    7999: 0.00074990625,
    8000: 0.00075,
    8001: 0.0007499999999879571,
    100000: 0.0006526042489032433,
    200000: 0.0003870193415893708,
    380000: 4.806831219581184e-06,
    399999: 1.2042825070501806e-14,
}


@pytest.mark.parametrize("num_updates", FAIRSEQ_RATES)
def test_the_cosine_equals_fairseqs(num_updates: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=7.5e-4)
    factory = _CosineAnnealingLRFactory(optimizer, RegimeSection(num_steps=400_000))
    scheduler = factory.create(CosineAnnealingLRConfig(num_warmup_steps=8000, final_lr_scale=0.0))

    scheduler.last_epoch = num_updates

    assert scheduler._compute_lrs()[0] == pytest.approx(FAIRSEQ_RATES[num_updates], rel=1e-9, abs=1e-17)


def test_update_n_uses_the_rate_after_n_minus_1_updates(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ["lr_scheduler.config.num_warmup_steps=2", "regime.publish_metrics_every_n_steps=1", "optimizer.config.lr=0.5"]

    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *settings)

    assert outcome.status == 0, outcome.err
    lines = (tmp_path / "out" / "metrics" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["Learning Rate"] for line in lines] == [0.0, 0.25, 0.5, 0.25]
    log = (tmp_path / "out" / "logs" / "rank_0.log").read_text()
    assert re.findall("train: .*learning rate ([^,]*),", log) == ["0", "0.25", "0.5", "0.25"]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{config: {num_warmup_steps: 3}}", "final_lr_scale: 0.0"),
        ("{config: {final_lr: 1.0e-5}}", "final_lr_scale: null"),
        ("{config: {final_lr_scale: 0.1}}", "final_lr_scale: 0.1"),
        ("{name: tri_stage, config: {stage_ratio: [0.03, 0.9, 0.07]}}", "stage_ratio:"),
        ("{name: polynomial_decay}", "name: polynomial_decay"),
    ],
)
def test_a_recipe_may_name_any_scheduler(command: Any, tiny_recipe: Path, section: str, expected: str) -> None:
    with tiny_recipe.open("a") as file:
        file.write(f"lr_scheduler: {section}\n")

    outcome = command("recipe", "train", "--config-file", tiny_recipe, "--dump-config")

    assert outcome.status == 0, outcome.err
    assert expected in outcome.out


def test_fairseq2s_adamw_can_be_named(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ["optimizer={name: adamw, config: {lr: 0.001}}"]

    assert command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *settings).status == 0


def test_a_warm_up_as_long_as_the_run_is_made_shorter(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    setting = "lr_scheduler.config.num_warmup_steps=4"
    outcome = command("recipe", "train", "--no-rich", "--config-file", tiny_recipe, tmp_path / "out", "--config", setting)

    assert outcome.status == 0, outcome.err
    assert "`lr_scheduler.config.num_warmup_steps` is 0 instead of 4: a warm-up must be shorter than the run." in outcome.err
