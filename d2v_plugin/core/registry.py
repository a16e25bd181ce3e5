"""Named components: tasks, criteria, mask samplers and probes, on fairseq2's own component mechanism.

A component is a base class, a name, a configuration dataclass and a factory. Users add theirs from an extension file::

    def setup_fairseq2_extension(container):
        register(container, Criterion, "mine", MyCriterion, MyConfig)

and select it in YAML by ``name``; ``config`` is then read as ``MyConfig``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar, cast

from fairseq2.recipe.component import ComponentManager, ComponentNotKnownError, register_component
from fairseq2.recipe.config import SupportsStructure, structure_component_config
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from typing_extensions import override

from d2v_plugin.core.fairseq2_private import ComponentEntry

T = TypeVar("T")
ConfigT = TypeVar("ConfigT")


def register(
    container: DependencyContainer,
    base: type[T],
    name: str,
    factory: Callable[..., T],
    config_kls: type[ConfigT],
    *,
    with_resolver: bool = False,
) -> None:
    """Make ``factory(config)`` available as the ``base`` called ``name``.

    :param base: the registry: ``Task``, ``Criterion``, ``MaskSampler`` or ``Probe``.
    :param factory: usually the class itself; called with an instance of ``config_kls``.
    :param with_resolver: call ``factory(resolver, config)``, for components that are made of others.
    :raises RecipeError: the name is taken.
    """
    if name in registered_names(container, base):
        raise RecipeError(f"{kind_of(base)} `{name}` is already registered; choose another name.")

    register_component(container, base, name, config_kls, factory if with_resolver else lambda resolver, config: factory(config))


def registered_names(resolver: DependencyResolver, base: type[object]) -> list[str]:
    """List the names registered for ``base``, sorted."""
    keys = cast("list[tuple[type[object], str]]", list(resolver.iter_keys(ComponentEntry)))

    return sorted(name for kls, name in keys if kls is base)


def create(resolver: DependencyResolver, base: type[T], section: ComponentSection) -> T:
    """Build the component that ``section`` names.

    :raises RecipeError: the name is unknown, or the settings are impossible.
    :raises TypeError: the section's ``config`` is not an instance of the component's configuration.
    """
    with _errors_of(resolver, base, section.name):
        return resolver.resolve(ComponentManager).create_component(base, section.name, section.config)


@contextmanager
def _errors_of(resolver: DependencyResolver, base: type[object], name: str) -> Iterator[None]:
    """Name the component in whatever is wrong with it."""
    try:
        yield
    except ComponentNotKnownError as ex:
        raise unknown_component(resolver, ex) from None
    except ValueError as ex:
        raise RecipeError(f"{kind_of(base)} `{name}`: {ex}") from ex


def unknown_component(resolver: DependencyResolver, ex: ComponentNotKnownError) -> RecipeError:
    """Make the error that names what is registered instead."""
    return RecipeError(unknown_name(kind_of(ex.component_kls), ex.name, registered_names(resolver, ex.component_kls)))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say in a sentence that there is no ``kind`` of this name, what may have been meant, and what there is."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""

    return f"`{name}` is not a known {kind}.{hint} Known: {', '.join(known) or 'none'}."


def kind_of(base: type[object]) -> str:
    """The registry's name in a sentence: ``MaskSampler`` -> ``mask sampler``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", base.__name__).lower()


@dataclass(kw_only=True)
class ComponentSection(SupportsStructure):
    """A ``{name, config}`` section of a recipe; subclasses set the registry they select from."""

    base: ClassVar[type[Any]]

    name: str
    """The registered name."""

    config: object = field(default_factory=dict)
    """Settings of the component; what is not named keeps the component's own default."""

    @override
    def structure(self, resolver: DependencyResolver) -> None:
        config = {} if self.config is None else self.config
        with _errors_of(resolver, self.base, self.name):
            self.config = structure_component_config(resolver, self.base, self.name, config)


def structure_nested(resolver: DependencyResolver, settings: object) -> None:
    """Structure a section and those inside of it, as fairseq2 does with the configuration of a recipe.

    :raises RecipeError: a section names what is not registered.
    """
    if isinstance(settings, ComponentSection):
        settings.structure(resolver)
    inner: Iterable[object] = ()
    if isinstance(settings, list | dict):
        inner = settings.values() if isinstance(settings, dict) else settings
    elif is_dataclass(settings):
        inner = [getattr(settings, part.name) for part in fields(settings)]
    for part in inner:
        structure_nested(resolver, part)
