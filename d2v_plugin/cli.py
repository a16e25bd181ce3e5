"""The ``fairseq2`` command: a thin dispatcher over fairseq2's recipe runner, which ships without a command.

Nothing heavy is imported before it is needed, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from fairseq2.recipe.base import Recipe

    from d2v_plugin.extensions import Extension

PROGRAM = "fairseq2"

EXAMPLES = f"""\
examples:
  {PROGRAM} recipe list
  {PROGRAM} recipe train --config-file recipes/demo/digits.yaml out/digits
"""

TRAIN_EXAMPLES = f"""
  --extension FILE.py   file that registers more in `setup_fairseq2_extension(container)`; may be repeated

examples:
  {PROGRAM} recipe train --config-file recipes/demo/digits.yaml out/digits
  {PROGRAM} recipe train --config-file recipes/demo/digits.yaml out/short --config regime.num_steps=100 common.seed=3
  {PROGRAM} recipe train --config-file recipes/demo/digits.yaml --dump-config
  torchrun --nproc-per-node 2 -m d2v_plugin recipe train --config-file recipes/demo/digits.yaml out/digits2

Running a command again continues its run from the last checkpoint in OUTPUT_DIR.
"""

LIST_HELP = f"""\
usage: {PROGRAM} recipe list [-h] [--extension FILE.py]

print what a recipe may name: tasks, datasets, models, criteria, mask samplers, probes, and the recipes at hand

  --extension FILE.py   also list what this file registers; may be repeated

examples:
  {PROGRAM} recipe list
  {PROGRAM} recipe list --extension my_criterion.py
"""


@dataclass(frozen=True)
class Verb:
    """A word after ``fairseq2 recipe``."""

    summary: str

    run: Callable[[Sequence[str]], None]


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake of the user ends with one line on the standard error and exit status 2.

    :param words: the arguments; those of the process if None.
    """
    match sys.argv[1:] if words is None else list(words):
        case []:
            _print_help()
            fail("a command is missing: `recipe`.")
        case ["-h" | "--help", *_] | ["recipe", "-h" | "--help", *_]:
            _print_help()
        case ["recipe"]:
            _print_help()
            fail(f"a verb is missing: {', '.join(VERBS)}.")
        case ["recipe", name, *rest] if name in VERBS:
            VERBS[name].run(rest)
        case ["recipe", name, *_]:
            fail_unknown(f"verb of `{PROGRAM} recipe`", name, VERBS)
        case [name, *_]:
            fail_unknown(f"command of `{PROGRAM}`", name, ["recipe"])


def fail(line: str) -> NoReturn:
    """Print one line and exit with status 2.

    Not through the log, whose handler wraps lines at the width of the terminal. Of several processes the first one prints.
    """
    if os.environ.get("RANK", "0") == "0":
        print(f"{PROGRAM}: error: {line}", file=sys.stderr)

    sys.exit(2)


def fail_unknown(kind: str, name: str, known: Iterable[str]) -> NoReturn:
    from d2v_plugin.registry import unknown_name

    fail(unknown_name(kind, name, known))


def train(words: Sequence[str]) -> None:
    """``fairseq2 recipe train``: all flags of fairseq2's runner, and ``--extension``."""
    words, extensions = take_extensions(words)

    from d2v_plugin.training.recipe import TrainRecipe

    run(TrainRecipe(extensions), "train", words)


def run(recipe: Recipe, verb: str, words: Sequence[str]) -> None:
    """Run a recipe as ``fairseq2.recipe.cli.main(recipe)`` does, except that mistakes of the user are told in one line.

    fairseq2's ``main`` logs a traceback for a mistyped key before anyone else sees the exception, and offers no place to step
    in between; these are its own steps, with one more layer inside its error handling.
    """
    import torch
    from fairseq2.composition import _register_library
    from fairseq2.logging import configure_logging
    from fairseq2.recipe import cli
    from fairseq2.recipe.composition import _register_inference_recipe, _register_train_recipe
    from fairseq2.recipe.internal.config import _is_train_config
    from fairseq2.recipe.run import _swap_default_resolver
    from fairseq2.runtime.dependency import DependencyContainer

    from d2v_plugin.mistakes import explain
    from d2v_plugin.recipe_files import resolve_bases

    args = parse(verb, words)
    configure_logging(no_rich=args.no_rich)

    trains = _is_train_config(recipe.config_kls)
    container = DependencyContainer()

    with (
        cli._handle_errors(container, args.no_exit_on_error),
        _swap_default_resolver(container),
        torch.inference_mode(mode=not trains),
    ):
        try:
            _register_library(container, no_progress=True if args.no_rich else None)
            (_register_train_recipe if trains else _register_inference_recipe)(container, recipe)
            cli._register_main(container, resolve_bases(args), recipe)
            cli._main(container, args)
        except Exception as ex:
            line = explain(ex, container, args)
            if line is None or args.no_exit_on_error:
                raise
            fail(line)


def parse(verb: str, words: Sequence[str]) -> Namespace:
    """Parse the flags of fairseq2's runner with its own parser; ``--help`` prints our examples after its text."""
    from fairseq2.recipe.cli import _parse_args

    sys.argv = [f"{PROGRAM} recipe {verb}", *words]
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return _parse_args()
    except SystemExit as ex:
        if ex.code == 0:
            print(TRAIN_EXAMPLES)
            raise
        fail(complaint.getvalue().strip().splitlines()[-1].partition("error: ")[2])


def take_extensions(words: Sequence[str]) -> tuple[list[str], list[Extension]]:
    """Take ``--extension FILE`` and ``--extension=FILE`` out of the arguments, wherever they stand, and load the files."""
    kept: list[str] = []
    paths: list[str] = []

    remaining = iter(words)
    for word in remaining:
        flag, equals, value = word.partition("=")
        if flag != "--extension":
            kept.append(word)
            continue
        path = value if equals else next(remaining, "")
        if not path:
            fail("--extension: the name of a file must follow.")
        paths.append(path)

    if not paths:
        return kept, []

    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.extensions import load_extension

    try:
        return kept, [load_extension(Path(path)) for path in paths]
    except RecipeError as ex:
        fail(str(ex))


def list_registered(words: Sequence[str]) -> None:
    """``fairseq2 recipe list``: everything a recipe may name."""
    words, extensions = take_extensions(words)
    if words in (["-h"], ["--help"]):
        print(LIST_HELP)
        return
    if words:
        fail(f"`{PROGRAM} recipe list` takes no `{words[0]}`; only --extension FILE.py.")

    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.listing import describe

    verbs = {name: verb.summary for name, verb in VERBS.items()}
    try:
        print(describe(verbs, extensions))
    except RecipeError as ex:
        fail(str(ex))


def _print_help() -> None:
    verbs = "\n".join(f"  recipe {name:<8} {verb.summary}" for name, verb in VERBS.items())
    print(f"usage: {PROGRAM} recipe <verb> [-h] …\n\ndata2vec on fairseq2\n\nverbs:\n{verbs}\n\n{EXAMPLES}")


VERBS = {
    "train": Verb("train a model: `--config-file RECIPE.yaml OUTPUT_DIR`", train),
    "list": Verb("print the recipes, and what they may name", list_registered),
}
