"""Recipes inherit from others."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.verbs.inheritance import read_chain, resolve_bases


@pytest.fixture
def heir(tiny_recipe: Path) -> Path:
    """A recipe in a folder of its own, one generation below another, below the tiny recipe."""
    (tiny_recipe.parent / "a").mkdir()
    middle = tiny_recipe.parent / "a" / "middle.yaml"
    middle.write_text("base: ../tiny.yaml\nregime: {num_steps: 7}\ncommon: {seed: 5}\ncriterion: {config: {noise_std: 0.5}}\n")
    path = tiny_recipe.parent / "a" / "heir.yaml"
    path.write_text("base: middle.yaml\nregime: {num_steps: 8}\nmodel: {path: '${dir}/x.pt'}\n")

    return path


def dump(command: Any, *words: object) -> dict[str, Any]:
    from ruamel.yaml import YAML

    outcome = command("recipe", "train", *words, "--dump-config")
    assert outcome.status == 0, outcome.err

    return YAML(typ="safe", pure=True).load(outcome.out)  # type: ignore[no-any-return]


def test_a_recipe_differs_from_its_base_in_what_it_says(command: Any, tiny_recipe: Path, heir: Path) -> None:
    base, config = dump(command, "--config-file", tiny_recipe), dump(command, "--config-file", heir)

    assert config["regime"]["num_steps"] == 8 and config["common"]["seed"] == 5
    assert config["criterion"]["config"]["noise_std"] == 0.5
    assert config["model"]["path"] == str(heir.parent / "x.pt")
    base["regime"]["num_steps"], base["common"]["seed"], base["model"]["path"] = 8, 5, config["model"]["path"]
    base["criterion"]["config"]["noise_std"] = 0.5
    assert config == base


def test_the_command_line_has_the_last_word(command: Any, heir: Path) -> None:
    config = dump(command, "--config-file", heir, "--config", "regime.num_steps=9", "common.seed=1")

    assert config["regime"]["num_steps"] == 9 and config["common"]["seed"] == 1


def test_another_component_does_not_inherit_the_settings_of_the_bases(command: Any, heir: Path) -> None:
    heir.write_text("base: middle.yaml\ncriterion: {_del_: [config], name: mae}\n")

    config = dump(command, "--config-file", heir)

    assert config["criterion"]["name"] == "mae" and config["criterion"]["config"]["decoder_depth"] == 8


def test_the_folder_of_each_file_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "root.yaml").write_text("a: 1")
    (tmp_path / "sub" / "one.yaml").write_text("base: ../root.yaml\nb: ['${dir}/b']")
    (tmp_path / "two.yaml").write_text("base: sub/one.yaml\nc: {d: '${dir}/d'}")

    root, heirs = read_chain(tmp_path / "two.yaml")

    assert root.resolve() == tmp_path / "root.yaml"
    assert heirs == [{"b": [f"{tmp_path}/sub/b"]}, {"c": {"d": f"{tmp_path}/d"}}]


def test_a_file_becomes_the_first_of_all_overrides(tiny_recipe: Path) -> None:
    tiny_recipe.write_text("b: 2")
    for path, own in ((None, []), (tiny_recipe, [{"b": 2}])):
        resolved = resolve_bases(Namespace(config_file=path, config_overrides=[{"a": 1}], dump_config=True))
        assert (resolved.config_file, resolved.config_overrides, resolved.dump_config) == (None, [*own, {"a": 1}], True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere.yaml", "`base` is nowhere.yaml, but .*nowhere.yaml does not exist"),
        ("base: [a]", "`base` must be the path of a recipe file"),
        ("base: heir.yaml", "inherits from .*heir.yaml itself"),
        ("base: broken.yaml", "broken.yaml, a base of this recipe, cannot be read"),
    ],
)
def test_a_wrong_base_is_one_line(command: Any, heir: Path, text: str, message: str) -> None:
    (heir.parent / "broken.yaml").write_text("a: [")
    heir.write_text(text)

    with pytest.raises(RecipeError, match=message):
        read_chain(heir)
    outcome = command("recipe", "train", "--config-file", heir, "--dump-config")
    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert str(heir) in outcome.err.splitlines()[-1] or "broken.yaml" in outcome.err.splitlines()[-1]
