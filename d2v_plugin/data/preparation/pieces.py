"""Learning the pieces of a SentencePiece model."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece
from fairseq2.recipe.error import RecipeError

# The trainer leaves out longer lines; those are cut between words, where pieces end anyway.
_MAX_BYTES = 4192
# The trainer leaves out lines with this, its own sign for what it does not know.
_RESERVED = "\u2585"


def learn_pieces(lines: Iterable[str], *, size: int, num_more: int, source: str, **options: Any) -> bytes:
    """Train a SentencePiece BPE model on lines of any length; returns its file.

    :param size: what the user asked for, in the error.
    :param num_more: pieces of the model beyond ``size``.
    :param source: where the lines come from, for the error.
    :param options: more options of the trainer.
    :raises RecipeError: so many pieces cannot be learned; says how many can.
    """
    model = io.BytesIO()  # a model that the trainer writes itself names its folder inside
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for line in lines for part in _cut(line.replace(_RESERVED, " "))),
            model_writer=model,
            model_type="bpe",
            vocab_size=size + num_more,
            minloglevel=2,
            **options,
        )
    except (RuntimeError, ValueError) as error:
        raise RecipeError(f"No {size} pieces could be learned from {source}{_advise(str(error), num_more)}") from None

    return model.getvalue()


def _advise(error: str, num_more: int) -> str:
    """What to do about an error of the trainer."""
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return f": its characters alone need {int(found[1]) - num_more}; try a larger `--vocabulary-size`."
    if found := re.search(r"Please set it to a value <= (\d+)", error):
        return f": it has at most {int(found[1]) - num_more}; try a smaller one (`--vocabulary-size`), or more text."
    if "sentences_.empty()" in error:
        return ": there is no text in it."
    return f": {error}"


def _cut(line: str) -> Iterator[str]:
    """Pieces of at most :data:`_MAX_BYTES`: of whole words, unless one alone is longer."""
    data = line.encode()
    start = 0
    while len(data) - start > _MAX_BYTES:
        end = data.rfind(b" ", start, start + _MAX_BYTES + 1)
        if end <= start:
            end = start + _MAX_BYTES
            while data[end] & 0xC0 == 0x80:  # inside of a character
                end -= 1
        yield data[start:end].decode()
        start = end
    yield data[start:].decode()
