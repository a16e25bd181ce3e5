"""Lines of text files, and texts in memory, as samples."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.storage import hash_file
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.batches import make_batch
from d2v_plugin.data.lines import BYTE_ORDER_MARK, describe_wrong_bytes
from d2v_plugin.data.sentences import join
from d2v_plugin.data.text import TokenIds, pad_tokens
from d2v_plugin.data.tokenizers import TextTokenizer
from d2v_plugin.data.tsv_scan import find_byte, read_file
from d2v_plugin.inference.samples import Place, Samples

JSON_SUFFIXES: Final = frozenset({".jsonl", ".json"})
_NEWLINE: Final = 0x0A


@dataclass
class TextReading:
    """How text becomes token ids."""

    tokenizer: TextTokenizer

    columns: Sequence[str] = ("text",)
    """What the sentence of a sample, or each of the two of a pair, is called in files that name their columns."""

    names: Sequence[str] = ()
    """The columns of tables whose first line does not name them, if there are more than ``columns``."""

    max_length: int = 512
    """Longest sample in tokens; of longer ones the end is dropped."""

    cut: set[str] = field(default_factory=set)
    """Samples that were longer than that."""

    def encode(self, texts: Sequence[str], place: Place) -> TokenIds:
        """
        :param texts: a sentence, or the two of a pair.
        :raises SampleError: it is another number of texts than the model takes, or one of them is empty.
        """
        if len(texts) != len(self.columns):
            expected = "one text" if len(self.columns) == 1 else "a pair of texts"
            raise SampleError(f"The model takes {expected}, but here are {len(texts)}.")
        for name, text in zip(self.columns, texts, strict=True):
            if not text.strip():
                raise SampleError(f"`{name}` is empty." if len(texts) > 1 else "The text is empty.")
        parts = self.tokenizer.encode_lines([text.strip() for text in texts])
        tokens = join(parts, self.max_length)
        if len(tokens) < sum(map(len, parts)) + 2 * len(parts) - 1:
            self.cut.add(str(place))

        return tokens


def collate_texts(samples: Sequence[TokenIds], rows: Sequence[int]) -> Batch:
    """N × (S_n,) -> (N, S), padded, each with ``<s>`` at its beginning."""
    return make_batch(Modality.TEXT, pad_tokens(samples), rows)


class _Texts(Samples):
    """Texts of any origin."""

    def __init__(self, reading: TextReading) -> None:
        self._reading = reading

    @override
    def read(self, row: int) -> Any:
        return self._reading.encode(self._texts_of(row), self.place_of(row))

    @abstractmethod
    def _texts_of(self, row: int) -> Sequence[str]:
        """
        :raises SampleError: they cannot be read.
        """


@final
class TextsInMemory(_Texts):
    """Texts, or pairs of them, as Python has them; a row's path is empty."""

    def __init__(self, texts: Sequence[Sequence[str]], reading: TextReading) -> None:
        super().__init__(reading)
        self._texts = texts

    @override
    def __len__(self) -> int:
        return len(self._texts)

    @override
    def place_of(self, row: int) -> Place:
        return Place("", row + 1)

    @override
    def fingerprint(self) -> object:
        return [list(texts) for texts in self._texts]

    @override
    def measure(self, row: int) -> int:
        return max(1, sum(map(len, self._texts[row])))

    @override
    def _texts_of(self, row: int) -> Sequence[str]:
        return self._texts[row]


@final
class Lines(_Texts):
    """The lines of a file: one sample each. The file stays one run of bytes in memory."""

    def __init__(self, path: Path, reading: TextReading) -> None:
        """
        :param path: JSON lines with the texts under the names of the reading's columns; a table, with or without a first line
            that names these columns; or, for single texts, plain text. The suffix tells which.
        :raises OSError: it is no regular file, or cannot be read.
        """
        super().__init__(reading)
        self._path = path
        self._data = read_file(path)
        buffer = np.frombuffer(self._data, dtype=np.uint8)
        ends = find_byte(buffer, _NEWLINE)
        if len(buffer) and buffer[-1] != _NEWLINE:
            ends = np.append(ends, len(buffer))
        self._bounds = np.append(-1, ends)
        self._is_json = path.suffix.lower() in JSON_SUFFIXES
        self._is_table = not self._is_json and (path.suffix.lower() == ".tsv" or len(reading.columns) > 1)
        self._names, self._first = self._find_names()

    def _find_names(self) -> tuple[Sequence[str], int]:
        """The columns of a table, and the line of its first row, from 0."""
        columns, names = self._reading.columns, self._reading.names
        if not self._is_table or len(self._bounds) < 2:
            return columns, 0
        try:
            found = self._decode(0).split("\t")
        except SampleError:  # a row like any other, which names it when it is read
            return columns, 0
        if set(columns) <= set(found):
            return found, 1
        return (names if len(found) == len(names) and set(columns) <= set(names) else columns), 0

    @override
    def __len__(self) -> int:
        return len(self._bounds) - 1 - self._first

    @override
    def place_of(self, row: int) -> Place:
        return Place(str(self._path), row + self._first + 1)

    @override
    def fingerprint(self) -> object:
        return [str(self._path), hash_file(self._path)]

    @override
    def measure(self, row: int) -> int:
        return max(1, int(self._bounds[row + self._first + 1] - self._bounds[row + self._first]))

    @override
    def _texts_of(self, row: int) -> Sequence[str]:
        line = self._decode(row + self._first)
        if self._is_json:
            return self._parse_json(line)
        if not self._is_table:
            return [line]
        fields = line.split("\t")
        if len(fields) != len(self._names):
            raise SampleError(f"The line has {len(fields)} column(s), expected {len(self._names)}: {', '.join(self._names)}.")

        return [fields[self._names.index(column)] for column in self._reading.columns]

    def _decode(self, number: int) -> str:
        line = self._data[self._bounds[number] + 1 : self._bounds[number + 1]].removesuffix(b"\r")
        try:
            return (line.removeprefix(BYTE_ORDER_MARK) if number == 0 else line).decode()
        except UnicodeDecodeError as error:
            raise SampleError(f"Of the line {describe_wrong_bytes(error)}.") from None

    def _parse_json(self, line: str) -> Sequence[str]:
        columns = self._reading.columns
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SampleError(f"The line is no JSON: {error}.") from None
        if isinstance(content, dict) and len(columns) == 1 and columns[0] not in content and "text" in content:
            columns = ["text"]
        texts = [content.get(column) for column in columns] if isinstance(content, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise SampleError(f"The line must be an object with texts under: {', '.join(columns)}.")

        return [str(text) for text in texts]
