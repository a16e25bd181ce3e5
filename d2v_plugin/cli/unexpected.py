"""One line for an error that nobody foresaw; its traceback goes into the log file of the run."""

from __future__ import annotations

import logging
import sys
import traceback
from logging import FileHandler
from pathlib import Path

from fairseq2.logging import log  # to which the log files belong
from torch.cuda import OutOfMemoryError

from d2v_plugin.core.errors import root_cause
from d2v_plugin.core.fairseq2_private import TaskRunner
from d2v_plugin.core.secrets import hide_in

_NEVER_OF_SETTINGS = (AssertionError, AttributeError, ImportError, NameError, MemoryError)


def explain_unexpected(ex: Exception, output_dir: Path | None) -> str:
    """Write the traceback into this process's log file, or to the standard error if there is none yet, and say what happened."""
    place = _write_traceback(ex, output_dir)
    if place is None:
        print(hide_in("".join(traceback.format_exception(ex))), file=sys.stderr)
        place = "the lines above"
    if isinstance(ex, OutOfMemoryError):
        memory = str(ex).split("\n", 1)[0]
        return f"the device has not enough memory; lower `task.config.max_batch_size`, for example. {memory} Details: {place}."
    cause = root_cause(ex)
    message = " ".join(str(cause).split())

    return f"an unexpected {type(cause).__name__}: {message:.500} (The traceback is in {place}; please report it.)"


def explain_setup(ex: Exception, output_dir: Path | None) -> str | None:
    """Describe why a run could not be set up, where settings that only others know to be wrong come to light; None otherwise."""
    is_begun = any(frame.f_code is TaskRunner.run.__code__ for frame, _ in traceback.walk_tb(ex.__traceback__))
    cause = root_cause(ex)
    if is_begun or isinstance(ex, OutOfMemoryError) or isinstance(cause, _NEVER_OF_SETTINGS):
        return None
    message, files = " ".join(str(cause).split()), _write_traceback(ex, output_dir)
    place = f" (The traceback is in {files}.)" if files else ""

    return f"the run cannot be set up with these settings: {type(cause).__name__}: {message:.500}{place}"


def _write_traceback(ex: Exception, output_dir: Path | None) -> str | None:
    """:returns: the file; None = there is none yet."""
    own = None if output_dir is None else str(output_dir.resolve())
    files = [
        handler
        for handler in log.logger.handlers
        if isinstance(handler, FileHandler) and own is not None and handler.baseFilename.startswith(own)
    ]
    if not files:
        return None
    trace = (type(ex), ex, ex.__traceback__)
    files[-1].handle(log.logger.makeRecord(log.logger.name, logging.ERROR, __file__, 0, "The run ended.", (), trace))

    return files[-1].baseFilename
