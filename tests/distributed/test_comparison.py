"""The objectives to compare with train on two processes, replicated and sharded alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import Ranks

ABLATIONS = Path(__file__).parents[2] / "recipes" / "ablations" / "objectives"

SETTINGS = [
    *("regime.num_steps=3", "regime.publish_metrics_every_n_steps=1", "regime.checkpoint_every_n_steps=3"),
    *("probing.probes=[]", "optimizer.config.eps=1.0", "optimizer.config.lr=0.1", "lr_scheduler.config.num_warmup_steps=0"),
    "pictures.enabled=false",
]


def train(recipe: str, out: Path, parallelism: str) -> list[float]:
    """The losses of three updates on two processes."""
    settings = [*SETTINGS, f"trainer.data_parallelism={parallelism}"]
    words = ["recipe", "train", "--config-file", str(ABLATIONS / recipe), str(out), "--config", *settings]
    ranks = Ranks(words, out.with_suffix(".output"), size=2)
    assert ranks.wait(300) == [0, 0], ranks.output()

    return [json.loads(line)["Loss"] for line in (out / "metrics" / "train.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", ["image_mae.yaml", "text_masked_lm.yaml"])
def test_sharding_changes_nothing(recipe: str, tmp_path: Path) -> None:
    """Among what is sharded are the token embeddings, which the language model uses at both ends."""
    replicated, sharded = (train(recipe, tmp_path / parallelism, parallelism) for parallelism in ("ddp", "fsdp"))

    assert sharded == pytest.approx(replicated, rel=1e-5)
    assert replicated[-1] < replicated[0]
