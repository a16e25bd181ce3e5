"""The vocabularies that text models come with: SentencePiece (this package's), and GPT-2's byte-level BPE (fairseq's models)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from fairseq2.recipe.error import RecipeError
from tokenizers import Tokenizer as Pipeline
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from d2v_plugin.data.lines import read_json, read_lines
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.text import (
    BEGINNING,
    END,
    NUM_SPECIAL,
    PADDING,
    SENTENCEPIECE_FILE,
    UNKNOWN,
    VOCABULARY_FILE,
    TokenIds,
    Tokenizer,
    Vocabulary,
)

_HUGGING_FACE_FILES = ("vocab.json", "merges.txt")
_FAIRSEQ_FILES = ("encoder.json", "vocab.bpe", "dict.txt")
_SPECIAL = {"<s>": BEGINNING, "<pad>": PADDING, "</s>": END, "<unk>": UNKNOWN}


class TextTokenizer(Protocol):
    """Turns text into the token ids of a :class:`~d2v_plugin.data.text.Vocabulary`, and back."""

    vocabulary: Vocabulary

    def encode_lines(self, lines: Sequence[str]) -> list[TokenIds]:
        """The ids of many lines, without special ones."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids; special ones are left out."""


class ByteBPETokenizer:
    """GPT-2's byte-level BPE, with ids in the order of a model."""

    def __init__(self, pieces: Path, merges: Path, dictionary: Path | None = None) -> None:
        """
        :param pieces: the number of each piece (``vocab.json``, ``encoder.json``).
        :param merges: ``merges.txt``, ``vocab.bpe``.
        :param dictionary: fairseq's ``dict.txt``: the order of those numbers in its models; None = ids are these numbers, and
            the special tokens are among the pieces, as in Hugging Face's RoBERTa.
        :raises RecipeError: the special tokens have other ids than in fairseq.
        """
        try:
            vocabulary, problems = read_json(pieces), Problems()
            rules = [line for line in read_lines(merges, problems) if line and not line.startswith("#version")]
            problems.raise_if_any()
            self._pipeline = Pipeline(BPE(vocabulary, [tuple(rule.split(" ")) for rule in rules]))
        except RecipeError:
            raise
        except Exception as error:  # tokenizers raises nothing more specific
            raise RecipeError(f"{pieces} and {merges} are no vocabulary of byte-level BPE: {error}") from None
        self._pipeline.pre_tokenizer = ByteLevel(add_prefix_space=False)
        self._pipeline.decoder = ByteLevelDecoder()
        if dictionary is None:
            found = {name: vocabulary.get(name) for name in (*_SPECIAL, "<mask>")}
            if found != _SPECIAL | {"<mask>": len(vocabulary) - 1}:
                raise RecipeError(f"{pieces} must have {_SPECIAL} and `<mask>` as the last id, but has {found}.")
            self._ids = np.arange(len(vocabulary))
            self.vocabulary = Vocabulary(len(vocabulary))
        else:
            problems = Problems()
            symbols = [line.rsplit(" ", 1)[0] for line in read_lines(dictionary, problems)]
            problems.raise_if_any()
            self._ids = np.full(max(vocabulary.values()) + 1, UNKNOWN)
            for token, symbol in enumerate(symbols, NUM_SPECIAL):
                if symbol.isdecimal() and int(symbol) < len(self._ids):  # others fill up the dictionary
                    self._ids[int(symbol)] = token
            self.vocabulary = Vocabulary(NUM_SPECIAL + len(symbols) + 1)
        self._pieces = {int(token): piece for piece, token in enumerate(self._ids) if token >= NUM_SPECIAL}
        self._pieces.pop(self.vocabulary.mask, None)

    def with_our_ids(self) -> Pipeline:
        """The same BPE with the ids of the vocabulary, special tokens included.

        :raises RecipeError: some pieces have no id.
        """
        model = json.loads(self._pipeline.to_str())["model"]
        pieces = {piece: int(self._ids[number]) for piece, number in model["vocab"].items() if piece not in _SPECIAL}
        pieces |= {"<mask>": self.vocabulary.mask}
        if lost := [piece for piece, token in pieces.items() if token == UNKNOWN]:
            raise RecipeError(f"{len(lost)} of the pieces have no id in the dictionary, such as `{lost[0]}`.")
        pipeline = Pipeline(BPE(_SPECIAL | pieces, [tuple(merge) for merge in model["merges"]]))
        pipeline.pre_tokenizer, pipeline.decoder = self._pipeline.pre_tokenizer, self._pipeline.decoder

        return pipeline

    def encode_lines(self, lines: Sequence[str]) -> list[TokenIds]:
        """See :class:`TextTokenizer`; in threads."""
        found = self._pipeline.encode_batch(list(lines), add_special_tokens=False)
        return [self._ids[np.array(line.ids, dtype=np.int64)] for line in found]

    def decode(self, tokens: Sequence[int]) -> str:
        """See :class:`TextTokenizer`."""
        text: str = self._pipeline.decode([self._pieces[token] for token in tokens if token in self._pieces])
        return text


def holds_vocabulary(folder: Path) -> bool:
    """Tell whether :func:`open_tokenizer` finds something to open."""
    return any(
        all((folder / name).is_file() for name in names) for names in ((SENTENCEPIECE_FILE,), _HUGGING_FACE_FILES, _FAIRSEQ_FILES)
    )


def open_tokenizer(folder: Path) -> TextTokenizer:
    """Open the vocabulary in a folder: ``sentencepiece.model`` as tools/make_manifest.py writes it, GPT-2's BPE as fairseq
    publishes it (``encoder.json``, ``vocab.bpe``, ``dict.txt``) or as Hugging Face does (``vocab.json``, ``merges.txt``).

    :raises RecipeError: there is none, or its files do not belong together.
    """
    if (folder / SENTENCEPIECE_FILE).is_file():
        pieces = Tokenizer(folder / SENTENCEPIECE_FILE)
        if (folder / VOCABULARY_FILE).is_file() and (declared := Vocabulary.load(folder).size) != pieces.vocabulary.size:
            raise RecipeError(
                f"{folder / VOCABULARY_FILE} declares {declared:,} ids, but {folder / SENTENCEPIECE_FILE} has "
                f"{pieces.vocabulary.size:,}; they do not belong together."
            )
        return pieces
    for names in (_HUGGING_FACE_FILES, _FAIRSEQ_FILES):
        if all((folder / name).is_file() for name in names):
            return ByteBPETokenizer(*(folder / name for name in names))

    raise RecipeError(
        f"{folder} holds no vocabulary: neither {SENTENCEPIECE_FILE}, nor {' and '.join(_HUGGING_FACE_FILES)}, nor "
        f"{', '.join(_FAIRSEQ_FILES)}. Name the folder with the vocabulary that the model was pre-trained with."
    )
