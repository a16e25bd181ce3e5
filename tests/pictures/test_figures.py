from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo, Views
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.data.text import Tokenizer
from d2v_plugin.masking.random_blocks import BlockMaskConfig, InverseBlockMaskSampler, RandomMaskConfig, RandomMaskSampler
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.pictures.drawing import MASK_COLOR, cover
from d2v_plugin.pictures.features import color_by_components, draw_history
from d2v_plugin.pictures.figures import draw_figures
from d2v_plugin.pictures.inputs import draw_masks, spread_mask
from d2v_plugin.pictures.samplers import draw_samplers

STEP = StepInfo(number=3, seed=5)
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def model() -> Data2VecModel:
    torch.manual_seed(0)
    model = create_model(ARCHS["image_tiny"]())
    samplers = dict.fromkeys(Modality, InverseBlockMaskSampler(BlockMaskConfig()))
    criterion = Data2Vec2Criterion(Data2Vec2Config(num_views=2), samplers)  # type: ignore[arg-type]
    criterion.config.targets.num_layers = 2
    criterion.build(model)
    model.criterion = criterion

    return model


@pytest.fixture
def batch() -> Batch:
    return Batch(Modality.IMAGE, torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(10, 14))


def test_pictures_show_the_masks_that_training_draws(model: Data2VecModel, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    decode = model.decode

    def spy(decoder: Any, x: Tensor, views: Views, noise: Tensor) -> Tensor:
        seen.append(views.masked)
        return decode(decoder, x, views, noise)

    monkeypatch.setattr(model, "decode", spy)
    model(batch, STEP)
    assert model.criterion is not None
    masks = model.criterion.masks_of(model, batch, STEP)

    assert masks is not None and masks.shape == (4, 2, 64)
    assert torch.equal(masks.flatten(0, 1).nonzero()[:, 1].view(8, -1), seen[0])


def test_figures_have_all_pictures_and_leave_the_model_as_it_was(model: Data2VecModel, batch: Batch) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    generator_state = torch.random.get_rng_state()
    model.train()
    figures = draw_figures(model, model.criterion, batch, STEP)

    assert {"masks", "features", "similarities"} <= set(figures.pictures)
    assert all(len(numbers) == len(model.blocks) for numbers in figures.numbers.values())
    assert {"student_effective_rank", "teacher_deviation", "token_similarity"} <= set(figures.numbers)
    assert model.training and torch.equal(torch.random.get_rng_state(), generator_state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_masked_patches_are_painted_over() -> None:
    mask = torch.zeros(16, dtype=torch.bool)
    mask[5] = True
    covered = cover(torch.zeros(3, 8, 8, dtype=torch.uint8), spread_mask(mask, 8, 8, modality=Modality.IMAGE), strength=1.0)

    assert covered[:, 2:4, 2:4].flatten(1).unique(dim=1).flatten().tolist() == list(MASK_COLOR)
    assert covered.sum() == sum(MASK_COLOR) * 4


def test_sound_and_text_can_be_drawn() -> None:
    sampler = RandomMaskSampler(RandomMaskConfig(ratio=0.5))
    masks = sampler(torch.arange(2), (49,)).unsqueeze(1)
    sound = Batch(Modality.AUDIO, torch.randn(2, 16000), torch.arange(2))
    spell = Tokenizer(ROOT / "manifests" / "books" / "sentencepiece.model").pieces
    text = Batch(Modality.TEXT, torch.randint(0, 300, (2, 49)), torch.arange(2))

    assert spell([0, 2])[:2] == ["<s>", "</s>"]
    for picture in (draw_masks(sound, masks), draw_masks(text, masks, spell), draw_masks(text, masks)):
        colours = {colour for _, colour in picture.getcolors(1 << 20)}  # type: ignore[union-attr]
        assert len(colours) > 2


def test_samplers_can_be_looked_at() -> None:
    samplers = {"random": RandomMaskSampler(RandomMaskConfig()), "inverse": InverseBlockMaskSampler(BlockMaskConfig())}
    for shape in ((14, 14), (200,)):
        picture = draw_samplers(samplers, shape)
        assert MASK_COLOR in {colour for _, colour in picture.getcolors(1 << 20)}  # type: ignore[union-attr]


def test_equal_tokens_have_equal_colours() -> None:
    tokens = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    x = tokens[torch.tensor([[0, 1, 2, 3, 0, 1]])]
    colours = color_by_components(x)

    assert torch.equal(colours[0, 0], colours[0, 4]) and torch.equal(colours[0, 1], colours[0, 5])
    assert len(colours[0].unique(dim=0)) == 4


def test_history_is_drawn_by_layer() -> None:
    assert draw_history([[0.0, 1.0], [0.5, 2.0]], [1, 10], "deviation").width > 400
