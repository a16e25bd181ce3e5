"""Streams of random numbers: one list for the whole package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import torch

from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.random import Stream, row_keys

PACKAGE = Path(__file__).parents[2] / "d2v_plugin"


def find_streams() -> Iterator[tuple[str, str]]:
    """Every `stream=…` and `Stream.…` of the package: the place, and what stands there."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "stream":
                yield f"{path.relative_to(PACKAGE)}:{node.value.lineno}", ast.unparse(node.value)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Stream":
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", ast.unparse(node)


def test_every_stream_is_in_the_list_and_in_use() -> None:
    known = {f"Stream.{name}" for name in Stream.__members__}
    used = dict(find_streams())

    assert {place: stream for place, stream in used.items() if stream not in known} == {}
    assert set(used.values()) == known


def test_no_two_streams_are_the_same_and_numbers_keep_their_meaning() -> None:
    """A resumed run must go on with the numbers it would have had."""
    assert max(Stream) < 1000  # the rest is for extensions
    assert len({int(stream) for stream in Stream.__members__.values()}) == len(Stream.__members__)
    assert {name: int(stream) for name, stream in Stream.__members__.items()} == {
        "WINDOWS": 0,
        "CELLS": 1,
        "NOISE": 2,
        "DROPOUT": 3,
        "ROUNDING": 16,
        "TOKEN_KINDS": 17,
        "TOKENS": 18,
        "BLOCKS": 19,
        "FRAMES": 32,
        "NUM_FRAME_SPANS": 33,
        "CHANNELS": 34,
        "NUM_CHANNEL_SPANS": 35,
        "FRAME_NOISE": 36,
        "HIDDEN_FRAMES": 37,
        "HIDDEN_BANDS": 38,
        "PARTNERS": 40,
        "SHARES": 41,
        "DISTRACTORS": 48,
        "GUMBEL": 49,
        "LAYERS": 64,
    }


def test_keys_of_a_step_are_those_of_its_seed_and_number() -> None:
    ids = torch.tensor([5, 2**40 + 5])

    assert torch.equal(StepInfo(number=7, seed=3).keys(ids, num_views=4), row_keys(3, 7, ids, 4))
    assert StepInfo(number=7, seed=3).keys(ids).shape == (2,)
