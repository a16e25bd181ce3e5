from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.pictures.figures import Figures
from d2v_plugin.training import picture_recorder
from d2v_plugin.training.picture_recorder import PictureRecorder, PicturesSection


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


MakeRecorder = Callable[..., tuple[PictureRecorder, Clock, list[int]]]


@pytest.fixture
def make_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRecorder:
    model = create_model(ARCHS["image_tiny"]())
    batch = Batch(Modality.IMAGE, torch.zeros(4, 3, 32, 32), torch.arange(10, 14))

    def make(cost: float = 1.0, **settings: Any) -> tuple[PictureRecorder, Clock, list[int]]:
        clock, drawn = Clock(), []

        def draw(model: object, criterion: object, batch: Batch, step: StepInfo, spell: object) -> Figures:
            assert batch.num_examples == 3
            clock.now += cost
            drawn.append(step.number)

            return Figures({"masks": Image.new("RGB", (4, 4))}, {"student_deviation": [1.0, 2.0]})

        monkeypatch.setattr(picture_recorder, "draw_figures", draw)
        recorder = PictureRecorder(PicturesSection(every_n_steps=10, **settings), model, tmp_path, seed=1, clock=clock)
        recorder.after_forward(batch, LossOutput(torch.zeros(()), num_targets=1))

        return recorder, clock, drawn

    return make


def finish_update(recorder: PictureRecorder, step: int) -> None:
    recorder.after_update(step, norm=1.0, losses=[1.0], skipped=False)


def test_pictures_wait_until_they_fit_into_their_share_of_the_time(make_recorder: MakeRecorder) -> None:
    recorder, clock, drawn = make_recorder(cost=1.0, max_share=0.01)
    for step in range(1, 1001):
        clock.now += 1.0
        finish_update(recorder, step)

    assert drawn[0] == 1
    assert 4 <= len(drawn) <= 10
    assert len(drawn) * 1.0 <= 0.01 * clock.now


def test_pictures_come_in_growing_distances(make_recorder: MakeRecorder) -> None:
    recorder, clock, drawn = make_recorder(cost=0.0)
    for step in range(1, 10_001):
        clock.now += 1.0
        finish_update(recorder, step)

    assert drawn[:3] == [1, 11, 21]
    assert len(drawn) < 60


def test_the_latest_pictures_and_all_numbers_are_kept(make_recorder: MakeRecorder, tmp_path: Path) -> None:
    recorder, _, _ = make_recorder()
    recorder.draw(10)
    recorder.draw(20)
    recorder.at_end(20)  # right after figures

    lines = tmp_path.joinpath("pictures", "layers.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    assert tmp_path.joinpath("pictures", "student_deviation.png").is_file()
    assert list(tmp_path.joinpath("tb", "pictures").glob("events*"))


def test_without_matplotlib_there_is_one_warning_and_all_numbers(
    make_recorder: MakeRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(picture_recorder, "can_draw", lambda: False)
    monkeypatch.setattr(picture_recorder.log, "warning", lambda text, *args: warnings.append(text))
    recorder, _, _ = make_recorder()
    recorder.draw(10)
    recorder.draw(20)

    assert len(warnings) == 1 and "pip install matplotlib" in warnings[0]
    assert len((tmp_path / "pictures" / "layers.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "pictures" / "student_deviation.png").exists()


def test_a_failed_picture_ends_the_pictures_and_not_the_run(make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, _, drawn = make_recorder()

    def fail(*args: object) -> Figures:
        raise RuntimeError("no space")

    monkeypatch.setattr(picture_recorder, "draw_figures", fail)
    recorder.draw(10)
    recorder.draw(20)
    finish_update(recorder, 1000)

    assert drawn == []


def test_pictures_do_not_change_training(command: Callable[..., Any], tiny_recipe: Path, tmp_path: Path) -> None:
    losses = []
    for enabled in ("true", "false"):
        out = tmp_path / enabled
        settings = (f"pictures.enabled={enabled}", "pictures.every_n_steps=1", "pictures.max_share=1.0")
        assert command("recipe", "train", "--config-file", tiny_recipe, out, "--config", *settings).status == 0
        losses.append([json.loads(line)["Loss"] for line in out.joinpath("metrics", "train.jsonl").read_text().splitlines()])
        assert out.joinpath("pictures", "features.png").is_file() == (enabled == "true")

    assert losses[0] == losses[1]
