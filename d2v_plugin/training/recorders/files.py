"""Files of metrics that a full disk does not end: what cannot be recorded costs a warning and is tried again."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TextIO, cast, final

from fairseq2.error import OperationalError
from fairseq2.file_system import FileMode, FileSystem
from fairseq2.metrics.recorders import JsonlMetricRecorder, MetricDescriptorRegistry, MetricRecorder
from typing_extensions import override

from d2v_plugin.core.appended_file import AppendedFile
from d2v_plugin.core.log import log

_MAX_WAITING: Final = 1000


def survive_full_disk() -> None:
    """Let log files that cannot be written cost one line on the standard error; Python prints a traceback for each line, and one
    for TensorBoard's thread, whose error its owner is told anyway."""

    logging.FileHandler.handleError = _complain  # type: ignore[assignment, method-assign]
    if threading.excepthook is not _pass_over_disks:
        threading.excepthook = _pass_over_disks


def _complain(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    if handler not in _complained:
        _complained.add(handler)
        print(f"{handler.baseFilename} cannot be written; the log goes on here.", file=sys.stderr)


_complained: Final[set[logging.Handler]] = set()


def _pass_over_disks(args: threading.ExceptHookArgs) -> None:
    if not (issubclass(args.exc_type, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(args)


def create_json_lines(output_dir: Path, known: MetricDescriptorRegistry) -> MetricRecorder:
    """Create fairseq2's recorder of ``metrics/*.jsonl``, whose keys are the display names of descriptors."""
    return JsonlMetricRecorder(output_dir, cast(FileSystem, _Lines()), known)


@final
class _Lines:
    """As much of a file system as fairseq2's recorder of JSON lines needs."""

    def make_directory(self, path: Path) -> None:
        """Do nothing: the folder is made when there is something to write."""

    def open_text(self, path: Path, mode: FileMode = FileMode.READ) -> TextIO:
        return _LineWriter(AppendedFile(path))


@final
class _LineWriter(io.StringIO):
    """Hands over what was written when it is flushed."""

    def __init__(self, file: AppendedFile) -> None:
        super().__init__()
        self._file = file

    @override
    def flush(self) -> None:
        if not self.closed and (text := self.getvalue()):
            self.seek(0)
            self.truncate()
            self._file.add(text)

    @override
    def close(self) -> None:
        if not self.closed:
            self.flush()
            self._file.add("")
        super().close()


@final
class RetryingRecorder(MetricRecorder):
    """A recorder that is made anew when it fails, with what it could not record."""

    def __init__(self, create: Callable[[], MetricRecorder], what: str) -> None:
        """:param what: what cannot be written, for the warning."""
        self._create = create
        self._what = what
        self._recorder: MetricRecorder | None = None
        self._waiting: list[tuple[str, dict[str, object], int | None]] = []

    @override
    def record_metric_values(self, category: str, values: Mapping[str, object], step_nr: int | None = None) -> None:
        has_failed = bool(self._waiting)
        self._waiting.append((category, dict(values), step_nr))
        try:
            self._recorder = self._recorder or self._create()
            for each in self._waiting:
                self._recorder.record_metric_values(*each)
        except (OSError, OperationalError) as ex:
            if not has_failed:
                log.warning("{} cannot be written: {}. It is tried again with the next values.", self._what, _reason(ex))
            self._drop()
            del self._waiting[:-_MAX_WAITING]
        else:
            self._waiting.clear()

    def _drop(self) -> None:
        recorder, self._recorder = self._recorder, None
        try:
            if recorder is not None:
                recorder.close()
        except Exception as ex:  # the thread that writes has died of the same
            log.debug("Closing failed, too: {}", ex)

    @override
    def close(self) -> None:
        self._drop()


def _reason(ex: Exception) -> Any:
    return ex.__cause__ or ex
