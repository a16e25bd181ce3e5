"""tools/make_manifest.py for speech recognition."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile

from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.data.transcripts import Pieces, find_lines, read_transcripts

TOOL = Path(__file__).parents[2] / "tools" / "make_manifest.py"


def run(*words: object) -> int:
    """:returns: the exit status."""
    return int(runpy.run_path(str(TOOL))["main"]([str(word) for word in words]))


def test_transcripts_and_pieces_are_made_from_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = tmp_path / "sound"
    sound.mkdir()
    texts = [f"{first} {second}" for first in ("one", "two", "three") for second in ("zero", "nine")]
    for row in range(len(texts)):
        soundfile.write(sound / f"{row}.wav", np.random.default_rng(row).uniform(-0.5, 0.5, 8000), 16_000)
    (tmp_path / "said.tsv").write_text("".join(f"{row}.wav\t{text}\n" for row, text in enumerate(texts)))
    out = tmp_path / "out"

    assert run("audio", sound, out, "--transcripts", tmp_path / "said.tsv", "--valid-percent", 0) == 0
    # Transcripts are no classes.
    assert "#classes" not in (out / "train.tsv").read_text()
    assert run("pieces", out, "--vocabulary-size", 20) == 0

    lines = find_lines(AudioManifest.open(ManifestConfig(path=out)))
    pieces = Pieces(out / "sentencepiece.model")
    assert [lines["train"].text(row) for row in range(len(texts))] == texts
    assert read_transcripts(lines, pieces, pieces.find_labels([]))["train"].num_frames.min() >= 2

    assert run("audio", sound, out, "--transcripts", tmp_path / "said.tsv", "--labels", "folders") == 2
    assert "cannot be combined" in capsys.readouterr().err
