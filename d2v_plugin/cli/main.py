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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from fairseq2.recipe.base import Recipe

    from d2v_plugin.verbs.extensions import Extension

PROGRAM = "fairseq2"

EXAMPLES = f"""\
examples:
  {PROGRAM} recipe list
  {PROGRAM} recipe train --config-file recipes/demo/digits.yaml out/digits
"""

TRAIN_EXAMPLES = f"""
  --extension FILE.py   file that registers more in `setup_fairseq2_extension(container)`; may be repeated
  --resume SOURCE       `auto` (default): go on from the last complete checkpoint in OUTPUT_DIR, if there is one; `none`: start
                        anew; a number: that update's checkpoint; DIR/step_N: that checkpoint, also of another run
  --extend-schedule     when resuming, follow the learning-rate schedule of the recipe as it is now

examples:
  {PROGRAM} recipe train --config-file recipes/demo/digits.yaml out/digits
  {PROGRAM} recipe train --config-file recipes/demo/digits.yaml out/short --config regime.num_steps=100 common.seed=3
  {PROGRAM} recipe train --config-file recipes/demo/digits.yaml --dump-config
  torchrun --nproc-per-node 2 -m d2v_plugin recipe train --config-file recipes/demo/digits.yaml out/digits2

Running a command again continues its run from the last checkpoint in OUTPUT_DIR.
"""

EVALUATE_EXAMPLES = f"""
  --extension FILE.py   file that registers more in `setup_fairseq2_extension(container)`; may be repeated

What the run of the checkpoint was told (task, dataset, criterion) is the default; name what shall differ.

examples:
  {PROGRAM} recipe evaluate out/scores --config checkpoint.path=out/finetuned
  {PROGRAM} recipe evaluate out/scores --config checkpoint.path=out/finetuned checkpoint.best=true splits='[test]'
  {PROGRAM} recipe evaluate out/scores --config checkpoint.path=out/pretrained probing.probes='[{{name: knn}}, {{name: linear}}]'
"""

EXTRACT_EXAMPLES = f"""
  --extension FILE.py   file that registers more in `setup_fairseq2_extension(container)`; may be repeated

What the run of the checkpoint was told (task, dataset) is the default; name what shall differ. Running a command again writes
the shards that are missing.

examples:
  {PROGRAM} recipe extract out/features --config checkpoint.path=out/pretrained split=train
  {PROGRAM} recipe extract out/features --config checkpoint.path=out/pretrained features.layers=all features.pooling=none
  {PROGRAM} recipe extract out/features --config checkpoint.path=out/converted dataset.config_overrides.path=manifests/words
"""

INSPECT_EXAMPLES = f"""
  --extension FILE.py   file that registers more in `setup_fairseq2_extension(container)`; may be repeated

What the run of the checkpoint was told (task, dataset, criterion) is the default; name what shall differ.

examples:
  {PROGRAM} recipe inspect out/pictures --config checkpoint.path=out/pretrained
  {PROGRAM} recipe inspect out/pictures --config checkpoint.path=out/pretrained split=valid num_samples=8 num_embedded=0
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


def fail(line: str, *, status: int = 2, is_mine: bool = False) -> NoReturn:
    """Print one line and exit.

    Not through the log, whose handler wraps lines at the width of the terminal.

    :param is_mine: of several processes the first one prints, unless others may not have this error.
    """
    if is_mine or os.environ.get("RANK", "0") == "0":
        print(f"{PROGRAM}: error: {line}", file=sys.stderr)

    sys.exit(status)


def fail_unknown(kind: str, name: str, known: Iterable[str]) -> NoReturn:
    from d2v_plugin.core.registry import unknown_name

    fail(unknown_name(kind, name, known))


def train(words: Sequence[str]) -> None:
    """``fairseq2 recipe train``: all flags of fairseq2's runner, ``--extension``, ``--resume`` and ``--extend-schedule``."""
    words, extensions = take_extensions(words)
    words, sources = take_values(words, "--resume", "`auto`, `none`, a number or a directory")
    extend_schedule = "--extend-schedule" in words
    words = [word for word in words if word != "--extend-schedule"]

    from d2v_plugin.training.checkpoints.resume import Resume
    from d2v_plugin.verbs.train.recipe import TrainRecipe

    resume = Resume(sources[-1] if sources else "auto", extend_schedule)
    run(TrainRecipe(extensions, resume), "train", words)


def evaluate(words: Sequence[str]) -> None:
    """``fairseq2 recipe evaluate``: all flags of fairseq2's runner, and ``--extension``."""
    words, extensions = take_extensions(words)

    from d2v_plugin.verbs.defaults import recall_origin
    from d2v_plugin.verbs.evaluate.recipe import EvaluateRecipe

    run(EvaluateRecipe(extensions), "evaluate", words, prepare=recall_origin, examples=EVALUATE_EXAMPLES)


def extract(words: Sequence[str]) -> None:
    """``fairseq2 recipe extract``: all flags of fairseq2's runner, and ``--extension``."""
    words, extensions = take_extensions(words)

    from d2v_plugin.verbs.defaults import recall_origin
    from d2v_plugin.verbs.extract.recipe import ExtractRecipe

    prepare = partial(recall_origin, sections=("task", "dataset"))
    run(ExtractRecipe(extensions), "extract", words, prepare=prepare, examples=EXTRACT_EXAMPLES)


def inspect(words: Sequence[str]) -> None:
    """``fairseq2 recipe inspect``: all flags of fairseq2's runner, and ``--extension``."""
    words, extensions = take_extensions(words)

    from d2v_plugin.verbs.defaults import recall_origin
    from d2v_plugin.verbs.inspect.recipe import InspectRecipe

    run(InspectRecipe(extensions), "inspect", words, prepare=recall_origin, examples=INSPECT_EXAMPLES)


def run(
    recipe: Recipe,
    verb: str,
    words: Sequence[str],
    *,
    prepare: Callable[[Namespace], Namespace] | None = None,
    examples: str = TRAIN_EXAMPLES,
) -> None:
    """Run a recipe as ``fairseq2.recipe.cli.main(recipe)`` does, except that mistakes of the user are told in one line.

    fairseq2's ``main`` logs a traceback for a mistyped key before anyone else sees the exception, and offers no place to step
    in between; these are its own steps, with one more layer inside its error handling.

    :param prepare: turns the parsed command line into one that fairseq2 understands; None = resolves the recipe file's bases.
    :param examples: what ``--help`` prints after fairseq2's text.
    """
    import torch
    from fairseq2.logging import configure_logging
    from fairseq2.runtime.dependency import DependencyContainer

    from d2v_plugin.cli.lost_rank import explain_lost_rank
    from d2v_plugin.cli.redaction import hide_secrets
    from d2v_plugin.cli.user_errors import explain
    from d2v_plugin.core import fairseq2_private
    from d2v_plugin.data.bad_samples import BadSamplesError
    from d2v_plugin.verbs.inheritance import resolve_bases

    args = parse(verb, words, examples)
    configure_logging(no_rich=args.no_rich)
    hide_secrets()

    trains = fairseq2_private.is_train_config(recipe.config_kls)
    container = DependencyContainer()

    with (
        fairseq2_private.handle_errors(container, args.no_exit_on_error),
        fairseq2_private.swap_default_resolver(container),
        torch.inference_mode(mode=not trains),
    ):
        try:
            fairseq2_private.register_library(container, no_progress=True if args.no_rich else None)
            register = fairseq2_private.register_train_recipe if trains else fairseq2_private.register_inference_recipe
            register(container, recipe)
            fairseq2_private.register_main(container, (prepare or resolve_bases)(args), recipe)
            fairseq2_private.run_main(container, args)
        except Exception as ex:
            line = explain(ex, container, args)
            if args.no_exit_on_error:
                raise
            if line is not None:
                fail(line, is_mine=isinstance(ex, BadSamplesError))
            lost = explain_lost_rank(ex, int(os.environ.get("RANK", "0")), args.output_dir)
            if lost is None:
                raise
            # Two of each machine, of which one may be the lost one.
            fail(lost, status=1, is_mine=int(os.environ.get("LOCAL_RANK", "0")) < 2)


def parse(verb: str, words: Sequence[str], examples: str) -> Namespace:
    """Parse the flags of fairseq2's runner with its own parser; ``--help`` prints our examples after its text."""
    from d2v_plugin.core.fairseq2_private import parse_args

    sys.argv = [f"{PROGRAM} recipe {verb}", *words]
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return parse_args()
    except SystemExit as ex:
        if ex.code == 0:
            print(examples)
            raise
        fail(complaint.getvalue().strip().splitlines()[-1].partition("error: ")[2])


def take_values(words: Sequence[str], flag: str, what: str) -> tuple[list[str], list[str]]:
    """Take ``FLAG VALUE`` and ``FLAG=VALUE`` out of the arguments, wherever they stand.

    :param what: what a value is, for the message.
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
        if not value:
            fail(f"{flag}: {what} must follow.")
        values.append(value)

    return kept, values


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


def list_registered(words: Sequence[str]) -> None:
    """``fairseq2 recipe list``: everything a recipe may name."""
    words, extensions = take_extensions(words)
    if words in (["-h"], ["--help"]):
        print(LIST_HELP)
        return
    if words:
        fail(f"`{PROGRAM} recipe list` takes no `{words[0]}`; only --extension FILE.py.")

    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.cli.listing import describe

    verbs = {name: verb.summary for name, verb in VERBS.items()}
    try:
        print(describe(verbs, extensions))
    except RecipeError as ex:
        fail(str(ex))


def _print_help() -> None:
    verbs = "\n".join(f"  recipe {name:<9} {verb.summary}" for name, verb in VERBS.items())
    print(f"usage: {PROGRAM} recipe <verb> [-h] …\n\ndata2vec on fairseq2\n\nverbs:\n{verbs}\n\n{EXAMPLES}")


VERBS = {
    "train": Verb("train a model: `--config-file RECIPE.yaml OUTPUT_DIR`", train),
    "evaluate": Verb("score a fine-tuned model, or probe any model: `OUTPUT_DIR --config checkpoint.path=RUN`", evaluate),
    "extract": Verb("write features of a manifest to disk: `OUTPUT_DIR --config checkpoint.path=RUN`", extract),
    "inspect": Verb("draw pictures of a model: `OUTPUT_DIR --config checkpoint.path=RUN`", inspect),
    "list": Verb("print the recipes, and what they may name", list_registered),
}
