"""What fine-tuning starts from in these tests: a short run of the pre-training demo of each modality."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v_plugin.cli.main import main

ROOT = Path(__file__).parents[2]
# No probes, no pictures, one checkpoint.
SHORT = ["probing.probes=[]", "pictures.enabled=false", "regime.validate_every_n_steps=null", "common.torch.num_threads=1"]


@pytest.fixture(scope="session")
def pretrained_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of recipes/demo/books.yaml after 8 updates."""
    output = tmp_path_factory.mktemp("pretrained") / "books"
    steps = [f"regime.{name}=8" for name in ("num_steps", "publish_metrics_every_n_steps", "checkpoint_every_n_steps")]
    main(["recipe", "train", "--config-file", str(ROOT / "recipes" / "demo" / "books.yaml"), str(output), "--config", *SHORT, *steps, "lr_scheduler.config.num_warmup_steps=2"])  # fmt: skip  # noqa: E501

    return output


@pytest.fixture(scope="session")
def pretrained_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of recipes/demo/words.yaml after 20 updates."""
    output = tmp_path_factory.mktemp("pretrained") / "words"
    recipe = ROOT / "recipes" / "demo" / "words.yaml"
    steps = [f"regime.{name}=20" for name in ("num_steps", "publish_metrics_every_n_steps", "checkpoint_every_n_steps")]
    settings = [*SHORT, *steps, "lr_scheduler.config.num_warmup_steps=5"]
    main(["recipe", "train", "--config-file", str(recipe), str(output), "--config", *settings])

    return output
