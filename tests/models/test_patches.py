"""Images of any shape: rectangles, other numbers of channels, other sizes than the model's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.criteria.data2vec1.criterion import Data2Vec1Config, Data2Vec1Criterion
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.criteria.targets import normalize_patches
from d2v_plugin.masking.random_blocks import BlockMaskConfig, InverseBlockMaskSampler
from d2v_plugin.masking.spans_and_beit import BeitBlockMaskConfig, BeitBlockMaskSampler
from d2v_plugin.models.data2vec1.archs import vision_tiny
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.frontends.image import SinusoidalPositions
from d2v_plugin.models.families import create_model
from d2v_plugin.models.positions import resize_absolute, resize_relative

SHAPE: dict[str, Any] = {"image_size": (16, 48), "patch_size": (4, 8), "num_channels": 4}


def make_model(arch: str) -> Any:
    config = vision_tiny() if arch == "vision_tiny" else ARCHS[arch]()
    assert config.image is not None
    return create_model(replace(config, image=replace(config.image, **SHAPE)))  # type: ignore[type-var]


@pytest.mark.parametrize("arch", ["image_tiny", "vision_tiny"])
def test_rectangles_of_several_channels_and_sizes_train(arch: str) -> None:
    torch.manual_seed(0)
    model = make_model(arch)
    criterion: Any
    if arch == "image_tiny":
        sampler = InverseBlockMaskSampler(BlockMaskConfig(ratio=0.75, block_size=2))
        config = Data2Vec2Config(num_views=2, reconstruction_weight=1.0)
        criterion = Data2Vec2Criterion(config, dict.fromkeys(Modality, sampler))
    else:
        criterion = Data2Vec1Criterion(Data2Vec1Config(), BeitBlockMaskSampler(BeitBlockMaskConfig(num_patches=9, min_block=4)))
    criterion.build(model)
    model.criterion = criterion

    # As the model is, larger, and turned: one model for all of them.
    for height, width in ((16, 48), (24, 64), (32, 24)):
        batch = Batch(Modality.IMAGE, torch.randn(2, 4, height, width), torch.arange(2))
        output = model(batch, StepInfo(number=1, seed=0))
        output.loss.backward()
        features = model.extract_features(batch.inputs)

        assert features.grid == (height // 4, width // 8)
        assert features.x.size(1) == height // 4 * (width // 8)
        assert criterion.masks_of(model, batch, StepInfo(number=1, seed=0)).shape[2:] == features.grid
        assert torch.isfinite(output.loss)
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())


@pytest.mark.parametrize("arch", ["image_tiny", "vision_tiny"])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3, 16, 48), r"must be images of 4 channel\(s\), \(N, C, H, W\), but has the shape \(2, 3, 16, 48\)"),
        (torch.zeros(2, 4, 16, 44), r"must divide into patches of 4 x 8 pixels, but has the shape \(2, 4, 16, 44\)"),
    ],
)
def test_what_patches_do_not_divide_is_refused(arch: str, inputs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(arch).extract_features(inputs)
    config = ARCHS["image_tiny"]()
    assert config.image is not None
    with pytest.raises(ValueError, match=r"`patch_size` must divide `image_size` \(\[16, 48\]\), but is \[4, 7\]"):
        create_model(replace(config, image=replace(config.image, image_size=(16, 48), patch_size=(4, 7))))


def test_positions_stretch_with_the_grid() -> None:
    positions = SinusoidalPositions((4, 8), 16)
    own, finer = positions.positions.unflatten(1, (4, 8)), positions((8, 24)).unflatten(1, (8, 24))

    # Three patches in the place of one across: the middle one has its position; and only its column.
    assert torch.equal(positions((4, 8)), positions.positions)
    torch.testing.assert_close(finer[:, 0, 1::3, :8], own[:, 0, :, :8])
    # What is computed is what is interpolated, but for the error of interpolation.
    smooth = SinusoidalPositions((16, 16), 16)
    difference = smooth((20, 24)) - resize_absolute(smooth.positions, (16, 16), (20, 24))
    assert float(difference.unflatten(1, (20, 24))[:, 3:-3, 3:-3].abs().max()) < 0.05


def test_biases_belong_to_distances_in_the_image() -> None:
    # 3 x 5 patches have 5 x 9 offsets; a bias of the offset across alone.
    across = torch.arange(9.0).repeat(5, 1).reshape(-1, 1)
    table = torch.cat([across, torch.tensor([[7.0], [8.0], [9.0]])])

    resized = resize_relative(table, (3, 5), (6, 5))

    torch.testing.assert_close(resized[:-3].view(11, 9), torch.arange(9.0).expand(11, 9))
    assert resized[-3:, 0].tolist() == [7.0, 8.0, 9.0]


def test_patches_of_rectangles_are_normalised() -> None:
    images = torch.randn(2, 3, 8, 12)

    patches = normalize_patches(images, (4, 6))

    second = images[0, :, :4, 6:].permute(1, 2, 0).flatten()
    torch.testing.assert_close(patches[0, 1], (second - second.mean()) / second.std(), atol=1e-5, rtol=1e-5)
