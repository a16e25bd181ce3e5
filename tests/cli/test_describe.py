"""`fairseq2 recipe describe` prints every setting, and recipes/reference.md is what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.cli.describe.text import write_page
from d2v_plugin.cli.describe.topics import Topic, find_topics

PAGE = Path(__file__).parents[2] / "recipes" / "reference.md"


@pytest.fixture(scope="module")
def topics() -> list[Topic]:
    return find_topics(())


def test_the_page_is_what_the_code_says(topics: list[Topic]) -> None:
    """If it is not: `fairseq2 recipe describe --page > recipes/reference.md`."""
    assert PAGE.read_text(encoding="utf-8") == write_page(topics)


def test_every_setting_has_a_docstring_and_every_number_a_unit(topics: list[Topic]) -> None:
    settings = [(topic.name, item) for topic in topics for item in topic.settings]

    assert len(settings) > 500
    assert [(name, item.key) for name, item in settings if not item.doc] == []
    assert {
        item.key.rpartition(".")[2] for _, item in settings if re.search(r"\b(int|float)\b", item.type) and not item.unit
    } == {"seed"}


def test_names_are_listed_and_described(command: Any) -> None:
    listed = command("recipe", "describe").out
    printed = command("recipe", "describe", "image_pretraining", "regime", "image_base").out

    assert "mask sampler: beit_block, block" in listed and "optimizer: adafactor, adamw, data2vec_adamw" in listed
    assert "batch_size: int = 2048  [samples, >= 1]\n    Images per update, over all ranks." in printed
    assert "image.crop_scale: Sequence[float] = [0.2, 1]  [share, > 0, <= 1]" in printed
    assert "num_steps: int | None = null  [updates, >= 1]" in printed
    # Of an arch what differs from the family alone.
    assert "depth: int = 10  [layers, >= 1, <= 1,000]" in printed and "num_heads" not in printed


def test_sections_of_mappings_and_optional_sections_are_described(topics: list[Topic]) -> None:
    keys = {topic.name: [item.key for item in topic.settings] for topic in topics if topic.kind in ("criterion", "model family")}

    assert "modalities.NAME.masking" in keys["data2vec2"]
    assert "beam_search.beam_size" in keys["ctc"]
    assert "audio.decoder.kernel_size" in keys["data2vec"]


def test_an_unknown_name_is_answered_by_a_suggestion(command: Any) -> None:
    outcome = command("recipe", "describe", "data2vek2")

    assert outcome.status == 2
    assert outcome.err.startswith("fairseq2: error: `data2vek2` is not a known name to describe. Did you mean `data2vec2`?")


def test_what_an_extension_registers_is_described(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from d2v_plugin.plugin import MaskSampler, register\n"
        "@dataclass(kw_only=True)\n"
        "class Config:\n"
        "    '''Settings of mine.'''\n"
        "    width: int = 3\n"
        "    '''How wide it is.'''\n"
        "def setup_fairseq2_extension(container):\n"
        "    register(container, MaskSampler, 'mine', object, Config)\n"
    )
    outcome = command("recipe", "describe", "mine", "--extension", path)

    assert outcome.status == 0, outcome.err
    assert (
        "mask sampler mine\nSettings of mine." in outcome.out and "width: int = 3  [number]\n    How wide it is." in outcome.out
    )
