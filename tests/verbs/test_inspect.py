"""`fairseq2 recipe inspect` draws a checkpoint, and names what it cannot read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from d2v_plugin.verbs.inspect import recipe


@pytest.fixture
def trained(command: Callable[..., Any], tiny_recipe: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    assert command("recipe", "train", "--config-file", tiny_recipe, out, "--config", "regime.num_steps=2").status == 0

    return out


def test_a_run_can_be_looked_at(command: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    settings = (f"checkpoint.path={trained}", "num_samples=2", "num_embedded=20")
    outcome = command("recipe", "inspect", tmp_path / "look", "--config", *settings)

    assert outcome.status == 0, outcome.err
    for name in ("masks", "features", "similarities", "samplers"):
        assert Image.open(tmp_path / "look" / "pictures" / f"{name}.png").width > 100
        assert name in outcome.out
    metadata = list(tmp_path.joinpath("look", "tb").rglob("metadata.tsv"))
    assert len(metadata[0].read_text().splitlines()) == 20
    assert list(tmp_path.joinpath("look", "tb").rglob("sprite.png"))


def test_without_matplotlib_there_is_a_warning_and_a_projector(
    command: Callable[..., Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "can_draw", lambda: False)
    settings = (f"checkpoint.path={trained}", "num_samples=2", "num_embedded=4")
    outcome = command("recipe", "inspect", tmp_path / "look", "--config", *settings)

    assert outcome.status == 0, outcome.err
    assert "pip install matplotlib" in outcome.err + outcome.out
    assert not (tmp_path / "look" / "pictures").exists() and list(tmp_path.joinpath("look", "tb").rglob("metadata.tsv"))


def test_samples_that_cannot_be_read_are_reported(command: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    for row in range(4):
        Image.new("RGB", (32, 32), (60 * row, 0, 0)).save(tmp_path / f"{row}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "valid.tsv").write_text(".\n" + "".join(f"{row}.png\n" for row in range(4)))
    settings = (f"checkpoint.path={trained}", f"dataset.config_overrides.path={tmp_path}", "num_embedded=0")
    outcome = command("recipe", "inspect", tmp_path / "look", "--config", *settings)

    assert outcome.status == 0, outcome.err
    (line,) = (tmp_path / "look" / "bad_samples.tsv").read_text().splitlines()
    assert line.startswith(f"{tmp_path / 'valid.tsv'}\t4: {tmp_path / '2.png'}\t")


def test_what_cannot_be_looked_at_is_said_in_one_line(command: Callable[..., Any], tmp_path: Path) -> None:
    outcome = command("recipe", "inspect", tmp_path / "look", "--config", f"checkpoint.path={tmp_path}")

    assert outcome.status == 2
    assert str(tmp_path) in outcome.err.splitlines()[-1]
