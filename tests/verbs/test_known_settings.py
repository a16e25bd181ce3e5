"""What the reference says of ranges, what is checked before anything heavy is imported, and the classes agree at every edge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from fairseq2.models import ModelFamily
from fairseq2.optim.lr_schedulers import LRScheduler
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.structured import StandardValueConverter
from torch.optim import Optimizer

from d2v_plugin.cli.describe.fields import Described, describe_field
from d2v_plugin.cli.describe.topics import VERBS
from d2v_plugin.core.fairseq2_private import ComponentEntry, register_library, register_train_recipe
from d2v_plugin.core.ranges import find_ranges
from d2v_plugin.core.validation import Checked
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.probing.base import Probe
from d2v_plugin.tasks.base import Task
from d2v_plugin.verbs.known_settings import KnownSettings
from d2v_plugin.verbs.train.recipe import TrainRecipe

COMPONENTS: dict[type[object], str] = {
    Task: "task",
    Criterion: "criterion",
    MaskSampler: "criterion.config.masking",
    Probe: "probing.probes.0",
    Optimizer: "optimizer",
    LRScheduler: "lr_scheduler",
}


def find_owners(kls: Any, path: Sequence[str]) -> Iterator[tuple[Any, Sequence[str]]]:
    """A class and those of its sections, each with the keys that lead to it."""
    if is_dataclass(kls):
        yield kls, path
        for name, hint in get_type_hints(kls).items():
            keys = [name, "image"] if get_origin(hint) is dict else [name]
            for part in (hint, *get_args(hint)):
                yield from find_owners(part, [*path, *keys])


def find_places() -> Iterator[tuple[Any, str, Sequence[str], dict[str, str]]]:
    """Every configuration class: the verb, the keys that lead to it, and what stands beside the last of them."""
    container = DependencyContainer()
    register_library(container)
    register_train_recipe(container, TrainRecipe(()))
    for verb, config in VERBS.items():
        yield config, verb, [], {}
    for base, name in container.iter_keys(ComponentEntry):
        if base in COMPONENTS:
            kls = container.resolve(ComponentEntry, key=(base, name)).config_kls
            yield kls, "train", [*COMPONENTS[base].split("."), "config"], {"name": name}
    for name in ("data2vec", "data2vec1"):
        kls = container.resolve(ModelFamily, key=name).config_kls
        yield kls, "train", ["model", "config_overrides"], {"family": name}


def find_edges(setting: Described) -> Iterator[Any]:
    """Values beside and at each bound, in the form of the type."""
    is_float = "float" in setting.type
    for bound in filter(None, setting.range.removesuffix(" or null").split(", ")):
        limit = float(bound.split(" ")[1].replace(",", ""))
        step = max(abs(limit) * 1e-3, 1e-33)
        for value in (limit - step, limit, limit + step, math.nan) if is_float else map(int, (limit - 1, limit, limit + 1)):
            if setting.type.startswith("list[tuple["):
                yield [[1, value, 1]]
            else:
                yield [value, value] if setting.type.startswith(("list[", "tuple[", "Sequence[")) else value


def write_recipe(path: Sequence[str], value: Any, place: Sequence[str], beside: dict[str, str]) -> Any:
    recipe = value
    for key in reversed(path):
        recipe = [recipe] if key == "0" else {key: recipe}
    holder = recipe
    for key in place[:-1]:
        holder = holder[0 if key == "0" else key]
    holder.update(beside)

    return recipe


def test_page_and_classes_agree_on_every_range() -> None:
    known, count = KnownSettings(extended=False), 0
    for kls, verb, place, beside in find_places():
        for owner, path in find_owners(kls, place):
            for name in get_type_hints(owner):
                outcomes = set()
                for value in find_edges(describe_field(owner, name, "")):
                    recipe = write_recipe([*path, name], value, place, beside)
                    early = [text for _, text in known.find_mistakes(recipe, verb)]
                    instance = StandardValueConverter().structure({name: value}, owner)
                    told = [text for text in instance.validate().errors if text.startswith(f"`{name}` must be")]
                    outcomes.add(bool(early))
                    if name in find_ranges(owner):
                        # Without what an overriding method finds besides.
                        late = [text for text in told if text in Checked.validate(instance).errors]
                        assert early == [f"`{'.'.join(path)}`: {text}" if path else text for text in late], (owner, name, value)
                    elif value == value:  # fairseq2 takes NaN
                        assert bool(early) == bool(told), (owner, name, value)
                assert outcomes in (set(), {False, True}), (owner, name)
                count += bool(outcomes)

    assert count > 240
