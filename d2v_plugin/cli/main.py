"""The ``fairseq2`` command: a thin dispatcher over fairseq2's recipe runner, which ships without a command.

Nothing heavy is imported before it is needed, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from d2v_plugin.cli.help import HELP, PROGRAM_HELP
from d2v_plugin.core.errors import causes
from d2v_plugin.core.secrets import hide_in

if TYPE_CHECKING:
    from d2v_plugin.verbs.extensions import ExtensibleRecipe, Extension

PROGRAM = "fairseq2"


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake of the user ends with one line on the standard error and exit status 2.

    :param words: the arguments; those of the process if None.
    """
    with ending_with_its_reader():
        match sys.argv[1:] if words is None else list(words):
            case []:
                print(PROGRAM_HELP)
                fail("a command is missing: `recipe`.")
            case ["-h" | "--help", *_] | ["recipe", "-h" | "--help", *_]:
                print(PROGRAM_HELP)
            case ["recipe"]:
                print(PROGRAM_HELP)
                fail(f"a verb is missing: {', '.join(VERBS)}.")
            case ["recipe", name, *rest] if name in VERBS:
                VERBS[name](*take_extensions(rest))
            case ["recipe", name, *_]:
                fail_unknown(f"verb of `{PROGRAM} recipe`", name, VERBS)
            case [name, *_]:
                fail_unknown(f"command of `{PROGRAM}`", name, ["recipe"])


@contextmanager
def ending_with_its_reader() -> Iterator[None]:
    """End the process, without a word, once nobody reads its output any more, as in ``fairseq2 recipe list | head``."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except Exception as ex:
        if not any(isinstance(cause, BrokenPipeError) for cause in causes(ex)) or not _is_unread(sys.stdout.fileno()):
            raise
        # The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _is_unread(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)

    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def fail(line: str, *, status: int = 2, is_mine: bool = False) -> NoReturn:
    """Print one line and exit.

    Not through the log, whose handler wraps lines at the width of the terminal.

    :param is_mine: of several processes the first one prints, unless others may not have this error.
    """
    if is_mine or os.environ.get("RANK", "0") == "0":
        print(f"{PROGRAM}: error: {hide_in(line)}", file=sys.stderr)

    sys.exit(status)


def fail_unknown(kind: str, name: str, known: Iterable[str]) -> NoReturn:
    from d2v_plugin.core.registry import unknown_name

    fail(unknown_name(kind, name, known))


def train(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe train``: all flags of fairseq2's runner, ``--extension``, and what resuming needs."""
    words, sources = take_values(words, "--resume", "`auto`, `none`, a number or a directory", once=True)
    if sources and sources[0].isdecimal() and len(sources[0]) > 18:
        fail(f"--resume: no run has as many updates as a number of {len(sources[0]):,} digits says.")
    switches = {"--extend-schedule": "extend_schedule", "--accept-changed-data": "accept_changed_data"}
    switched = {switches[word]: True for word in words if word in switches}
    words = [word for word in words if word not in switches]

    from d2v_plugin.training.checkpoints.resume import Resume
    from d2v_plugin.verbs.train.recipe import TrainRecipe

    run(TrainRecipe(extensions, Resume(sources[0] if sources else "auto", **switched)), "train", words)


def evaluate(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe evaluate``: all flags of fairseq2's runner, and ``--extension``."""
    from d2v_plugin.verbs.evaluate.recipe import EvaluateRecipe

    run(EvaluateRecipe(extensions), "evaluate", words)


def extract(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe extract``: all flags of fairseq2's runner, and ``--extension``."""
    from d2v_plugin.verbs.extract.recipe import ExtractRecipe

    run(ExtractRecipe(extensions), "extract", words)


def inspect(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe inspect``: all flags of fairseq2's runner, and ``--extension``."""
    from d2v_plugin.verbs.inspect.recipe import InspectRecipe

    run(InspectRecipe(extensions), "inspect", words)


def list_registered(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe list``: everything a recipe may name."""
    if words in (["-h"], ["--help"]):
        print(HELP["list"])
        return
    if words:
        fail(f"`{PROGRAM} recipe list` takes no `{words[0]}`; only --extension FILE.py.")

    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.cli.listing import describe_registered

    try:
        print(describe_registered(extensions))
    except RecipeError as ex:
        fail(str(ex))


def run(recipe: ExtensibleRecipe, verb: str, words: Sequence[str]) -> None:
    """Run a recipe as ``fairseq2.recipe.cli.main(recipe)`` does, except that mistakes of the user are told in one line.

    fairseq2's ``main`` logs a traceback for a mistyped key before anyone else sees the exception, and offers no place to step
    in between; these are its own steps, with one more layer inside its error handling.
    """
    import torch
    from fairseq2.logging import configure_logging
    from fairseq2.nn.utils.grad import InconsistentGradNormError
    from fairseq2.runtime.dependency import DependencyContainer
    from fairseq2.task import TaskStopException

    from d2v_plugin.cli.lost_rank import explain_lost_rank
    from d2v_plugin.cli.redaction import hide_secrets, register_safe_dumper
    from d2v_plugin.cli.unexpected import explain_setup, explain_unexpected
    from d2v_plugin.cli.user_errors import explain, explain_unreadable
    from d2v_plugin.core import fairseq2_private
    from d2v_plugin.data.bad_samples import BadSamplesError

    args = parse(verb, words)
    configure_logging(no_rich=args.no_rich)
    hide_secrets()

    trains = fairseq2_private.is_train_config(recipe.config_kls)
    container = DependencyContainer()

    with (
        fairseq2_private.handle_errors(container, args.no_exit_on_error),
        fairseq2_private.swap_default_resolver(container),
        torch.inference_mode(mode=not trains),
    ):
        is_read = False
        try:
            with ending_with_its_reader():
                fairseq2_private.register_library(container, no_progress=True if args.no_rich else None)
                register_safe_dumper(container)
                register = fairseq2_private.register_train_recipe if trains else fairseq2_private.register_inference_recipe
                register(container, recipe)
                fairseq2_private.register_main(container, recipe.resolve_arguments(args), recipe)
                container.resolve(fairseq2_private.RecipeConfigHolder)
                is_read = True
                fairseq2_private.run_main(container, args)
        except (TaskStopException, InconsistentGradNormError):
            raise
        except Exception as ex:
            if args.no_exit_on_error:
                raise
            line = explain(ex, container, args)
            if line is None and not is_read:
                line = explain_unreadable(ex, args)
            if line is not None:
                fail(line, is_mine=isinstance(ex, BadSamplesError))
            lost = explain_lost_rank(ex, int(os.environ.get("RANK", "0")), args.output_dir)
            if lost is None and (unfit := explain_setup(ex, args.output_dir)) is not None:
                fail(unfit)
            if lost is None:
                fail(explain_unexpected(ex, args.output_dir), status=1, is_mine=True)
            # Print on two ranks per machine: one of them may be the lost one.
            fail(lost, status=1, is_mine=int(os.environ.get("LOCAL_RANK", "0")) < 2)


def parse(verb: str, words: Sequence[str]) -> Namespace:
    """Parse the flags of fairseq2's runner with its own parser; ``--help`` prints ours after its text."""
    from d2v_plugin.core.fairseq2_private import parse_args

    check_words(words)
    sys.argv = [f"{PROGRAM} recipe {verb}", *words]
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return parse_args()
    except SystemExit as ex:
        if ex.code == 0:
            print(HELP[verb])
            raise
        fail(complaint.getvalue().strip().splitlines()[-1].partition("error: ")[2])
    except Exception as ex:
        fail(f"the command line cannot be understood: {ex}")


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


VERBS = {"train": train, "evaluate": evaluate, "extract": extract, "inspect": inspect, "list": list_registered}
