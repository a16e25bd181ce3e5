"""Ranges of numbers in configurations of models, which both families share.

The upper bounds are far above any model there is. They keep a slip of the keyboard from being an hour of allocating memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from d2v_plugin.core.ranges import Range

Size = Annotated[int, Range(">= 1, <= 65,536")]
"""A width, or how many of something there are side by side."""

Length = Annotated[int, Range(">= 1, <= 1,048,576")]
"""Of a sequence."""

Depth = Annotated[int, Range(">= 1, <= 1,000")]

Count = Annotated[int, Range(">= 0, <= 1,000")]
"""Of layers that may be left out."""

TokenId = Annotated[int, Range(">= 0, <= 4,194,304")]

Factor = Annotated[float, Range(">= 0, <= 1e6")]

Ratio = Annotated[float, Range(">= 1e-3, <= 1e3")]

Epsilon = Annotated[float, Range(">= 1e-30, <= 1")]


def check_parameters(count: float, what: str, settings: str) -> Iterator[tuple[bool, str]]:
    """Check that a part of a model has fewer than 100 billion parameters, before anything takes memory for them.

    :param count: about how many it has.
    :param settings: that make it so large.
    """
    yield count >= 1e11, f"{settings} give {what} {count:.0e} parameters; there must be fewer than 1e+11."
