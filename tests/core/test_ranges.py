"""What is in a range and what is not, and the one sentence that says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from d2v_plugin.core.ranges import PositiveInt, Range, Share, find_ranges


@pytest.mark.parametrize(
    ("text", "right", "wrong", "message"),
    [
        (">= 1", [1, True, 10**30, None, "report"], 0, "at least 1, but is 0"),
        (">= 1", [], -(10**20), "at least 1, but is -1e+20"),
        (">= 0", [0.0, float("inf")], float("nan"), "at least 0, but is nan"),
        ("> 0 or null", [1e-9, None], 0.0, "greater than 0 or null, but is 0.0"),
        ("> 0, <= 1", [1.0], 1.1, "greater than 0 and at most 1, but is 1.1"),
        (">= 1, < 1e6", [1], float("inf"), "at least 1 and less than 1e6, but is inf"),
        (">= -1, <= 65,536", [-1, 65_536, [2, (3, 4)]], [2, (3, 65_537)], "between -1 and 65,536, but is 65,537"),
    ],
)
def test_numbers_out_of_range_are_named(text: str, right: list[Any], wrong: Any, message: str) -> None:
    assert [Range(text).find_mistake("x", value) for value in right] == [""] * len(right)
    assert Range(text).find_mistake("x", wrong) == f"`x` must be {message}."


def test_ranges_stand_in_types() -> None:
    @dataclass
    class Base:
        betas: tuple[Share, Share] = (0.9, 0.98)
        count: PositiveInt | None = None
        name: str = ""

    @dataclass
    class Config(Base):
        count: Annotated[int | None, Range("> 1")] = 3

    assert find_ranges(Base) == {"betas": Range(">= 0, < 1"), "count": Range(">= 1")}
    assert find_ranges(Config)["count"] == Range("> 1")
