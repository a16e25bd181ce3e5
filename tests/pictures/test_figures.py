"""Figures of a model: what is drawn and measured, what the axes say, and that training does not notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
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
from d2v_plugin.pictures.canvas import TINT, render
from d2v_plugin.pictures.curves import draw_history, draw_scales
from d2v_plugin.pictures.features import color_by_components, draw_features, draw_similarities
from d2v_plugin.pictures.figures import draw_figures
from d2v_plugin.pictures.masks import draw_masks
from d2v_plugin.pictures.samplers import draw_samplers
from d2v_plugin.pictures.words import COLUMNS, wrap

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
    return Batch(Modality.IMAGE, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(10, 12))


@pytest.fixture
def sound() -> Batch:
    """A second, and half a second with padding."""
    padding_mask = torch.zeros(2, 16_000, dtype=torch.bool)
    padding_mask[1, 8000:] = True

    return Batch(Modality.AUDIO, torch.randn(2, 16_000), torch.arange(2), padding_mask, min_length=8000)


def labels_of(figure: Any) -> set[str]:
    return {text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel()) if text}


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

    assert masks is not None and masks.shape == (2, 2, 8, 8)
    assert torch.equal(masks.view(4, 64).nonzero()[:, 1].view(4, -1), seen[0])


def test_figures_have_all_pictures_and_leave_the_model_as_it_was(model: Data2VecModel, batch: Batch) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    generator_state = torch.random.get_rng_state()
    model.train()
    figures = draw_figures(model, model.criterion, batch, STEP)

    assert {"masks", "features", "similarities"} <= set(figures.pictures)
    assert all(picture.width == 1200 for picture in figures.pictures.values())
    assert all(len(numbers) == len(model.blocks) for numbers in figures.numbers.values())
    assert {"student_effective_rank", "teacher_deviation", "token_similarity"} <= set(figures.numbers)
    assert model.training and torch.equal(torch.random.get_rng_state(), generator_state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_without_matplotlib_there_are_numbers(model: Data2VecModel, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d2v_plugin.pictures.canvas", None)
    figures = draw_figures(model, model.criterion, batch, STEP)

    assert not figures.pictures and "token_similarity" in figures.numbers


def test_training_loads_no_matplotlib_before_it_draws() -> None:
    code = "import sys, fairseq2.recipe, d2v_plugin.training.picture_recorder, d2v_plugin.verbs.inspect.recipe; "
    code += "sys.exit('matplotlib' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


def test_masked_patches_are_tinted_and_seen_through(batch: Batch) -> None:
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, 1, 1] = True
    figure = draw_masks(batch, masks)
    whole, view = figure.axes[:2]
    image, tint = view.images

    assert whole.get_title() == "Input" and view.get_title() == "View 1" and whole.get_ylabel() == "Sample 10\nPixels"
    assert len(whole.images) == 1 and np.array_equal(whole.images[0].get_array(), image.get_array())
    assert image.get_extent() == tint.get_extent() == [0, 32, 32, 0]
    assert np.argwhere(tint.get_array()[..., 3] > 0).tolist() == [[1, 1]]
    assert 0.0 < TINT[3] < 1.0 and np.allclose(tint.get_array()[1, 1], TINT)


def test_masks_of_sound_lie_over_seconds_and_end_where_padding_begins(sound: Batch) -> None:
    figure = draw_masks(sound, torch.ones(2, 1, 49, dtype=torch.bool))
    axes = [axes for axes in figure.axes if len(axes.images) == 2]

    assert {"Time (s)", "Level (dB)", "Input\nkHz", "View 1\nkHz"} == labels_of(figure)
    assert [a.images[1].get_extent() for a in axes] == [[0, 1.0, 0, 8.0], [0, 0.5, 0, 8.0]]
    assert all(a.get_xlim() == (0, 1.0) for a in axes)


def test_masked_words_stay_words() -> None:
    spell = Tokenizer(ROOT / "manifests" / "books" / "sentencepiece.model").pieces
    text = Batch(Modality.TEXT, torch.randint(5, 300, (2, 20), generator=torch.Generator().manual_seed(0)), torch.arange(2))
    figure = draw_masks(text, RandomMaskSampler(RandomMaskConfig(ratio=0.5))(torch.arange(2), (20,)).unsqueeze(1), spell)

    assert figure.axes[0].get_title(loc="left").startswith("Sample 0, view 1: ")
    assert figure.axes[0].get_ylabel() == "Token" and figure.axes[0].texts
    assert (
        draw_masks(text, torch.zeros(2, 1, 20, dtype=torch.bool))
        .axes[0]
        .texts[0]
        .get_text()
        .startswith(f"{int(text.inputs[0, 0])} {int(text.inputs[0, 1])} ")
    )


def test_words_are_put_together_and_wrapped() -> None:
    (line,) = wrap(["<s>", "▁the", "▁ca", "t"], [False, True, False, True])
    assert line.text == "<s> the cat" and line.spans == [(4, 3), (10, 1)]

    lines = list(wrap(["▁" + "x" * 60] * 3 + ["▁" + "y" * 500], [True] * 4))
    assert [line.first for line in lines] == [0, 1, 2, 3]
    assert all(len(line.text) <= COLUMNS for line in lines)
    assert [sum(length for _, length in line.spans) for line in lines] == [60, 60, 60, COLUMNS - 1]


def test_features_of_layers_stand_beside_the_input_or_below_it(batch: Batch, sound: Batch) -> None:
    layers = [torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    few = draw_features(batch, layers[:2], layers[2:4], grid=(8, 8))
    many = draw_features(batch, layers, layers, grid=(8, 8))
    assert len(few.axes) == 2 * 3 and len(many.axes) == 2 * 2 * 2
    assert {"Layer", "Student\nPatches", "Teacher\nPatches"} <= labels_of(few) & labels_of(many)

    padding_mask = torch.zeros(2, 64, dtype=torch.bool)
    padding_mask[1, 32:] = True
    strips = draw_features(sound, layers, [], padding_mask)
    assert {"Time (s)", "kHz", "Student\nLayer"} == labels_of(strips)
    # Nothing is known of padding.
    assert (strips.axes[3].images[0].get_array()[:, 32:] == 255).all()
    assert not (strips.axes[3].images[0].get_array()[:, :32] == 255).all()


def test_equal_tokens_have_equal_colors() -> None:
    tokens = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    colors = color_by_components(tokens[torch.tensor([[0, 1, 2, 3, 0, 1]])])

    assert torch.equal(colors[0, 0], colors[0, 4]) and torch.equal(colors[0, 1], colors[0, 5])
    assert len(colors[0].unique(dim=0)) == 4


def test_similarities_show_differences_where_all_tokens_are_alike() -> None:
    alike = 100.0 + torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    figure = draw_similarities(7, [alike, alike.flip(0)])
    shown = figure.axes[0].images[0]
    low, high = shown.get_clim()

    assert figure.axes[0].get_title() == "Layer 0 (1.00)" and labels_of(figure) == {"Token", "Cosine similarity"}
    assert low == -high and 0.1 < high < 0.9
    assert np.asarray(shown.get_array()).std() > 0.1
    assert figure.axes[1].images[0].get_clim() == (low, high)
    # Features that have collapsed entirely, of a single token too.
    assert render(draw_similarities(7, [torch.ones(4, 8)])).width == render(draw_similarities(7, [torch.ones(1, 8)])).width


def test_history_has_curves_over_updates_and_over_layers() -> None:
    figure = draw_history([[0.0, 1.0], [0.5, 2.0], [0.7, 2.5]], [1, 10, 30], "student_effective_rank")
    updates, layers, bar = figure.axes

    assert [line.get_ydata().tolist() for line in updates.lines] == [[0.0, 0.5, 0.7], [1.0, 2.0, 2.5]]
    assert updates.lines[0].get_xdata().tolist() == [1, 10, 30]
    assert [line.get_label() for line in layers.lines] == ["Update 1", "Update 10", "Update 30"]
    assert (updates.get_xlabel(), layers.get_xlabel(), bar.get_ylabel()) == ("Update", "Layer", "Layer")
    assert updates.get_ylabel() == "Effective rank (dimensions)" and updates.get_ylim()[0] == 0.0


def test_scales_have_heads_and_layers() -> None:
    figure = draw_scales(torch.rand(3, 1, 4, 1, 1))

    assert labels_of(figure) == {"Head", "Layer", "Scale"}
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (3, 4)


def test_samplers_can_be_looked_at() -> None:
    samplers = {"random": RandomMaskSampler(RandomMaskConfig()), "inverse": InverseBlockMaskSampler(BlockMaskConfig())}
    grid, sequence = draw_samplers(samplers, (14, 14)), draw_samplers(samplers, (200,))

    assert {"Patches", "Share of 512 masks"} <= labels_of(grid) and {"Token", "Share masked"} <= labels_of(sequence)
    assert all(0.0 <= line.get_ydata().min() <= line.get_ydata().max() <= 1.0 for axes in sequence.axes for line in axes.lines)


def test_the_same_figures_are_the_same_pictures(batch: Batch) -> None:
    masks = torch.rand(2, 2, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    first, second = (np.asarray(render(draw_masks(batch, masks))) for _ in range(2))

    assert first.shape[1:] == (1200, 3) and np.array_equal(first, second)
