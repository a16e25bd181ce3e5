"""The log of this package: a branch of fairseq2's, so that it is in the same files, and known by its name on the screen."""

from __future__ import annotations

from typing import Final

from fairseq2.logging import LogWriter, get_log_writer

LOG_NAME: Final = "fairseq2.d2v_plugin"

log: Final[LogWriter] = get_log_writer(LOG_NAME)
