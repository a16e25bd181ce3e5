"""A recipe, run as fairseq2's runner does, but with mistakes of the user told in one line."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING

from d2v_plugin.cli.help import HELP
from d2v_plugin.cli.words import PROGRAM, VERBOSE, check_words, fail, fail_if_mistaken
from d2v_plugin.core.errors import causes

if TYPE_CHECKING:
    from d2v_plugin.verbs.extensions import ExtensibleRecipe


@contextmanager
def ending_with_its_reader() -> Iterator[None]:
    """End the process, without a word, once nobody reads its output any more, as in ``fairseq2 recipe list | head``."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # as after `>&-`
                sys.stdout.flush()
    except Exception as ex:
        if not any(isinstance(cause, BrokenPipeError) for cause in causes(ex)) or not _is_unread(sys.stdout.fileno()):
            raise
        drop_output()
        sys.exit(128 + signal.SIGPIPE)


def drop_output() -> None:
    """Let nothing more come out: the interpreter flushes once more at its end, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_unread(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)

    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def run(recipe: ExtensibleRecipe, verb: str, words: Sequence[str]) -> None:
    """Run a recipe as ``fairseq2.recipe.cli.main(recipe)`` does, except that mistakes of the user are told in one line.

    fairseq2's ``main`` logs a traceback for a mistyped key before anyone else sees the exception, and offers no place to step
    in between; these are its own steps, with one more layer inside its error handling.
    """
    import torch
    from fairseq2.nn.utils.grad import InconsistentGradNormError
    from fairseq2.runtime.dependency import DependencyContainer
    from fairseq2.task import TaskStopException

    from d2v_plugin.cli.reading import read_config
    from d2v_plugin.cli.redaction import hide_secrets, register_safe_dumper
    from d2v_plugin.cli.screen import configure_screen, is_terminal
    from d2v_plugin.cli.unexpected import explain_setup, explain_unexpected
    from d2v_plugin.cli.user_errors import explain, explain_unreadable
    from d2v_plugin.core import fairseq2_private
    from d2v_plugin.data.bad_samples import BadSamplesError
    from d2v_plugin.training.lost_rank import explain_lost_rank

    args = parse(verb, [word for word in words if word != VERBOSE])
    has_bars = is_terminal() and not args.no_rich
    configure_screen(rich=has_bars, verbose=VERBOSE in words)
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
                fairseq2_private.register_library(container, no_progress=None if has_bars else True)
                register_safe_dumper(container)
                register = fairseq2_private.register_train_recipe if trains else fairseq2_private.register_inference_recipe
                register(container, recipe)
                resolved = recipe.resolve_arguments(args)
                fairseq2_private.register_main(container, resolved, recipe)
                fairseq2_private.read_config_once(container)
                fail_if_mistaken(read_config(container, resolved, args))
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
