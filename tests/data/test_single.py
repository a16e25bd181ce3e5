"""A single file is prepared as the readers of manifests prepare it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.recipe.error import RecipeError
from torchvision.io import write_jpeg, write_png

import d2v_plugin
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.dataset import ManifestConfig, TextManifest
from d2v_plugin.data.tokenizers import open_tokenizer
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask

BOOKS = Path(__file__).parents[2] / "manifests" / "books"


def test_a_recording_is_mono_at_16_khz_and_normalised(tmp_path: Path) -> None:
    time = np.arange(4000) / 8000
    stereo = np.stack([np.sin(2 * np.pi * 300 * time), 0.5 * np.sin(2 * np.pi * 300 * time)], axis=1) * 0.3 + 0.1
    soundfile.write(tmp_path / "sound.wav", stereo, 8000)

    waveform = d2v_plugin.read_audio(tmp_path / "sound.wav")

    assert waveform.shape == (1, 8000) and waveform.dtype == torch.float32
    assert abs(float(waveform.mean())) < 1e-4 and abs(float(waveform.std()) - 1) < 1e-3
    assert float(d2v_plugin.read_audio(tmp_path / "sound.wav", normalize=False).mean()) == pytest.approx(0.1, abs=1e-3)


def test_a_picture_is_resized_cropped_and_normalised(tmp_path: Path) -> None:
    write_jpeg(torch.full((3, 60, 90), 124, dtype=torch.uint8), str(tmp_path / "grey.jpg"))
    image = d2v_plugin.read_image(tmp_path / "grey.jpg")
    assert image.shape == (1, 3, 224, 224)
    assert float(image[0, 0].mean()) == pytest.approx((124 / 255 - 0.485) / 0.229, abs=1e-2)

    half = torch.zeros(3, 32, 64, dtype=torch.uint8)
    half[:, :, 16:48] = 255
    write_png(half, str(tmp_path / "half.png"))
    assert float(d2v_plugin.read_image(tmp_path / "half.png", size=32, eval_resize=1.0).min()) > 1.0  # the margins are cut off


def test_a_text_is_split_as_the_dataset_was(tmp_path: Path) -> None:
    """The text of a row gives the row's tokens."""
    dataset = TextManifest.open(ManifestConfig(path=BOOKS))
    rows = TextPretrainingTask(TextPretrainingConfig()).open(dataset, report=None).open_rows("valid")
    (expected,) = (batch.inputs for batch in rows.read(3, 4, 1))
    tokenizer = open_tokenizer(BOOKS)
    lines: list[list[int]] = [[]]
    for token in expected[0, 1:].tolist():
        lines[-1].append(token)
        if token == 2:
            lines.append([])
    (tmp_path / "letter.txt").write_text("\n\n".join(tokenizer.decode(line) for line in lines if line))

    assert d2v_plugin.read_text(tmp_path / "letter.txt", BOOKS).equal(expected)

    with pytest.raises(RecipeError, match="holds no vocabulary"):
        d2v_plugin.read_text(tmp_path / "letter.txt", tmp_path)


def test_text_without_words_is_the_beginning_alone(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")

    assert d2v_plugin.read_text(tmp_path / "empty.txt", BOOKS).tolist() == [[0]]


def test_what_is_no_recording_or_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"something else")

    for read in (d2v_plugin.read_audio, d2v_plugin.read_image):
        with pytest.raises(RuntimeError):
            read(tmp_path / "file")


@pytest.mark.parametrize(("size", "reason"), [(0, "has no samples"), (300, "is too short: 300 samples")])
def test_a_recording_of_less_than_a_frame_is_refused_by_name(tmp_path: Path, size: int, reason: str) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(size), 16_000)
    with pytest.raises(SampleError, match=rf"short.wav: The recording {reason}"):
        d2v_plugin.read_audio(tmp_path / "short.wav")


def test_a_short_recording_is_read_for_a_model_that_takes_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(300), 16_000)
    assert d2v_plugin.read_audio(tmp_path / "short.wav", min_samples=300).shape == (1, 300)


def test_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (d2v_plugin.read_audio, d2v_plugin.read_image, partial(d2v_plugin.read_text, vocabulary=BOOKS)):
        with pytest.raises(OSError, match="pipe is no file, but a pipe"):
            read(tmp_path / "pipe")
