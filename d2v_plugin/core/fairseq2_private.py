"""Every private name of fairseq2 0.8.1 that this package relies on, each with its reason.

An upgrade of fairseq2 begins here: ``tests/core/test_fairseq2_private.py`` asks the installed version for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import fairseq2.recipe  # first: fairseq2.composition and others cannot be imported before it

# isort: split
import fairseq2.runtime.dependency

# The library of fairseq2 in a container of our own: its public way fills a container for the whole process.
from fairseq2.composition import _register_library as register_library
from fairseq2.optim.lr_schedulers import AbstractLRScheduler

# The steps of `fairseq2.recipe.cli.main`, which logs a traceback for a mistyped key before anyone else sees the exception.
from fairseq2.recipe.cli import _handle_errors as handle_errors
from fairseq2.recipe.cli import _main as run_main
from fairseq2.recipe.cli import _parse_args as parse_args
from fairseq2.recipe.cli import _register_main as register_main

# Which names are registered: a component manager only tells whether one is.
from fairseq2.recipe.component import _ComponentEntry as ComponentEntry
from fairseq2.recipe.component import _StandardComponentManager as StandardComponentManager
from fairseq2.recipe.composition import _register_inference_recipe as register_inference_recipe
from fairseq2.recipe.composition import _register_train_recipe as register_train_recipe

# The whole configuration of a recipe, for tools that run its parts by themselves.
from fairseq2.recipe.internal.config import _is_train_config as is_train_config
from fairseq2.recipe.internal.config import _RecipeConfigHolder as RecipeConfigHolder

# The sections of a run, with all components that their settings name.
from fairseq2.recipe.internal.config import _StandardRecipeConfigStructurer as ConfigStructurer

# The configuration of a model after its overrides.
from fairseq2.recipe.internal.model import _ModelHolder as ModelHolder

# Tells a run that is being set up from one that has begun.
from fairseq2.recipe.internal.task import _TaskRunner as TaskRunner
from fairseq2.recipe.run import _swap_default_resolver as swap_default_resolver
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.trainer import Trainer
from fairseq2.utils.progress import ProgressReporter
from torch.optim import Optimizer

__all__ = [
    "ComponentEntry",
    "ConfigStructurer",
    "ModelHolder",
    "RecipeConfigHolder",
    "StandardComponentManager",
    "TaskRunner",
    "handle_errors",
    "is_train_config",
    "parse_args",
    "register_inference_recipe",
    "register_library",
    "register_main",
    "register_train_recipe",
    "run_main",
    "swap_default_resolver",
]

MEMBERS: Final = {
    DependencyContainer: ["_registrations"],
    Trainer: ["_num_batches_read", "_metric_bag", "_optimizer", "_lr_scheduler", "_save_checkpoint"],
    AbstractLRScheduler: ["_compute_lrs", "_last_lr"],
}
"""Private members by class, as the functions below use them."""

# Keys of `Trainer.state_dict()`, by which a checkpoint is fitted to other ranks and other schedules.
METRICS_KEY: Final = "_metric_bag"
GENERATORS_KEY: Final = "_rng_bag"
SCHEDULE_KEY: Final = "_lr_scheduler"
STEP_KEY: Final = "_step_nr"


def current_resolver() -> DependencyResolver | None:
    """fairseq2's objects of this process; None = it has not been initialised, which the public getter answers by an error."""
    return fairseq2.runtime.dependency._resolver


def remove_provider(container: DependencyContainer, kls: type[object]) -> None:
    """Forget who provides ``kls``: what fairseq2 registers before a recipe cannot be replaced otherwise."""
    del container._registrations[kls, None]


def read_config_once(container: DependencyContainer) -> None:
    """Keep the configuration once it is read: fairseq2 reads and checks it anew for each of the 38 parts that a run asks for."""
    container._registrations[RecipeConfigHolder, None].singleton = True


def find_progress_bars(reporter: ProgressReporter) -> object:
    """The object of ``rich`` that draws progress bars, whose texts the reporter fixes; None without bars (``--no-rich``)."""
    return getattr(reporter, "_progress", None)


def set_rates(trainer: Trainer) -> None:
    """Give the optimizer the rates that the scheduler has for its position, which fairseq2 does only by a step."""
    optimizer: Optimizer = trainer._optimizer
    scheduler = trainer._lr_scheduler
    assert isinstance(scheduler, AbstractLRScheduler)
    rates: Sequence[Any] = scheduler._compute_lrs()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = list(rates)


def count_unpublished(trainer: Trainer) -> int:
    """Batches read since metrics were last published."""
    return trainer._num_batches_read


def restore_unpublished(trainer: Trainer, num_batches: int, metrics: Mapping[str, object]) -> None:
    """Go on with an unfinished interval of metrics, which fairseq2 resets when it resumes."""
    trainer._num_batches_read = num_batches
    trainer._metric_bag.load_state_dict(dict(metrics))


def save_checkpoint(trainer: Trainer) -> None:
    """Save the current update: the only way to a checkpoint that no interval asks for."""
    trainer._save_checkpoint(blocking=True)
