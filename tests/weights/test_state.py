from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec2.archs import audio_tiny, text_tiny
from d2v_plugin.weights.state import Mismatch, build_skeleton, compare


def test_equal_weights_do_not_differ() -> None:
    state = build_skeleton(text_tiny(), num_tensors=100).state_dict()

    compare(state, state).raise_if_any("never")


def test_a_report_fits_the_screen_whatever_is_wrong() -> None:
    keys = [f"part{i}.weight" for i in range(1000)]
    mismatch = Mismatch(keys, keys, dict.fromkeys(keys, "(1,) instead of (2,)"), [f"`{key}` differs" for key in keys])

    with pytest.raises(CheckpointError) as info:
        mismatch.raise_if_any("headline:")
    lines = str(info.value).splitlines()
    assert lines[0] == "headline:"
    assert len(lines) <= 21
    assert lines.count("    … and 997 more") == 4


def test_a_skeleton_takes_no_memory() -> None:
    model = build_skeleton(replace(text_tiny(), dim=2**15), num_tensors=100)

    assert all(parameter.is_meta for parameter in model.parameters())


def test_more_layers_than_tensors_are_not_believed() -> None:
    with pytest.raises(CheckpointError, match="describes 1000000000000016 layers"):
        build_skeleton(replace(audio_tiny(), depth=10**15), num_tensors=100)


def test_floating_point_types_are_interchangeable() -> None:
    mismatch = compare({"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.zeros(2).half(), "b": torch.zeros(2).int()})

    assert mismatch.wrong == {"b": "int32 instead of floating point"}
