"""Transcripts: what is said in the recordings of a dataset, spelled in the symbols that a CTC model puts out.

A symbol is a character, where ``|`` ends each word as in fairseq's letter labels, or a piece of a SentencePiece model, where
``▁`` begins each word. Number 0 is the blank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from d2v_plugin.data.dataset import AudioManifest
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.lines import read_lines
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.text import open_pieces

BLANK: Final = "<blank>"
WORD_END: Final = "|"
WORD_START: Final = "▁"
DICTIONARY_FILE: Final = "dict.ltr.txt"

Ids = NDArray[np.int64]


def is_blank_first(labels: LabelSet) -> bool:
    """Tell symbols of transcripts from classes and tags."""
    return len(labels) > 1 and labels.names[0] == BLANK


def join_symbols(symbols: Iterable[str]) -> str:
    """The text that symbols spell: words with a space in between."""
    return " ".join("".join(symbols).replace(WORD_END, " ").replace(WORD_START, " ").split())


def find_reserved(text: str) -> str:
    """Tell which symbols between words a transcript in plain words has, since they would come back as spaces; empty = none."""
    found = " and ".join(f"`{symbol}`" for symbol in (WORD_END, WORD_START) if symbol in text)
    return f"the transcript has {found}, which stands between words where text is spelled; write it as a word" if found else ""


class Spelling(ABC):
    """A way to spell text."""

    @abstractmethod
    def spell(self, text: str) -> list[str]:
        """The symbols of a text; of no words there are none."""

    @abstractmethod
    def find_labels(self, lines: Iterable[Lines]) -> LabelSet:
        """All symbols, the blank first.

        :param lines: the transcripts of all splits, for a spelling that knows no other symbols.
        """


class Characters(Spelling):
    """Letter by letter."""

    def __init__(self, dictionary: Path | None) -> None:
        """
        :param dictionary: fairseq's ``dict.ltr.txt``, a symbol and its count on each line; None = whatever occurs.
        """
        self._dictionary = dictionary

    @override
    def spell(self, text: str) -> list[str]:
        return [symbol for word in text.split() for symbol in (*word, WORD_END)]

    @override
    def find_labels(self, lines: Iterable[Lines]) -> LabelSet:
        if self._dictionary is not None:
            # In the file's own order, which numbers the outputs of models trained elsewhere.
            problems = Problems()
            rows = read_lines(self._dictionary, problems)
            problems.raise_if_any()
            return LabelSet([BLANK, *dict.fromkeys(row.rsplit(" ", 1)[0] for row in rows if row.strip())])
        found = {symbol for part in lines for row in range(len(part)) for symbol in part.spell(row, self)}
        return LabelSet([BLANK, WORD_END, *sorted(found - {WORD_END})])


class Pieces(Spelling):
    """Piece by piece of a SentencePiece model."""

    def __init__(self, path: Path) -> None:
        """:raises RecipeError: there is no such model."""
        if not path.exists():
            raise RecipeError(
                f"{path} does not exist, but `task.config.units` is `sentencepiece`. Set `task.config.sentencepiece`, or train a "
                "model with `fairseq2 recipe manifest pieces`."
            )
        self._model, _ = open_pieces(path)

    @override
    def spell(self, text: str) -> list[str]:
        pieces: list[str] = self._model.encode(" ".join(text.split()), out_type=str)
        return pieces

    @override
    def find_labels(self, lines: Iterable[Lines]) -> LabelSet:
        model = self._model
        kinds = (model.is_control, model.is_unknown, model.is_unused, model.is_byte)
        ids = [piece for piece in range(model.vocab_size()) if not any(kind(piece) for kind in kinds)]
        return LabelSet([BLANK, *map(model.id_to_piece, ids)])


class Lines:
    """The transcripts of a split as they are written: fairseq's ``SPLIT.ltr`` beside the manifest, or its column ``label``."""

    def __init__(self, manifest: Manifest) -> None:
        """:raises ManifestError: letter labels are no UTF-8; names all such lines."""
        self.path = manifest.path
        self._manifest = manifest
        self._letters: list[str] | None = None
        if beside := next(
            (path for part in getattr(manifest, "parts", ()) if (path := part.path.with_suffix(".ltr")).exists()), None
        ):
            raise RecipeError(
                f"{beside} is not read where several datasets are one; write the transcripts into the column `label`."
            )
        letters = manifest.path.with_suffix(".ltr")
        if letters.exists():
            self.path = letters
            problems = Problems()
            self._letters = read_lines(letters, problems)
            problems.raise_if_any()

    def __len__(self) -> int:
        return len(self._manifest)

    def is_written(self) -> bool:
        """Tell if there is any transcript."""
        return self._letters is not None or any(self._manifest.text("label", row) for row in range(len(self)))

    def place_of(self, row: int) -> tuple[Path, int]:
        """The file and the line that a row's transcript stands on, counted from 1."""
        return self._manifest.place_of(row) if self._letters is None else (self.path, row + 1)

    def text(self, row: int) -> str:
        """A row's transcript; empty if there is none."""
        if self._letters is None:
            return self._manifest.text("label", row) or ""
        return join_symbols(self._letters[row].split()) if row < len(self._letters) else ""

    def spell(self, row: int, spelling: Spelling) -> list[str]:
        """The symbols of a row's transcript; none if there is no transcript."""
        text = self.text(row)
        if self._letters is not None and isinstance(spelling, Characters):
            # Symbols of several letters, such as phones, stay as they are.
            return self._letters[row].split() if text else []
        return spelling.spell(text)

    def find_fault(self, row: int) -> str:
        """Tell why a row's transcript cannot be spelled; empty if it can."""
        return "" if self._letters is not None else find_reserved(self.text(row))

    def check_length(self, problems: Problems) -> None:
        """Report letter labels without a row in the manifest; rows without labels count as empty."""
        if self._letters is not None and len(self._letters) > len(self):
            message = f"there are {len(self._letters):,} lines, but {self._manifest.path.name} has {len(self):,} recordings"
            problems.add(self.path, len(self) + 1, message)


@dataclass(frozen=True)
class Transcripts:
    """The transcripts of a split, in numbers."""

    lines: Lines
    """Where they are written."""

    symbols: NDArray[np.int32]
    """Those of all rows, one row after the other."""

    ends: Ids
    """(rows,) where the symbols of each row end."""

    num_frames: Ids
    """(rows,) how many frames an alignment needs at least: one for each symbol, and a blank between equal ones."""

    def stack(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The symbols (N, L) of some rows, with blanks behind them, and how many there are, (N,)."""
        parts = [self.symbols[self.ends[row - 1] if row else 0 : self.ends[row]] for row in rows]
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        stacked = np.zeros((len(parts), lengths.max(initial=0)), dtype=np.int64)
        for place, part in zip(stacked, parts, strict=True):
            place[: len(part)] = part
        return torch.from_numpy(stacked), torch.from_numpy(lengths)


def find_lines(dataset: AudioManifest) -> dict[str, Lines]:
    """The splits of a dataset that have transcripts.

    :raises RecipeError: none has.
    """
    found = {name: lines for name, manifest in dataset.splits.items() if (lines := Lines(manifest)).is_written()}
    if not found:
        raise RecipeError(
            f"No recording in {dataset.path} has a transcript: neither in a column `label` nor in a file SPLIT.ltr "
            "(manifests/README.md, Transcripts)."
        )
    return found


def read_transcripts(lines: dict[str, Lines], spelling: Spelling, labels: LabelSet) -> dict[str, Transcripts]:
    """Read and check the transcripts of all splits.

    :raises ManifestError: some are empty or have symbols outside ``labels``; names them all.
    """
    problems = Problems()
    found = {name: _number_lines(part, spelling, labels, problems) for name, part in lines.items()}
    problems.raise_if_any()
    return found


def _number_lines(lines: Lines, spelling: Spelling, labels: LabelSet, problems: Problems) -> Transcripts:
    lines.check_length(problems)
    indices = labels.indices
    parts: list[NDArray[np.int32]] = []
    for row in range(len(lines)):
        symbols = lines.spell(row, spelling)
        numbers = np.array([indices.get(symbol, -1) for symbol in symbols], dtype=np.int32)
        parts.append(numbers)
        if fault := lines.find_fault(row):
            problems.add(*lines.place_of(row), fault)
        elif not symbols:
            problems.add(*lines.place_of(row), "the transcript is empty")
        elif (numbers <= 0).any():
            unknown = " ".join(sorted({symbol for symbol, number in zip(symbols, numbers, strict=True) if number <= 0}))
            message = f"the transcript has symbols outside the vocabulary ({len(labels) - 1} symbols): {unknown}"
            problems.add(*lines.place_of(row), message)
    num_frames = np.array([len(part) + (part[1:] == part[:-1]).sum() for part in parts], dtype=np.int64)
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    return Transcripts(lines, np.concatenate(parts), ends, num_frames)
