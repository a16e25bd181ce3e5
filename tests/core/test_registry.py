"""Components are found by name, typed by their own configuration, and errors name what there is."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from fairseq2.recipe.component import ComponentManager, _StandardComponentManager
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.structured import StandardValueConverter, StructureError, ValueConverter

from d2v_plugin.core.registry import ComponentSection, create, kind_of, register, registered_names, unknown_name


class Animal(ABC):
    config: Any


@dataclass(kw_only=True)
class DogConfig:
    legs: int = 4

    def __post_init__(self) -> None:
        if self.legs < 0:
            raise ValueError(f"`legs` must be at least 0, but is {self.legs}.")


class Dog(Animal):
    def __init__(self, config: DogConfig) -> None:
        self.config = config
        if config.legs > 100:
            raise ValueError("`legs` must be at most 100.")


@dataclass(kw_only=True)
class CatConfig:
    lives: int = 9
    friend: AnimalSection = field(default_factory=lambda: AnimalSection(name="dog"))


class Cat(Dog):
    pass


@dataclass(kw_only=True)
class AnimalSection(ComponentSection):
    base: ClassVar[type[Animal]] = Animal

    name: str = "dog"


@pytest.fixture
def container() -> DependencyContainer:
    container = DependencyContainer()
    container.register_type(ValueConverter, StandardValueConverter)
    container.register_type(ComponentManager, _StandardComponentManager)
    register(container, Animal, "dog", Dog, DogConfig)
    register(container, Animal, "cat", Cat, CatConfig)  # type: ignore[arg-type]

    return container


def test_a_section_creates_the_component_it_names(container: DependencyContainer) -> None:
    section = AnimalSection(name="dog", config={"legs": 3})
    section.structure(container)

    animal = create(container, Animal, section)

    assert isinstance(animal, Dog) and animal.config == DogConfig(legs=3)


@pytest.mark.parametrize("config", [None, {}])
def test_an_empty_config_means_the_defaults(container: DependencyContainer, config: object) -> None:
    section = AnimalSection(config=config)
    section.structure(container)

    assert section.config == DogConfig()


def test_names_are_listed_per_registry_and_sorted(container: DependencyContainer) -> None:
    assert registered_names(container, Animal) == ["cat", "dog"]
    assert registered_names(container, Dog) == []


def test_an_unknown_name_names_the_registered_ones(container: DependencyContainer) -> None:
    with pytest.raises(RecipeError, match=r"^`dogg` is not a known animal\. Did you mean `dog`\? Known: cat, dog\.$"):
        AnimalSection(name="dogg").structure(container)

    with pytest.raises(RecipeError, match=r"`bird` is not a known animal\. Known: cat, dog\."):
        create(container, Animal, AnimalSection(name="bird"))


def test_a_taken_name_is_refused(container: DependencyContainer) -> None:
    with pytest.raises(RecipeError, match="animal `dog` is already registered"):
        register(container, Animal, "dog", Dog, DogConfig)


def test_an_unknown_key_is_an_error(container: DependencyContainer) -> None:
    with pytest.raises(StructureError):
        AnimalSection(config={"wings": 2}).structure(container)


def test_impossible_settings_name_the_component(container: DependencyContainer) -> None:
    with pytest.raises(RecipeError, match="animal `dog`: `legs` must be at least 0, but is -1"):
        AnimalSection(config={"legs": -1}).structure(container)

    with pytest.raises(RecipeError, match="animal `dog`: `legs` must be at most 100"):
        create(container, Animal, AnimalSection(config=DogConfig(legs=101)))


def test_words_read_like_a_sentence() -> None:
    class MaskSampler: ...

    assert kind_of(MaskSampler) == "mask sampler"
    assert unknown_name("task", "a", []) == "`a` is not a known task. Known: none."
