"""What is kept together when a dataset is split, and lists of official splits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.lines import decode_line, read_content, split_lines
from d2v_plugin.data.preparation.common import TRAIN
from d2v_plugin.data.problems import Problems

_WITHOUT_VALUE, _WITH_VALUE = ("folder", "file"), ("regex", "table", "field")
KINDS = "`folder`, `file`, `regex:EXPRESSION`, `table:FILE` or `field:NAME`"
SPLIT_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


class Grouping:
    """Tells which group a sample belongs to, so that no group is in two splits.

    - ``folder``: the first folder below the source, such as a speaker's
    - ``file``: of text, all documents of a file
    - ``regex:EXPRESSION``: the first group of a regular expression that is found in the path, or all that it matches
    - ``table:FILE``: the second field of lines ``path<TAB>group``
    - ``field:NAME``: of lines of JSON, the value of a field
    """

    def __init__(self, text: str | None) -> None:
        """
        :param text: one of the above; None = each sample is its own group.
        :raises RecipeError: it is none of these, or its file cannot be read.
        """
        self.text = text
        self.kind, _, value = (text or "").partition(":")
        if text == "" or self.kind not in ("", *_WITHOUT_VALUE, *_WITH_VALUE) or bool(value) != (self.kind in _WITH_VALUE):
            raise RecipeError(f"`--split-by` must be {KINDS}, but is `{text}`.")
        self.field = value if self.kind == "field" else None
        try:
            self._pattern = re.compile(value if self.kind == "regex" else "")
        except re.error as error:
            raise RecipeError(f"`--split-by`: `{value}` is no regular expression: {error}.") from None
        self._table = read_table(Path(value), "group") if self.kind == "table" else {}

    def find(self, name: str, file: str, value: str | None) -> str | None:
        """The group of a sample; None if it has none.

        :param name: of the sample.
        :param file: the name of its file.
        :param value: of its field.
        """
        match self.kind:
            case "folder":
                folder, slash, _ = file.partition("/")
                return folder if slash else ""
            case "file":
                return file
            case "regex":
                found = self._pattern.search(file)
                return None if found is None else next((part for part in found.groups() if part is not None), found[0])
            case "table":
                return self._table.get(file)
            case "field":
                return value
        return name


def read_table(path: Path, what: str) -> dict[str, str]:
    """Read lines ``path<TAB>value``. Paths may be any bytes, values are UTF-8.

    :param what: what the values are, for messages.
    :raises RecipeError: the file cannot be read.
    :raises ManifestError: lines are wrong; names them all.
    """
    problems = Problems()
    table: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(split_lines(read_content(path)), 1):
        name, _, field = line.partition(b"\t")
        value = decode_line(field, path, number, problems)
        if not name or not value.strip() or "\t" in value or "\r" in value:
            problems.add(path, number, f"a line must be a path, a tab and a {what}")
        elif table.setdefault(os.fsdecode(name), value) != value:
            problems.add(path, number, f"`{os.fsdecode(name)}` has another {what} on line {lines[os.fsdecode(name)]}")
        lines.setdefault(os.fsdecode(name), number)
    problems.raise_if_any()

    return table


def read_lists(lists: Sequence[str]) -> tuple[Mapping[str, str], str | None]:
    """Read official splits.

    :param lists: a file of lines ``path<TAB>split``, or ``SPLIT=FILE`` for each split.
    :returns: the split of each path, and that of all others: ``train`` where splits have files of their own; None = none.
    :raises RecipeError: a file cannot be read, or a path is in two splits.
    """
    named = [text.partition("=") for text in lists if SPLIT_NAME.fullmatch(text.partition("=")[0]) and "=" in text]
    if len(lists) > 1 and len(named) < len(lists):
        raise RecipeError("`--split-list` must be one file of lines path<TAB>split, or be repeated as SPLIT=FILE.")
    splits: dict[str, str] = {}
    for split, _, file in named:
        for line in split_lines(read_content(Path(file))):
            name = os.fsdecode(line)
            if name and splits.setdefault(name, split) != split:
                raise RecipeError(f"{file}: `{name}` is in the split `{splits[name]}`, too.")
    if named or not lists:
        return splits, TRAIN if named and TRAIN not in splits.values() else None
    splits = read_table(Path(lists[0]), "split")
    if wrong := next((name for name, split in splits.items() if not SPLIT_NAME.fullmatch(split)), None):
        raise RecipeError(f"{lists[0]}: the split of `{wrong}` is `{splits[wrong]}`; write a name such as `valid`.")

    return splits, None
