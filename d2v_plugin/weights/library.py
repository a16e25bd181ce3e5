"""fairseq2's objects: loaders, cards and downloads."""

from __future__ import annotations

from functools import cache
from typing import Final

from fairseq2.composition import register_package_assets
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver

from d2v_plugin.core.fairseq2_private import current_resolver, register_library
from d2v_plugin.models.families import is_registered, register_models

CARDS: Final = "d2v_plugin.weights.cards"
"""The package with the cards of published models."""


def library() -> DependencyResolver:
    """fairseq2's objects: those of the process if it has initialised fairseq2, otherwise our own, which change nothing global."""
    return current_resolver() or _own_library()


def register_cards(container: DependencyContainer) -> None:
    """Register the published models by name."""
    register_package_assets(container, CARDS)


@cache
def _own_library() -> DependencyContainer:
    container = DependencyContainer()
    register_library(container, no_progress=True)
    if not is_registered(container):
        register_models(container)
        register_cards(container)

    return container
