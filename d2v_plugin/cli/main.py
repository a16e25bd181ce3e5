"""The ``fairseq2`` command: a thin dispatcher over fairseq2's recipe runner, which ships without a command.

Nothing heavy is imported before it is needed, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from d2v_plugin.cli.help import DOCTOR_HELP, PROGRAM_HELP
from d2v_plugin.cli.running import drop_output, ending_with_its_reader
from d2v_plugin.cli.verbs import VERBS
from d2v_plugin.cli.words import PROGRAM, fail, fail_unknown, find_recipe_file, take_device, take_extensions
from d2v_plugin.core.errors import FULL
from d2v_plugin.core.store import is_url


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake of the user ends with one line on the standard error and exit status 2.

    :param words: the arguments; those of the process if None.
    """
    try:
        with ending_with_its_reader():
            _dispatch(sys.argv[1:] if words is None else list(words))
    except OSError as ex:
        if ex.filename is not None or ex.errno not in FULL:
            raise
        # Verbs tell of their files themselves: this is what was printed.
        drop_output()
        fail(f"the standard output cannot be written: {ex.strerror}.")


def _dispatch(words: list[str]) -> None:
    match words:
        case []:
            print(PROGRAM_HELP)
            fail("a command is missing: `recipe` or `doctor`.")
        case ["-h" | "--help", *_] | ["recipe", "-h" | "--help", *_]:
            print(PROGRAM_HELP)
        case ["doctor"]:
            from d2v_plugin.cli.doctor.report import diagnose

            sys.exit(diagnose())
        case ["doctor", "-h" | "--help"]:
            print(DOCTOR_HELP)
        case ["doctor", word, *_]:
            fail(f"`{PROGRAM} doctor` takes no `{word}`.")
        case ["recipe"]:
            print(PROGRAM_HELP)
            fail(f"a verb is missing: {', '.join(VERBS)}.")
        case ["recipe", "convert", *rest] if any(map(is_url, rest)):
            fail(f"{next(filter(is_url, rest))}: checkpoints are converted between local folders; copy it first.")
        case ["recipe", name, *rest] if name in VERBS:
            from d2v_plugin.cli.staging import staged_words  # `doctor` answers where it cannot be imported

            with staged_words(name, rest) as staged:
                VERBS[name](*take_extensions(find_recipe_file(take_device(staged))))
        case ["recipe", name, *_]:
            fail_unknown(f"verb of `{PROGRAM} recipe`", name, VERBS)
        case [name, *_]:
            fail_unknown(f"command of `{PROGRAM}`", name, ["recipe", "doctor"])
