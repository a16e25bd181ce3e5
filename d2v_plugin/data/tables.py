"""Tab-separated files of sentences, single or in pairs, with a label: GLUE's as published, and the user's own."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import Validatable, ValidationResult
from numpy.typing import NDArray
from typing_extensions import override

from d2v_plugin.core.log import log
from d2v_plugin.core.validation import report
from d2v_plugin.data.lines import read_lines
from d2v_plugin.data.problems import Problems


@dataclass(kw_only=True)
class TableLayout(Validatable):
    """Places of sentences and labels in tab-separated files.

    Quotes are characters like any other, as in GLUE. Columns are found by the names in the first line; other columns may stand
    beside them.
    """

    texts: list[str] = field(default_factory=lambda: ["sentence"])
    """The column of the sentence, or the two of a pair."""

    label: str = "label"
    """The column of the label. Splits called ``test…`` may lack it: they can be predicted, but not scored."""

    names: list[str] = field(default_factory=list)
    """The names of the columns of files whose first line does not name them."""

    classes: list[str] = field(default_factory=list)
    """All labels, in the order of their indices; empty = those of the training split, sorted."""

    numbers: bool = False
    """Whether labels are numbers to predict rather than classes."""

    divisor: float = 1.0
    """Numbers are divided by this; GLUE's STS-B has 0 to 5."""

    files: dict[str, str] = field(default_factory=lambda: {"train": "train.tsv", "valid": "valid.tsv", "test": "test.tsv"})
    """The file of each split; those that do not exist are left out."""

    skip_bad_rows: bool = False
    """Whether rows without a sentence, or with another number of columns than the first line, are left out instead of refused."""

    @override
    def validate(self) -> ValidationResult:
        texts, classes = self.texts, self.classes
        return report(
            (len(texts) not in (1, 2), f"`texts` must name the column of a sentence or the two of a pair, but is {texts}."),
            (self.numbers and bool(classes), "`classes` must not be given where labels are `numbers`."),
            (len(set(classes)) < len(classes), f"`classes` must not repeat, but is {classes}."),
            (self.divisor == 0.0, "`divisor` must not be 0."),
        )


_GLUE_FILES: Final = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}

GLUE: Final[Mapping[str, TableLayout]] = {
    "cola": TableLayout(names=["source", "label", "mark", "sentence"], classes=["0", "1"], files=_GLUE_FILES),
    "sst_2": TableLayout(classes=["0", "1"], files=_GLUE_FILES),
    "mrpc": TableLayout(texts=["#1 String", "#2 String"], label="Quality", classes=["0", "1"], files=_GLUE_FILES),
    "sts_b": TableLayout(texts=["sentence1", "sentence2"], label="score", numbers=True, divisor=5.0, files=_GLUE_FILES),
    # Some lines of QQP as published are broken, some have an empty question.
    "qqp": TableLayout(
        texts=["question1", "question2"], label="is_duplicate", classes=["0", "1"], files=_GLUE_FILES, skip_bad_rows=True
    ),
    "mnli": TableLayout(
        texts=["sentence1", "sentence2"],
        label="gold_label",
        classes=["contradiction", "entailment", "neutral"],
        files={
            "train": "train.tsv",
            "valid": "dev_matched.tsv",
            "valid_mismatched": "dev_mismatched.tsv",
            "test": "test_matched.tsv",
            "test_mismatched": "test_mismatched.tsv",
        },
    ),
    "qnli": TableLayout(texts=["question", "sentence"], classes=["entailment", "not_entailment"], files=_GLUE_FILES),
    "rte": TableLayout(texts=["sentence1", "sentence2"], classes=["entailment", "not_entailment"], files=_GLUE_FILES),
}
"""The eight tasks that the papers report, WNLI left out, with their files as gluebenchmark.com publishes them."""

_MRPC_FILES: Final = {"train": "msr_paraphrase_train.txt", "valid": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"}
_MRPC_IDS: Final = ("#1 ID", "#2 ID")
_MRPC_VALID_IDS: Final = ("dev_ids.tsv", "mrpc_dev_ids.tsv")


@dataclass
class Table:
    """The rows of one split."""

    path: Path

    texts: list[list[str]]
    """Each column of sentences, (rows,)."""

    labels: list[str] | None
    """(rows,) as they are written; None = there is no such column."""

    lines: NDArray[np.int64]
    """(rows,) where each row stands in the file, from 1."""

    def __len__(self) -> int:
        return len(self.lines)

    def hash_rows(self) -> str:
        """The SHA-256 of what is read."""
        return hashlib.sha256(json.dumps([self.texts, self.labels]).encode()).hexdigest()

    def name_of(self, row: int) -> str:
        """The line of a row, as reports name it."""
        return str(self.lines[row])


def read_tables(folder: Path, layout: TableLayout, problems: Problems) -> dict[str, Table]:
    """Read the files of all splits that exist; what is wrong with their rows is added to ``problems``.

    :raises RecipeError: there are none.
    """
    files = {split: folder / name for split, name in layout.files.items() if (folder / name).is_file()}
    if layout is GLUE["mrpc"] and "train" not in files:
        return _read_paraphrases(folder, layout, problems)
    if not files:
        raise RecipeError(
            f"`dataset.config_overrides.path` is `{folder}` (here: {folder.absolute()}), which holds none of "
            f"{', '.join(sorted(set(layout.files.values())))}."
        )

    return {split: _read_table(path, layout, problems, split) for split, path in files.items()}


def check_labels(tables: Mapping[str, Table], layout: TableLayout, classes: Sequence[str], problems: Problems) -> None:
    """Add every label that is none of the classes, or no number, to ``problems``."""
    known = set(classes)
    for table in tables.values():
        for row, label in enumerate(table.labels or ()):
            if layout.numbers and not _is_number(label):
                problems.add(table.path, int(table.lines[row]), f"`{layout.label}` must be a number, but is `{label}`")
            elif not layout.numbers and label not in known:
                message = f"label `{label}` is none of: {', '.join(classes)}"
                problems.add(table.path, int(table.lines[row]), message)


def _read_table(path: Path, layout: TableLayout, problems: Problems, split: str, extra: Sequence[str] = ()) -> Table:
    """:param extra: columns of ``texts`` besides those of the layout."""
    wanted = [*layout.texts, *extra]
    lines = _read_fields(path, problems)
    names, first = _find_names(lines, layout)
    missing = [name for name in wanted if name not in names]
    has_label = layout.label in names
    if not has_label and not split.startswith("test"):
        missing.append(layout.label)
    if missing:
        columns = ", ".join(f"`{name}`" for name in missing)
        message = f"there is no column {columns}; the first line has: {', '.join(names) or 'nothing'}"
        problems.add(path, 1, message)
        return Table(path, [[] for _ in wanted], None, np.empty(0, np.int64))

    text_columns = [names.index(name) for name in wanted]
    kept: list[tuple[int, list[str]]] = []
    skipped: list[int] = []
    for number, fields in enumerate(lines[first:], first + 1):
        wrong = ""
        if len(fields) != len(names):
            wrong = f"{len(fields)} column(s), expected {len(names)}: {', '.join(names)}"
        elif empty := [names[column] for column in text_columns if not fields[column].strip()]:
            wrong = f"`{empty[0]}` is empty"
        if not wrong:
            kept.append((number, fields))
        elif layout.skip_bad_rows:
            skipped.append(number)
        else:
            problems.add(path, number, wrong)
    if skipped:
        message = "Left out {:,} rows of {} with empty sentences or missing columns, the first on line {}."
        log.warning(message, len(skipped), path, skipped[0])
    if not kept and not problems.messages:
        problems.add(path, first + 1, "there are no rows")

    return Table(
        path,
        [[fields[column].strip() for _, fields in kept] for column in text_columns],
        [fields[names.index(layout.label)].strip() for _, fields in kept] if has_label else None,
        np.array([number for number, _ in kept], dtype=np.int64),
    )


def _read_fields(path: Path, problems: Problems) -> list[list[str]]:
    """The fields of each line."""
    return [line.split("\t") for line in read_lines(path, problems)]


def _find_names(lines: Sequence[Sequence[str]], layout: TableLayout) -> tuple[Sequence[str], int]:
    """The names of the columns, and the index of the first row."""
    if not lines:
        return [], 0
    if layout.names and not set(layout.texts) <= set(lines[0]):
        return layout.names, 0
    return lines[0], 1


def _read_paraphrases(folder: Path, layout: TableLayout, problems: Problems) -> dict[str, Table]:
    """MRPC as Microsoft publishes it; GLUE's list of ids says which pairs of the training file are for validation.

    :raises RecipeError: files are missing.
    """
    listed = next((folder / name for name in _MRPC_VALID_IDS if (folder / name).is_file()), None)
    if listed is None or not (folder / _MRPC_FILES["train"]).is_file():
        raise RecipeError(
            f"`dataset.config_overrides.path` is `{folder}` (here: {folder.absolute()}), which must hold train.tsv and dev.tsv, "
            f"or {_MRPC_FILES['train']} and GLUE's list of the pairs for validation, {_MRPC_VALID_IDS[0]}."
        )
    is_valid_id = {tuple(fields[:2]) for fields in _read_fields(listed, problems)}

    tables = {}
    for split, name in _MRPC_FILES.items():
        if not (folder / name).is_file():
            continue
        table = _read_table(folder / name, layout, problems, split, extra=_MRPC_IDS)
        if split != "test":
            is_valid = [ids in is_valid_id for ids in zip(*table.texts[2:], strict=True)]
            table = _select(table, np.flatnonzero(np.array(is_valid, dtype=bool) == (split == "valid")))
        tables[split] = Table(table.path, table.texts[:2], table.labels, table.lines)

    return tables


def _select(table: Table, rows: NDArray[np.int64]) -> Table:
    chosen = rows.tolist()
    labels = None if table.labels is None else [table.labels[row] for row in chosen]
    return Table(table.path, [[column[row] for row in chosen] for column in table.texts], labels, table.lines[rows])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
