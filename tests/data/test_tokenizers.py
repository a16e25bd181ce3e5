"""Vocabularies: GPT-2's BPE gives the ids of fairseq's models, in fairseq's files and in Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fairseq2.recipe.error import RecipeError
from transformers import RobertaTokenizer

from d2v_plugin.data.tokenizers import open_tokenizer

BOOKS = Path(__file__).parents[2] / "manifests" / "books"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
MERGES = "#version: 0.2\nt h\nĠ th\nĠth e\ni s\nĠ is\n"
# Single bytes, then what merges make of them.
PIECES = [*"abcdefghijklmnopqrstuvwxyzTĠ.Ã©", "th", "Ġth", "Ġthe", "is", "Ġis"]
TEXTS = ["This is the thesis.", "the café", "is", "  a  b"]


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    folder = tmp_path / "hugging_face"
    folder.mkdir()
    names = [*SPECIAL, *reversed(PIECES), "<mask>"]
    folder.joinpath("vocab.json").write_text(json.dumps({name: token for token, name in enumerate(names)}))
    folder.joinpath("merges.txt").write_text(MERGES)

    return folder


@pytest.fixture
def fairseq(tmp_path: Path) -> Path:
    """The same vocabulary; the dictionary orders the pieces, and is filled up."""
    folder = tmp_path / "fairseq"
    folder.mkdir()
    folder.joinpath("encoder.json").write_text(json.dumps({piece: number for number, piece in enumerate(PIECES)}))
    folder.joinpath("vocab.bpe").write_text(MERGES)
    numbers = [str(number) for number in reversed(range(len(PIECES)))]
    folder.joinpath("dict.txt").write_text("".join(f"{symbol} 7\n" for symbol in [*numbers, "madeupword0000"]))

    return folder


def test_ids_are_those_of_hugging_faces_tokenizer(hugging_face: Path) -> None:
    reference = RobertaTokenizer(str(hugging_face / "vocab.json"), str(hugging_face / "merges.txt"))
    tokenizer = open_tokenizer(hugging_face)

    for text, tokens in zip(TEXTS, tokenizer.encode_lines(TEXTS), strict=True):
        assert tokens.tolist() == reference(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode([0, *tokens.tolist(), 2, 1]) == text
    assert tokenizer.vocabulary.size == len(reference) and tokenizer.vocabulary.mask == reference.mask_token_id


def test_fairseqs_files_give_the_same_ids(hugging_face: Path, fairseq: Path) -> None:
    ours, theirs = open_tokenizer(hugging_face), open_tokenizer(fairseq)

    for ids, others in zip(ours.encode_lines(TEXTS), theirs.encode_lines(TEXTS), strict=True):
        assert ids.tolist() == others.tolist()
    assert theirs.vocabulary.size == ours.vocabulary.size + 1  # what fills it up


def test_a_byte_order_mark_in_any_file_of_a_vocabulary_is_ignored(hugging_face: Path, fairseq: Path) -> None:
    def encode() -> list[list[int]]:
        return [tokens.tolist() for folder in (hugging_face, fairseq) for tokens in open_tokenizer(folder).encode_lines(TEXTS)]

    expected = encode()
    for path in (*hugging_face.iterdir(), *fairseq.iterdir()):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert encode() == expected


def test_special_tokens_in_a_text_are_text(hugging_face: Path) -> None:
    (tokens,) = open_tokenizer(hugging_face).encode_lines(["s</s>"])

    assert 2 not in tokens.tolist()


def test_a_sentencepiece_model_is_found() -> None:
    tokenizer = open_tokenizer(BOOKS)
    (tokens,) = tokenizer.encode_lines(["A hacker, n."])

    assert tokenizer.vocabulary.size == 2000 and tokenizer.decode(tokens.tolist()) == "A hacker, n."


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, hugging_face: Path) -> None:
    (tmp_path / "sentencepiece.model").write_bytes((BOOKS / "sentencepiece.model").read_bytes())
    declared = json.loads((BOOKS / "vocabulary.json").read_text()) | {"size": 999}
    (tmp_path / "vocabulary.json").write_text(json.dumps(declared))
    with pytest.raises(RecipeError, match=r"declares 999 ids, but .* has 2,000"):
        open_tokenizer(tmp_path)

    pieces = json.loads((hugging_face / "vocab.json").read_text())
    (hugging_face / "vocab.json").write_text(json.dumps({name: token for name, token in pieces.items() if name != "<mask>"}))
    with pytest.raises(RecipeError, match="`<mask>` as the last id"):
        open_tokenizer(hugging_face)

    (hugging_face / "merges.txt").write_text("not merges at all\n")
    with pytest.raises(RecipeError, match="no vocabulary of byte-level BPE"):
        open_tokenizer(hugging_face)

    with pytest.raises(RecipeError, match="holds no vocabulary"):
        open_tokenizer(tmp_path / "nowhere")
