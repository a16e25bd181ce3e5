"""What of a command's log reaches the screen: warnings, and what is ours. The log file in the output directory has all of it."""

from __future__ import annotations

import logging
from logging import FileHandler, Formatter, Handler, LogRecord
from typing import Final, final

from fairseq2.logging import configure_logging
from fairseq2.logging import log as fairseq2_log
from fairseq2.utils.rich import get_error_console
from typing_extensions import override

from d2v_plugin.core.log import LOG_NAME

# Beginnings of what fairseq2 logs: what is worth showing although it is no warning, and a warning of what a run says anyway.
_SHOWN: Final = ("Training restored. Resuming", "Task finished in")
_HIDDEN: Final = ("Based on the environment setup, training will be run on CPU",)


def is_terminal() -> bool:
    """Tell whether somebody watches: the standard error, where bars are drawn, is a terminal."""
    return get_error_console().is_terminal


def configure_screen(*, rich: bool, verbose: bool) -> None:
    """Set up logging for a command.

    :param rich: colors, and lines that fit the terminal.
    :param verbose: show everything.
    """
    for handler in _log_files():  # of an earlier command of this process
        fairseq2_log.logger.removeHandler(handler)
        handler.close()
    configure_logging(no_rich=not rich)

    root = logging.getLogger()
    layout, time = ("%(message)s", "%H:%M:%S") if rich else ("%(asctime)s %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S")
    for handler in [] if verbose else root.handlers:
        handler.addFilter(is_shown)
        handler.setFormatter(Formatter(layout, time))
    root.addHandler(LogCompleter())


def is_shown(record: LogRecord) -> bool:
    """Tell whether a record reaches the screen without ``--verbose``."""
    if record.levelno >= logging.WARNING:
        return not record.getMessage().startswith(_HIDDEN)

    return record.name == LOG_NAME or record.getMessage().startswith(_SHOWN)


@final
class LogCompleter(Handler):
    """Hands the log file what it would miss: what was logged before it was opened, and what other libraries log."""

    def __init__(self) -> None:
        super().__init__()
        self._early: list[LogRecord] = []

    @override
    def emit(self, record: LogRecord) -> None:
        files = _log_files()
        if not files:
            self._early.append(record)
            return

        missed = [*self._early, *([] if record.name.split(".")[0] == fairseq2_log.logger.name else [record])]
        self._early.clear()
        for each in missed:
            for file in files:
                file.handle(each)


def _log_files() -> list[Handler]:
    """What fairseq2 has opened: ``logs/rank_0.log``."""
    return [handler for handler in fairseq2_log.logger.handlers if isinstance(handler, FileHandler)]
