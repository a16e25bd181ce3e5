"""Learning pieces: of lines of any length, and with advice that leads somewhere."""

from __future__ import annotations

import re

import pytest
import sentencepiece
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.preparation import pieces
from d2v_plugin.data.preparation.documents import Document
from d2v_plugin.data.preparation.text import train_tokenizer

SPECIAL = {"bos_id": -1, "eos_id": -1, "pad_id": -1, "unk_id": 0, "character_coverage": 1.0}


@pytest.mark.parametrize("line", ["zymurgy quixotic " * 600, "zymurgy▅quixotic " * 600, "▅ zymurgy quixotic"])
def test_long_lines_and_reserved_characters_reach_the_trainer(line: str) -> None:
    model = pieces.learn_pieces([line] * 20, size=30, num_more=1, source="text", **SPECIAL)

    assert len(sentencepiece.SentencePieceProcessor(model_proto=model).encode("zymurgy")) <= 2


def test_text_without_spaces_is_cut_between_characters() -> None:
    parts = list(pieces._cut("日本語" * 5000))

    assert "".join(parts) == "日本語" * 5000
    assert max(len(part.encode()) for part in parts) <= 4192 and len(parts) == 11
    assert list(pieces._cut("short")) == ["short"]
    words = list(pieces._cut("word " * 2000))
    assert "".join(words) == "word " * 2000 and all(part.split() == ["word"] * len(part.split()) for part in words)


@pytest.mark.parametrize(("size", "advice"), [(100, "larger"), (30_000, "smaller")])
def test_the_advice_about_a_vocabulary_works(size: int, advice: str) -> None:
    documents = [Document("a", ["alpha beta gamma delta"])] * 5
    with pytest.raises(RecipeError, match=f"try a {advice}") as caught:
        train_tokenizer(documents, size)
    (right,) = re.findall(r"(?:need|most) (\d+)", str(caught.value))
    train_tokenizer(documents, int(right))
    with pytest.raises(RecipeError):
        train_tokenizer(documents, int(right) + (1 if advice == "smaller" else -1))


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(RecipeError, match="there is no text in it"):
        train_tokenizer([], 300)
