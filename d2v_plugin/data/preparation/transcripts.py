"""SentencePiece models for speech recognition, trained on transcripts."""

from __future__ import annotations

from pathlib import Path

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.storage import write_atomically
from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.data.preparation.common import TRAIN
from d2v_plugin.data.preparation.pieces import learn_pieces
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.text import SENTENCEPIECE_FILE
from d2v_plugin.data.transcripts import Lines


def train_pieces(folder: Path, vocabulary_size: int) -> Path:
    """Train a SentencePiece BPE model on the transcripts of the training split, and write it beside the manifests.

    Unlike the models of text it has no pieces for single bytes: a CTC model would have an output for each of them.

    :param vocabulary_size: number of pieces; CTC needs at least as many frames as a transcript has pieces.
    :raises RecipeError: there are no transcripts, or not enough for so many pieces.
    """
    dataset = AudioManifest.open(ManifestConfig(path=folder, check_files=False))
    lines = Lines(dataset.split(TRAIN))
    if not lines.is_written():
        raise RecipeError(f"{lines.path} has no transcripts to learn from (manifests/README.md, Transcripts).")
    problems = Problems()
    for row in range(len(lines)):
        if fault := lines.find_fault(row):
            problems.add(*lines.place_of(row), fault)
    problems.raise_if_any()
    texts = (text for row in range(len(lines)) if (text := " ".join(lines.text(row).split())))
    # The unknown piece is none that is put out.
    options = {"character_coverage": 1.0, "bos_id": -1, "eos_id": -1, "pad_id": -1, "unk_id": 0}
    path = folder / SENTENCEPIECE_FILE
    write_atomically(path, learn_pieces(texts, size=vocabulary_size, num_more=1, source=str(lines.path), **options))

    return path
