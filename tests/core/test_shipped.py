"""Recipes and small datasets that came with the package are found by name, from any folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.cli.words import find_recipe_file
from d2v_plugin.core.shipped import SHIPPED, find_shipped
from d2v_plugin.data.dataset import ImageManifest, ManifestConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_lead_to_what_is_shipped_unless_there_is_a_file() -> None:
    recipe, data = Path("demo/digits.yaml"), Path("manifests/digits")
    assert find_shipped(recipe) == find_shipped("recipes" / recipe) == ROOT / "recipes" / recipe
    assert find_shipped(data) == ROOT / data
    recipe.parent.mkdir()
    recipe.touch()

    assert find_shipped(recipe) == recipe
    # Nothing else of a checkout is found, and what is nowhere keeps its name.
    for name in ("tests/conftest.py", "../recipes/demo/digits.yaml", "demo/digit.yaml", str(ROOT / "nothing")):
        assert find_shipped(Path(name)) == Path(name)


def test_the_flag_takes_names_in_both_spellings() -> None:
    path = str(SHIPPED / "recipes" / "image" / "pretrain_base.yaml")

    assert find_recipe_file(["--config-file", "image/pretrain_base.yaml", "out"]) == ["--config-file", path, "out"]
    assert find_recipe_file(["--config-file=image/pretrain_base.yaml"]) == [f"--config-file={path}"]
    assert find_recipe_file(["out", "--config-file"]) == ["out", "--config-file"]


def test_commands_find_them(command: Any) -> None:
    listed = command("recipe", "list").out
    dumped = command("recipe", "train", "--config-file", "image/pretrain_base.yaml", "--dump-config")

    assert "\n  image/pretrain_base.yaml  data2vec 2.0" in listed
    assert dumped.status == 0 and "image_base" in dumped.out
    assert len(ImageManifest.open(ManifestConfig(path=Path("manifests/digits"))).split("train")) == 1200


def is_made(path: Path) -> bool:
    """Tell if it is of a dataset that a user may have made (tests/test_install.py compares the places that say so)."""
    return path.parts[1].startswith(("english", "fashion", "prompts", "signals"))


def test_wheels_have_them_and_nothing_of_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=300)
    shipped = tmp_path / "lib" / "d2v_plugin" / "shipped"
    files = [path for path in shipped.rglob("*") if path.is_file()]

    assert {path.name for path in shipped.iterdir()} == {"recipes", "manifests", "CHANGELOG.md"}
    for folder in ("recipes", "manifests"):
        there = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {path.relative_to(shipped) for path in (shipped / folder).rglob("*") if path.is_file()} == {
            path for path in there if path.suffix not in (".py", ".png", ".pyc") and not is_made(path)
        }
    assert sum(path.stat().st_size for path in files) < 12e6
    assert [path for path in files if path.suffix == ".yaml" and str(ROOT) in path.read_text(encoding="utf-8")] == []
