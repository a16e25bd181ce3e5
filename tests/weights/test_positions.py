"""Images at another resolution than the checkpoint's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, ImageConfig
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontend_config import ImageFrontendConfig
from d2v_plugin.weights.directory import ModelDirectory, write_directory
from d2v_plugin.weights.loading import load_weights
from d2v_plugin.weights.positions import resize_positions

ABSOLUTE = "modality_encoders.IMAGE.fixed_positional_encoder.positions"
RELATIVE = "encoder.rel_pos_bias.relative_position_bias_table"


def test_absolute_positions_mean_the_same_place_at_any_resolution() -> None:
    # A table of the row and the column, from 0 to 1, at the centres of the patches.
    def ramp(side: int) -> torch.Tensor:
        axis = (torch.arange(side) + 0.5) / side
        return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(1, side * side, 2)

    state = {ABSOLUTE: ramp(8)}
    resize_positions(state, {ABSOLUTE: torch.empty(1, 256, 2)})

    inner = torch.zeros(16, 16, dtype=torch.bool)
    inner[3:13, 3:13] = True
    torch.testing.assert_close(state[ABSOLUTE][0, inner.flatten()], ramp(16)[0, inner.flatten()], rtol=0, atol=0.01)


def test_relative_positions_keep_distance_zero_in_the_middle_and_the_rows_of_the_class_token() -> None:
    table = torch.zeros(7 * 7 + 3, 2)
    table[24] = 1.0  # offset (0, 0) of 4 patches a side
    table[-3:] = torch.tensor([[5.0, 5.0], [6.0, 6.0], [7.0, 7.0]])
    state = {RELATIVE: table}

    resize_positions(state, {RELATIVE: torch.empty(15 * 15 + 3, 2)})

    resized = state[RELATIVE]
    assert resized.shape == (228, 2) and torch.equal(resized[-3:], table[-3:])
    assert int(resized[:-3, 0].argmax()) == 112
    grid = resized[:-3, 0].view(15, 15)
    torch.testing.assert_close(grid, grid.flip(0, 1))


def make_pair(family: str) -> tuple[Any, Any]:
    """A model of 4 patches a side, and another of 6."""
    torch.manual_seed(0)
    if family == "data2vec":
        config = Data2VecConfig(
            image=ImageFrontendConfig(image_size=32, patch_size=8, num_extra_tokens=1), dim=16, depth=2, num_heads=2
        )
        small, large = create_model(config), create_model(replace(config, image=replace(config.image, image_size=48)))
    else:
        image = ImageConfig(image_size=32, patch_size=8)
        old = Data2Vec1ModelConfig(image=image, dim=16, depth=2, num_heads=2, ffn_dim=32)
        # Fine-tuning on the mean of the patches has no final norm.
        new = replace(old, image=replace(image, image_size=48, final_norm=False))
        small, large = create_data2vec1(old), create_data2vec1(new)
        torch.nn.init.normal_(small.get_parameter(RELATIVE))

    return small, large


@pytest.mark.parametrize("family", ["data2vec", "data2vec1"])
def test_a_model_of_another_resolution_starts_from_a_checkpoint(family: str, tmp_path: Path) -> None:
    small, large = make_pair(family)
    write_directory(tmp_path / "small", ModelDirectory(config=small.config, student=small.state_dict()))

    load_weights(large, tmp_path / "small")

    name = "modality_encoders.IMAGE.extra_tokens" if family == "data2vec" else "cls_emb"
    assert torch.equal(large.get_parameter(name), small.get_parameter(name))
    # An image without detail has the same features in the middle.
    large.eval(), small.eval()
    flat = torch.ones(1, 3, 1, 1)
    coarse = small.extract_features(flat.expand(1, 3, 32, 32)).layers[-1].mean(1)
    fine = large.extract_features(flat.expand(1, 3, 48, 48)).layers[-1].mean(1)
    assert float(torch.cosine_similarity(coarse, fine).detach()) > 0.95


def test_another_patch_size_is_refused(tmp_path: Path) -> None:
    small, _ = make_pair("data2vec")
    write_directory(tmp_path / "small", ModelDirectory(config=small.config, student=small.state_dict()))
    other = create_model(replace(small.config, image=replace(small.config.image, patch_size=16)))

    with pytest.raises(CheckpointError, match="local_encoder"):
        load_weights(other, tmp_path / "small")
