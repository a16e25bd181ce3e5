"""Settings that count updates fit the length of the run, in every recipe of the repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.recipe import config as sections
from fairseq2.recipe.cli import _RecipeConfigLoader, _register_main
from fairseq2.recipe.internal import lr_schedulers as factories
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import ObjectValidator
from ruamel.yaml import YAML

from d2v_plugin.core.fairseq2_private import register_library, register_train_recipe
from d2v_plugin.verbs.recipe_files import look_up, merge, nest, read_whole
from d2v_plugin.verbs.train.config import TrainConfig
from d2v_plugin.verbs.train.fitting import ANNEALING, WARMUP, Fitted, ShareError
from d2v_plugin.verbs.train.recipe import TrainRecipe

ROOT = Path(__file__).parents[3] / "recipes"
READ = {path: read_whole(path) for path in sorted(ROOT.rglob("*.yaml"))}
RECIPES = [path for path, overrides in READ.items() if {"regime", "task"} <= merge(overrides).keys()]
FACTORIES = {
    "cosine_annealing": factories._CosineAnnealingLRFactory,
    "tri_stage": factories._TriStageLRFactory,
    "polynomial_decay": factories._PolynomialDecayLRFactory,
    "passthrough": None,
}
PUBLISH, VALIDATE, CHECKPOINT, KEEP = (
    f"regime.{name}_every_n_steps" for name in ("publish_metrics", "validate", "checkpoint", "keep_checkpoint")
)


def fit(recipe_steps: int | None = None, **flat: Any) -> Fitted:
    return Fitted(nest({key.replace("__", "."): value for key, value in flat.items()}), recipe_steps)


@pytest.fixture(scope="module")
def load() -> Callable[[list[Mapping[str, Any]]], TrainConfig]:
    """Reads and checks a configuration as the runner does."""
    from argparse import Namespace

    container, recipe = DependencyContainer(), TrainRecipe()
    register_library(container)
    register_train_recipe(container, recipe)
    _register_main(container, Namespace(config_file=None, config_overrides=[], output_dir=None, checkpoint_dir=None), recipe)
    loader, validator = container.resolve(_RecipeConfigLoader), container.resolve(ObjectValidator)

    def run(overrides: list[Mapping[str, Any]]) -> TrainConfig:
        config = loader.load(TrainConfig, None, overrides)  # type: ignore[arg-type]
        validator.validate(config)
        assert isinstance(config, TrainConfig)
        return config

    return run


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_can_be_made_shorter_by_its_number_of_updates_alone(load: Any, path: Path) -> None:
    overrides = READ[path]
    published = look_up(merge(overrides), "regime.num_steps")
    assert Fitted(merge(overrides), published).changes == {}  # at its own length it is what it says

    for num_steps in (20, 1):
        shorter = [*overrides, {"regime": {"num_steps": num_steps}}]
        fitted = Fitted(merge(shorter), published)
        config = load([*shorter, nest(fitted.changes)])

        assert config.regime.num_steps == num_steps
        factory = FACTORIES[config.lr_scheduler.name]
        if factory is not None:
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
            regime = sections.RegimeSection(num_steps=num_steps)
            scheduler = factory(optimizer, regime).create(config.lr_scheduler.config)
            scheduler.last_epoch = num_steps - 1
            assert all(rate >= 0.0 for rate in scheduler._compute_lrs())


def test_there_are_recipes() -> None:
    assert len(RECIPES) > 90


def test_a_warm_up_keeps_its_share_of_a_shorter_run() -> None:
    fitted = Fitted(nest({"regime.num_steps": 50, WARMUP: 60, ANNEALING: 400}), 500)

    assert fitted.changes == {WARMUP: 6, ANNEALING: 40}
    assert f"`{WARMUP}` is 6 instead of 60: the same share of 50 updates as of the 500 of the recipe." in fitted.notes


@pytest.mark.parametrize(
    ("num_steps", "recipe_steps", "warmup", "expected"),
    [
        (500, 500, 500, 50),
        (500, None, 500, 50),
        (500, 400, 600, None),
        (100, 500, 60, None),
        (1, 500, 60, 0),
        (600, 500, 60, None),
    ],
)
def test_a_warm_up_is_shorter_than_the_run(num_steps: int, recipe_steps: int | None, warmup: int, expected: int | None) -> None:
    fitted = Fitted(nest({"regime.num_steps": num_steps, WARMUP: warmup}), recipe_steps)

    assert fitted.changes.get(WARMUP) == expected and len(fitted.notes) == len(fitted.changes)


def test_a_teacher_that_anneals_beyond_the_end_of_its_recipe_still_does() -> None:
    assert Fitted(nest({"regime.num_steps": 50, ANNEALING: 700}), 500).changes == {}


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ({PUBLISH: 20, VALIDATE: 50}, {VALIDATE: 40}),
        ({PUBLISH: 20, VALIDATE: 55}, {VALIDATE: 60}),
        ({PUBLISH: 200, VALIDATE: 50}, {PUBLISH: 50}),
        ({PUBLISH: 20, CHECKPOINT: 30, KEEP: 70}, {CHECKPOINT: 40, KEEP: 80}),
        ({PUBLISH: 20, VALIDATE: 100, CHECKPOINT: 100}, {}),
        ({PUBLISH: 20, VALIDATE: 40, CHECKPOINT: 60, "regime.keep_best_n_checkpoints": 1}, {CHECKPOINT: 80}),
        ({PUBLISH: 0, VALIDATE: 50}, {}),
        ({PUBLISH: None, VALIDATE: 50, CHECKPOINT: 33}, {}),
    ],
)
def test_intervals_are_multiples_of_each_other(intervals: dict[str, Any], expected: dict[str, int]) -> None:
    fitted = Fitted(nest({"regime.num_steps": 1000, **intervals}))

    assert fitted.changes == expected and len(fitted.notes) == len(expected)


def test_shares_are_counted_in_updates_and_make_multiples() -> None:
    fitted = Fitted(nest({"regime.num_steps": 430, WARMUP: "10%", PUBLISH: "2%", VALIDATE: "20%", ANNEALING: "0.1%"}))

    assert fitted.changes == {WARMUP: 43, PUBLISH: 9, VALIDATE: 90, ANNEALING: 1}
    assert nest(fitted.changes)["lr_scheduler"] == {"config": {"num_warmup_steps": 43}}


@pytest.mark.parametrize("share", ["110%", "-1%", "ten%", "10 %", "%", "many"])
def test_a_share_is_a_percentage(share: str) -> None:
    with pytest.raises(ShareError, match="a share of the run from 0% to 100%, such as 10%"):
        fit(regime__num_steps=10, regime__validate_every_n_steps=share)


def test_all_wrong_shares_are_named_and_need_a_length() -> None:
    with pytest.raises(ShareError) as caught:
        Fitted(nest({VALIDATE: "10%", WARMUP: "110%"}))

    assert len(str(caught.value).splitlines()) == 2 and "set `regime.num_steps`" in str(caught.value)


def test_a_run_follows_shares_and_says_what_it_fitted(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ["lr_scheduler.config.num_warmup_steps=50%", "regime.validate_every_n_steps=3", "regime.num_steps=2"]

    outcome = command("recipe", "train", "--no-rich", "--config-file", tiny_recipe, tmp_path / "out", "--config", *settings)

    assert outcome.status == 0, outcome.err
    config = YAML(typ="safe").load(tmp_path / "out" / "config.yaml")
    assert config["lr_scheduler"]["config"]["num_warmup_steps"] == 1 and config["regime"]["validate_every_n_steps"] == 4
    assert "`regime.validate_every_n_steps` is 4 instead of 3" in outcome.err
    assert "Memory of the process at the most" not in outcome.err  # only after three updates
    again = command("recipe", "train", "--config-file", tmp_path / "out" / "config.yaml", "--dump-config")
    assert YAML(typ="safe").load(again.out) == config
