"""Folders as a newcomer has them: classes of pictures, recordings of several rates, texts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchvision.io import write_png

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "rain",
    "fell",
    "and",
    "dogs",
    "slept",
    "near",
    "old",
    "walls",
    "of",
    "stone",
]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures in two folders, one that is broken, and a note beside them."""
    folder = tmp_path_factory.mktemp("own") / "my photos"
    for number in range(60):
        kind, place = number % 2, folder / ("bright" if number % 2 else "very dark")
        place.mkdir(parents=True, exist_ok=True)
        write_png(torch.full((3, 40, 48), 40 + 150 * kind + number, dtype=torch.uint8), str(place / f"{number}.png"))
    (folder / "bright" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "README.txt").write_text("my photos")

    return folder


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 recordings of half a second, at two rates, in two folders, and one that is broken."""
    folder = tmp_path_factory.mktemp("own") / "my sounds"
    for number in range(40):
        place, rate = folder / ("low" if number % 2 else "high"), 16_000 if number % 3 else 22_050
        place.mkdir(parents=True, exist_ok=True)
        time = np.arange(rate // 2) / rate
        soundfile.write(place / f"{number}.wav", 0.3 * np.sin(2 * np.pi * time * (200 if number % 2 else 900) + number), rate)
    (folder / "low" / "broken.wav").write_bytes(b"RIFF")

    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text, compressed text, and labelled JSON lines, one of which is broken."""
    folder = tmp_path_factory.mktemp("own") / "my texts"
    folder.mkdir()
    generator = np.random.default_rng(1)
    paragraphs = [" ".join(generator.choice(WORDS, 12)) + "." for _ in range(200)]
    (folder / "plain.txt").write_text("\n\n".join(paragraphs[:60]))
    (folder / "more.txt.gz").write_bytes(gzip.compress("\n\n".join(paragraphs[60:120]).encode()))
    lines = [json.dumps({"text": text, "label": "short" if i % 2 else "long"}) for i, text in enumerate(paragraphs[120:])]
    (folder / "labelled.jsonl").write_text("\n".join([*lines, "{"]))

    return folder
