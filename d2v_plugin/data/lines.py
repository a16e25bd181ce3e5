"""Lines of text files, the same for all readers: UTF-8, ended by line feeds alone, without a byte order mark.

What Python calls a line may also end at U+2028, a form feed or a lone carriage return; then one of them in a sentence would shift
all rows below it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.files import check_regular
from d2v_plugin.data.problems import Problems

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def read_content(path: Path) -> bytes:
    """All bytes of a text file but a byte order mark.

    :raises RecipeError: the file cannot be read.
    """
    try:
        check_regular(path)
        return path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from None


def split_lines(content: bytes) -> list[bytes]:
    """The lines of a text; a carriage return before a line feed belongs to the end of the line."""
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    return [line.removesuffix(b"\r") for line in lines]


def read_lines(path: Path, problems: Problems) -> list[str]:
    """The lines of a text file; those that are no UTF-8 are added to ``problems``.

    :raises RecipeError: the file cannot be read.
    """
    return [decode_line(line, path, number, problems) for number, line in enumerate(split_lines(read_content(path)), 1)]


def decode_line(line: bytes, path: Path, number: int, problems: Problems) -> str:
    """
    :param number: of the line, counted from 1.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        problems.add(path, number, describe_wrong_bytes(error))
        return line.decode(errors="replace")


def describe_wrong_bytes(error: UnicodeDecodeError) -> str:
    """Tell what is wrong with a line, in words for its reader."""
    return f"byte {error.start + 1} is no UTF-8"


def read_json(path: Path) -> Any:
    """
    :raises RecipeError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_content(path))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is no JSON: {error}") from None
