"""The dataset family ``sentences``: labelled sentences or pairs of them, as the token ids of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError, SplitNotKnownError
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from d2v_plugin.core.registry import unknown_name
from d2v_plugin.core.remote import place
from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.data.labels import LabelSet, sort_labels
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.tables import GLUE, Table, TableLayout, check_labels, read_tables
from d2v_plugin.data.text import END, TokenIds
from d2v_plugin.data.tokenizers import TextTokenizer, open_tokenizer

_CHUNK = 10_000


@dataclass(kw_only=True)
class SentencesConfig:
    """Settings of the dataset family ``sentences``: ``glue``, or ``layout`` for files of your own."""

    path: Path = Path()
    """The folder with the tab-separated files; relative to where the run is started."""

    vocabulary: Path | None = None
    """The folder with the vocabulary that the model was pre-trained with; None = ``path``."""

    glue: str | None = None
    """One of GLUE's tasks: ``cola``, ``sst_2``, ``mrpc``, ``sts_b``, ``qqp``, ``mnli``, ``qnli``, ``rte``."""

    layout: TableLayout | None = None
    """What stands where in other files."""


class Sentences:
    """The splits of a dataset, and the vocabulary to read them with."""

    def __init__(self, path: Path, layout: TableLayout, tables: dict[str, Table], tokenizer: TextTokenizer) -> None:
        self.path = path
        self.layout = layout
        self.tables = tables
        self.tokenizer = tokenizer

    @classmethod
    def open(cls, config: SentencesConfig) -> Self:
        """Read all files and the vocabulary.

        :raises RecipeError: there are none, or it is not said what stands where.
        :raises ManifestError: rows are wrong; names them all.
        :raises ValueError: the layout is impossible.
        """
        ensure_valid(config)
        if (config.glue is None) == (config.layout is None):
            raise RecipeError("Either `dataset.config_overrides.glue` or `dataset.config_overrides.layout` must be set.")
        if config.glue is not None and config.glue not in GLUE:
            raise RecipeError(unknown_name("GLUE task", config.glue, GLUE))
        layout = config.layout or GLUE[config.glue or ""]
        problems = Problems()
        folder = place(config.path)
        tables = read_tables(folder, layout, problems)
        dataset = cls(folder, layout, tables, open_tokenizer(place(config.vocabulary or folder)))
        check_labels(tables, layout, () if layout.numbers else dataset.class_names, problems)
        problems.raise_if_any()

        return dataset

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, by class index."""
        if self.layout.classes:
            return self.layout.classes
        source = [self.tables["train"]] if "train" in self.tables else list(self.tables.values())
        return sort_labels(label for table in source for label in table.labels or ())

    def split(self, name: str) -> Table:
        """:raises SplitNotKnownError: there is no such file."""
        if name not in self.tables:
            raise SplitNotKnownError(str(self.path), name, sorted(self.tables))
        return self.tables[name]

    def read_targets(self, split: str, labels: LabelSet | None) -> Tensor | None:
        """(rows,) class indices int64, or numbers float32; None = the split has no labels.

        :param labels: the classes; None = labels are numbers.
        :raises ManifestError: rows have other labels, as may happen where a model was trained on other data.
        """
        table = self.split(split)
        if table.labels is None:
            return None
        problems = Problems()
        if labels is None:
            check_labels({split: table}, TableLayout(label=self.layout.label, numbers=True), (), problems)
            problems.raise_if_any()
            return torch.tensor([float(label) / self.layout.divisor for label in table.labels])
        check_labels({split: table}, TableLayout(label=self.layout.label), labels.names, problems)
        problems.raise_if_any()

        return torch.tensor([labels.indices[label] for label in table.labels])

    def encode(self, split: str, max_length: int) -> TokenRows:
        """The token ids of all rows.

        :param max_length: of a sample with ``<s>`` and the separators; longer ones are cut as :func:`join` says.
        """
        columns = self.split(split).texts
        rows: list[TokenIds] = []
        num_cut = 0
        for first in range(0, len(columns[0]), _CHUNK):
            encoded = (self.tokenizer.encode_lines(column[first : first + _CHUNK]) for column in columns)
            for parts in zip(*encoded, strict=True):
                row = join(parts, max_length)
                num_cut += len(row) < sum(map(len, parts)) + 2 * len(parts) - 1
                rows.append(row)

        ends = np.cumsum([len(row) for row in rows])
        return TokenRows(np.concatenate(rows).astype(np.int32), np.concatenate([[0], ends]), num_cut)


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids of different length, in one array."""

    tokens: NDArray[np.int32]

    bounds: TokenIds
    """(rows + 1,) where each row starts, and the end of the last."""

    num_cut: int
    """How many rows were too long."""

    @property
    def lengths(self) -> TokenIds:
        """(rows,) with the ``<s>`` that comes first."""
        return np.diff(self.bounds) + 1

    def __getitem__(self, row: int) -> TokenIds:
        return self.tokens[self.bounds[row] : self.bounds[row + 1]].astype(np.int64)


def join(parts: Sequence[TokenIds], max_length: int) -> TokenIds:
    """Join sentences as fairseq does for RoBERTa and data2vec, without the ``<s>`` at the beginning:
    ``sentence </s>``, or ``first </s> </s> second </s>``.

    :param max_length: with that ``<s>``. Where it is exceeded, words at the end of the longer sentence are dropped, until both
        are equally long, then of both. fairseq leaves such samples out of training.
    """
    if len(parts) == 1:
        return np.append(parts[0][: max_length - 2], END)
    first, second = parts
    room = max_length - 4
    if len(first) + len(second) > room:
        size = max(min(len(first), room // 2), room - len(second))
        first, second = first[:size], second[: room - size]

    return np.concatenate([first, [END, END], second, [END]])
