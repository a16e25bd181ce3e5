"""Files that grow line by line beside a long run, and must not end it when the disk is full."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, final

from d2v_plugin.core.log import log

_MAX_WAITING: Final = 1 << 22


@final
class AppendedFile:
    """Appends whole lines to a file; those that cannot be written cost a warning, wait, and are tried again with the next."""

    def __init__(self, path: Path, header: str = "") -> None:
        """:param header: the first line of a new file, with its line feed."""
        self.path = path
        self._header = header
        self._waiting: list[str] = []
        self._has_failed = False

    def add(self, text: str) -> None:
        """
        :param text: lines, each with its line feed; bytes of names that are not valid UTF-8 are written as they are. Without any,
            those that wait are tried again.
        """
        if not text and not self._waiting:
            return
        self._waiting.append(text)
        try:
            self._write("".join(self._waiting).encode("utf-8", errors="surrogateescape"))
        except OSError as ex:
            if not self._has_failed:
                log.warning("{} cannot be written: {}. It is tried again with the next lines.", self.path, ex.strerror or ex)
            self._has_failed = True
            self._limit()
            return
        self._waiting.clear()
        if self._has_failed:
            log.info("{} can be written again.", self.path)
        self._has_failed = False

    def _write(self, data: bytes) -> None:
        """Append all or nothing, so that the file has whole lines at any time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            rest = memoryview(self._header.encode() + data if size == 0 else data)
            try:
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _limit(self) -> None:
        """Forget the oldest lines before they fill the memory, too."""
        dropped = 0
        while len(self._waiting) > 1 and sum(map(len, self._waiting)) > _MAX_WAITING:
            dropped += self._waiting.pop(0).count("\n")
        if dropped:
            log.warning("{} lines for {} are lost: too many wait.", dropped, self.path)
