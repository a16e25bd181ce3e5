"""Words of the command line: flags of our own, and mistakes, which end with one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from d2v_plugin.core.secrets import hide_in
from d2v_plugin.core.shipped import find_shipped

if TYPE_CHECKING:
    from d2v_plugin.verbs.extensions import Extension

PROGRAM = "fairseq2"

VERBOSE = "--verbose"
"""Shows all of the log on the screen; a flag of every verb that runs a recipe."""


def fail(line: str, *, status: int = 2, is_mine: bool = False) -> NoReturn:
    """Print one line and exit.

    Not through the log, whose handler wraps lines at the width of the terminal.

    :param is_mine: of several processes the first one prints, unless others may not have this error.
    """
    if is_mine or os.environ.get("RANK", "0") == "0":
        complain(line)

    sys.exit(status)


def fail_if_mistaken(mistakes: Sequence[str]) -> None:
    """Name all mistakes of a configuration, and exit; nothing happens if there are none."""
    if mistakes:
        fail("\n  ".join(join_mistakes(mistakes).split("\n")))


def join_mistakes(mistakes: Sequence[str]) -> str:
    """One mistake as it is, several below each other."""
    return mistakes[0] if len(mistakes) == 1 else "\n".join([f"{len(mistakes)} mistakes in the configuration:", *mistakes])


def complain(line: str) -> None:
    """Print an error on the standard error."""
    print(f"{PROGRAM}: error: {hide_in(line)}", file=sys.stderr)


def fail_unknown(kind: str, name: str, known: Iterable[str]) -> NoReturn:
    from d2v_plugin.core.registry import unknown_name

    fail(unknown_name(kind, name, known))


def check_words(words: Sequence[str]) -> None:
    """Refuse what argparse takes in silence or stumbles over: flags given twice or without a value, values that are no YAML."""
    from d2v_plugin.core.plain_yaml import PlainYamlError, parse_yaml

    flag = ""
    for word in words:
        if "\0" in word:
            fail(f"`{word!r:.80}` has a NUL character.")
        if word.startswith("--"):
            flag = word.partition("=")[0]
        elif flag == "--config" and "=" in word:
            try:
                parse_yaml(word.partition("=")[2])
            except PlainYamlError as ex:
                fail(f"invalid key-value pair: {word:.200}: the value {ex}.")
    for flag in ("--config-file", "--checkpoint-dir"):
        places = [index for index, word in enumerate(words) if word == flag or word.startswith(f"{flag}=")]
        if len(places) > 1:
            fail(f"{flag} is given {len(places)} times; once is meant.")
        if places and words[places[0]] == flag and words[places[0] + 1 : places[0] + 2] in ([], [""]):
            fail(f"{flag}: a path must follow.")


def take_values(words: Sequence[str], flag: str, what: str, *, once: bool = False) -> tuple[list[str], list[str]]:
    """Take ``FLAG VALUE`` and ``FLAG=VALUE`` out of the arguments, wherever they stand.

    :param what: what a value is, for the message.
    :param once: whether a second one is a mistake.
    :returns: the other arguments, and the values.
    """
    kept: list[str] = []
    values: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name != flag:
            kept.append(word)
            continue
        value = value if equals else next(remaining, "")
        if not value or (not equals and value.startswith("--")):
            fail(f"{flag}: {what} must follow.")
        values.append(value)
    if once and len(values) > 1:
        fail(f"{flag} is given {len(values)} times; once is meant.")

    return kept, values


def find_recipe_file(words: Sequence[str]) -> list[str]:
    """Let ``--config-file`` also name a recipe that came with the package, such as ``image/pretrain_base.yaml``."""
    found = list(words)
    for index, word in enumerate(found):
        if word.startswith("--config-file="):
            found[index] = f"--config-file={find_shipped(Path(word.partition('=')[2]))}"
        elif index and found[index - 1] == "--config-file" and not word.startswith("-") and word:
            found[index] = str(find_shipped(Path(word)))

    return found


def take_extensions(words: Sequence[str]) -> tuple[list[str], list[Extension]]:
    """Take ``--extension FILE`` out of the arguments, and load the files."""
    kept, paths = take_values(words, "--extension", "the name of a file")
    if not paths:
        return kept, []

    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.verbs.extensions import load_extension

    try:
        return kept, [load_extension(Path(path)) for path in paths]
    except RecipeError as ex:
        fail(str(ex))


def take_device(words: Sequence[str]) -> list[str]:
    """Take ``--device cpu|cuda|cuda:N`` out of the arguments, and tell fairseq2, which reads it from the environment.

    ``cuda`` alone is fairseq2's own choice: the GPU of the local rank.
    """
    kept, devices = take_values(words, "--device", "`cpu`, `cuda` or `cuda:N`", once=True)
    if not devices:
        return kept
    device = devices[0]
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        fail(f"--device is `{device}`, but must be `cpu`, `cuda` or `cuda:N`.")
    if device != "cpu":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= count:
            fail(
                f"--device is `{device}`, but PyTorch finds {count or 'no'} GPU{'' if count == 1 else 's'}; take `--device cpu`."
            )
    if device == "cuda":
        os.environ.pop("FAIRSEQ2_DEVICE", None)
    else:
        os.environ["FAIRSEQ2_DEVICE"] = device

    return kept
