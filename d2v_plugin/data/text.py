"""Text: vocabularies, tokenizers, and shards of tokens as one stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from d2v_plugin.core.remote import place
from d2v_plugin.core.storage import write_atomically
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.batches import Padded, pad
from d2v_plugin.data.files import Location, check_regular
from d2v_plugin.data.lines import read_content, read_json
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.problems import ManifestError, Problems
from d2v_plugin.data.store_reading import Locate
from d2v_plugin.data.token_files import TokenFile

TokenIds = NDArray[np.int64]

BEGINNING, PADDING, END, UNKNOWN = range(4)
NUM_SPECIAL = 4
VOCABULARY_FILE = "vocabulary.json"
SENTENCEPIECE_FILE = "sentencepiece.model"
_SPECIAL = ("beginning", "padding", "end", "unknown")
_MAX_SIZE = 1 << 31


@dataclass(frozen=True)
class Vocabulary:
    """The token ids of a dataset, laid out as in fairseq: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, pieces, ``<mask>``."""

    size: int
    """Number of ids, ``<mask>`` (the last) included."""

    beginning: int = BEGINNING
    padding: int = PADDING
    end: int = END
    unknown: int = UNKNOWN

    tokenizer: str | None = field(default=None, compare=False)
    """Digest of the SentencePiece model that it numbers the pieces of; None = it is not known."""

    @property
    def mask(self) -> int:
        return self.size - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of ids in shards, in little-endian order."""
        return np.dtype("<u2" if self.size <= 1 << 16 else "<u4")

    def save(self, folder: Path, tokenizer: str | None = None) -> None:
        """Write ``vocabulary.json``.

        :param tokenizer: :attr:`Tokenizer.digest` of the model beside it.
        """
        content = {**{name: getattr(self, name) for name in _SPECIAL}, "mask": self.mask, "dtype": self.dtype.name}
        if tokenizer is not None:
            content["tokenizer"] = tokenizer
        write_atomically(folder / VOCABULARY_FILE, json.dumps({"size": self.size, **content}, indent=2) + "\n")

    @staticmethod
    def load(folder: Path) -> Vocabulary:
        """:raises RecipeError: the folder has none, a damaged one, one with other special ids, or one of another tokenizer."""
        path = folder / VOCABULARY_FILE
        if not path.exists():
            raise RecipeError(f"{path} does not exist; a text dataset needs it. `fairseq2 recipe manifest text` writes it.")
        content = read_json(path)
        size = content.get("size") if isinstance(content, dict) else None
        if type(size) is not int or not NUM_SPECIAL < size <= _MAX_SIZE:
            raise RecipeError(
                f"{path} is damaged: its `size` must be a number of ids. `fairseq2 recipe manifest text` writes it."
            )
        vocabulary = Vocabulary(size, tokenizer=content.get("tokenizer"))
        if any(content.get(name) != getattr(vocabulary, name) for name in _SPECIAL):
            raise RecipeError(f"{path} has other special ids than `<s>` 0, `<pad>` 1, `</s>` 2 and `<unk>` 3.")
        if content.get("dtype", dtype := vocabulary.dtype.name) != dtype:
            raise RecipeError(f"{path} is damaged: {size:,} ids are stored as {dtype}, but it says {content['dtype']}.")
        model = folder / SENTENCEPIECE_FILE
        if vocabulary.tokenizer is not None and model.exists() and hash_tokenizer(read_content(model)) != vocabulary.tokenizer:
            raise RecipeError(f"{path} and {SENTENCEPIECE_FILE} do not belong together; make the dataset anew.")

        return vocabulary


def hash_tokenizer(content: bytes) -> str:
    """A short digest of a tokenizer's file."""
    return hashlib.sha256(content).hexdigest()[:16]


def open_pieces(path: Path) -> tuple[SentencePieceProcessor, str]:
    """A SentencePiece model, and its digest.

    :raises RecipeError: it does not exist, or is no such model.
    """
    content = read_content(path)
    try:
        if not content:  # which SentencePiece takes for no model given, and says so wherever it is used
            raise RuntimeError
        return SentencePieceProcessor(model_proto=content), hash_tokenizer(content)
    except RuntimeError:
        raise RecipeError(f"{path} is no SentencePiece model, or damaged ({len(content):,} bytes).") from None


class Tokenizer:
    """A SentencePiece model whose pieces are renumbered to the layout of :class:`Vocabulary`."""

    def __init__(self, path: Path) -> None:
        """:raises RecipeError: there is no such model."""
        self.path = path
        self._model, self.digest = open_pieces(path)
        self._ids = np.full(self._model.vocab_size(), UNKNOWN, dtype=np.int64)
        special = {self._model.bos_id(): BEGINNING, self._model.pad_id(): PADDING, self._model.eos_id(): END}
        next_id = NUM_SPECIAL
        for piece in range(self._model.vocab_size()):
            if piece in special:
                self._ids[piece] = special[piece]
            elif not (self._model.is_control(piece) or self._model.is_unknown(piece) or self._model.is_unused(piece)):
                self._ids[piece] = next_id
                next_id += 1
        self.vocabulary = Vocabulary(next_id + 1, tokenizer=self.digest)
        self._pieces = {int(token): piece for piece, token in enumerate(self._ids) if token >= NUM_SPECIAL}

    def encode_lines(self, lines: Sequence[str], num_threads: int | None = None) -> list[TokenIds]:
        """The ids of many lines, without special ones; in threads, None = one for each processor."""
        found = self._model.encode(list(lines), num_threads=num_threads or -1)
        return [self._ids[np.array(line, dtype=np.int64)] for line in found]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The piece that each id stands for, ``▁`` at the beginnings of words; special ids in angle brackets."""
        special = {BEGINNING: "<s>", PADDING: "<pad>", END: "</s>", UNKNOWN: "<unk>", self.vocabulary.mask: "<mask>"}
        return [special.get(token) or self._model.id_to_piece(self._pieces[token]) for token in tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids; special ones are left out."""
        text: str = self._model.decode([self._pieces[token] for token in tokens if token in self._pieces])
        return text


class TokenStream:
    """The tokens of a split as one sequence, read where they are looked at.

    Each row of the manifest is a run of ids; each line of text ends with ``</s>``, a line of nothing else ends a document.
    """

    def __init__(self, manifest: Manifest, vocabulary: Vocabulary) -> None:
        """:raises ManifestError: a shard does not have the size the manifest says."""
        self.vocabulary = vocabulary
        self.manifest = manifest
        self._shards: list[TokenFile] = []
        problems = Problems()
        for row, count in enumerate(manifest.integers("tokens").tolist()):
            location = manifest.location(row)
            size = place(location.path).stat().st_size if location.size is None else location.size
            if size != count * vocabulary.dtype.itemsize:
                message = f"{location} has {size:,} bytes, but {count:,} tokens of {vocabulary.dtype} need another number"
                problems.add(*manifest.place_of(row), message)
                continue
            self._shards.append(TokenFile(location, vocabulary.dtype, count))
        problems.raise_if_any()
        self._ends = np.cumsum(manifest.integers("tokens"))
        self._starts = self._ends - manifest.integers("tokens")

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def bounds(self) -> TokenIds:
        """(datasets + 1,) the first token of each dataset that the manifest is joined of, and the number of all."""
        return np.append(self._starts, len(self))[self.manifest.bounds]

    def row_at(self, token: int) -> int:
        """The row that a token is in."""
        return min(int(np.searchsorted(self._ends, token, side="right")), len(self._ends) - 1)

    def read(self, start: int, stop: int) -> TokenIds:
        """Tokens [start, stop).

        :raises SampleError: there are none, or they are not in the vocabulary.
        :raises OSError: they cannot be read.
        """
        if start >= stop:
            raise SampleError("There are no tokens.")
        (tokens,) = self.view(np.array([start]), np.array([stop]))
        if tokens.max(initial=0) >= self.vocabulary.size:
            raise SampleError(f"Token id {tokens.max()} is not in the vocabulary of {self.vocabulary.size}.")
        return tokens.astype(np.int64)

    def view(self, starts: TokenIds, stops: TokenIds) -> list[NDArray[Any]]:
        """Tokens [start, stop) of several samples, none of them empty, as the shards hold them; unlike :meth:`read` it does not
        check that they are in the vocabulary."""
        shards = np.searchsorted(self._ends, starts, side="right")
        # Only a sample that reaches into the next shard has to be copied.
        whole = (stops <= self._ends[np.minimum(shards, len(self._ends) - 1)]).tolist()
        firsts, lasts = (starts - self._starts[shards]).tolist(), (stops - self._starts[shards]).tolist()
        return [
            self._shards[shard][first:last] if is_whole else self._join(shard, first, last)
            for shard, first, last, is_whole in zip(shards.tolist(), firsts, lasts, whole, strict=True)
        ]

    def to_fetch(self, starts: TokenIds, stops: TokenIds) -> Locate | None:
        """The place of each of several samples, up to the end of its first shard; None = they are local."""
        if self.manifest.to_fetch is None:
            return None

        def locate(sample: int) -> Location:
            shard = int(np.searchsorted(self._ends, starts[sample], side="right"))
            first = int(self._starts[shard])
            return self._shards[shard].locate(
                int(starts[sample]) - first, min(int(stops[sample]), int(self._ends[shard])) - first
            )

        return locate

    def _join(self, shard: int, first: int, last: int) -> NDArray[Any]:
        """Tokens [first, last), counted from the beginning of a shard, beyond its end."""
        parts = []
        while last > 0:
            parts.append(self._shards[shard][first:last])
            size = len(self._shards[shard])
            first, last, shard = max(0, first - size), last - size, shard + 1
        return np.concatenate(parts)

    def row_bounds(self, max_tokens: int) -> tuple[TokenIds, TokenIds]:
        """(rows,) where the first tokens of each row of the manifest start and end."""
        return self._starts, np.minimum(self._ends, self._starts + max_tokens)

    def line_ends(self) -> TokenIds:
        """The end of each line, from the ``.idx`` files beside the shards.

        :raises ManifestError: such a file is missing, damaged, or belongs to another shard.
        """
        found, first = [np.empty(0, dtype=np.int64)], 0
        for row, shard in enumerate(self._shards):
            path = place(self.manifest.location(row).path).with_suffix(".idx")
            try:
                check_regular(path)
                content = path.read_bytes()
            except OSError as error:
                raise ManifestError("{}:{}: {}".format(*self.manifest.place_of(row), error)) from None
            ends = np.frombuffer(content[: len(content) // 8 * 8], dtype="<i8")
            if len(content) % 8 or ends[-1:].tolist() != [len(shard)][: len(shard)]:
                raise ManifestError(f"{path} does not fit its shard: it ends at {ends[-1:]} of {len(shard)} tokens.")
            if (np.diff(ends, prepend=0) <= 0).any():
                raise ManifestError(f"{path} does not fit its shard: the ends of lines must ascend.")
            found.append(ends + first)
            first += len(shard)

        return np.concatenate(found)


def pad_tokens(samples: Sequence[NDArray[Any]]) -> Padded:
    """Put ``<s>`` before each sample and ``<pad>`` behind it."""
    return pad(samples, np.int64, value=PADDING, before=[BEGINNING])
