from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo, Views
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.data.text import Tokenizer
from d2v_plugin.masking.random_blocks import BlockMaskConfig, InverseBlockMaskSampler, RandomMaskConfig, RandomMaskSampler
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.pictures import recorder as album_module
from d2v_plugin.pictures.drawing import MASK_COLOUR, cover
from d2v_plugin.pictures.features import colour_by_components, draw_history
from d2v_plugin.pictures.inputs import draw_masks, spread_mask
from d2v_plugin.pictures.recorder import Album, PicturesSection, Sheet, draw_sheet
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


def test_a_sheet_has_all_pictures_and_leaves_the_model_as_it_was(model: Data2VecModel, batch: Batch) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    generator_state = torch.random.get_rng_state()
    model.train()
    sheet = draw_sheet(model, model.criterion, batch, STEP)

    assert {"masks", "features", "similarities"} <= set(sheet.pictures)
    assert all(len(numbers) == len(model.blocks) for numbers in sheet.numbers.values())
    assert {"student_effective_rank", "teacher_deviation", "token_similarity"} <= set(sheet.numbers)
    assert model.training and torch.equal(torch.random.get_rng_state(), generator_state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_masked_patches_are_painted_over() -> None:
    mask = torch.zeros(16, dtype=torch.bool)
    mask[5] = True
    covered = cover(torch.zeros(3, 8, 8, dtype=torch.uint8), spread_mask(mask, 8, 8, modality=Modality.IMAGE), strength=1.0)

    assert covered[:, 2:4, 2:4].flatten(1).unique(dim=1).flatten().tolist() == list(MASK_COLOUR)
    assert covered.sum() == sum(MASK_COLOUR) * 4


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
        assert MASK_COLOUR in {colour for _, colour in picture.getcolors(1 << 20)}  # type: ignore[union-attr]


def test_equal_tokens_have_equal_colours() -> None:
    tokens = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    x = tokens[torch.tensor([[0, 1, 2, 3, 0, 1]])]
    colours = colour_by_components(x)

    assert torch.equal(colours[0, 0], colours[0, 4]) and torch.equal(colours[0, 1], colours[0, 5])
    assert len(colours[0].unique(dim=0)) == 4


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


MakeAlbum = Callable[..., tuple[Album, Clock, list[int]]]


@pytest.fixture
def make_album(model: Data2VecModel, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeAlbum:
    def make(cost: float = 1.0, **settings: Any) -> tuple[Album, Clock, list[int]]:
        clock, drawn = Clock(), []

        def draw(model: object, criterion: object, batch: Batch, step: StepInfo, spell: object) -> Sheet:
            assert batch.num_examples == 3
            clock.now += cost
            drawn.append(step.number)

            return Sheet({"masks": Image.new("RGB", (4, 4))}, {"student_deviation": [1.0, 2.0]})

        monkeypatch.setattr(album_module, "draw_sheet", draw)
        album = Album(PicturesSection(every_n_steps=10, **settings), model, tmp_path, seed=1, clock=clock)
        album.watch(batch)

        return album, clock, drawn

    return make


def test_pictures_wait_until_they_fit_into_their_share_of_the_time(make_album: MakeAlbum) -> None:
    album, clock, drawn = make_album(cost=1.0, max_share=0.01)
    for step in range(1, 1001):
        clock.now += 1.0
        album.after_step(step)

    assert drawn[0] == 1
    assert 4 <= len(drawn) <= 10
    assert len(drawn) * 1.0 <= 0.01 * clock.now


def test_pictures_come_in_growing_distances(make_album: MakeAlbum) -> None:
    album, clock, drawn = make_album(cost=0.0)
    for step in range(1, 100_001):
        clock.now += 1.0
        album.after_step(step)

    assert drawn[:3] == [1, 11, 21]
    assert len(drawn) < 100


def test_the_latest_pictures_and_all_numbers_are_kept(make_album: MakeAlbum, tmp_path: Path) -> None:
    album, _, _ = make_album()
    album.draw(10)
    album.draw(20)
    album.draw(20)  # the end of a run, right after a sheet

    lines = tmp_path.joinpath("pictures", "layers.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    assert tmp_path.joinpath("pictures", "student_deviation.png").is_file()
    assert list(tmp_path.joinpath("tb", "pictures").glob("events*"))


def test_a_failed_picture_ends_the_pictures_and_not_the_run(make_album: MakeAlbum, monkeypatch: pytest.MonkeyPatch) -> None:
    album, _, drawn = make_album()

    def fail(*args: object) -> Sheet:
        raise RuntimeError("no space")

    monkeypatch.setattr(album_module, "draw_sheet", fail)
    album.draw(10)
    album.draw(20)
    album.after_step(1000)

    assert drawn == []


def test_history_is_drawn_by_layer() -> None:
    assert draw_history([[0.0, 1.0], [0.5, 2.0]], [1, 10], "deviation").width > 400


def test_pictures_do_not_change_training(command: Callable[..., Any], tiny_recipe: Path, tmp_path: Path) -> None:
    losses = []
    for enabled in ("true", "false"):
        out = tmp_path / enabled
        settings = (f"pictures.enabled={enabled}", "pictures.every_n_steps=1", "pictures.max_share=1.0")
        assert command("recipe", "train", "--config-file", tiny_recipe, out, "--config", *settings).status == 0
        losses.append([json.loads(line)["Loss"] for line in out.joinpath("metrics", "train.jsonl").read_text().splitlines()])
        assert out.joinpath("pictures", "features.png").is_file() == (enabled == "true")

    assert losses[0] == losses[1]
