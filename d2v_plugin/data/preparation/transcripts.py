"""SentencePiece models for speech recognition, trained on transcripts."""

from __future__ import annotations

from pathlib import Path

import sentencepiece
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.data.preparation.common import TRAIN
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
    texts = (text for row in range(len(lines)) if (text := " ".join(lines.text(row).split())))
    path = folder / SENTENCEPIECE_FILE
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts,
            model_prefix=str(path.with_suffix("")),
            model_type="bpe",
            # The unknown piece is none that is put out.
            vocab_size=vocabulary_size + 1,
            character_coverage=1.0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RecipeError(f"No {vocabulary_size} pieces could be learned from {lines.path}; try fewer. {error}") from None
    path.with_suffix(".vocab").unlink(missing_ok=True)

    return path
